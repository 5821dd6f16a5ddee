"""Leading eigenvectors of the Gram matrices of feature maps, by iteration where it is exact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

GAP = 1e-6  # eigenvalues closer than this share of the largest have no direction of their own
SMALLEST = 32  # below this size a whole decomposition is faster than the many small products
ROUNDS = {torch.float32: 2, torch.float64: 5}  # of POWERS products and one orthonormalisation
POWERS = 4
SPARE = 3  # columns of the iterated block in addition to the vectors sought
RESIDUAL = 8  # times machine epsilon and the largest eigenvalue: the residual of `eigh`, too
LEAD = 0.9  # all other eigenvalues must be below this share of the last one found
CLEAR = 1e-3  # of the largest eigenvalue: far above both GAP and rounding
RANGE = 1e-30  # traces between it and its inverse neither overflow nor underflow
GOLDEN = 2.399963  # the golden angle: no two of its multiples coincide


class Maps(NamedTuple):
    """Feature maps as matrices X of positions by channels, scaled so that |X|_F = 1.

    Attributes:
        flat: the unscaled maps, transposed: (B, C, P).
        gram: the smaller of X^T X and X X^T, (B, n, n), n = min(C, P).
        scale: the Frobenius norms of the maps, (B,); zero or not finite where the map is, and
            then X is 0.
    """

    flat: Tensor
    gram: Tensor
    scale: Tensor

    @classmethod
    def of(cls, flat: Tensor) -> Maps:
        """The maps (B, C, P) with their Gram matrices."""
        gram, trace = _products(flat)
        scale = trace.sqrt()
        odd = ~((trace > RANGE) & (trace < 1 / RANGE))
        rows = odd.nonzero()[:, 0]  # waits for a GPU
        if len(rows):
            # Squares of 1e25 or 1e-25 leave float32, but the map's directions are well defined.
            size = torch.linalg.vector_norm(flat[rows], torch.inf, dim=(1, 2))
            usable = (size >= torch.finfo(flat.dtype).tiny) & size.isfinite()
            scaled = flat[rows] / size[:, None, None]
            part, small = _products(torch.where(usable[:, None, None], scaled, 0.0))
            gram = gram.index_copy(0, rows, part)
            trace = trace.index_copy(0, rows, torch.where(usable, small, 1.0))
            scale = scale.index_copy(0, rows, torch.where(usable, size * small.sqrt(), size))
        return cls(flat, gram.div_(trace[:, None, None]), scale)

    @property
    def wide(self) -> bool:
        """Whether there are more channels than positions, so that `gram` is X X^T."""
        return self.flat.shape[1] > self.flat.shape[2]

    def among_channels(self, vectors: Tensor) -> Tensor:
        """Eigenvectors (B, C, k) of X^T X from those of `gram`, (B, n, k)."""
        if not self.wide:
            return vectors
        return nn.functional.normalize(self.flat @ vectors / self.scale[:, None, None], dim=1)

    def powers(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """u^T X^T X u and u^T (X^T X)^2 u of columns u (B, C, k), (B, k) each."""
        if self.wide:
            seen = self.flat.mT @ vectors / self.scale[:, None, None]
            return seen.square().sum(1), (seen * (self.gram @ seen)).sum(1)
        image = self.gram @ vectors
        return (vectors * image).sum(1), image.square().sum(1)


def _products(flat: Tensor) -> tuple[Tensor, Tensor]:
    gram = flat @ flat.mT if flat.shape[1] <= flat.shape[2] else flat.mT @ flat
    return gram, gram.diagonal(dim1=1, dim2=2).sum(1)


class Found(NamedTuple):
    """k eigenvectors of every X^T X.

    Attributes:
        vectors: (B, C, k), unit columns.
        squares: (B, k), their eigenvalues.
        resolved: (B, k) bool, whether the direction is defined: the eigenvalue is more than `GAP`
            of the largest away from every other one.
    """

    vectors: Tensor
    squares: Tensor
    resolved: Tensor


def eigenvectors(maps: Maps, candidates: int, directions: Tensor | None = None) -> Found:
    """The first `candidates` eigenvectors, or of these the nearest to each direction (B, C, k).

    By subspace iteration for samples where it is proved exact, see `_leading` and `_none_nearer`,
    and by a whole decomposition for all others. The result for a sample does not depend on the
    rest of its batch.

    Example:
        >>> maps = Maps.of(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        >>> found = eigenvectors(maps, 1)
        >>> found.vectors.abs().flatten(), found.squares * maps.scale**2
        (tensor([1., 0.]), tensor([[9.]]))
    """

    def exact(rows: Tensor | slice) -> Found:
        found = _exact(Maps(*(x[rows] for x in maps)), candidates)
        return found if directions is None else _nearest(found, directions[rows])

    if maps.gram.shape[1] < SMALLEST:
        return exact(slice(None))
    found, certain = _leading(maps, candidates, directions)
    rows = (~certain).nonzero()[:, 0]  # waits for a GPU
    if not len(rows):
        return found
    parts = zip(found, exact(rows), strict=True)
    return Found(*(whole.index_copy(0, rows, part) for whole, part in parts))


def _exact(maps: Maps, count: int) -> Found:
    """The first vectors by a whole decomposition."""
    squares, vectors = torch.linalg.eigh(maps.gram)
    squares, vectors = squares.flip(1).clamp(min=0), vectors.flip(2)[:, :, :count]
    first, least = squares[:, :count], GAP * squares[:, :1]
    near = (first[:, None] - squares[:, :, None]).abs() <= least[:, None]
    resolved = (least > 0) & (near.sum(1) == 1)  # only itself
    if maps.wide:  # X^T X has further eigenvalues, all 0
        resolved &= first > least
        # Below the gap X^T u is rounding noise.
        vectors = torch.where((first > least)[:, None], maps.among_channels(vectors), 0.0)
    return Found(vectors, first, resolved)


def _leading(maps: Maps, candidates: int, directions: Tensor | None) -> tuple[Found, Tensor]:
    """The first vectors by iteration, and (B,) whether they are certain.

    Ritz pairs (theta_i, v_i) of the Gram matrix G, see `_ritz`, are its first k eigenpairs, as
    exact as those of `eigh`, if

        |G v_i - theta_i v_i| <= 8 eps theta_1,
        |G|_F^2 - sum_(i <= k) theta_i^2 < (0.9 theta_k)^2,

    and the theta_i are clearly apart. The left side of the second bounds the square of every other
    eigenvalue, so none has been missed. If a condition fails, or another candidate may be nearer
    to a direction, the sample is not certain.
    """
    count = candidates if directions is None else directions.shape[2]
    columns = min(max(candidates, count + SPARE), maps.gram.shape[1])
    squares, vectors, residual = _ritz(maps.gram, columns, count)
    first = squares[:, :count]
    certain = _leads(maps.gram, first, residual)
    found = Found(maps.among_channels(vectors), first, certain[:, None].expand_as(first))
    if directions is None:
        return found, certain
    certain &= _none_nearer(maps, found, squares[:, candidates - 1 : candidates], directions)
    return _nearest(found, directions), certain


def _ritz(gram: Tensor, columns: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """All Ritz values (B, columns), the first vectors (B, n, k) and their residuals (B, k).

    Subspace iteration: a fixed block is multiplied by the matrix eight times (twenty in float64).
    Its columns have no structure, except that the first is constant: close to the Perron vector
    of a map after a ReLU.
    """
    rows, turns = (
        torch.arange(n, dtype=gram.dtype, device=gram.device) for n in (gram.shape[1], columns)
    )
    basis = torch.cos(GOLDEN * torch.outer(rows + 1, turns))
    for _ in range(ROUNDS[gram.dtype]):
        for _ in range(POWERS):
            basis = gram @ basis
        basis = torch.linalg.qr(basis).Q
    image = gram @ basis
    squares, turn = torch.linalg.eigh(basis.mT @ image)
    squares, turn = squares.flip(1), turn.flip(2)[:, :, :count]
    vectors = basis @ turn
    error = image @ turn - vectors * squares[:, None, :count]
    return squares, vectors, torch.linalg.vector_norm(error, dim=1)


def _leads(gram: Tensor, first: Tensor, residual: Tensor) -> Tensor:
    """Whether Ritz values (B, k) with these residuals are the first eigenvalues, (B,)."""
    epsilon, largest = torch.finfo(gram.dtype).eps, first[:, :1]
    rest = torch.linalg.vector_norm(gram, dim=(1, 2)).square() - first.square().sum(1)
    small = rest + 100 * epsilon * largest[:, 0].square() < (LEAD * first[:, -1]).square()
    apart = (first[:, :-1] - first[:, 1:] > CLEAR * largest).all(1)
    return small & apart & (residual <= RESIDUAL * epsilon * largest).all(1)


def _none_nearer(maps: Maps, found: Found, least: Tensor, directions: Tensor) -> Tensor:
    """Whether no later candidate v_j can be nearer to any direction t, (B,).

    With u the part of t outside the vectors found, and a Ritz value theta <= lam_j,

        (v_j . t)^2 <= u^T (X^T X)^q u / theta^q,    q = 0, 1, 2,

    because u^T (X^T X)^q u is the sum of lam_j^q (v_j . u)^2 over all j.
    """
    inside = found.vectors.mT @ directions
    outside = directions - found.vectors @ inside
    once, twice = maps.powers(outside)
    bounds = torch.stack([outside.square().sum(1), once / least, twice / least.square()])
    nearer = inside.square().amax(1) > bounds.amin(0) + CLEAR
    return ((least > CLEAR * found.squares[:, :1]) & nearer).all(1)


def _nearest(found: Found, directions: Tensor) -> Found:
    """The vector nearest to each direction (B, C, k).

    Its sign makes the inner product with the direction positive; 0 counts as positive.
    """
    products = found.vectors.mT @ directions
    index = products.abs().argmax(1)
    side = torch.where(products.gather(1, index[:, None]) < 0, -1.0, 1.0).to(products.dtype)
    vectors = side * found.vectors.gather(2, index[:, None].expand_as(directions))
    squares, resolved = (x.gather(1, index) for x in (found.squares, found.resolved))
    return Found(vectors, squares, resolved)
