"""Every loss equals the plain sum that defines it, whatever the layout, batch or precision."""

import numpy as np
import pytest
import torch
from loss_table import LOGITS, LOSSES, PRODUCTS_OF_GAPS, Loss, each, each_loss, each_rkd_loss
from torch import Tensor

from methods.attention_transfer import attention_transfer_loss
from methods.fsp import fsp_loss

# No network's parameter lies behind a teacher's tensor: these need not keep it off the graph, nor
# do losses of logits.
NOT_DETACHED = (attention_transfer_loss, fsp_loss)
# In PRODUCTS_OF_GAPS a trained layer lies behind the teacher's.
OF_FEATURES = [x for x in LOSSES if x.student != LOGITS and x not in PRODUCTS_OF_GAPS]


def assert_equals_oracle(loss: Loss, student, teacher, rtol: float) -> None:
    """In value and shape: (B,), or () where samples are coupled."""
    expected = torch.as_tensor(np.asarray(loss.oracle(student, teacher)), dtype=torch.float64)
    value = loss.compute(student, teacher)
    assert value.dtype == student[0].dtype
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=1e-15)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


@each_loss
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_equals_the_sum_written_out(loss: Loss, batch: int):
    assert_equals_oracle(loss, *loss.inputs(batch, seed=batch), rtol=loss.rtol)


@each_loss
@pytest.mark.parametrize("layout", [channels_last, sliced], ids=lambda layout: layout.__name__)
def test_does_not_mind_how_the_maps_lie_in_memory(loss: Loss, layout):
    student, teacher = loss.inputs(3)
    laid = [[layout(tensor) for tensor in tensors] for tensors in (student, teacher)]
    torch.testing.assert_close(
        loss.value_and_gradients(*laid),
        loss.value_and_gradients(student, teacher),
        rtol=loss.rtol,
        atol=1e-15,
    )


@each_loss
def test_single_precision_costs_at_most_1e_5(loss: Loss):
    student, teacher = loss.inputs(4, dtype=torch.float32)
    assert_equals_oracle(loss, student, teacher, rtol=1e-5)


@each_loss
def test_leaves_its_inputs_and_has_the_same_value_without_a_graph(loss: Loss):
    inputs, before = loss.inputs(3), loss.inputs(3)
    value, _ = loss.value_and_gradients(*inputs)
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(loss.compute(*inputs), value)


@each_loss
def test_refuses_a_teacher_with_another_batch_size_instead_of_broadcasting(loss: Loss):
    student, teacher = loss.inputs(3)
    for lone in ([tensor[:1] for tensor in teacher], [tensor[:2] for tensor in teacher]):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            loss.compute(student, lone)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_neither_value_nor_gradient(loss: Loss, dtype: torch.dtype):
    student, teacher = loss.inputs(4, dtype=dtype)
    plain = loss.value_and_gradients(student, teacher)
    cast = loss.value_and_gradients(student, teacher, autocast=True)
    # 1e-3 would be tolerable, but bfloat16's 8 bits can hide below it by luck.
    torch.testing.assert_close(cast, plain, rtol=1e-5, atol=1e-9)


@each_rkd_loss
@pytest.mark.parametrize(
    ("dtype", "offset", "rtol"), [(torch.float32, 100, 1e-5), (torch.float64, 1e5, 1e-9)]
)
def test_relations_survive_a_common_offset(loss: Loss, dtype, offset: float, rtol: float):
    # Distances from a Gram matrix of uncentred points lose 4e-3 and 1e-6 here.
    student, teacher = loss.inputs(6, dtype=dtype)
    student, teacher = [x + offset for x in student], [x - offset for x in teacher]
    assert_equals_oracle(loss, student, teacher, rtol=rtol)


@each([loss for loss in OF_FEATURES if loss.function not in NOT_DETACHED])
def test_no_gradient_flows_to_the_teacher(loss: Loss):
    student, teacher = loss.inputs(3)
    for tensor in (*student, *teacher):
        tensor.requires_grad_()
    loss.compute(student, teacher).sum().backward()
    assert all(tensor.grad is None for tensor in teacher)
