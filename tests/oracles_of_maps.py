"""Losses between maps as the plain sums that define them; see `oracles`."""

import math
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from oracles import Array, _float64, adaptive_pool, hint_loss


def vid_loss(mean: ArrayLike, teacher: ArrayLike, variance: ArrayLike) -> Array:
    """Mean over channels and positions of 1/2 ((m - t)^2 / v_c + log v_c)."""
    mean, teacher, variance = _float64(mean, teacher, variance)
    losses = np.zeros(len(mean))
    for at in np.ndindex(mean.shape):
        error, v = mean[at] - teacher[at], variance[at[1]]
        losses[at[0]] += (error**2 / v + math.log(v)) / 2
    return losses / mean[0].size


def unit_vector(values: Array) -> Array:
    """Divided by its length; 0 where that is below 1e-8."""
    length = math.sqrt(sum(v * v for v in values))
    return values / length if length >= 1e-8 else 0 * values


def pooled_alike(first: Array, second: Array) -> list[Array]:
    """Two maps (C, H, W), each channel pooled to the smaller height and the smaller width."""
    size = [min(sides) for sides in zip(first.shape[1:], second.shape[1:], strict=True)]
    return [np.stack([adaptive_pool(image, *size) for image in maps]) for maps in (first, second)]


def nst_loss(student: ArrayLike, teacher: ArrayLike) -> Array:
    """Mean over pairs of channels of <t, t'>^2, plus that of <s, s'>^2, minus twice <s, t'>^2."""

    def kernel(first: list[Array], second: list[Array]) -> float:
        products = [sum(u * v) ** 2 for u, v in product(first, second)]
        return sum(products) / len(products)

    losses = []
    for maps in zip(*_float64(student, teacher), strict=True):
        ours, theirs = ([unit_vector(c.ravel()) for c in m] for m in pooled_alike(*maps))
        losses.append(kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs))
    return np.array(losses)


def hcl_loss(student: ArrayLike, teacher: ArrayLike) -> Array:
    """Mean square of the difference as it is, and pooled to 4, 2 and 1 if smaller than the map.

    Weighted 1, 1/2, 1/4... over those that there are, and divided by the sum of these weights.
    """
    losses = []
    for difference in np.subtract(*_float64(student, teacher)):
        sides = [side for side in (4, 2, 1) if side < min(difference.shape[1:])]
        sizes = [difference.shape[1:], *((side, side) for side in sides)]
        weights = [0.5**place for place in range(len(sizes))]
        squares = [
            [d * d for image in difference for d in adaptive_pool(image, *size).ravel()]
            for size in sizes
        ]
        total = sum(w * sum(each) / len(each) for w, each in zip(weights, squares, strict=True))
        losses.append(total / sum(weights))
    return np.array(losses)


def ft_loss(student_factor: ArrayLike, teacher_factor: ArrayLike, form: str) -> Array:
    """Mean |q_s - q_t|, q = vec(F) / ||F||, or of the means over channels of F^2 for "map"."""
    losses = []
    for factors in zip(*_float64(student_factor, teacher_factor), strict=True):
        values = pooled_alike(*factors)
        if form == "map":
            values = [sum(channel**2 for channel in x) / len(x) for x in values]
        ours, theirs = (unit_vector(x.ravel()) for x in values)
        losses.append(sum(abs(ours - theirs)) / ours.size)
    return np.array(losses)


def ofd_loss(student: ArrayLike, teacher: ArrayLike, margin: ArrayLike) -> Array:
    """Sum of (s - t')^2, t' = max(t, m_c), without elements with s <= t' <= 0."""
    student, teacher, margin = _float64(student, teacher, margin)
    losses = np.zeros(len(student))
    for at in np.ndindex(student.shape):
        target = max(teacher[at], margin[at[1]])
        if target > 0 or student[at] > target:
            losses[at[0]] += (student[at] - target) ** 2
    return losses


def simkd_loss(projected: ArrayLike, teacher: ArrayLike) -> Array:
    """Mean over channels and positions of the squared difference."""
    return 2 * hint_loss(projected, teacher)


def srrl_loss(student: ArrayLike, teacher: ArrayLike, head: ArrayLike) -> Array:
    """Mean square of the embeddings' difference, and that of the difference of their logits."""
    losses, (rows,) = [], _float64(head)
    for ours, theirs in zip(*_float64(student, teacher), strict=True):
        logits, wanted = ([sum(row * e) for row in rows] for e in (ours, theirs))
        errors = [z - y for z, y in zip(logits, wanted, strict=True)]
        gaps = list(ours - theirs)
        losses.append(sum(sum(x * x for x in each) / len(each) for each in (gaps, errors)))
    return np.array(losses)
