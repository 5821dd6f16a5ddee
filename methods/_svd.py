"""The first right singular vectors of feature maps, with a gradient that stays finite."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods._precision import full_precision, no_autocast

GAP = 1e-6  # eigenvalues nearer than this share of the largest have no direction of their own


class RightVectors(NamedTuple):
    """The first k right singular vectors of every sample's map.

    Attributes:
        vectors: (B, C, k), unit columns by falling singular value; their signs are arbitrary.
        values: (B, k), the singular values, without gradient; NaN for a map that is not finite.
        resolved: (B, k) bool, whether the vector's direction is defined: its squared singular
            value is more than 1e-6 of the largest away from every other one.
    """

    vectors: Tensor
    values: Tensor
    resolved: Tensor


def right_vectors(feature: Tensor, count: int) -> RightVectors:
    """Truncated SVD of each sample's map, seen as the matrix X of positions by channels.

    X (P, C) = U S V^T. The vectors come from the eigenvectors of the smaller of X^T X and X X^T.
    With lam = S^2, r = min(P, C) and the loss's slopes vbar_i of the first k vectors,

        w_i = sum_(j <= r, j != i) v_j (v_j . vbar_i) / (lam_i - lam_j)
              + (vbar_i - V V^T vbar_i) / lam_i,
        Xbar = sum_i (X w_i) v_i^T + (X v_i) w_i^T,

    where 1 / gap is 0 for a gap of at most 1e-6 lam_1. Only gaps of the first k vectors enter: two
    dead channels are no obstacle, while the gradient of a whole decomposition is 0/0 there.

    Args:
        feature: (B, C, H, W), P = H * W.
        count: k, at most min(C, P).

    Returns:
        vectors, values and where they are resolved.

    Raises:
        ValueError: not a map, or a count that it does not have.

    Example:
        >>> feature = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> found = right_vectors(feature, 1)
        >>> found.vectors.abs().flatten(), found.values
        (tensor([1., 0.]), tensor([[3.]]))
    """
    if feature.dim() != 4:
        raise ValueError(f"right_vectors: wanted a map (B, C, H, W), got {tuple(feature.shape)}")
    flat = full_precision(feature).flatten(2)
    if not 1 <= count <= min(flat.shape[1:]):
        raise ValueError(
            f"right_vectors: a map of {flat.shape[1]} channels and {flat.shape[2]} positions has "
            f"1 to {min(flat.shape[1:])} vectors, not {count}"
        )
    with no_autocast(flat):
        return RightVectors(*_RightVectors.apply(flat, count))


class _RightVectors(torch.autograd.Function):
    """(B, C, P) -> vectors (B, C, k), values (B, k), resolved (B, k)."""

    @staticmethod
    def forward(ctx, flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        # The vectors do not depend on the scale, the squares' range does: 1e25 must not overflow.
        size = torch.linalg.vector_norm(flat, torch.inf, dim=(1, 2), keepdim=True)
        usable = (size > 0) & size.isfinite()
        scaled = torch.where(usable, flat, 0.0).div_(torch.where(usable, size, 1.0))
        vectors, squares = _eigenvectors(scaled)
        near = _gaps(squares, count).abs() <= GAP * squares[:, :1, None]
        resolved = usable.flatten(1) & (near.sum(1) == 1)  # itself only
        if flat.shape[1] > flat.shape[2]:  # there are directions that no position has: lam = 0
            resolved &= squares[:, :count] > GAP * squares[:, :1]
        values = squares[:, :count].sqrt() * size.flatten(1)
        ctx.save_for_backward(scaled, size, vectors, squares)
        ctx.mark_non_differentiable(values, resolved)
        return vectors[:, :, :count].clone(), values, resolved

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        scaled, size, vectors, squares = ctx.saved_tensors
        count = grad.shape[2]
        with no_autocast(grad):
            along = vectors.mT @ grad
            least = GAP * squares[:, :1]
            moved = vectors @ (along * _inverse(_gaps(squares, count), least[:, None]))
            if vectors.shape[1] > vectors.shape[2]:
                outside = grad - vectors @ along
                moved += outside * _inverse(squares[:, :count], least)[:, None]
            first = vectors[:, :, :count]
            slope = first @ (moved.mT @ scaled) + moved @ (first.mT @ scaled)
            return torch.where(size > 0, slope / size, 0.0), None


def _eigenvectors(flat: Tensor) -> tuple[Tensor, Tensor]:
    """All r = min(C, P) right singular vectors (B, C, r) and squared singular values (B, r)."""
    channels, positions = flat.shape[1:]
    if channels <= positions:
        squares, vectors = torch.linalg.eigh(flat @ flat.mT)
        return vectors.flip(2), squares.flip(1).clamp(min=0)
    squares, left = torch.linalg.eigh(flat.mT @ flat)
    squares = squares.flip(1).clamp(min=0)
    vectors = flat @ left.flip(2)
    # Below the gap rule X^T u is rounding noise; the null space is handled as a whole.
    length = torch.linalg.vector_norm(vectors, dim=1)
    real = (squares > GAP * squares[:, :1]) & (length > 0)
    return vectors * torch.where(real, 1 / length, 0.0)[:, None], squares


def _gaps(squares: Tensor, count: int) -> Tensor:
    """lam_i - lam_j at [:, j, i], (B, r, k)."""
    return squares[:, None, :count] - squares[:, :, None]


def _inverse(number: Tensor, least: Tensor) -> Tensor:
    return torch.where(number.abs() > least, 1 / number, 0.0)
