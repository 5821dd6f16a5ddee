"""Losses of relations between samples: on paper, what they ignore, and where a row is zero."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from loss_table import SIMILARITIES, Loss, each
from torch import Tensor

from bench.method import NoConnector, View
from methods import cc
from methods._points import deepest_map
from methods.cc import cc_loss, masked_cc_loss
from methods.pkt import masked_pkt_loss, pkt_loss
from methods.sp import masked_sp_loss, sp_loss


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sp_on_paper():
    # G_s = [[1, 1], [1, 2]], G_t = [[1, 0], [0, 4]]; rows of length 1. Squared differences:
    # 2 - 2 / sqrt(2) and 2 - 4 / sqrt(5)
    student, teacher = rows([1, 0], [1, 1]), rows([1, 0], [0, 2])
    total = 4 - math.sqrt(2) - 4 / math.sqrt(5)
    assert sp_loss(student, teacher).item() == pytest.approx(total / 4, rel=1e-12)
    assert sp_loss(student, teacher).item() == pytest.approx(0.1992330139, abs=5e-11)
    assert sp_loss(student, teacher, reduction="rows").item() == pytest.approx(total / 2, rel=1e-12)


def test_pkt_on_paper():
    # cosines of the student 0, 1 / sqrt(2), 1 / sqrt(2); of the teacher 1, 0, 0
    student, teacher = rows([1, 0], [0, 1], [1, 1]), rows([1, 0], [1, 0], [0, 1])
    near = (1 + math.sqrt(0.5)) / 2
    p = [[1, 0.5, near], [0.5, 1, near], [near, near, 1]]
    q = [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]]
    total = sum(
        b / sum(theirs) * math.log(b / sum(theirs) / (a / sum(ours)))
        for ours, theirs in zip(p, q, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
    # The eps of 1e-7 shows in the seventh digit.
    assert pkt_loss(student, teacher).item() == pytest.approx(total / 9, rel=1e-6)
    assert pkt_loss(student, teacher).item() == pytest.approx(0.0283557728, abs=5e-11)
    each_row = pkt_loss(student, teacher, reduction="rows").item()
    assert each_row == pytest.approx(0.0850673183, abs=2e-10)


def test_cc_kernel_on_paper():
    # The cosines differ in one pair, 0 against 1 / sqrt(2): e^-0.8 (0.8 / sqrt(2) + 0.32 / 2)
    student, teacher = rows([1, 0], [0, 1]), rows([1, 0], [1, 1])
    gap = math.exp(-0.8) * (0.8 / math.sqrt(2) + 0.16)
    assert cc_loss(student, teacher).item() == pytest.approx(gap**2 / 2, rel=1e-12)
    assert cc_loss(student, teacher).item() == pytest.approx(0.0531613051, abs=5e-11)


def test_cc_pairs_is_neighbours_in_every_order():
    # products of rows 0 and 1, 1 and 2, 0 and 2: 2, 3 and 0
    gaps, nothing = rows([1, 0], [2, 1], [0, 3]), torch.zeros(3, 2, dtype=torch.float64)
    found = [cc_loss(gaps[list(x)], nothing, "neighbours") for x in permutations(range(3))]
    assert found[0] == 2.5
    assert found[2] == 1.0  # the first two swapped
    assert cc_loss(gaps, nothing, "pairs").item() == pytest.approx(5 / 3, rel=1e-12)
    assert torch.stack(found).mean().item() == pytest.approx(5 / 3, rel=1e-12)
    assert cc_loss(-gaps[:1], nothing[:1], "pairs") == 0


def scaled(points: Tensor) -> Tensor:
    return 37 * points


def scaled_per_sample(points: Tensor) -> Tensor:
    return points * torch.logspace(-2, 2, len(points), dtype=points.dtype)[:, None]


def mixed(points: Tensor) -> Tensor:
    """By an orthogonal matrix over all features of a sample."""
    flat = points.flatten(1)
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2 * [flat.shape[1]], generator=generator, dtype=flat.dtype)
    return (flat @ torch.linalg.qr(square)[0]).view_as(points)


CHANGES = {
    sp_loss: (scaled, mixed),
    pkt_loss: (scaled_per_sample, mixed),
    cc_loss: (scaled_per_sample, mixed),
}


@pytest.mark.parametrize(
    ("loss", "change"),
    [
        pytest.param(loss, change, id=f"{loss.name}, {change.__name__}")
        for loss in SIMILARITIES
        for change in CHANGES[loss.function]
    ],
)
def test_ignores_a_change_of_one_network(loss: Loss, change: Callable[[Tensor], Tensor]):
    (student,), (teacher,) = loss.inputs(5)
    expected = loss.compute([student], [teacher])
    assert expected > 1e-4
    # The eps of pkt is a share of the length.
    rtol = 1e-4 if loss.function is pkt_loss else 1e-11
    for changed in ((change(student), teacher), (student, change(teacher))):
        found = loss.compute(*[[x] for x in changed])
        torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


def test_sp_notices_the_size_of_single_samples():
    student, teacher = rows([1, 0], [1, 1]), rows([1, 0], [0, 2])
    larger = student * rows([1], [2])
    assert abs(sp_loss(larger, teacher) - sp_loss(student, teacher)) > 1e-3


MASKED = {sp_loss: masked_sp_loss, pkt_loss: masked_pkt_loss, cc_loss: masked_cc_loss}


@each(SIMILARITIES)
@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_zero_row_takes_no_giant_gradient_and_is_named(loss: Loss, size: float):
    (student,), (teacher,) = loss.inputs(6, dtype=torch.float32)
    student[2] *= size
    _, (gradient,) = loss.value_and_gradients([student], [teacher])
    assert 0 < gradient.norm(dim=-1).max() < 10  # 1 / eps would show
    masked = MASKED[loss.function]
    for pair in ((student, teacher), (teacher, student)):
        found = masked(*pair, **loss.arguments).masked
        assert found is not None
        assert found.nonzero().flatten().tolist() == [2]


def test_pkt_in_single_precision_tells_close_distributions_apart():
    # The divergence is of second order in a difference of 1e-4: all else cancels.
    generator = torch.Generator().manual_seed(0)
    teacher, noise = (torch.randn(64, 16, generator=generator) for _ in range(2))
    student = teacher + 1e-4 * noise
    expected = pkt_loss(student.double(), teacher.double())
    assert expected < 1e-9
    torch.testing.assert_close(pkt_loss(student, teacher).double(), expected, rtol=1e-6, atol=0)


def test_cc_trains_a_layer_on_each_side_only_where_it_compares_embeddings():
    shapes = {"embedding": (6,)}, {"embedding": (9,)}
    assert isinstance(cc.method().connect(*shapes), NoConnector)
    for form in ("pairs", "neighbours"):
        method = cc.method(form=form)
        connector = method.connect(*shapes)
        assert {name: tuple(x.shape) for name, x in connector.named_parameters()} == {
            "student.weight": (128, 6), "student.bias": (128,),
            "teacher.weight": (128, 9), "teacher.bias": (128,),
        }  # fmt: skip


def test_the_deepest_map_is_stage_4_only_where_both_networks_have_it():
    three, four = (
        View(dict.fromkeys(taps, rows([0]))) for taps in (["stage3"], ["stage3", "stage4"])
    )
    assert deepest_map(four, four) == "stage4"
    assert deepest_map(three, four) == deepest_map(four, three) == "stage3"
