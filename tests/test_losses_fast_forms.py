"""The shipped form of a loss equals the textbook one, in value and gradient, at real sizes.

Sizes are chosen on both sides of what the shipped forms work on at a time: parts of a sample, one
sample, or several.
"""

import pytest
import torch
from textbook_losses import TEXTBOOK
from torch import Tensor

from bench.cost.counting import CountingMode
from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.fitnet import hint_loss
from methods.fsp import fsp_loss
from methods.kd_svd import kd_svd_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss

LAYOUTS = [torch.contiguous_format, torch.channels_last]

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
each_rkd = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])


def drawn(*shape: int, seed: int, dtype: torch.dtype, layout=torch.contiguous_format) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values.contiguous(memory_format=layout)


def value_and_gradients(loss, student: list[Tensor], *rest, **keywords):
    """The loss of the student's tensors and its further arguments; the student's gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in student]
    value = loss(*leaves, *rest, **keywords)
    return value.detach(), torch.autograd.grad(value.sum(), leaves)


def assert_equals_textbook(loss, student: list[Tensor], *rest, reference=None, **keywords) -> None:
    """In value and gradient; `reference` in place of the textbook form of the same name."""
    reference = reference or TEXTBOOK[loss.__name__]
    value, gradients = value_and_gradients(loss, student, *rest, **keywords)
    expected, slopes = value_and_gradients(reference, student, *rest, **keywords)
    double = student[0].dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-10 if double else 1e-5, atol=1e-14)
    for gradient, slope in zip(gradients, slopes, strict=True):
        # Relative to the largest entry: entries that cancel have no digits of their own.
        error = (gradient - slope).abs().max() / slope.abs().max()
        assert error <= (1e-10 if double else 1e-4)


def peak_bytes(loss, student: Tensor, teacher: Tensor) -> int:
    """Of all tensors that forward and backward make, the student's gradient among them."""
    leaf = student.clone().requires_grad_()
    with CountingMode() as memory:
        torch.autograd.grad(loss(leaf, teacher).sum(), leaf)
    return memory.peak_bytes


@each_dtype
@pytest.mark.parametrize("teacher_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("student_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(5, 4, 3, 3), (3, 7, 5, 1), (5, 64, 24, 24), (2, 7, 101, 97)])
@pytest.mark.parametrize(
    ("loss", "argument"),
    [
        (hint_loss, "mean"),
        (hint_loss, "sum"),
        (activation_boundary_loss, 0.7),
        (attention_transfer_loss, "l2"),
        (attention_transfer_loss, "sumsq"),
    ],
)
def test_losses_of_maps(loss, argument, size, student_layout, teacher_layout, dtype):
    batch, channels, height, width = size
    student = drawn(*size, seed=0, dtype=dtype, layout=student_layout)
    student[0, :, 1] = 0  # positions without response
    if loss is attention_transfer_loss:
        channels, height = channels + 3, -(-height // 2)
    teacher = drawn(batch, channels, height, width, seed=1, dtype=dtype, layout=teacher_layout)
    assert_equals_textbook(loss, [student], teacher, argument)


@pytest.mark.parametrize("form", [activation_boundary_loss, TEXTBOOK["activation_boundary_loss"]])
def test_activation_boundary_loss_at_ties_and_at_nan(form):
    nan = torch.nan
    student = torch.tensor([1.0, -1.0, 0.0, -0.0, 0.5, 0.5, 0.5]).requires_grad_()
    teacher = torch.tensor([2.0, -2.0, 0.0, -0.0, nan, torch.inf, -torch.inf])  # NaN is not > 0
    loss = form(student[None], teacher[None])
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(loss, torch.tensor([0 + 0 + 1 + 1 + 2.25 + 0.25 + 2.25]))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0, 2, 2, 3, -1, 3]))
    assert form(torch.tensor([[0.0, nan]]), torch.ones(1, 2)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [hint_loss, attention_transfer_loss, activation_boundary_loss])
def test_half_precision_inputs_are_computed_in_single_precision(loss, dtype: torch.dtype):
    student, teacher = (drawn(3, 2, 5, 5, seed=s, dtype=dtype) for s in (0, 1))
    value, (gradient,) = value_and_gradients(loss, [student], teacher)
    expected, (slope,) = value_and_gradients(loss, [student.float()], teacher.float())
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.float(), slope, rtol=2**-6, atol=1e-7)


def test_the_shipped_forms_make_no_full_size_intermediate():
    student, teacher = (drawn(16, 64, 32, 32, seed=s, dtype=torch.float32) for s in (0, 1))
    for loss in (hint_loss, attention_transfer_loss, activation_boundary_loss):
        assert peak_bytes(loss, student, teacher) <= 1.2 * student.nbytes, loss.__name__


@each_dtype
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_fsp_loss(scale: str, dtype):
    shapes = ((6, 5, 8, 7), (6, 9, 8, 7), (6, 5, 4, 4), (6, 9, 4, 4))
    first, second, *teacher = (drawn(*x, seed=s, dtype=dtype) for s, x in enumerate(shapes))
    assert_equals_textbook(fsp_loss, [first, second], *teacher, scale=scale)


@each_dtype
@pytest.mark.parametrize(("rank", "extra"), [(1, 3), (2, 1), (4, 0)])
@pytest.mark.parametrize("shape", [(12, 6, 5), (40, 6, 5), (40, 8, 8), (60, 6, 6)], ids=str)
def test_kd_svd_loss(rank: int, extra: int, shape: tuple[int, int, int], dtype: torch.dtype):
    # Post-ReLU maps, as the method senses: one direction leads, the gaps below it are small.
    maps = [drawn(4, *shape, seed=s, dtype=torch.float64).relu() for s in range(6)]
    spread = torch.logspace(0, -2, shape[0], dtype=torch.float64).view(1, -1, 1, 1)
    student, teacher = ([(x * spread).to(dtype) for x in part] for part in (maps[:3], maps[3:]))

    def reference(*leaves: Tensor) -> Tensor:
        # In float64: small gaps cost the gradient of a whole SVD in float32 more than our bound.
        double = ([x.double() for x in part] for part in (leaves, teacher))
        return TEXTBOOK["kd_svd_loss"](*double, rank, extra).to(dtype)

    def shipped(*leaves: Tensor) -> Tensor:
        return kd_svd_loss(leaves, teacher, rank, extra)

    assert_equals_textbook(shipped, student, reference=reference)


@each_dtype
@pytest.mark.parametrize("batch", [7, 96, 260])
@pytest.mark.parametrize("reduction", ["peers", "distinct"])
@each_rkd
def test_rkd_losses(loss, reduction: str, batch: int, dtype):
    student, teacher = drawn(batch, 9, seed=0, dtype=dtype), drawn(batch, 13, seed=1, dtype=dtype)
    student[batch // 2 : batch // 2 + 3] = student[:3]  # repeated samples
    assert_equals_textbook(loss, [student], teacher, reduction=reduction)


@each_rkd
@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
def test_rkd_in_single_precision_keeps_its_digits_at_near_duplicates(loss, gap):
    # Pairs so close that a Gram matrix in float32 says nothing about them; reference in float64.
    student, teacher = (drawn(16, width, seed=width, dtype=torch.float64) for width in (33, 65))
    for points in (student, teacher):
        apart = torch.nn.functional.normalize(points[8:12], dim=1)
        points[8:12] = points[:4] + gap * points.norm(dim=1).mean() * apart
    student, teacher = student.float(), teacher.float()
    value, (gradient,) = value_and_gradients(loss, [student], teacher)
    double = [student.double()], teacher.double()
    expected, (slope,) = value_and_gradients(TEXTBOOK[loss.__name__], *double)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    errors = (gradient - slope).norm(dim=1) / slope.norm(dim=1)
    assert errors.max() <= 1e-4


@each_rkd
def test_rkd_needs_no_tensor_of_all_differences_or_angles(loss):
    student, teacher = (drawn(96, 128, seed=s, dtype=torch.float32) for s in (0, 1))
    whole = peak_bytes(TEXTBOOK[loss.__name__], student, teacher)
    assert whole >= 4 * 96 * 96 * 128
    assert peak_bytes(loss, student, teacher) <= whole / 10
