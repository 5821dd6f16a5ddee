"""Right singular vectors of feature maps, with a gradient that stays finite."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods._eigenvectors import Maps, eigenvectors
from methods._precision import full_precision, no_autocast


class RightVectors(NamedTuple):
    """Right singular vectors of every sample's map.

    Attributes:
        vectors: (B, C, k), unit columns; their signs are arbitrary.
        values: (B, k), the singular values, without gradient; not finite for a map that is not.
        resolved: (B, k) bool, whether the vector's direction is defined: its squared singular
            value differs from every other one by more than 1e-6 of the largest.
    """

    vectors: Tensor
    values: Tensor
    resolved: Tensor


def right_vectors(feature: Tensor, count: int) -> RightVectors:
    """The first vectors of each sample's map, seen as the matrix X of positions by channels.

    X (P, C) = U S V^T. The vectors come from the leading eigenvectors of the smaller of X^T X and
    X X^T: see `eigenvectors`. With lam = S^2 and the loss's slopes vbar_i of the first k vectors,

        w_i = (lam_i I - X^T X)^+ vbar_i = sum_(j != i) v_j (v_j . vbar_i) / (lam_i - lam_j),
        Xbar = sum_i (X w_i) v_i^T + (X v_i) w_i^T,

    by one linear system per i, so only the gaps of the first k vectors matter: with two dead
    channels the gradient of a whole decomposition is 0/0, and this one is finite. A vector of
    undefined direction has no gradient.

    Args:
        feature: (B, C, H, W), P = H * W.
        count: k, at most min(C, P).

    Returns:
        Vectors by decreasing singular value, values, and whether they are resolved.

    Raises:
        ValueError: not a map, or more vectors than it has.

    Example:
        >>> feature = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> found = right_vectors(feature, 1)
        >>> found.vectors.abs().flatten(), found.values
        (tensor([1., 0.]), tensor([[3.]]))
    """
    return _solved(_flat(feature, count), count)


def nearest_right_vectors(feature: Tensor, directions: Tensor, extra: int) -> RightVectors:
    """For each direction, the nearest of the map's first right vectors.

    Of the first k + extra right vectors v_j, the one with the largest (v_j . t_l)^2, with the
    gradient of `right_vectors`. Usually it is provably among the first k, and the others are never
    formed: see `eigenvectors`.

    Args:
        feature: (B, C, H, W).
        directions: t, (B, C, k), unit columns; k at most min(C, P).
        extra: further vectors that may be chosen, as far as the map has them.

    Returns:
        Vectors in the order of the directions, with a positive inner product (0 counts as
        positive), their values, and whether they are resolved.

    Raises:
        ValueError: not a map, or more directions than it has vectors.

    Example:
        >>> feature = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> second = torch.tensor([[[0.0], [-1.0]]])
        >>> nearest_right_vectors(feature, second, 1).vectors.flatten()
        tensor([-0., -1.])
    """
    flat = _flat(feature, directions.shape[2])
    return _solved(flat, min(directions.shape[2] + extra, *flat.shape[1:]), directions)


def _flat(feature: Tensor, count: int) -> Tensor:
    if feature.dim() != 4:
        raise ValueError(f"right_vectors: wanted a map (B, C, H, W), got {tuple(feature.shape)}")
    flat = full_precision(feature).flatten(2)
    if not 1 <= count <= min(flat.shape[1:]):
        raise ValueError(
            f"right_vectors: a map of {flat.shape[1]} channels and {flat.shape[2]} positions has "
            f"1 to {min(flat.shape[1:])} vectors, not {count}"
        )
    return flat


def _solved(flat: Tensor, candidates: int, directions: Tensor | None = None) -> RightVectors:
    """The first vectors, or the nearest to each direction."""
    with no_autocast(flat):
        with torch.no_grad():
            maps = Maps.of(flat)
            found = eigenvectors(maps, candidates, directions)
            values = found.squares.sqrt() * maps.scale[:, None]
        vectors = _WithGradient.apply(flat, maps.gram, maps.scale, *found)
        return RightVectors(vectors, values, found.resolved)


class _WithGradient(torch.autograd.Function):
    """Passes on the vectors found for maps (B, C, P), and gives them a gradient by the maps."""

    @staticmethod
    def forward(ctx, flat: Tensor, gram: Tensor, scale: Tensor, *found: Tensor) -> Tensor:
        ctx.save_for_backward(flat, gram, scale, *found)
        return found[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        flat, gram, scale, vectors, squares, resolved = ctx.saved_tensors
        resolved = resolved[:, None]
        with no_autocast(grad):
            inverse = torch.where(resolved.any(2), 1 / scale[:, None], 0.0)[:, None]
            across = torch.where(resolved, grad - vectors * (grad * vectors).sum(1, True), 0.0)
            moved = _resolvent(flat, inverse, vectors, squares, gram, across)
            moved = torch.where(resolved, moved, 0.0)
            left, right = torch.cat([vectors, moved], 2), torch.cat([moved, vectors], 2)
            slope = (left * inverse) @ torch.where(inverse > 0, right.mT @ flat * inverse, 0.0)
            return slope, None, None, None, None, None


def _resolvent(
    flat: Tensor, inverse: Tensor, vectors: Tensor, squares: Tensor, gram: Tensor, across: Tensor
) -> Tensor:
    """w_i = (lam_i I - X^T X)^-1 b_i for b_i orthogonal to v_i, (B, C, k), X = `inverse` map.

    Adding v_i v_i^T makes the matrix regular and does not change w_i. Where X has fewer positions
    than channels, (lam - X^T X)^-1 = (I + X^T (lam - X X^T)^-1 X) / lam.
    """
    along, right = vectors, across
    wide = flat.shape[1] > flat.shape[2]
    if wide:
        seen = flat.mT @ torch.cat([vectors, across], 2) * inverse
        along, right = seen.chunk(2, dim=2)
        along = nn.functional.normalize(along, dim=1)
    columns = along.mT[..., None]  # (B, k, n, 1)
    matrix = columns * columns.mT - gram[:, None]
    matrix.diagonal(dim1=2, dim2=3).add_(squares[..., None])
    moved = torch.linalg.solve_ex(matrix, right.mT[..., None]).result[..., 0].mT
    return (across + flat @ moved * inverse) / squares[:, None] if wide else moved
