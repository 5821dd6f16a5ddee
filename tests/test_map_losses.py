"""Losses between maps: by hand, what they ignore, and where public code is wrong."""

import math

import pytest
import torch
from lessons import Lesson, cell
from loss_table import of
from test_losses_invariances import moved_positions, permuted
from torch import Tensor

from bench.hyperparameters import build_method
from bench.method import MaskedLoss, Pair, View
from bench.models import zoo
from bench.models.network import tap_shapes
from methods._pool import pool_alike
from methods.ft import ft_loss, masked_ft_loss
from methods.nst import nst_loss
from methods.reviewkd import Level, hcl_loss, nearest
from methods.vid import Regressor, vid_loss

INDEX = torch.arange(2)


def rows(*channels: list[float]) -> Tensor:
    """One sample in float64 with a row of positions per channel: (1, C, 1, W)."""
    return torch.tensor(channels, dtype=torch.float64)[None, :, None, :]


def assert_same(value: Tensor, expected: Tensor) -> None:
    assert expected.abs().min() > 1e-9
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)


# --- variational information distillation ---------------------------------------------------------


def test_vid_by_hand_and_its_best_variance():
    # errors 1 and 4: 1/2 (2.5 / v + log v), lowest at v = 2.5
    mean, teacher = rows([0, 0]), rows([1, 2])
    variance = torch.tensor([5.0], dtype=torch.float64)
    assert vid_loss(mean, teacher, variance).item() == pytest.approx(1.0547189562, abs=1e-9)
    best = vid_loss(mean, teacher, variance / 2).item()
    assert best == pytest.approx(0.9581453659, abs=1e-9)
    assert best == pytest.approx((1 + math.log(2.5)) / 2, rel=1e-12)


def test_vid_trains_the_variance_as_the_formula_says():
    # da_c = sigmoid(a_c) / (2 C) mean over (B, H, W) of [1 / v_c - (m - t)^2 / v_c^2]
    (vid,) = of(vid_loss)
    (student,), (teacher,) = vid.inputs(4)
    torch.manual_seed(0)
    regressor = Regressor(2, 2).double()
    with torch.no_grad():
        regressor.raw_variance += torch.tensor([-6.0, 30.0])  # softplus, not log(1 + exp(.))
    mean, variance = regressor(student)
    vid_loss(mean, teacher, variance).mean().backward()
    v = variance.detach()[:, None, None]
    each = 1 / v - (mean.detach() - teacher).square() / v**2
    raw = regressor.raw_variance
    expected = raw.detach().sigmoid() / (2 * 2) * each.mean(dim=(0, 2, 3))
    torch.testing.assert_close(raw.grad, expected, rtol=1e-10, atol=0)


def test_vid_starts_at_a_variance_of_5_and_moves_it_in_one_epoch():
    # mdistiller leaves the variances out of the optimiser: they stay at 5.
    assert Regressor(3, 7).raw_variance[0].item() == pytest.approx(4.9932291827, abs=1e-6)
    torch.testing.assert_close(Regressor(3, 7)(torch.ones(1, 3, 2, 2))[1], torch.full((7,), 5.0))
    lesson = Lesson(cell("vid"))
    moved = lesson.moved()
    raw = {key for key in lesson.state() if key.endswith("raw_variance")}
    assert len(raw) == 3
    assert raw <= moved
    assert lesson.student.curves["log_variance.stage1"][0] == pytest.approx(math.log(5), abs=0.1)


def test_vid_ignores_where_things_are_and_the_order_of_the_teachers_channels():
    (vid,) = of(vid_loss)
    (mean,), (teacher,) = vid.inputs(5)
    variance = vid.arguments["variance"]
    expected = vid_loss(mean, teacher, variance)
    assert_same(vid_loss(moved_positions(mean), moved_positions(teacher), variance), expected)
    swapped = vid_loss(mean.flip(1), teacher.flip(1), variance.flip(0))
    assert_same(swapped, expected)


def test_vid_refuses_one_variance_for_all_channels():
    with pytest.raises(ValueError, match="one for each of 2 channels"):
        vid_loss(rows([0], [0]), rows([0], [0]), torch.ones(1))


# --- neuron selectivity transfer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        # 1 + 1/2 - 2 (1/2)
        (rows([1, 0], [1, 0]), 0.5),
        # A_s = I / 2, A_t = [[5, 1], [1, 1]] / 6: squares of 1/3, 1/6, 1/6 and 1/3
        (rows([1, 0], [1, 0], [1, 1]), 0.2777777778),
    ],
)
def test_nst_by_hand(teacher: Tensor, expected: float):
    student = rows([1, 0], [0, 1])
    assert nst_loss(student, teacher).item() == pytest.approx(expected, abs=1e-9)
    # The same channels on a larger map, whose further positions are silent: the form by channels.
    wider = [torch.nn.functional.pad(x, (0, 9)) for x in (student, teacher)]
    assert nst_loss(*wider).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", of(nst_loss), ids=lambda loss: loss.name)
def test_nst_ignores_order_sign_and_size_of_channels_and_a_joint_order_of_positions(loss):
    (student,), (teacher,) = loss.inputs(5)
    expected = nst_loss(student, teacher)
    generator = torch.Generator().manual_seed(1)
    for network, x in enumerate((student, teacher)):
        factors = torch.randn(len(x), x.shape[1], 1, 1, generator=generator, dtype=x.dtype)
        changed = permuted(x * factors.sign() * 100**factors, 1)
        assert_same(nst_loss(*((student, changed) if network else (changed, teacher))), expected)
    alike = torch.randn(5, 4, *student.shape[2:], generator=generator).double()
    moved = nst_loss(moved_positions(student), moved_positions(alike))
    assert_same(moved, nst_loss(student, alike))


@pytest.mark.parametrize("loss", of(nst_loss), ids=lambda loss: loss.name)
@pytest.mark.parametrize(("size", "counts"), [(0.5e-8, False), (2e-8, True)])
def test_nst_counts_a_channel_below_1e_8_as_silent(loss, size: float, counts: bool):
    (student,), teacher = loss.inputs(3)
    maps = torch.nn.functional.adaptive_avg_pool2d(student, teacher[0].shape[2:])
    small = maps if maps.shape[2] < student.shape[2] else student
    lengths = small[:, :1].flatten(2).norm(dim=2)[..., None, None]
    tiny = torch.cat([student[:, :1] / lengths * size, student[:, 1:]], dim=1)
    reference = student if counts else torch.cat([student[:, :1] * 0, student[:, 1:]], dim=1)
    value, (gradient,) = loss.value_and_gradients([tiny], teacher)
    torch.testing.assert_close(value, loss.compute([reference], teacher), rtol=1e-9, atol=0)
    assert bool(gradient[:, 0].any()) == counts


# --- knowledge review -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        # mean square 1, and 1/2^2 of the mean 1/2, over 1 + 1/2
        (torch.tensor([[1, -1], [1, 1]]), 0.75),
        # 64 / 64; 2^2 / 16 at 4 x 4, (1/2)^2 / 4 at 2 x 2, (1/8)^2 at 1 x 1
        (8 * torch.eye(64)[0].view(8, 8), (1 + 1 / 8 + 1 / 64 + 1 / 512) / 1.875),
        (torch.tensor([[3]]), 9),
        (torch.full((4, 6), -0.5), 0.25),  # a constant field: c^2
        # 5 x 3 is pooled to 2 x 2 and 1 x 1, as its shorter side asks for
        (torch.ones(5, 3).cumsum(0), (11 + (2**2 + 4**2) / 4 + 9 / 4) / 1.75),
    ],
)
def test_hierarchical_context_loss_by_hand(difference: Tensor, expected: float):
    teacher = torch.randn(1, 1, *difference.shape, dtype=torch.float64)
    assert hcl_loss(teacher + difference, teacher).item() == pytest.approx(expected, abs=1e-9)
    assert hcl_loss(teacher - 3 * difference, teacher).item() == pytest.approx(9 * expected)


def test_levels_of_a_review_are_weighted_sums_of_their_own_map_and_the_deeper_one():
    level = Level(1, 1, 1, deepest=False).eval()
    deepest = Level(1, 1, 1, deepest=True).eval()
    assert deepest.gates is None
    level.enter = deepest.enter = torch.nn.Identity()
    torch.nn.init.zeros_(level.gates[0].weight)
    torch.nn.init.zeros_(level.gates[0].bias)
    ones, twos = torch.ones(1, 1, 4, 4), torch.full((1, 1, 1, 1), 2.0)
    deeper, _ = deepest(twos, None, (1, 1))
    joined, prediction = level(ones, deeper, (8, 8))
    torch.testing.assert_close(joined, torch.full((1, 1, 8, 8), 1.5))  # (1 + 2) / 2
    torch.testing.assert_close(prediction, level.leave(joined))
    with torch.no_grad():
        level.gates[0].bias.copy_(torch.tensor([-40.0, 40.0]))
    torch.testing.assert_close(level(ones, deeper, (4, 4))[0], 2 * ones)


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        ([0, 1, 2], 6, [0, 0, 1, 1, 2, 2]),
        ([0, 1, 2, 3], 2, [0, 2]),
        ([0, 1, 2], 5, [0, 0, 1, 1, 2]),  # floor(3 i / 5)
        ([0, 1, 2, 3, 4], 3, [0, 1, 3]),
    ],
)
def test_nearest_neighbours_along_both_axes(given, size: int, expected):
    row = torch.tensor(given, dtype=torch.float64).requires_grad_()
    assert nearest(row[None, None, None], (1, size)).flatten().tolist() == expected
    column = nearest(row[None, None, :, None], (size, 1))
    assert column.flatten().tolist() == expected
    column.sum().backward()
    assert row.grad.tolist() == [expected.count(i) for i in given]


def test_a_review_goes_from_the_embedding_up_to_the_first_stage():
    ours = {"stage1": (3, 8, 6), "stage2": (5, 4, 3), "stage3": (7, 4, 3), "embedding": (7,)}
    theirs = {"stage1": (4, 8, 12), "stage2": (6, 8, 6), "stage3": (9, 2, 3), "embedding": (8,)}
    shapes = [x | {f"{tap}.pre": x[tap] for tap in [*x][:3]} for x in (ours, theirs)]
    method = build_method("reviewkd")
    connector = method.connect(*shapes).double().eval()
    drawn = [{tap: torch.randn(2, *x[tap]).double() for tap in x} for x in shapes]
    expected, deeper = torch.zeros(2).double(), None
    for level, tap in zip([*connector.levels][::-1], [*ours][::-1], strict=True):
        target = drawn[1][tap if tap == "embedding" else f"{tap}.pre"]
        student, target = (x.view(*x.shape, *[1] * (4 - x.dim())) for x in (drawn[0][tap], target))
        joined = level.enter(student)
        if deeper is not None:
            deeper = torch.nn.functional.interpolate(deeper, joined.shape[2:])
            gates = level.gates(torch.cat([joined, deeper], dim=1))
            joined = joined * gates[:, :1] + deeper * gates[:, 1:]
        deeper = torch.nn.functional.interpolate(joined, target.shape[2:])
        expected += hcl_loss(level.leave(deeper), target)
    pair = Pair(*map(View, drawn), INDEX, INDEX)
    torch.testing.assert_close(method.plan[0].transfer(pair, connector), expected)


@pytest.mark.parametrize(
    ("teacher", "student", "parameters"),
    [
        ("resnet32x4", "resnet8x4", 1_808_774),
        ("resnet56", "resnet20", 114_278),
        ("vgg13", "vgg8", None),  # crashes in mdistiller, whose tables of shapes lack it
        ("ResNet50", "MobileNetV2", None),
        ("resnet8x4", "ShuffleV2", None),  # the student's maps are smaller
        ("vgg8", "resnet8", None),  # the teacher's are, and it alone has a fourth stage
    ],
)
def test_reviews_of_many_pairs(teacher: str, student: str, parameters: int | None):
    ours, theirs = (
        tap_shapes(zoo.build(name, 100, (3, 32, 32)), (3, 32, 32)) for name in (student, teacher)
    )
    method = build_method("reviewkd")
    (stage,), connector = method.plan, method.connect(ours, theirs)
    if parameters is not None:
        assert sum(p.numel() for p in connector.parameters()) == parameters
    both = [t for t in (*stage.taps, *stage.optional_taps) if t in ours and t in theirs]
    views = [View({tap: torch.randn(2, *x[tap]) for tap in both}) for x in (ours, theirs)]
    assert stage.transfer(Pair(*views, INDEX, INDEX), connector).isfinite().all()


# --- factor transfer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # (.6 + .8 + 0 + 1) / 4
        ("vec", 0.6),
        # maps (9, 16) / sqrt 337 and (0, 1): (9 / sqrt 337 + 1 - 16 / sqrt 337) / 2
        ("map", 0.3093428513),
    ],
)
def test_factor_transfer_by_hand(form, expected: float):
    student, teacher = rows([3, 4], [0, 0]), rows([0, 0], [0, 2])
    assert ft_loss(student, teacher, form).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", of(ft_loss), ids=lambda loss: loss.name)
def test_factors_of_any_size_have_a_direction_but_below_1e_8(loss):
    (student,), (teacher,) = loss.inputs(3)
    form = loss.arguments["form"]
    expected = ft_loss(student, teacher, form)
    sizes = torch.tensor([3e5, 2e-8, 0.5e-8], dtype=torch.float64)
    pooled = pool_alike(student, teacher, "average")
    scales = [(sizes / x.flatten(1).norm(dim=1)).view(-1, 1, 1, 1) for x in pooled]
    ours, theirs = student * scales[0], teacher * scales[1]
    for changed in ((ours, teacher), (student, theirs)):
        value, masked = masked_ft_loss(*changed, form)
        assert_same(value[:2], expected[:2])
        assert value[2] == 0
        assert masked.tolist() == [False, False, True]
    _, (gradient,) = loss.value_and_gradients([ours], [teacher])
    assert not gradient[2].any()


def test_the_paraphraser_learns_first_and_then_stays():
    lesson = Lesson(cell("ft"))
    parts = ("network", "connector.encoder", "connector.decoder", "connector.translator")

    def moved() -> list[bool]:
        changed = lesson.moved()
        return [any(key.startswith(part) for key in changed) for part in parts]

    assert moved() == [False, True, True, False]
    assert lesson.student.stage.name == "paraphrase"
    for _ in range(3):  # with weight decay
        assert moved() == [True, False, False, True]


def test_factors_have_at_least_one_channel_and_keep_their_signs():
    shapes = {f"stage{k}": (6, 4, 4) for k in (1, 2, 3)}
    factors = build_method("ft", rate=0.01).connect(shapes, shapes)
    assert factors.encoder(torch.randn(2, 6, 4, 4)).shape == (2, 1, 4, 4)
    factors = build_method("ft").connect(shapes, shapes)
    factor = factors.encoder(torch.randn(50, 6, 4, 4))
    assert factor.shape[1] == 3
    assert factor.min() < 0 < factor.max()  # a ReLU would cut them off


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vid", "nst", "ft"])
def test_a_fourth_stage_counts_where_both_networks_have_one(name):
    stage = build_method(name).plan[-1]
    assert stage.optional_taps == ("stage4",)
    maps = {f"stage{k}": torch.randn(2, 3, 4, 4) for k in (1, 2, 3, 4)}
    other = maps | {"stage4": torch.randn(2, 3, 4, 4)}
    three = {tap: x for tap, x in maps.items() if tap != "stage4"}
    shapes = {tap: tuple(x.shape[1:]) for tap, x in maps.items()}
    connector = build_method(name).connect(shapes, shapes)

    def loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        pair = Pair(View(student), View(teacher), INDEX, INDEX)
        return MaskedLoss.of(stage.transfer(pair, connector)).loss

    assert not torch.equal(loss(maps, maps), loss(other, maps))
    assert torch.equal(loss(maps, three), loss(other, three))
