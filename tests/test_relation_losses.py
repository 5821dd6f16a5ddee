"""Losses of relations between samples: on paper, what they ignore, and where a row is zero."""

import math
from collections.abc import Callable

import pytest
import torch
from loss_table import SIMILARITIES, Loss, each
from torch import Tensor

from bench.method import MaskedLoss, View
from methods._points import deepest_map
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


def scaled(points: Tensor) -> Tensor:
    return 37 * points


def mixed(points: Tensor) -> Tensor:
    """By an orthogonal matrix over all features of a sample."""
    flat = points.flatten(1)
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2 * [flat.shape[1]], generator=generator, dtype=flat.dtype)
    return (flat @ torch.linalg.qr(square)[0]).view_as(points)


CHANGES = {sp_loss: (scaled, mixed)}


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
    for changed in ((change(student), teacher), (student, change(teacher))):
        torch.testing.assert_close(loss.compute(*[[x] for x in changed]), expected)


def test_sp_notices_the_size_of_single_samples():
    student, teacher = rows([1, 0], [1, 1]), rows([1, 0], [0, 2])
    larger = student * rows([1], [2])
    assert abs(sp_loss(larger, teacher) - sp_loss(student, teacher)) > 1e-3


@each(SIMILARITIES)
@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_zero_row_takes_no_giant_gradient_and_is_named(loss: Loss, size: float):
    (student,), teacher = loss.inputs(6, dtype=torch.float32)
    student[2] *= size
    _, (gradient,) = loss.value_and_gradients([student], teacher)
    assert gradient.norm(dim=-1).max() < 10  # a divisor of 1e-12 would show
    found = MASKED[loss.function](student, teacher[0])
    assert found.masked is not None
    assert found.masked.nonzero().flatten().tolist() == [2]


MASKED: dict[Callable[..., Tensor], Callable[..., MaskedLoss]] = {sp_loss: masked_sp_loss}


def test_the_deepest_map_is_stage_4_only_where_both_networks_have_it():
    three, four = (
        View(dict.fromkeys(taps, rows([0]))) for taps in (["stage3"], ["stage3", "stage4"])
    )
    assert deepest_map(four, four) == "stage4"
    assert deepest_map(three, four) == deepest_map(four, three) == "stage3"
