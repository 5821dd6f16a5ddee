"""Relational knowledge distillation: keep the distances and angles within a batch.

Only relations between embeddings are compared, so the two networks may have embeddings of different
sizes. The points are the batch of one device; no relation crosses devices.

Distances and angles come from a Gram matrix, where a squared distance is a small difference of
large numbers. In float32 no digit of it would be left for two samples a thousandth of the batch's
spread apart, so the losses compute in float64, whatever the networks' precision.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import huber_loss

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import one_of, same_batch, weights
from methods._precision import full_precision, no_autocast

Tap = Literal["embedding", "logits"]
Reduction = Literal["peers", "distinct"]

SOURCE = """\
W. Park, D. Kim, Y. Lu, M. Cho: Relational Knowledge Distillation, CVPR 2019.
Deviations: a side of length zero gives no angle and no gradient, where public code divides by \
1e-12; weights 25 and 50 next to cross-entropy, as public classification benchmarks have them."""

COINCIDE = 1e-12  # squared distances up to this share of the largest count as zero
CPU_CHUNK = 1 << 16  # angles formed at a time: three temporaries of 512 KiB stay in the cache
GPU_CHUNK = 1 << 23  # 64 MiB each: large enough to hide the cost of a kernel launch


def rkd_distance_loss(
    student: Tensor, teacher: Tensor, *, reduction: Reduction = "peers"
) -> Tensor:
    """Huber distance between both networks' relative pairwise distances.

    psi(i, j) = |x_i - x_j| / mu, with mu the mean of |x_i - x_j| over i != j of the same batch;
    L = mean over (i, j) of huber(psi_student - psi_teacher), delta = 1. mu is part of the graph.
    Where |x_i - x_j|^2 <= 1e-12 of the batch's largest, the distance and its gradient are 0.

    Args:
        student: embeddings, (B, D).
        teacher: embeddings, (B, E); E may differ from D. No gradient flows to them.
        reduction: "peers": the mean over all B^2 entries, as public code takes it; "distinct":
            over the B (B - 1) pairs of different samples.

    Returns:
        (), without unit; 0 for B < 2.

    Raises:
        ValueError: not matrices of equal B, or an unknown reduction.

    Source:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, eq. 4-6.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> round(rkd_distance_loss(student, teacher).item(), 7)
        0.0034812
    """
    return _distance_gap(*_relations(student, teacher), reduction)


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "peers") -> Tensor:
    """Huber distance between the cosines of all angles in the batch.

    psi(i, j, k) = <x_i - x_j, x_k - x_j> / (|x_i - x_j| |x_k - x_j|), the cosine at vertex j;
    L = mean over (i, j, k) of huber(psi_student - psi_teacher), delta = 1. A cosine with a side
    of length zero (squared, at most 1e-12 of the batch's largest) is 0, and so is its gradient.

    The numerators come from the Gram matrix of the centred points: O(B^2 D + B^3) operations
    instead of O(B^3 D). The B^3 cosines exist only for a few vertices at a time, and the gradient
    of each chunk is formed together with its value.

    Args:
        student: embeddings, (B, D).
        teacher: embeddings, (B, E); E may differ from D. No gradient flows to them.
        reduction: "peers": the mean over all B^3 entries, as public code takes it; "distinct":
            over the B (B - 1) (B - 2) triples of different samples.

    Returns:
        (), without unit; 0 for B < 3.

    Raises:
        ValueError: not matrices of equal B, or an unknown reduction.

    Source:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, eq. 7-9.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> round(rkd_angle_loss(student, teacher).item(), 8)
        0.00074448
    """
    return _angle_gap(*_relations(student, teacher), reduction)


class _Relations(NamedTuple):
    """One network's points by their Gram matrix, in float64, (B, B) each.

    Attributes:
        gram: inner products of the centred points.
        squared: squared distances.
        inverse: 1 / distance; 0 with gradient 0 where the two points coincide.
        dtype: of what is made of them.
    """

    gram: Tensor
    squared: Tensor
    inverse: Tensor
    dtype: torch.dtype

    @property
    def coincide(self) -> Tensor:
        """(B,) whether a sample lies on another one, so that their line has no direction."""
        return (self.inverse == 0).sum(1) > 1  # the one is the sample itself


def _relations(student: Tensor, teacher: Tensor) -> tuple[_Relations, _Relations]:
    same_batch("rkd", student, teacher)
    found = []
    for points in map(full_precision, (student, teacher.detach())):
        with no_autocast(points):
            gram = _centred_gram(points.double())
            squared = _squared_distances(gram)
            found.append(_Relations(gram, squared, _inverse_lengths(squared), points.dtype))
    return found[0], found[1]


def _distance_gap(ours: _Relations, theirs: _Relations, reduction: Reduction) -> Tensor:
    factor = _mean_factor(len(ours.gram), 2, reduction)
    if factor == 0:
        return _zero(ours)
    gap = huber_loss(_relative_distances(ours), _relative_distances(theirs), reduction="sum")
    return (factor * gap).to(ours.dtype)


def _angle_gap(ours: _Relations, theirs: _Relations, reduction: Reduction) -> Tensor:
    factor = _mean_factor(len(ours.gram), 3, reduction)
    if factor == 0:
        return _zero(ours)
    with no_autocast(ours.gram):
        total = _AngleHuber.apply(ours.gram, ours.inverse, theirs.gram, theirs.inverse)
    return (factor * total).to(ours.dtype)


def _mean_factor(batch: int, size: int, reduction: Reduction) -> float:
    """1 / the number of tuples of `size` samples; 0 if the batch holds no distinct one."""
    one_of("rkd", "reduction", reduction, get_args(Reduction))
    if batch < size:
        return 0.0
    return 1 / (batch**size if reduction == "peers" else math.perm(batch, size))


def _zero(student: _Relations) -> Tensor:
    # The sum of no elements is 0 and still part of the student's graph.
    return student.gram[:0].sum().to(student.dtype)


def _centred_gram(points: Tensor) -> Tensor:
    # Distances do not depend on the origin, but their rounding does: far from it, P_ii and P_ij
    # are large and nearly equal.
    centred = points - points.mean(0)
    return centred @ centred.mT


def _squared_distances(gram: Tensor) -> Tensor:
    norms = gram.diagonal()
    return (norms[:, None] + norms - 2 * gram).clamp(min=0)


def _inverse_lengths(squared: Tensor) -> Tensor:
    """1 / d from d^2, (B, B); 0 with gradient 0 where the two points coincide."""
    apart = squared > COINCIDE * squared.detach().max()
    return torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)


def _inverse_or_zero(number: Tensor) -> Tensor:
    return torch.where(number > 0, 1 / torch.where(number > 0, number, 1.0), 0.0)


def _relative_distances(points: _Relations) -> Tensor:
    distances = points.squared * points.inverse
    mean = distances.sum() / (distances.numel() - len(distances))
    return distances * _inverse_or_zero(mean)


class _AngleHuber(torch.autograd.Function):
    """Sum of huber(cos_student - cos_teacher) over all triples.

    With r_ij = 1 / d_ij, cos[j; i, k] = (P_ik - P_ij - P_jk + P_jj) r_ij r_jk. The value is a
    scalar, so the forward pass already forms its gradient, (B, B) for P and for r, and the backward
    pass only scales it. Nothing of size B^3 is kept, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx, gram: Tensor, sides: Tensor, teacher_gram: Tensor, teacher_sides: Tensor
    ) -> Tensor:
        batch = len(gram)
        total = gram.new_zeros(())
        gram_slope, pulls = torch.zeros_like(gram), torch.zeros_like(sides)
        step = max(1, min(batch, (GPU_CHUNK if gram.is_cuda else CPU_CHUNK) // batch**2))
        # Allocated once: returning pages and faulting them in again costs more than the sums.
        spaces = [gram.new_empty(step, batch, batch) for _ in range(3)]
        for start in range(0, batch, step):
            vertices = slice(start, min(start + step, batch))
            cosines, gap, slope = (space[: vertices.stop - start] for space in spaces)
            _cosines(gram, sides, vertices, out=cosines)
            torch.sub(cosines, _cosines(teacher_gram, teacher_sides, vertices, out=gap), out=gap)
            torch.clamp(gap, -1, 1, out=slope)  # of the Huber distance with delta = 1
            # The distance itself is slope (gap - slope / 2), on either side of delta.
            total += torch.dot(slope.view(-1), gap.sub_(slope, alpha=0.5).view(-1))
            if any(ctx.needs_input_grad):
                pulls[vertices] = 2 * cosines.mul_(slope).sum(2)
                _add_gram_slope(_scaled(slope, sides, vertices), vertices, gram_slope)
        # `pulls` is r times the slope by r; a side of length zero has none.
        ctx.save_for_backward(gram_slope, torch.where(sides > 0, pulls / sides, 0.0))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore
        gram_slope, sides_slope = ctx.saved_tensors
        return grad * gram_slope, grad * sides_slope, None, None


def _cosines(gram: Tensor, sides: Tensor, vertices: slice, out: Tensor) -> Tensor:
    """<x_i - x_j, x_k - x_j> / (d_ij d_jk) for the vertices j, (J, B, B)."""
    rows = gram[vertices]
    squares = gram.diagonal()[vertices, None]
    torch.sub(gram, rows[:, :, None], out=out)
    return _scaled(out.sub_((rows - squares)[:, None, :]), sides, vertices)


def _scaled(products: Tensor, sides: Tensor, vertices: slice) -> Tensor:
    """`products` (J, B, B) times r_ij r_jk, in place."""
    rows = sides[vertices]
    return products.mul_(rows[:, :, None]).mul_(rows[:, None, :])


def _add_gram_slope(slope: Tensor, vertices: slice, gram_slope: Tensor) -> None:
    """Adds the slope by the Gram matrix through the cosines' numerators, symmetric in i and k."""
    gram_slope += slope.sum(0)
    by_end = slope.sum(2)
    gram_slope[vertices] -= 2 * by_end
    gram_slope.diagonal()[vertices] += by_end.sum(1)


def _unit_rows(points: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(points, dim=1, keepdim=True)
    return points * _inverse_or_zero(lengths)


SEARCH = {"distance_weight": [1.0, 5.0, 25.0], "angle_weight": [2.0, 10.0, 50.0]}
"""What tuning tries."""


def method(
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    tap: Tap = "embedding",
    normalise: bool = False,
    reduction: Reduction = "peers",
) -> Method:
    """Relational KD: one stage of cross-entropy and both relations.

    Args:
        distance_weight: weight on `rkd_distance_loss`; 0 leaves it out.
        angle_weight: weight on `rkd_angle_loss`; 0 leaves it out.
        tap: what is related, "embedding" or "logits".
        normalise: both networks' vectors are scaled to length 1 first.
        reduction: see the losses.

    Raises:
        ValueError: a negative weight, both weights 0, an unknown tap or reduction.

    Example:
        >>> [(stage.name, stage.taps) for stage in method(tap="logits").plan]
        [('distil', ('logits',))]
    """
    weights("rkd", distance_weight=distance_weight, angle_weight=angle_weight)
    one_of("rkd", "tap", tap, get_args(Tap))
    one_of("rkd", "reduction", reduction, get_args(Reduction))

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        points = [pair.student[tap], pair.teacher[tap]]
        if normalise:
            points = [_unit_rows(x) for x in points]
        ours, theirs = _relations(*points)
        terms = []
        if distance_weight > 0:
            terms.append(distance_weight * _distance_gap(ours, theirs, reduction))
        if angle_weight > 0:
            terms.append(angle_weight * _angle_gap(ours, theirs, reduction))
        return MaskedLoss(torch.stack(terms).sum(), ours.coincide | theirs.coincide)

    return Method(
        category="shared-representation",
        source=SOURCE,
        plan=(Stage(name="distil", share=1.0, transfer=transfer, taps=(tap,)),),
    )
