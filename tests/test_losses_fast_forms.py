"""The fast form of a loss has the value and the gradient of the textbook form, at real sizes."""

import pytest
import torch
from torch import Tensor, nn

from bench.method import Pair, View
from methods import kd_svd, registry, rkd


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
    for name in registry.loss_forms("rkd"):
        monkeypatch.setattr(rkd, f"{name}_reference", marked(name))
    method = registry.build("rkd")
    views = [View({"embedding": drawn(4, 3, seed=s, dtype=torch.float32)}) for s in (0, 1)]
    pair = Pair(*views, torch.zeros(4), torch.arange(4))
    method.plan[0].transfer(pair, nn.Identity())
    assert called == []
    registry.in_reference_form(method).plan[0].transfer(pair, nn.Identity())
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


@each_dtype
@pytest.mark.parametrize(("rank", "extra"), [(1, 3), (2, 1), (4, 0)])
@pytest.mark.parametrize("channels", [12, 40], ids=["tall maps", "wide maps"])
def test_kd_svd_from_the_smaller_gram_matrix_is_kd_svd_from_a_whole_svd(
    rank: int, extra: int, channels: int, dtype: torch.dtype
):
    # Post-ReLU maps, as the method senses: one direction leads, the gaps below it are small.
    maps = [drawn(4, channels, 6, 5, seed=s, dtype=torch.float64).relu() for s in range(6)]
    spread = torch.logspace(0, -2, channels, dtype=torch.float64).view(1, -1, 1, 1)
    student, teacher = ([(x * spread).to(dtype) for x in part] for part in (maps[:3], maps[3:]))
    assert_fast_equals_textbook(
        lambda leaves: kd_svd.kd_svd_loss(leaves, teacher, rank, extra),
        lambda leaves: kd_svd.kd_svd_loss_reference(leaves, teacher, rank, extra),
        student,
    )


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_kd_svd_does_not_depend_on_how_many_samples_are_formed_at_a_time(
    samples: int, monkeypatch: pytest.MonkeyPatch
):
    student = [drawn(5, 3, 4, 3, seed=s, dtype=torch.float64) for s in (0, 1)]
    teacher = [drawn(5, 3, 4, 3, seed=s, dtype=torch.float64) for s in (2, 3)]
    whole = value_and_gradients(kd_svd.kd_svd_loss, student, teacher, 1, 2)
    monkeypatch.setattr(kd_svd, "CPU_CHUNK", samples * 3 * 3)
    parts = value_and_gradients(kd_svd.kd_svd_loss, student, teacher, 1, 2)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)
