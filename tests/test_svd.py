"""Truncated SVD with its own gradient, and what KD-SVD builds on it."""

import math

import pytest
import torch
from loss_table import drawn
from torch import Tensor, nn

from methods._eigenvectors import GOLDEN
from methods._svd import nearest_right_vectors, right_vectors
from methods.kd_svd import kd_svd_loss, masked_kd_svd_loss

TALL, WIDE = (3, 4, 2, 4), (3, 7, 2, 2)  # fewer channels than positions, and more


def projections(feature: Tensor, count: int) -> Tensor:
    """v v^T of every vector: the same for either sign."""
    vectors = right_vectors(feature, count).vectors
    return torch.einsum("bck,bdk->bkcd", vectors, vectors)


def projections_by_torch(feature: Tensor, count: int) -> Tensor:
    rows = torch.linalg.svd(feature.flatten(2).mT, full_matrices=False)[2][:, :count]
    return torch.einsum("bkc,bkd->bkcd", rows, rows)


def with_spectrum(values: list[float], channels: int, positions: int) -> Tensor:
    """One map (1, C, 1, P) with the given singular values."""
    left = torch.linalg.qr(drawn(channels, channels))[0][:, : len(values)]
    right = torch.linalg.qr(drawn(positions, positions, seed=1))[0][: len(values)]
    return (left * torch.tensor(values, dtype=torch.float64) @ right)[None, :, None]


# The decomposition ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_values_vectors_and_their_gradient_are_those_of_a_whole_svd(shape, count):
    feature, slope = drawn(*shape).requires_grad_(), drawn(shape[0], count, shape[1], shape[1])
    values = torch.linalg.svdvals(feature.flatten(2))[:, :count].detach()
    torch.testing.assert_close(right_vectors(feature, count).values, values, rtol=1e-12, atol=0)
    found, wanted = projections(feature, count), projections_by_torch(feature, count)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)
    gradients = [torch.autograd.grad((x * slope).sum(), feature)[0] for x in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_changes_neither_vectors_nor_range(scale):
    feature = drawn(*TALL).float()
    small = feature.clone().requires_grad_()
    scaled = projections(small * scale, 2)
    torch.testing.assert_close(scaled, projections(feature, 2), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(scaled[..., 0].sum(), small)
    assert gradient.isfinite().all()
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize(
    ("feature", "resolved"),
    [
        (torch.zeros(1, 3, 2, 2), [False, False]),
        (with_spectrum([3, 3, 1], 3, 5), [False, False]),
        (with_spectrum([3, 1, 1], 3, 5), [True, False]),
        (with_spectrum([3, 2, 1], 3, 5), [True, True]),
        (with_spectrum([3], 3, 5), [True, False]),  # two null directions, any mix of which fits
        (with_spectrum([3, 2], 3, 5), [True, True]),  # and the third is the only null direction
        (with_spectrum([3], 5, 3), [True, False]),
        (with_spectrum([3], 5, 2), [True, False]),
        (with_spectrum([3, 2, 0], 5, 3), [True, True]),
        (with_spectrum([3, 1e-5], 5, 3), [True, False]),  # no further from 0 than from rounding
        (torch.full((1, 3, 2, 2), math.nan), [False, False]),
        (torch.full((1, 3, 2, 2), math.inf), [False, False]),
    ],
)
def test_says_which_vectors_have_a_direction(feature, resolved):
    feature = feature.double().requires_grad_()
    found = right_vectors(feature, 2)
    assert found.resolved.tolist() == [resolved]
    (gradient,) = torch.autograd.grad(found.vectors.sum(), feature)
    assert gradient.isfinite().all()


def test_two_dead_channels_do_not_disturb_the_gradient():
    # Whole decompositions divide by the gap between the two zero values, which is zero.
    feature = drawn(1, 5, 2, 4)
    feature[:, :2] = 0
    alive = feature[:, 2:].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(projections_by_torch(alive, 2).square()[..., 0].sum(), alive)
    feature.requires_grad_()
    found = projections(feature, 2)[:, :, 2:, 2:].square()[..., 0].sum()
    (gradient,) = torch.autograd.grad(found, feature)
    torch.testing.assert_close(gradient[:, 2:], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((2, 3, 2, 2), 4, "not 4"),
        ((2, 9, 2, 2), 5, "not 5"),
        ((2, 3, 2, 2), 0, "not 0"),
        ((2, 3), 1, r"wanted a map \(B, C, H, W\), got \(2, 3\)"),
    ],
)
def test_refuses_vectors_that_a_map_does_not_have(shape, count, message):
    with pytest.raises(ValueError, match=message):
        right_vectors(torch.ones(shape), count)


# By iteration, from 32 channels and positions on -----------------------------------------------

LARGE_TALL, LARGE_WIDE = (3, 40, 7, 7), (3, 60, 6, 6)


def whole_decompositions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of every decomposition of whole Gram matrices from here on."""
    sizes, eigh = [], torch.linalg.eigh

    def counted(matrices: Tensor):
        if matrices.shape[1] >= 32:
            sizes.append(len(matrices))
        return eigh(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [LARGE_TALL, LARGE_WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("directions", [None, 1], ids=["first", "nearest"])
def test_iteration_is_as_exact_as_a_whole_decomposition(shape, dtype, directions, monkeypatch):
    double = drawn(*shape).relu().requires_grad_()  # one direction leads, as behind a ReLU
    slope = drawn(shape[0], shape[1], shape[1], seed=1)
    wanted = projections_by_torch(double, 1)[:, 0]
    (gradient,) = torch.autograd.grad((wanted * slope).sum(), double)

    sizes = whole_decompositions(monkeypatch)
    feature = double.detach().to(dtype).requires_grad_()
    if directions:
        near = drawn(*shape, seed=2).relu().mean((2, 3))[:, :, None].to(dtype)
        vectors = nearest_right_vectors(feature, near / near.norm(dim=1, keepdim=True), 3).vectors
    else:
        vectors = right_vectors(feature, 1).vectors
    found = vectors @ vectors.mT
    (turned,) = torch.autograd.grad((found * slope.to(dtype)).sum(), feature)
    assert not sizes
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=rounding)
    assert (turned - gradient).norm() <= rounding * gradient.norm()


def test_only_samples_that_the_iteration_leaves_open_are_decomposed(monkeypatch):
    leading = drawn(2, 40, 7, 7).relu()
    twice = with_spectrum([3, 3, 1], 40, 49).reshape(1, 40, 7, 7)
    close = with_spectrum([3, 3 - 1e-4, 1], 40, 49).reshape(1, 40, 7, 7)
    zero = torch.zeros(1, 40, 7, 7).double()
    feature = torch.cat([leading[:1], twice, close, zero, drawn(1, 40, 7, 7, seed=1), leading[1:]])
    sizes = whole_decompositions(monkeypatch)
    found = right_vectors(feature, 1)
    assert sizes == [4]
    assert found.resolved[:, 0].tolist() == [True, False, True, False, True, True]
    alone = [right_vectors(x[None], 1).vectors[0] for x in feature]
    for i in (0, 2, 4, 5):
        wanted = projections_by_torch(feature[i : i + 1], 1)[0, 0]
        vector = found.vectors[i]
        torch.testing.assert_close(vector @ vector.mT, wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(vector, alone[i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hidden", [0.1, 1.05])
def test_a_leading_vector_that_the_iteration_cannot_see_is_not_missed(hidden, monkeypatch):
    # One singular vector is orthogonal to the block that the iteration starts from. If it leads,
    # the Ritz vectors' residuals do not show that it is missing; the Frobenius norm does.
    rows = torch.arange(1, 41, dtype=torch.float64)
    block = torch.cos(GOLDEN * torch.outer(rows, torch.arange(4, dtype=torch.float64)))
    left = torch.linalg.qr(torch.cat([block, drawn(40, 36)], 1)).Q
    values = torch.tensor([1.0, 0.6, 0.6, 0.6, hidden] + 35 * [0.01], dtype=torch.float64)
    right = torch.linalg.qr(drawn(49, 40, seed=1)).Q.mT
    feature = (left * values @ right).reshape(1, 40, 7, 7)
    sizes = whole_decompositions(monkeypatch)
    vector = right_vectors(feature, 1).vectors[0, :, 0]
    assert sizes == ([1] if hidden > 1 else [])
    assert abs(vector @ left[:, 4 if hidden > 1 else 0]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(32, 40, 7, 7), (32, 60, 6, 6)], ids=["tall", "wide"])
@pytest.mark.parametrize("extra", [0, 3])
def test_the_nearest_of_the_candidates_is_found_whichever_it_is(shape, extra):
    # Directions from near each of the first four vectors to anywhere, opposite to them or not.
    feature = drawn(*shape).relu()
    sample, vectors = torch.arange(32), right_vectors(feature, 4).vectors
    direction = vectors[sample, :, sample % 4, None] * (-1) ** (sample // 4)[:, None, None]
    share = torch.linspace(0.02, 1, 32)[:, None, None]
    direction = nn.functional.normalize(direction + share * drawn(32, shape[1], 1, seed=1), dim=1)
    found = nearest_right_vectors(feature, direction, extra).vectors[..., 0]
    products = (vectors[..., : 1 + extra].mT @ direction)[..., 0]
    index = products.abs().argmax(1)
    assert set(index.tolist()) == set(range(1 + extra))
    wanted = vectors[sample, :, index] * products[sample, index, None].sign()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


# The loss ---------------------------------------------------------------------------------------


def test_a_sample_without_direction_is_masked_and_one_that_is_not_finite_shows():
    shapes = (4, 8, 6, 6), (4, 12, 4, 4), (4, 20, 3, 3)
    maps = [drawn(*shape, seed=seed).relu() for seed, shape in enumerate(2 * shapes)]
    student, teacher = maps[:3], maps[3:]
    whole = kd_svd_loss(student, teacher)
    student[1][0] = 0
    teacher[2][1] = 1
    teacher[2][1, :, 0, 0] = 0  # a constant map has one vector, and needs no other
    student[0][2] = math.nan
    leaves = [x.requires_grad_() for x in student]
    value, masked = masked_kd_svd_loss(leaves, teacher)
    assert value[0] == 0
    assert value[1] > 0
    assert value[2].isnan()
    assert torch.equal(value[3], whole[3].detach())
    assert masked.tolist() == [True, False, True, False]
    for gradient in torch.autograd.grad(value[value.isfinite()].sum(), leaves):
        assert not gradient[0].any()
        assert gradient.isfinite().all()
