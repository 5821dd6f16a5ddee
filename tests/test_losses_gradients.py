"""Gradients are the loss's own, and finite wherever the loss is asked."""

from collections.abc import Callable

import pytest
import torch
from loss_table import LOSSES, Loss, each, each_loss, each_loss_per_sample, each_rkd_loss, of
from torch import Tensor

from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_map, attention_transfer_loss
from methods.dist import dist_loss
from methods.nkd import nkd_loss
from methods.vid import vid_loss
from methods.wttm import wttm_loss

# What a student equal to its teacher still pays.
AT_EQUALITY = (
    activation_boundary_loss,  # for neurons inside the margin
    dist_loss,  # for the eps of its correlations
    nkd_loss,  # a cross-entropy has no zero
    wttm_loss,  # for being less soft than its teacher's power
    vid_loss,  # a likelihood has no zero
)


@each_loss
def test_gradient_is_the_slope_of_the_loss(loss: Loss):
    student, teacher = loss.inputs(3, seed=1)
    leaves = [tensor.requires_grad_() for tensor in student]
    assert torch.autograd.gradcheck(lambda *tensors: loss.compute(tensors, teacher), leaves)


@each([loss for loss in LOSSES if loss.function not in AT_EQUALITY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_student_equal_to_its_teacher_pays_nothing_and_is_not_moved(loss: Loss, dtype):
    value, gradients = loss.value_and_gradients(*loss.inputs(4, dtype=dtype, equal=True))
    assert value.abs().max() <= 1e-6
    assert max(gradient.abs().max() for gradient in gradients) <= 1e-6


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": lambda x: x * 0,
    "first sample zero": lambda x: torch.cat([x[:1] * 0, x[1:]]),
    "dead channels": lambda x: torch.cat([x[:, :1], x[:, 1:] * 0], dim=1),
    "dead positions": lambda x: torch.cat([x[..., :1], x[..., 1:] * 0], dim=-1),
    "all samples equal": lambda x: x[:1].expand_as(x),
    "two samples equal": lambda x: torch.cat([x[:1], x[:1], x[2:]]),
    "all channels equal": lambda x: x[:, :1].expand_as(x),
    "constant": torch.ones_like,
    "huge": lambda x: x * 1e4,
    "tiny": lambda x: x * 1e-4,
    "as it is": lambda x: x,
    "one sample": lambda x: x[:1],
    "two samples": lambda x: x[:2],
}
SINGLE_NETWORK = list(CHANGES)[:-3]
DEGENERATE = [
    *((change, "as it is") for change in SINGLE_NETWORK),
    *(("as it is", change) for change in SINGLE_NETWORK),
    *((change, change) for change in (*SINGLE_NETWORK, "one sample", "two samples")),
]


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_stay_finite(loss: Loss, dtype: torch.dtype):
    student, teacher = loss.inputs(4, seed=2, dtype=dtype)
    wrong = []
    for of_student, of_teacher in DEGENERATE:
        ours, theirs = map(CHANGES[of_student], student), map(CHANGES[of_teacher], teacher)
        value, gradients = loss.value_and_gradients(list(ours), list(theirs))
        finite = all(x.isfinite().all() for x in (value, *gradients))
        # A finite but giant gradient, 1 / eps of some normalisation, ruins a step as surely.
        any_size = "huge" in (of_student, of_teacher) or of_student == "tiny"
        if not finite or not (any_size or max(x.abs().max() for x in gradients) < 1e3):
            wrong.append((of_student, of_teacher))
    assert wrong == []


@each_loss_per_sample
def test_a_dead_sample_does_not_touch_the_others(loss: Loss):
    student, teacher = loss.inputs(4)
    dead = [CHANGES["first sample zero"](tensor) for tensor in student]
    value, gradients = loss.value_and_gradients(dead, teacher)
    rest, rest_gradients = loss.value_and_gradients(student, teacher)
    torch.testing.assert_close(value[1:], rest[1:], rtol=1e-12, atol=1e-15)
    for gradient, alone in zip(gradients, rest_gradients, strict=True):
        torch.testing.assert_close(gradient[1:], alone[1:], rtol=1e-9, atol=1e-12)


@each_rkd_loss
def test_gradient_is_the_slope_where_relations_differ_by_more_than_one(loss: Loss):
    # There the Huber distance is linear. A cluster and a far sample differ from the teacher by up
    # to 1.6 in relative distance and 1.7 in cosine.
    student = torch.tensor([[0, 0], [1, 0.2], [0.3, 1], [0.8, 0.9], [0.1, 30]]).double()
    teacher = torch.tensor([[0, 0], [-1, 0.1], [0.9, 0.2], [-0.2, 1], [0.5, -1]]).double()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda points: loss.compute([points], [teacher]), (student,))


@each(of(attention_transfer_loss)[:2])
def test_attention_of_features_below_1e_8_is_left_out_and_above_it_is_not(loss: Loss):
    kind = loss.arguments["kind"]
    (student,), teacher = loss.inputs(3)
    reference, _ = loss.value_and_gradients([student], teacher)
    power = 1 if kind == "l2" else 2
    norms = attention_map(student, kind).flatten(1).norm(dim=1)
    sizes = torch.tensor([1, 0.5e-8, 2e-8], dtype=torch.float64)  # roots of the maps' norms
    scaled = student * (sizes / norms.pow(1 / power)).view(3, 1, 1, 1)
    value, (gradient,) = loss.value_and_gradients([scaled], teacher)
    torch.testing.assert_close(value[[0, 2]], reference[[0, 2]], rtol=1e-9, atol=0)
    assert value[1] == 0
    assert gradient[1].abs().max() == 0


@each_rkd_loss
@pytest.mark.parametrize(("gap", "counts"), [(3e-7, False), (1e-4, True)])
def test_two_samples_count_as_one_up_to_a_millionth_of_the_largest_distance(
    loss: Loss, gap: float, counts: bool
):
    (student,), (teacher,) = loss.inputs(5, seed=4)
    student[1] = student[0] + gap * torch.nn.functional.normalize(student[2], dim=0)
    expected = float(loss.oracle([student], [teacher]))
    value, (gradient,) = loss.value_and_gradients([student], [teacher])
    assert value.item() == pytest.approx(expected, rel=1e-6)
    if not counts:  # the pair pulls neither of the two
        student[1] = student[0]
        _, (merged,) = loss.value_and_gradients([student], [teacher])
        torch.testing.assert_close(gradient, merged, rtol=1e-4, atol=1e-6)
