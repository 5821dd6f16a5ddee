"""What a loss must not notice, and what it must."""

import pytest
import torch
from torch import Tensor

from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import Kind, attention_transfer_loss
from methods.fsp import fsp_loss, fsp_matrix
from methods.kd_svd import kd_svd_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.soft_logits import soft_logits_loss

each_kind = pytest.mark.parametrize("kind", ["l2", "sumsq"])
each_rkd = pytest.mark.parametrize("rkd_loss", [rkd_distance_loss, rkd_angle_loss])


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(drawn(size, size, seed=seed))[0]


def permuted(tensor: Tensor, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return tensor.index_select(dim, torch.randperm(tensor.shape[dim], generator=generator))


def mixed_channels(feature: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", orthogonal(feature.shape[1]), feature)


def mixed_positions(feature: Tensor) -> Tensor:
    flat = feature.flatten(2)
    return (flat @ orthogonal(flat.shape[2])).view_as(feature)


def moved_positions(feature: Tensor) -> Tensor:
    return permuted(feature.flatten(2), 2).view_as(feature)


def assert_same(value: Tensor, reference: Tensor, rtol: float = 1e-11) -> None:
    assert reference.abs().min() > 1e-9, "a loss of zero is invariant to everything"
    torch.testing.assert_close(value, reference, rtol=rtol, atol=1e-14)


# Soft-logits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_logits_ignores_a_constant_added_to_a_samples_logits(temperature: float):
    student, teacher = drawn(3, 6, seed=0), drawn(3, 6, seed=1)
    shift = 7 * drawn(3, 1, seed=2)
    reference = soft_logits_loss(student, teacher, temperature)
    assert_same(soft_logits_loss(student + shift, teacher, temperature), reference)
    assert_same(soft_logits_loss(student, teacher + shift, temperature), reference)


def test_soft_logits_gradient_sums_to_zero_over_classes_and_is_t_times_p_minus_q():
    student, teacher = drawn(3, 6, seed=0).requires_grad_(), drawn(3, 6, seed=1)
    (gradient,) = torch.autograd.grad(soft_logits_loss(student, teacher, 4.0).sum(), student)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3).double(), rtol=0, atol=1e-15)
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_soft_logits_at_a_high_temperature_is_the_distance_of_centred_logits():
    student, teacher = drawn(3, 6, seed=0), drawn(3, 6, seed=1)
    centred = (student - student.mean(1, True)) - (teacher - teacher.mean(1, True))
    limit = centred.square().sum(1) / (2 * 6)
    torch.testing.assert_close(soft_logits_loss(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


# Attention transfer -----------------------------------------------------------------------------


def scaled_per_sample(feature: Tensor) -> Tensor:
    return feature * torch.tensor([0.01, 3.0, 50.0], dtype=feature.dtype).view(3, 1, 1, 1)


def flipped_signs(feature: Tensor) -> Tensor:
    return feature * drawn(*feature.shape, seed=9).sign()


def reordered_channels(feature: Tensor) -> Tensor:
    return permuted(feature, 1)


@each_kind
@pytest.mark.parametrize(
    "change",
    [reordered_channels, flipped_signs, mixed_channels, scaled_per_sample],
    ids=lambda change: change.__name__,
)
def test_attention_transfer_sees_only_where_energy_is(kind: Kind, change):
    student, teacher = drawn(3, 4, 4, 3, seed=0), drawn(3, 5, 4, 3, seed=1)
    reference = attention_transfer_loss(student, teacher, kind)
    assert_same(attention_transfer_loss(change(student), teacher, kind), reference)
    assert_same(attention_transfer_loss(student, change(teacher), kind), reference)


@each_kind
def test_attention_transfer_lies_between_zero_and_two_over_positions(kind: Kind):
    student, teacher = drawn(50, 1, 2, 1, seed=0), drawn(50, 1, 2, 1, seed=1)
    student[0], teacher[0] = torch.tensor([[[[1.0], [0]]], [[[0], [1]]]])  # nothing in common
    losses = attention_transfer_loss(student, teacher, kind)
    assert losses.min() >= 0
    assert losses.max() <= 1 + 1e-12
    assert losses[0] == pytest.approx(1, abs=1e-12)


@each_kind
def test_attention_transfer_gradient_is_orthogonal_to_the_feature(kind: Kind):
    student, teacher = drawn(3, 4, 4, 3, seed=0).requires_grad_(), drawn(3, 5, 4, 3, seed=1)
    (gradient,) = torch.autograd.grad(
        attention_transfer_loss(student, teacher, kind).sum(), student
    )
    along = (gradient * student).sum(dim=(1, 2, 3))
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-14)
    assert gradient.norm() > 1e-3


# Activation boundary ----------------------------------------------------------------------------


def test_activation_boundary_reads_only_the_signs_of_the_teacher():
    student, teacher = drawn(3, 2, 4, 3, seed=0), drawn(3, 2, 4, 3, seed=1)
    reference = activation_boundary_loss(student, teacher, 1.0)
    for same_signs in (7 * teacher, teacher * drawn(3, 2, 4, 3, seed=2).abs(), teacher.sign()):
        assert torch.equal(activation_boundary_loss(student, same_signs, 1.0), reference)


def test_activation_boundary_ignores_a_joint_sign_flip_and_joint_permutations():
    student, teacher = drawn(3, 2, 4, 3, seed=0), drawn(3, 2, 4, 3, seed=1)
    reference = activation_boundary_loss(student, teacher, 1.0)
    assert_same(activation_boundary_loss(-student, -teacher, 1.0), reference)
    for dim in (1, 2, 3):
        moved = permuted(student, dim), permuted(teacher, dim)
        assert_same(activation_boundary_loss(*moved, 1.0), reference)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_activation_boundary_is_zero_just_where_every_neuron_clears_the_margin(margin: float):
    teacher = drawn(2, 2, 4, 3, seed=1)
    student = torch.where(teacher > 0, margin, -margin) * (1 + drawn(2, 2, 4, 3, seed=0).abs())
    student[1, 0, 0, 0] *= 0.99 * margin / student[1, 0, 0, 0].abs()  # one neuron falls short
    losses = activation_boundary_loss(student, teacher, margin)
    assert losses[0] == 0
    assert losses[1] == pytest.approx((0.01 * margin) ** 2)


# FSP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [moved_positions, mixed_positions])
def test_fsp_ignores_where_things_are(change):
    first, second = drawn(3, 2, 4, 3, seed=0), drawn(3, 3, 4, 3, seed=1)
    others = drawn(3, 2, 4, 3, seed=2), drawn(3, 3, 4, 3, seed=3)
    reference = fsp_loss(first, second, *others)
    assert_same(fsp_loss(change(first), change(second), *others), reference)
    assert_same(fsp_loss(*others, change(first), change(second)), reference)


def test_fsp_ignores_a_factor_moved_from_one_map_to_the_other():
    first, second = drawn(3, 2, 4, 3, seed=0), drawn(3, 3, 4, 3, seed=1)
    assert_same(fsp_matrix(5 * first, second / 5), fsp_matrix(first, second))


def test_fsp_notices_channels_changing_places():
    first, second = drawn(3, 2, 4, 3, seed=0), drawn(3, 3, 4, 3, seed=1)
    others = drawn(3, 2, 4, 3, seed=2), drawn(3, 3, 4, 3, seed=3)
    reference = fsp_loss(first, second, *others)
    assert not torch.allclose(fsp_loss(first.flip(1), second, *others), reference, rtol=1e-3)
    assert not torch.allclose(fsp_loss(first, second.flip(1), *others), reference, rtol=1e-3)


# KD-SVD -----------------------------------------------------------------------------------------


def negated(feature: Tensor) -> Tensor:
    return -feature


@pytest.mark.parametrize(
    "change",
    [negated, scaled_per_sample, moved_positions, mixed_positions],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize(("rank", "extra"), [(1, 0), (1, 3), (2, 1)])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)], ids=str)
def test_kd_svd_ignores_signs_scale_and_places_of_any_map(
    change, rank: int, extra: int, layers: tuple[int, ...]
):
    student = [drawn(3, 4, 4, 3, seed=0), drawn(3, 5, 3, 3, seed=1)]
    teacher = [drawn(3, 4, 5, 3, seed=2), drawn(3, 5, 4, 3, seed=3)]
    reference = kd_svd_loss(student, teacher, rank, extra)
    changed = [
        [change(x) if layer in layers else x for layer, x in enumerate(maps)]
        for maps in (student, teacher)
    ]
    assert_same(kd_svd_loss(changed[0], teacher, rank, extra), reference, rtol=1e-9)
    assert_same(kd_svd_loss(student, changed[1], rank, extra), reference, rtol=1e-9)


def test_kd_svd_gradient_has_no_part_along_a_maps_scale():
    student = [drawn(3, 4, 4, 3, seed=s).requires_grad_() for s in (0, 1)]
    teacher = [drawn(3, 4, 4, 3, seed=s) for s in (2, 3)]
    gradients = torch.autograd.grad(kd_svd_loss(student, teacher, 2, 1).sum(), student)
    for feature, gradient in zip(student, gradients, strict=True):
        along = (feature * gradient).sum(dim=(1, 2, 3))
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
        assert gradient.norm() > 1e-4


# Relational KD ----------------------------------------------------------------------------------


def rotated(points: Tensor) -> Tensor:
    return points @ orthogonal(points.shape[1])


def reflected(points: Tensor) -> Tensor:
    return points * torch.tensor([-1.0] + [1.0] * (points.shape[1] - 1), dtype=points.dtype)


def translated(points: Tensor) -> Tensor:
    return points + 10 * drawn(points.shape[1], seed=8)


def scaled(points: Tensor) -> Tensor:
    return points * 37


@each_rkd
@pytest.mark.parametrize(
    "change", [rotated, reflected, translated, scaled], ids=lambda change: change.__name__
)
def test_rkd_ignores_a_rigid_motion_and_scale_of_either_network(rkd_loss, change):
    student, teacher = drawn(6, 4, seed=0), drawn(6, 5, seed=1)
    reference = rkd_loss(student, teacher)
    assert_same(rkd_loss(change(student), teacher), reference)
    assert_same(rkd_loss(student, change(teacher)), reference)


@each_rkd
def test_rkd_gradient_neither_moves_nor_scales_the_batch(rkd_loss):
    student, teacher = drawn(6, 4, seed=0).requires_grad_(), drawn(6, 5, seed=1)
    (gradient,) = torch.autograd.grad(rkd_loss(student, teacher), student)
    assert gradient.norm() > 1e-4
    torch.testing.assert_close(gradient.sum(0), torch.zeros(4).double(), rtol=0, atol=1e-14)
    assert (gradient * student).sum().item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("rkd_loss", "factor"), [(rkd_distance_loss, 6 / 5), (rkd_angle_loss, 36 / 20)]
)
def test_rkd_reductions_differ_by_the_count_of_distinct_tuples(rkd_loss, factor: float):
    student, teacher = drawn(6, 4, seed=0), drawn(6, 5, seed=1)
    distinct = rkd_loss(student, teacher, reduction="distinct")
    assert_same(distinct, factor * rkd_loss(student, teacher, reduction="peers"))


@each_rkd
def test_rkd_needs_enough_samples_to_relate(rkd_loss):
    fewest = 2 if rkd_loss is rkd_distance_loss else 3
    student, teacher = drawn(6, 4, seed=0), drawn(6, 5, seed=1)
    assert rkd_loss(student[: fewest - 1], teacher[: fewest - 1]) == 0
    if fewest == 3:  # two distances always agree once scaled by their mean
        assert rkd_loss(student[:fewest], teacher[:fewest]) > 0
