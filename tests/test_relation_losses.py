"""Losses of relations between samples: on paper, what they ignore, and where a row is zero."""

import math
from itertools import permutations

import oracles
import pytest
import torch
from lessons import Lesson, cell
from loss_table import SIMILARITIES, Loss, each
from loss_table import float64 as rows

from bench.method import Facts, NoConnector, NotApplicable, View
from methods import cc
from methods._points import deepest_map
from methods.cc import cc_loss, masked_cc_loss
from methods.crd import Memory, crd_loss
from methods.pkt import masked_pkt_loss, pkt_loss
from methods.sp import masked_sp_loss, sp_loss


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


# --- crd: no row of the table, because its banks and what is drawn of them come with the batch ---


def test_crd_on_paper():
    student, teacher = rows([1, 0]), rows([0.6, 0.8])
    student_bank = rows([1, 0], [0, 1], [0.6, -0.8], [0, -1])
    teacher_bank = rows([0.6, 0.8], [0, 1], [-1, 0], [0.8, -0.6])
    drawn = torch.tensor([[0, 1, 2]])
    # The student's products 0.6, 0, -1; the teacher's 0.6, 0.8, -0.28; T = 1/2, N = 4, c = 1/2
    products = [(0.6, 0, -1), (0.6, 0.8, 0.36 - 0.64)]
    normalisers = [4 / 3 * sum(math.exp(2 * x) for x in side) for side in products]
    assert normalisers == pytest.approx([5.9406029413, 11.7924778813], abs=5e-11)
    expected = 0.0
    for side, z in zip(products, normalisers, strict=True):
        first, *others = (math.exp(2 * x) / z for x in side)
        expected += math.log1p((0.5 + 1e-7) / first)
        expected += sum(math.log1p((x + 1e-7) / 0.5) for x in others)
    assert expected == pytest.approx(2.6969922062, abs=5e-11)
    banks = student_bank, teacher_bank
    for given in (normalisers, None):
        found = crd_loss(student, teacher, *banks, drawn, given, 0.5)
        assert found.tolist() == pytest.approx([expected], rel=1e-12)


def contrast(batch: int = 5, images: int = 12, dtype: torch.dtype = torch.float64):
    """Points of length 1 and banks, student's first, and drawn entries of which some are absent."""
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(batch, 6, generator=generator) for _ in range(2)]
    banks = [torch.randn(images, 6, generator=generator) for _ in range(2)]
    units = [torch.nn.functional.normalize(x.to(dtype), dim=1) for x in (*points, *banks)]
    drawn = torch.stack([torch.randperm(images, generator=generator)[:5] for _ in range(batch)])
    drawn[1, 3:], drawn[2, 1] = -1, -1
    return units[:2], units[2:], drawn


@pytest.mark.parametrize("normalisers", [None, (40.0, 70.0)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_crd_equals_the_sum_written_out(normalisers, dtype: torch.dtype, rtol: float):
    points, banks, drawn = contrast(dtype=dtype)
    expected = oracles.crd_loss(*points, *banks, drawn, normalisers, 0.2)
    found = crd_loss(*points, *banks, drawn, normalisers, 0.2)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), torch.tensor(expected), rtol=rtol, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = crd_loss(*points, *banks, drawn, normalisers, 0.2)
    torch.testing.assert_close(cast, found, rtol=1e-6, atol=0)


def test_crd_gradient_is_its_slope_though_the_bank_has_changed_before_the_backward_pass():
    points, banks, drawn = contrast()
    leaves = [x.requires_grad_() for x in points]
    assert torch.autograd.gradcheck(lambda *x: crd_loss(*x, *banks, drawn, (40.0, 70.0)), leaves)
    expected = torch.autograd.grad(crd_loss(*leaves, *banks, drawn, (40.0, 70.0)).sum(), leaves)
    loss = crd_loss(*leaves, *banks, drawn, (40.0, 70.0)).sum()
    for bank in banks:
        bank.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected, rtol=0, atol=0)


def test_crd_refuses_shapes_that_would_broadcast():
    points, banks, drawn = contrast()
    for wrong in (
        (points[0], points[1][:1], *banks, drawn),
        (*points, banks[0], banks[1][:1], drawn),
        (*points, *banks, drawn[:1]),
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            crd_loss(*wrong)


def memory(labels: list[int], negatives: int = 16384) -> Memory:
    torch.manual_seed(0)
    return Memory(3, 4, Facts(len(labels), torch.tensor(labels), 3), negatives)


LABELS = [0, 0, 1, 1, 1, 2, 2, -1, -1, -1]


def test_crd_draws_images_of_other_classes_each_once_and_hidden_labels_are_classes_of_their_own():
    kept, index = memory(LABELS, negatives=5), torch.tensor([9, 2, 0, 7])
    seen = set()
    for _ in range(50):
        drawn = kept.draw(index)
        assert drawn.shape == (4, 6)
        assert torch.equal(drawn[:, 0], index)
        for image, *others in drawn.tolist():
            assert len(set(others)) == 5
            assert image not in others
            assert LABELS[image] not in {LABELS[j] for j in others} - {-1}
            seen |= {(image, other) for other in others}
    assert len(seen) == 9 + 7 + 8 + 9  # sooner or later all of them
    assert memory(LABELS).negatives == 10 - 3
    with pytest.raises(NotApplicable, match="one class"):
        memory([1, 1, 1])


def test_crd_in_evaluation_contrasts_with_all_images_of_other_classes():
    kept = memory(LABELS, negatives=2).eval()
    image, *others = kept.draw(torch.tensor([2]))[0].tolist()
    assert image == 2
    assert [j for j in others if j >= 0] == [0, 1, 5, 6, 7, 8, 9]


def test_crd_writes_its_memory_in_training_alone_and_only_where_the_batch_is():
    kept, index = memory(LABELS), torch.tensor([3, 8])
    inputs = torch.randn(2, 3), torch.randn(2, 4), index, 0.07
    before = {name: x.clone() for name, x in kept.named_buffers()}
    with torch.no_grad():
        points = [torch.nn.functional.normalize(x, dim=1) for x in kept.projections(*inputs[:2])]
    kept.eval()(*inputs)
    assert all(torch.equal(x, before[name]) for name, x in kept.named_buffers())
    kept.train()(*inputs).sum().backward()
    rest = torch.tensor([i for i in range(10) if i not in (3, 8)])
    for name, point in zip(("student_bank", "teacher_bank"), points, strict=True):
        bank = getattr(kept, name)
        moved = torch.nn.functional.normalize(before[name][index] / 2 + point / 2, dim=1)
        torch.testing.assert_close(bank[index], moved)
        assert torch.equal(bank[rest], before[name][rest])
    first = kept.normalisers.clone()
    assert (first > 0).all()
    kept(torch.randn(2, 3), *inputs[1:])
    assert torch.equal(kept.normalisers, first)


def test_crd_holds_each_network_against_the_others_memory_with_the_mean_of_the_first_batch():
    kept, index = memory(LABELS, negatives=5), torch.tensor([3, 8])
    banks = kept.student_bank.clone(), kept.teacher_bank.clone()
    inputs = torch.randn(2, 3), torch.randn(2, 4), index, 0.5
    points = [torch.nn.functional.normalize(x, dim=1) for x in kept.projections(*inputs[:2])]
    expected = crd_loss(*points, *banks, kept.eval().draw(index), None, 0.5)
    torch.testing.assert_close(kept(*inputs), expected)
    kept.train()
    torch.manual_seed(1)
    drawn = kept.draw(index)
    products = [
        torch.stack([v @ bank[j] for v, row in zip(side, drawn, strict=True) for j in row])
        for side, bank in zip(points, reversed(banks), strict=True)
    ]
    normalisers = [10 * x.div(0.5).exp().mean() for x in products]
    torch.manual_seed(1)
    torch.testing.assert_close(kept(*inputs), crd_loss(*points, *banks, drawn, normalisers, 0.5))
    torch.testing.assert_close(kept.normalisers, torch.stack(normalisers))


def test_crd_starts_at_chance_whatever_the_networks():
    # x is about 1 / N, so a side pays log(1 + K) for its image and K log(1 + 1 / K) for the others.
    kept = memory(list(range(3)) * 1000, negatives=1000)
    loss = kept(torch.randn(64, 3), torch.randn(64, 4), torch.arange(64), 1.0)
    assert loss.mean().item() == pytest.approx(2 * (math.log(1001) + 1), rel=0.01)


def test_crd_contrasts_in_the_engine_with_the_cells_own_images():
    lesson = Lesson(cell("crd"))
    before = lesson.state()
    lesson.epoch()
    after = lesson.state()
    for name in ("student_bank", "teacher_bank"):
        moved = (before[f"connector.{name}"] != after[f"connector.{name}"]).any(dim=1)
        assert moved.tolist() == len(lesson.stream.train.labels) * [True]
    assert torch.equal(after["connector.classes"], lesson.stream.train.labels)


def test_the_deepest_map_is_stage_4_only_where_both_networks_have_it():
    three = View({"stage3": rows([0])})
    four = View({**three.taps, "stage4": rows([0])})
    assert deepest_map(four, four) == "stage4"
    assert deepest_map(three, four) == deepest_map(four, three) == "stage3"
