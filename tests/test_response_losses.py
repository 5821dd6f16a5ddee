"""Methods that read nothing but logits: values, gradients and what they must not notice."""

import math

import pytest
import torch
from loss_table import float64, gradient_of, of, standardised_soft_logits_loss
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bench.hyperparameters import build_method
from bench.method import MaskedLoss, Pair, View
from methods import dist, dkd, soft_logits
from methods._soft_targets import soft_target_divergence
from methods._standardise import standardised
from methods._warm_up import warm_up
from methods.dist import dist_loss
from methods.dkd import dkd_loss
from methods.nkd import nkd_loss
from methods.soft_logits import soft_logits_loss, standardise
from methods.wttm import wttm_loss


def pair_of(student: Tensor, teacher: Tensor, *labels: int) -> Pair:
    views = (View({"logits": logits}) for logits in (student, teacher))
    return Pair(*views, torch.tensor(labels), torch.arange(len(student)))


@pytest.mark.parametrize(("name", "most"), [("dkd", 1.0), ("reviewkd", 5.0)])
def test_the_warm_up_is_the_published_one_over_240_epochs(name: str, most: float):
    weight_at = build_method(name).plan[0].weight_at
    published = [most * min((epoch + 1) / 20, 1) for epoch in range(240)]
    assert [weight_at(epoch / 239) for epoch in range(240)] == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize(("phi", "ends"), [(0, (1, 1)), (1, (0.05, 1)), (2, (0.05, 0.525))])
def test_the_warm_up_goes_from_a_twentieth_to_one_or_not_at_all(phi: float, ends):
    weight = warm_up(phi)
    assert (weight(0.0), weight(1.0)) == pytest.approx(ends)


@pytest.mark.parametrize("phi", [-0.1, math.inf, math.nan])
def test_a_warm_up_of_no_length_is_refused(phi: float):
    with pytest.raises(ValueError, match=f"warm_up: {phi} must be"):
        warm_up(phi)


# --- DKD ------------------------------------------------------------------------------------------

STUDENT, TEACHER, FIRST = float64([1, 2, 0]), float64([3, 1, 0]), torch.tensor([0])


@pytest.mark.parametrize(
    ("temperature", "target", "others"),
    [(1.0, 0.7982504497, 0.0826077449), (4.0, 0.0511328477, 0.0075934391)],
)
def test_dkd_of_three_classes(temperature: float, target: float, others: float):
    squared = temperature**2
    for alpha, beta in ((1, 0), (0, 1), (1, 8)):
        (loss,) = dkd_loss(STUDENT, TEACHER, FIRST, temperature, alpha, beta).tolist()
        assert loss == pytest.approx(squared * (alpha * target + beta * others), abs=4e-9)


def test_dkd_with_the_weight_that_soft_targets_imply_is_their_divergence():
    # e^3 / (e^3 + e + 1) = .8437947345; .7982504497 + (1 - .8437947345) .0826077449 = .8111542145
    sure = TEACHER.softmax(1)[0, 0].item()
    assert sure == pytest.approx(0.8437947345, abs=1e-10)
    (whole,) = dkd_loss(STUDENT, TEACHER, FIRST, 1.0, 1.0, 1 - sure).tolist()
    assert whole == pytest.approx(0.8111542145, abs=1e-10)
    assert whole == pytest.approx(soft_target_divergence(STUDENT, TEACHER, 1.0).item(), rel=1e-14)


def test_dkd_pulls_the_label_by_alpha_alone_and_the_others_by_both():
    # T alpha (p_y - q_y) at y, -T alpha (p_y - q_y) p^_k + T beta (p^_k - q^_k) elsewhere
    p, q = (x.div(4).softmax(1)[0] for x in (STUDENT, TEACHER))
    label = 4 * (p[0] - q[0])
    given_p, given_q = (x[1:] / (1 - x[0]) for x in (p, q))
    for alpha, beta in ((1, 0), (0, 1), (1, 8)):
        (found,) = gradient_of(dkd_loss, STUDENT, TEACHER, FIRST, 4.0, alpha, beta)
        others = -alpha * label * given_p + 4 * beta * (given_p - given_q)
        torch.testing.assert_close(found, torch.cat([alpha * label[None], others]))
        assert found.sum().abs() < 1e-14
        assert alpha or found[0] == 0


@pytest.mark.parametrize("function", [dkd_loss, nkd_loss])
def test_a_hidden_label_is_the_teachers_first_choice(function):
    row = of(function)[0]
    (student,), (teacher,) = row.inputs(5)
    hidden = function(student, teacher, torch.full((5,), -1), **row.arguments)
    known = function(student, teacher, teacher.argmax(1), **row.arguments)
    assert torch.equal(hidden, known)
    assert hidden.isfinite().all()


def test_dkd_ignores_the_order_of_the_other_classes():
    student, teacher = STUDENT[:, [0, 2, 1]], TEACHER[:, [0, 2, 1]]
    expected = dkd_loss(STUDENT, TEACHER, FIRST, 4.0, 1.0, 8.0)
    torch.testing.assert_close(dkd_loss(student, teacher, FIRST, 4.0, 1.0, 8.0), expected)


def test_dkd_of_two_classes_has_no_other_classes_to_compare():
    student, teacher = float64([1, 3]), float64([2, 0])
    expected = 16 * soft_target_divergence(student, teacher, 4.0)
    torch.testing.assert_close(dkd_loss(student, teacher, FIRST, 4.0, 1.0, 8.0), expected)


def test_dkd_of_a_student_surer_than_single_precision_can_say():
    # Probabilities of e^-200 are 0 in float32, and their logarithm is minus infinity.
    student, teacher = torch.tensor([[0.0, 200, 0]]), torch.tensor([[3.0, 1, 0]])
    expected = dkd_loss(student.double(), teacher.double(), FIRST, 1.0, 1.0, 8.0)
    loss = dkd_loss(student, teacher, FIRST, 1.0, 1.0, 8.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert loss.item() > 200 * TEACHER.softmax(1)[0, 0].item() - 1
    assert gradient_of(dkd_loss, student, teacher, FIRST, 1.0, 1.0, 8.0).isfinite().all()


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("both", [False, True])
def test_dkd_of_a_teacher_that_leaves_one_class(label: int, both: bool):
    # q = (1, 0, 0). Of "label or not", only one side is left: -T^2 log p_0. Class 0 is the label,
    # and the teacher says nothing of the others; or it is the only other class: -T^2 log p^_0.
    teacher = float64([0, -math.inf, -math.inf])
    student = teacher if both else STUDENT
    p = student.div(4).softmax(1)[0]
    second = 0.0 if label == 0 else -math.log(p[0] / (1 - p[1]))
    args = student, teacher, torch.tensor([label]), 4.0, 1.0, 8.0
    first = -math.log(p[0] if label == 0 else 1 - p[1])
    assert dkd_loss(*args).item() == pytest.approx(16 * (first + 8 * second), abs=1e-12)
    assert gradient_of(dkd_loss, *args).isfinite().all()


@pytest.mark.parametrize("labels", [one_hot(FIRST, 3), torch.tensor([0, 1])], ids=str)
@pytest.mark.parametrize(("loss", "rest"), [(dkd_loss, (4.0, 1.0, 8.0)), (nkd_loss, (1.0, 1.5))])
def test_labels_of_another_shape_are_refused(loss, rest, labels):
    with pytest.raises(ValueError, match=r"labels \(\d.*\) must be \(1,\)"):
        loss(STUDENT, TEACHER, labels, *rest)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("dkd", {"alpha": -1.0}, "dkd: alpha"),
        ("dkd", {"alpha": 0.0, "beta": 0.0}, "dkd: alpha"),
        ("dist", {"beta": 0.0, "gamma": 0.0}, "dist: beta 0.0 and gamma 0.0 must be at least 0"),
        ("soft_logits", {"weight": 0.0}, "soft_logits: weight 0.0 must be above 0"),
    ],
)
def test_weights_that_teach_nothing_are_refused(name: str, wrong, said: str):
    with pytest.raises(ValueError, match=said):
        build_method(name, **wrong)


# --- DIST -----------------------------------------------------------------------------------------

THREE = float64([1, 0, 0], [0, 2, 0], [0, 0, 1]), float64([2, 0, 0], [0, 1, 1], [0, 0, 3])


@pytest.mark.parametrize(
    ("temperature", "samples", "classes"),
    [(1.0, 0.1666667165, 0.0858508470), (4.0, 2.6666781049, 1.6212890083)],
)
def test_dist_of_three_samples_of_three_classes(temperature: float, samples, classes):
    for beta, gamma in ((1, 0), (0, 1), (1, 0.5)):
        loss = dist_loss(*THREE, temperature, beta, gamma).item()
        assert loss == pytest.approx(beta * samples + gamma * classes, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_of_equal_logits_is_what_eps_takes_from_each_correlation(temperature: float):
    # r = n^2 / (n^2 + eps), with n the spread of a row or column
    (row, _) = of(dist_loss)
    (logits,), _ = row.inputs(16)
    p = logits.div(temperature).softmax(1)
    left = [
        (1e-8 / ((x - x.mean(1, keepdim=True)).square().sum(1) + 1e-8)).mean() for x in (p, p.mT)
    ]
    loss = dist_loss(logits, logits, temperature, 1.0, 1.0).item()
    # 1 - r leaves 8 digits of a difference of 1e-8
    assert loss == pytest.approx(temperature**2 * sum(left).item(), rel=1e-6)


def test_dist_ignores_the_order_of_samples_and_of_classes():
    expected = dist_loss(*THREE, 4.0, 1.0, 0.5)
    order = [2, 0, 1]
    for moved in ([x[order] for x in THREE], [x[:, order] for x in THREE]):
        torch.testing.assert_close(dist_loss(*moved, 4.0, 1.0, 0.5), expected)


def test_dist_is_at_most_two_for_each_weight():
    loss = dist_loss(float64([1, 0], [0, 1]), float64([0, 1], [1, 0]), 4.0, 1.0, 0.5).item()
    assert loss == pytest.approx(2 * 16 * 1.5, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dist_of_constant_rows_and_columns_counts_one_and_pulls_nowhere(dtype: torch.dtype):
    # Divided by 1e-8, these have gradients of up to 7e6.
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(10, 10, generator=generator, dtype=dtype) for _ in range(2))
    sample = student[:1].expand(10, 10)  # every column is constant
    assert dist_loss(sample, teacher, 1.0, 0.0, 1.0) == 1
    assert dist_loss(student, teacher[:1].expand(10, 10), 1.0, 0.0, 1.0) == 1
    assert dist_loss(sample, sample, 1.0, 0.0, 1.0) == 1
    assert gradient_of(dist_loss, sample, teacher, 1.0, 0.0, 1.0).abs().max() == 0
    flat = torch.cat([torch.full_like(student[:1], 0.3), student[1:]])  # the first row is constant
    gradient = gradient_of(dist_loss, flat, teacher, 1.0, 1.0, 0.0)
    assert gradient[0].abs().max() == 0
    assert 0 < gradient.abs().max() < 1
    whole = dist_loss(flat, teacher, 1.0, 1.0, 0.0)
    rest = dist_loss(flat[1:], teacher[1:], 1.0, 1.0, 0.0)
    torch.testing.assert_close(whole, (1 + 9 * rest) / 10)


def test_dist_of_one_sample_has_no_correlation_within_classes():
    student, teacher = (x[:1] for x in THREE)
    assert dist_loss(student, teacher, 4.0, 1.0, 1.0) == dist_loss(student, teacher, 4.0, 1.0, 0.0)


def test_dist_masks_constant_rows_and_watches_classes_without_spread():
    stage = dist.method(temperature=1.0).plan[0]
    student = float64([0, 0, 0], [0, 9, -30], [5, 0, -30])  # of the last class 1/3, 1e-17, 1e-15
    teacher = float64([0, 1, -30], [0, 4, -30], [2, 0, -30])
    pair = pair_of(student, teacher, 0, 1, 2)
    loss, masked = MaskedLoss.of(stage.transfer(pair, nn.Module()))
    assert masked.tolist() == [True, False, False]
    assert loss == dist_loss(student, teacher, 1.0, 1.0, 1.0)
    assert stage.watch(pair, nn.Module())["classes_near_eps"] == pytest.approx(1 / 3)


# --- standardised logits --------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "expected"), [(2.0, 0.0705938648), (4.0, 0.0804961719)])
def test_standardised_soft_logits_of_three_classes(temperature: float, expected: float):
    student, teacher = float64([0, 0, 3]), float64([1, 2, 3])
    # means 1 and 2; squares 1 + 1 + 4 over 2, so a deviation of sqrt 3, and 1 + 0 + 1 over 2
    ours = standardise(student)
    assert ours[0].tolist() == pytest.approx([-(3**-0.5), -(3**-0.5), 2 * 3**-0.5], abs=1e-7)
    assert standardise(teacher)[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    loss = soft_logits_loss(ours, standardise(teacher), temperature).item()
    assert loss == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])  # in standard deviations
def test_standardised_logits_ignore_scale_and_shift(scale: float, shift: float):
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = scale * (logits + shift * logits.std(1, keepdim=True))
    torch.testing.assert_close(standardise(moved), standardise(logits), rtol=0, atol=1e-5)
    assert soft_logits_loss(standardise(moved), standardise(logits), 2.0).max() < 1e-10


def test_standardised_soft_logits_pull_neither_mean_nor_scale():
    (row,) = of(standardised_soft_logits_loss)
    (student,), teacher = row.inputs(5)
    _, (gradient,) = row.value_and_gradients([student], teacher)
    assert gradient.abs().max() > 1e-3
    assert gradient.sum(1).abs().max() < 1e-12
    assert (gradient * student).sum(1).abs().max() < 1e-6  # what eps leaves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["soft_logits", "dkd"])
def test_a_sample_whose_logits_are_all_alike_is_left_out(name: str, dtype: torch.dtype):
    # Divided by 1e-7, the first sample has a gradient of 3.5e6.
    inf = math.inf
    student = float64([0.3, 0.3, 0.3], [0, 0, 3], [0, 0, 3], [0, 0, 3], [-inf, 0, -inf]).to(dtype)
    teacher = float64([1, 2, 3], [7, 7, 7], [1, 2, 3], [-inf, 1, -inf], [1, 2, 3]).to(dtype)
    student.requires_grad_()
    stage = build_method(name, temperature=2.0, standardise=True).plan[0]
    loss, masked = stage.transfer(pair_of(student, teacher, 0, 0, 0, 0, 0), nn.Module())
    assert masked.tolist() == [True, True, False, True, True]
    assert ((loss == 0) == masked).all()
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient[masked].abs().max() == 0
    assert 0 < gradient[~masked].abs().max() < 2


def test_a_class_that_is_ruled_out_is_outside_mean_and_deviation():
    logits = float64([1, 2, 3, -math.inf])
    torch.testing.assert_close(standardise(logits)[:, :3], standardise(logits[:, :3]))
    assert standardise(logits)[0, 3] == -math.inf
    ours, theirs, _ = standardised(float64([0, 0, 3, 5]), logits)
    log_p, log_q = ours.div(2).log_softmax(1)[0, :3], theirs.div(2).log_softmax(1)[0, :3]
    expected = 4 * (log_q.exp() * (log_q - log_p)).sum()
    torch.testing.assert_close(soft_logits_loss(ours, theirs, 2.0)[0], expected)


def test_dkd_can_compare_standardised_logits():
    stage = dkd.method(temperature=2.0, alpha=9.0, beta=72.0, standardise=True).plan[0]
    loss, _ = stage.transfer(pair_of(STUDENT, TEACHER, 0), nn.Module())
    scores = standardise(STUDENT), standardise(TEACHER)
    assert torch.equal(loss, dkd_loss(*scores, FIRST, 2.0, 9.0, 72.0))


@pytest.mark.parametrize("switch", [True, False])
def test_a_weight_on_the_soft_targets_leaves_that_on_the_labels(switch: bool):
    # The published form, and its control: ten times the transfer without standardised logits.
    built = build_method("soft_logits", weight=9, temperature=2, standardise=switch)
    (stage,) = built.plan
    assert (stage.task_weight, stage.transfer_weight) == (pytest.approx(0.1), 9)
    loss, _ = stage.transfer(pair_of(STUDENT, TEACHER, 0), nn.Module())
    compared = [standardise(x) if switch else x for x in (STUDENT, TEACHER)]
    assert torch.equal(loss, soft_logits_loss(*compared, 2.0))


def test_a_weight_on_the_soft_targets_needs_a_teacher():
    assert soft_logits.method(rho=0.0, weight=1.0).needs_teacher


# --- NKD and WTTM ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "others"), [(1.0, 0.9972162807), (4.0, 16.632)])
def test_nkd_of_three_classes(temperature: float, others: float):
    # q_y = .8437947345, p_y = e / (e + e^2 + 1): -q_y log p_y = 1.1877305010
    target = nkd_loss(STUDENT, TEACHER, FIRST, temperature, 0.0).item()
    assert target == pytest.approx(1.1877305010, abs=1e-9)
    loss = nkd_loss(STUDENT, TEACHER, FIRST, temperature, 1.5).item()
    assert loss - target == pytest.approx(others, abs=1e-9 if temperature == 1 else 5e-4)


def test_nkd_pulls_the_others_as_dkd_does():
    # Given that it is one of them, a cross-entropy has the divergence's gradient.
    (full,) = gradient_of(nkd_loss, STUDENT, TEACHER, FIRST, 4.0, 1.5)
    (target,) = gradient_of(nkd_loss, STUDENT, TEACHER, FIRST, 4.0, 0.0)
    (others,) = gradient_of(dkd_loss, STUDENT, TEACHER, FIRST, 4.0, 0.0, 1.5)
    torch.testing.assert_close(full - target, others)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("both", [False, True])
def test_nkd_of_a_teacher_that_leaves_one_class(label: int, both: bool):
    # q = (1, 0, 0): -log p_0 of label 0, and nothing of the others; or nothing of label 1, and
    # -gamma T^2 log p^_0 of the others.
    teacher = float64([0, -math.inf, -math.inf])
    student = teacher if both else STUDENT
    p, given = student.softmax(1)[0], student[:, [0, 2]].div(4).softmax(1)[0]
    expected = -p[0].log() if label == 0 else -1.5 * 16 * given[0].log()
    args = student, teacher, torch.tensor([label]), 4.0, 1.5
    assert nkd_loss(*args).item() == pytest.approx(expected.item(), abs=1e-12)
    assert gradient_of(nkd_loss, *args).isfinite().all()


def test_wttm_of_three_classes():
    plain = wttm_loss(STUDENT, TEACHER, 0.1, weighted=False).item()
    assert plain == pytest.approx(0.2865304133, abs=1e-9)
    assert wttm_loss(STUDENT, TEACHER, 0.1).item() == pytest.approx(0.7210374978, abs=1e-9)


def test_wttm_weighs_a_sure_teacher_by_one_and_one_without_an_idea_by_the_most():
    teacher = float64([0, -math.inf, -math.inf], [0, 0, 0])
    student = STUDENT.expand(2, 3)
    factor = wttm_loss(student, teacher, 0.2) / wttm_loss(student, teacher, 0.2, weighted=False)
    assert factor.tolist() == pytest.approx([1, 3**0.8])


def test_ttm_is_zero_at_the_teachers_power_and_soft_targets_of_that_temperature():
    powers = 0.25 * TEACHER.log_softmax(1)
    assert wttm_loss(powers, TEACHER, 0.25).item() == pytest.approx(0, abs=1e-15)
    same = soft_target_divergence(STUDENT, TEACHER / 4, 1.0)
    torch.testing.assert_close(wttm_loss(STUDENT, TEACHER, 0.25, weighted=False), same)
