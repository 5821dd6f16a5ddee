"""Methods that read more of a teacher than its maps: its BatchNorms."""

import pytest
import torch
from lessons import cell
from loss_table import of
from torch import Tensor, nn

from bench.hyperparameters import build_method
from bench.method import Facts, NotApplicable, Pair, Stage, View
from bench.models import zoo
from bench.models.network import Network, tap_shapes
from bench.train.teacher import Teacher
from methods.ofd import margin, ofd_loss

IMAGE, INDEX = (3, 32, 32), torch.arange(2)


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def network(name: str, classes: int = 4) -> Network:
    torch.manual_seed(0)
    return zoo.build(name, classes, IMAGE).eval()


def facts_of(teacher: Network) -> Facts:
    own = cell("student", "cnn2")
    return Teacher(teacher, own, torch.device("cpu"), IMAGE).facts(torch.zeros(5).long())


def connected(name: str, student: Network, teacher: Network, **hparams) -> tuple[Stage, nn.Module]:
    method = build_method(name, **hparams)
    shapes = (tap_shapes(one, IMAGE) for one in (student, teacher))
    (stage,) = method.plan
    return stage, method.connector(*shapes, facts_of(teacher))


def pair_of(stage: Stage, student: Network, teacher: Network) -> Pair:
    both = [*stage.taps, *(t for t in stage.optional_taps if t in student.tap_names)]
    both = [tap for tap in both if tap in teacher.tap_names]
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        views = [View(one.view(images, both)) for one in (student, teacher)]
    return Pair(*views, INDEX, INDEX)


# --- overhaul of feature distillation -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        (0, 1, -0.7978845608),  # -sqrt(2 / pi)
        (1, 2, -1.2821555407),
        (-1, 0.5, -1.0276239313),
        (4, 1, -3),  # hardly ever negative
        (-2, 0, -2),
        (2, 0, 0),
    ],
)
def test_margins_by_hand(mean: float, deviation: float, expected: float):
    assert margin(float64(mean), float64(deviation)).item() == pytest.approx(expected, abs=1e-9)


def test_a_margin_jumps_where_one_response_in_a_thousand_is_negative():
    found = margin(float64(3.0901, 3.0903), float64(1, 1)).tolist()
    assert found == pytest.approx([-0.277, -3], abs=1e-3)
    with pytest.raises(ValueError, match="no deviation may be negative"):
        margin(float64(0), float64(-1))


def test_ofd_by_hand():
    student = float64(2, -1, 0.5, -0.3, 1, -2).view(1, 1, 1, 6).requires_grad_()
    teacher = float64(1, 1, -0.5, -0.5, -2, -2).view(1, 1, 1, 6)
    loss = ofd_loss(student, teacher, float64(-0.8))
    assert loss.item() == pytest.approx(9.28, abs=1e-9)  # 1 + 4 + 1 + 0.04 + 1.8^2 + 0
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([2, -4, 2, 0.4, 3.6, 0])


def test_ofd_ignores_what_lies_below_the_margin_and_students_below_a_negative_target():
    (loss,) = of(ofd_loss)
    (student,), (teacher,) = loss.inputs(5)
    least = loss.arguments["margin"].double()
    expected = ofd_loss(student, teacher, least)
    assert expected.min() > 0
    floor = least[:, None, None].expand_as(teacher)
    deeper = torch.where(teacher < floor, teacher - 3, teacher)
    assert not torch.equal(deeper, teacher)
    torch.testing.assert_close(ofd_loss(student, deeper, least), expected)
    target = torch.maximum(teacher, floor)
    quiet = (target <= 0) & (student <= target)
    assert quiet.any()
    torch.testing.assert_close(
        ofd_loss(torch.where(quiet, student - 5, student), teacher, least), expected
    )
    swapped = (x.flip(1) for x in (student, teacher))
    torch.testing.assert_close(ofd_loss(*swapped, least.flip(0)), expected)
    with pytest.raises(ValueError, match="one for each of 2 channels"):
        ofd_loss(student, teacher, least[:1])


def test_ofd_takes_margins_of_the_batchnorms_and_halves_the_weight_of_each_earlier_stage():
    teacher = network("wrn_16_1")
    for tap in ("stage1.pre", "stage2.pre", "stage3.pre"):
        norm = teacher.norm_of(tap)
        assert norm is not None
        nn.init.normal_(norm.weight)  # of either sign
        nn.init.normal_(norm.bias)
    student = network("wrn_16_1")
    stage, connector = connected("ofd", student, teacher)
    for point in connector:
        point.layers = nn.Identity()
    pair, expected = pair_of(stage, student, teacher), torch.zeros(2)
    for tap, factor in (("stage1.pre", 1 / 4), ("stage2.pre", 1 / 2), ("stage3.pre", 1)):
        norm = teacher.norm_of(tap)
        least = margin(norm.bias.detach(), norm.weight.detach().abs())
        expected += factor * ofd_loss(pair.student[tap], pair.teacher[tap], least)
    torch.testing.assert_close(stage.transfer(pair, connector), expected)


def test_margins_of_the_data_are_means_of_the_negative_responses_seen_in_training():
    student, teacher = network("vgg8"), network("ShuffleV2")
    with pytest.raises(NotApplicable, match=r"stage1.pre, and it has 58 for 116 .* margin: data"):
        connected("ofd", student, teacher)
    _, connector = connected("ofd", student, teacher, margin="data")
    point = connector[0]
    point.layers = nn.Identity()
    first, second = (torch.randn(3, 116, 4, 2) for _ in range(2))
    first[:, 5], second[:, 5] = 1.0, 0.0  # never negative
    assert not point.eval()(first, first)[1].any()
    point.train()
    for seen in (first, second):
        _, least = point(seen, seen)
        both = torch.cat([first, second]) if seen is second else first
        negative = both.transpose(0, 1).flatten(1)
        wanted = [row[row < 0].mean() if (row < 0).any() else 0.0 for row in negative]
        torch.testing.assert_close(least.float(), torch.tensor(wanted))
    assert torch.equal(point.eval()(first, first)[1], least)


def test_ofd_asks_for_the_data_where_no_batchnorm_is_known():
    shapes = tap_shapes(network("resnet8"), IMAGE)
    nothing = Facts(5, INDEX, 4)
    with pytest.raises(NotApplicable, match="none is known; margin: data needs none"):
        build_method("ofd").connector(shapes, shapes, nothing)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("ResNet50", "MobileNetV2"), ("resnet8x4", "ShuffleV1"), ("resnet8x4", "ShuffleV2")],
)
@pytest.mark.parametrize("name", ["ofd"])
def test_pairs_that_public_code_lacks(name: str, teacher: str, student: str):
    ours, theirs = network(student), network(teacher)
    stage, connector = connected(name, ours, theirs)
    assert stage.transfer(pair_of(stage, ours, theirs), connector).isfinite().all()
