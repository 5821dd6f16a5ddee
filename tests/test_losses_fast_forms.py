"""The fast form of a loss has the value and the gradient of the textbook form, at real sizes."""

import pytest
import torch
from torch import Tensor, nn

from bench.cost.counting import AllocationMode
from bench.hyperparameters import build_method
from bench.method import Pair, View
from methods import (
    _blocks,
    activation_boundary,
    attention_transfer,
    fitnet,
    fsp,
    kd_svd,
    rkd,
)
from methods._forms import in_reference_form, two_forms


def drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def value_and_gradients(loss, student: list[Tensor], *rest) -> tuple[Tensor, list[Tensor]]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in student]
    value = loss(leaves, *rest)
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


def assert_fast_equals_textbook(fast, textbook, student, *rest) -> None:
    double = student[0].dtype == torch.float64
    value, gradients = value_and_gradients(fast, student, *rest)
    expected, slopes = value_and_gradients(textbook, student, *rest)
    torch.testing.assert_close(value, expected, rtol=1e-10 if double else 1e-5, atol=1e-14)
    for gradient, slope in zip(gradients, slopes, strict=True):
        # Relative to the largest entry: entries that cancel have no digits of their own.
        error = (gradient - slope).abs().max() / slope.abs().max()
        assert error <= (1e-10 if double else 1e-4)


def peak_bytes(loss, student: Tensor) -> int:
    """Of all tensors that forward and backward make, the student's gradient among them."""
    leaf = student.clone().requires_grad_()
    with AllocationMode() as memory:
        torch.autograd.grad(loss(leaf).sum(), leaf)
    return memory.peak_bytes


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
RKD_FORMS = [
    (rkd.rkd_distance_loss, rkd.rkd_distance_loss_reference),
    (rkd.rkd_angle_loss, rkd.rkd_angle_loss_reference),
]


def test_a_method_in_reference_form_runs_every_textbook_form_and_no_fast_one(monkeypatch):
    def marked(name: str):
        def loss(*args, **kwargs):
            called.append(name)
            return torch.zeros((), requires_grad=True)

        return loss

    called: list[str] = []
    for name in two_forms(rkd):
        monkeypatch.setattr(rkd, f"{name}_reference", marked(name))
    method = build_method("rkd")
    views = [View({"embedding": drawn(4, 3, seed=s, dtype=torch.float32)}) for s in (0, 1)]
    pair = Pair(*views, torch.zeros(4), torch.arange(4))
    method.plan[0].transfer(pair, nn.Identity())
    assert called == []
    in_reference_form(method).plan[0].transfer(pair, nn.Identity())
    assert sorted(called) == ["rkd_angle_loss", "rkd_distance_loss"]
    method.plan[0].transfer(pair, nn.Identity())
    assert len(called) == 2


@each_dtype
@pytest.mark.parametrize("reduction", ["peers", "distinct"])
@pytest.mark.parametrize(("fast", "textbook"), RKD_FORMS)
def test_rkd_from_a_gram_matrix_is_rkd_from_differences(fast, textbook, reduction, dtype):
    student, teacher = drawn(24, 33, seed=0, dtype=dtype), drawn(24, 65, seed=1, dtype=dtype)
    assert_fast_equals_textbook(
        lambda leaves: fast(*leaves, teacher, reduction=reduction),
        lambda leaves: textbook(*leaves, teacher, reduction=reduction),
        [student],
    )


@each_dtype
@pytest.mark.parametrize(("fast", "textbook"), RKD_FORMS)
def test_rkd_with_repeated_samples_is_rkd_from_differences(fast, textbook, dtype):
    student, teacher = drawn(24, 33, seed=0, dtype=dtype), drawn(24, 65, seed=1, dtype=dtype)
    student[12:] = student[:12]
    assert_fast_equals_textbook(
        lambda leaves: fast(leaves[0], teacher),
        lambda leaves: textbook(leaves[0], teacher),
        [student],
    )


@pytest.mark.parametrize(("fast", "textbook"), RKD_FORMS)
@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5])
def test_rkd_in_single_precision_keeps_its_digits_at_near_duplicates(fast, textbook, gap: float):
    # Pairs so close that a Gram matrix in float32 tells nothing about them; oracle in float64.
    student, teacher = (drawn(16, width, seed=width, dtype=torch.float64) for width in (33, 65))
    for points in (student, teacher):
        apart = torch.nn.functional.normalize(points[8:12], dim=1)
        points[8:12] = points[:4] + gap * points.norm(dim=1).mean() * apart
    student, teacher = student.float(), teacher.float()
    value, (gradient,) = value_and_gradients(lambda leaves: fast(*leaves, teacher), [student])
    expected, (slope,) = value_and_gradients(
        lambda leaves: textbook(*leaves, teacher.double()), [student.double()]
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    errors = (gradient - slope).norm(dim=1) / slope.norm(dim=1)
    assert errors.max() <= 1e-4


@pytest.mark.parametrize(("fast", "textbook"), RKD_FORMS)
def test_rkd_needs_no_tensor_of_all_differences_or_angles(fast, textbook):
    student, teacher = (drawn(96, 128, seed=s, dtype=torch.float32) for s in (0, 1))
    peaks = [peak_bytes(lambda x, f=f: f(x, teacher), student) for f in (fast, textbook)]
    assert peaks[1] >= 4 * 96 * 96 * 128
    assert peaks[0] <= peaks[1] / 10


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "textbook"), RKD_FORMS)
def test_rkd_of_1024_samples_fits_in_a_gibibyte(fast, textbook):
    student, teacher = (drawn(1024, 256, seed=s, dtype=torch.float32) for s in (0, 1))
    assert peak_bytes(lambda x: fast(x, teacher), student) <= 2**30


@pytest.mark.parametrize("vertices", [1, 2, 4, 5, 7])
def test_rkd_angle_does_not_depend_on_how_many_vertices_are_formed_at_a_time(
    vertices: int, monkeypatch: pytest.MonkeyPatch
):
    student = [drawn(7, 5, seed=0, dtype=torch.float64)]
    teacher = drawn(7, 6, seed=1, dtype=torch.float64)
    whole = value_and_gradients(lambda leaves: rkd.rkd_angle_loss(leaves[0], teacher), student)
    monkeypatch.setattr(rkd, "CPU_CHUNK", vertices * 7 * 7)
    parts = value_and_gradients(lambda leaves: rkd.rkd_angle_loss(leaves[0], teacher), student)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)


boundary_loss = activation_boundary.activation_boundary_loss
boundary_textbook = activation_boundary.activation_boundary_loss_reference
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@each_dtype
@pytest.mark.parametrize("teacher_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("student_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [(5, 4, 3, 3), (3, 7, 5, 1), (2, 16, 8, 8)], ids=str)
@pytest.mark.parametrize("block", [8, 40, 1 << 16])
def test_boundary_loss_in_one_pass_is_the_papers(
    block: int, size, student_layout, teacher_layout, dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_blocks, "CPU_BLOCK", block)
    student = drawn(*size, seed=0, dtype=dtype).contiguous(memory_format=student_layout)
    teacher = drawn(*size, seed=1, dtype=dtype).contiguous(memory_format=teacher_layout)
    assert_fast_equals_textbook(
        lambda leaves: boundary_loss(*leaves, teacher, 0.7),
        lambda leaves: boundary_textbook(*leaves, teacher, 0.7),
        [student],
    )


@pytest.mark.parametrize("form", [boundary_loss, boundary_textbook])
def test_boundary_loss_at_ties_and_at_what_is_no_number(form):
    nan = torch.nan
    student = torch.tensor([1.0, -1.0, 0.0, -0.0, 0.5, 0.5, 0.5]).requires_grad_()
    teacher = torch.tensor([2.0, -2.0, 0.0, -0.0, nan, torch.inf, -torch.inf])  # NaN is not > 0
    loss = form(student[None], teacher[None])
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(loss, torch.tensor([0 + 0 + 1 + 1 + 2.25 + 0.25 + 2.25]))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0, 2, 2, 3, -1, 3]))
    assert form(torch.tensor([[0.0, nan]]), torch.ones(1, 2)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_boundary_loss_of_half_precision_is_taken_in_single_precision(dtype: torch.dtype):
    student, teacher = (drawn(3, 2, 5, 5, seed=s, dtype=dtype) for s in (0, 1))
    value, (gradient,) = value_and_gradients(lambda x: boundary_loss(*x, teacher), [student])
    expected, (slope,) = value_and_gradients(
        lambda x: boundary_textbook(*x, teacher.float()), [student.float()]
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope.to(dtype), rtol=0, atol=0)


def test_boundary_loss_keeps_one_bit_for_a_neuron_of_the_teacher():
    student, teacher = (drawn(4, 16, 32, 32, seed=s, dtype=torch.float32) for s in (0, 1))
    leaf, kept = student.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        boundary_loss(leaf, teacher)
    of_teacher = [x for x in kept if x.data_ptr() != leaf.data_ptr()]
    assert sum(x.nbytes for x in of_teacher) == teacher.numel() / 8


def test_boundary_loss_makes_a_fifth_of_the_papers_memory():
    student, teacher = (drawn(16, 64, 32, 32, seed=s, dtype=torch.float32) for s in (0, 1))
    fast, textbook = (
        peak_bytes(lambda x, form=form: form(x, teacher), student)
        for form in (boundary_loss, boundary_textbook)
    )
    assert fast <= textbook / 5


attention_loss = attention_transfer.attention_transfer_loss
attention_textbook = attention_transfer.attention_transfer_loss_reference


@each_dtype
@pytest.mark.parametrize("kind", ["l2", "sumsq"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("block", [1, 2 * 6 * 8 * 8, 1 << 16])
def test_attention_without_all_squares_is_attention(
    block: int, layout, kind, dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_blocks, "CPU_BLOCK", block)
    student = drawn(5, 6, 8, 8, seed=0, dtype=dtype).relu().contiguous(memory_format=layout)
    teacher = drawn(5, 9, 4, 4, seed=1, dtype=dtype).relu()
    student[0, :, 2] = 0  # positions without response
    assert_fast_equals_textbook(
        lambda leaves: attention_loss(*leaves, teacher, kind),
        lambda leaves: attention_textbook(*leaves, teacher, kind),
        [student],
    )


def test_attention_makes_no_full_size_square():
    student, teacher = (drawn(16, 64, 32, 32, seed=s, dtype=torch.float32) for s in (0, 1))
    assert peak_bytes(lambda x: attention_loss(x, teacher), student) <= 1.1 * student.nbytes


@each_dtype
@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("teacher_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("student_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("block", [1, 2 * 6 * 4 * 4, 1 << 16])
def test_hint_loss_in_blocks_is_hint_loss(
    block: int, student_layout, teacher_layout, scale, dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_blocks, "CPU_BLOCK", block)
    student = drawn(5, 6, 4, 4, seed=0, dtype=dtype).contiguous(memory_format=student_layout)
    teacher = drawn(5, 6, 4, 4, seed=1, dtype=dtype).contiguous(memory_format=teacher_layout)
    assert_fast_equals_textbook(
        lambda leaves: fitnet.hint_loss(*leaves, teacher, scale),
        lambda leaves: fitnet.hint_loss_reference(*leaves, teacher, scale),
        [student],
    )


@pytest.mark.parametrize("loss", [fitnet.hint_loss, attention_loss])
def test_hint_and_attention_of_half_precision_are_taken_in_single_precision(loss):
    student, teacher = (drawn(3, 2, 5, 5, seed=s, dtype=torch.bfloat16) for s in (0, 1))
    value, (gradient,) = value_and_gradients(lambda x: loss(*x, teacher), [student])
    expected, (slope,) = value_and_gradients(lambda x: loss(*x, teacher.float()), [student.float()])
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.float(), slope, rtol=2**-6, atol=1e-9)


@each_dtype
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_fsp_by_matrix_products_is_fsp_from_all_products_at_all_positions(scale, dtype):
    shapes = ((6, 5, 8, 7), (6, 9, 8, 7), (6, 5, 4, 4), (6, 9, 4, 4))
    first, second, *teacher = (drawn(*x, seed=s, dtype=dtype) for s, x in enumerate(shapes))
    assert_fast_equals_textbook(
        lambda leaves: fsp.fsp_loss(*leaves, *teacher, scale=scale),
        lambda leaves: fsp.fsp_loss_reference(*leaves, *teacher, scale=scale),
        [first, second],
    )


@each_dtype
@pytest.mark.parametrize(("rank", "extra"), [(1, 3), (2, 1), (4, 0)])
@pytest.mark.parametrize(
    "shape", [(12, 6, 5), (40, 6, 5), (40, 8, 8), (60, 6, 6)],
    ids=["tall maps", "wide maps", "large tall maps", "large wide maps"],
)  # fmt: skip
def test_kd_svd_from_leading_vectors_and_a_series_is_kd_svd_from_a_whole_svd(
    rank: int, extra: int, shape: tuple[int, int, int], dtype: torch.dtype
):
    # Post-ReLU maps, as the method senses: one direction leads, the gaps below it are small.
    maps = [drawn(4, *shape, seed=s, dtype=torch.float64).relu() for s in range(6)]
    spread = torch.logspace(0, -2, shape[0], dtype=torch.float64).view(1, -1, 1, 1)
    student, teacher = ([(x * spread).to(dtype) for x in part] for part in (maps[:3], maps[3:]))

    def textbook(leaves: list[Tensor]) -> Tensor:
        # In float64: small gaps cost the gradient of a whole SVD in float32 more than our bound.
        double = ([x.double() for x in part] for part in (leaves, teacher))
        return kd_svd.kd_svd_loss_reference(*double, rank, extra).to(dtype)

    assert_fast_equals_textbook(
        lambda leaves: kd_svd.kd_svd_loss(leaves, teacher, rank, extra), textbook, student
    )
