"""KD-SVD: relations between the principal channel directions of consecutive feature maps.

The gradient through the singular vectors is exact here. In public code it is not: the authors'
(SSKD_SVD) keeps the first five vectors of it, which leaves a cosine of 1.00, 0.56, 0.30 and 0.22
with the exact one for random maps of P x C = 64 x 4, 64 x 16, 64 x 64 and 256 x 64; that of
KD_methods_with_TF is twice as long; RepDistiller's was not finite in 120 of 120 steps on digits,
cnn32 to cnn8.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, repeat
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from bench.method import (
    Gradients,
    MaskedLoss,
    Merged,
    Method,
    NotApplicable,
    Pair,
    Shapes,
    Stage,
)
from methods._checks import above_zero, one_of
from methods._connector import Connectors, connect_widths
from methods._points import STAGE_OUTPUTS, sensing_points
from methods._precision import no_autocast
from methods._svd import RightVectors, nearest_right_vectors, right_vectors

Clip = Literal["per_tensor", "global", "none"]
Scale = Literal["sum", "mean"]

SOURCE = """\
S. H. Lee, D. H. Kim, B. C. Song: Self-supervised Knowledge Distillation Using Singular Value \
Decomposition, ECCV 2018.
Deviations: teacher vectors have a canonical sign (their entries sum to at least 0), without which \
the loss depends on signs that a decomposition leaves open; the sensed maps are the stage outputs; \
1x1 convolution and BatchNorm on the student's maps where widths differ, which learn from the \
unclipped transfer gradient; a sample with a singular vector of undefined direction has loss 0; \
the gradient through the singular vectors is exact, where the authors' code truncates it. The loss \
is summed over the batch, as in the authors' code. scale="mean" is the form of public code that \
does not clip; it rarely reaches the bound, so that hardly anything is clipped."""

TERMS = {torch.float32: 8, torch.float64: 13}  # of the series behind a relation


def kd_svd_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    rank: int = 1,
    extra: int = 3,
) -> Tensor:
    """Squared difference of both networks' relations between consecutive maps.

    Each map, as a matrix of positions by channels, is compressed to its first right singular
    vectors V (C, rank). Then

    0. every teacher vector takes the sign that makes its entries sum to at least 0;
    1. of the student's first rank + extra vectors, the one with the largest absolute inner product
       with it is its match, with the sign that makes the product positive (0 counts as positive);
    2. both are weighted by the teacher's s_l / |s_1..rank|.

    With a and b such vectors of the front and the back map of a pair of neighbours,
    R[i, j, l] = exp(-(a_il - b_jl)^2 / 8), and the loss is the sum over pairs, i, j and l of
    (R_student - R_teacher)^2. It depends on no sign, scale or order of positions of any map.

    If the direction of a vector in use is undefined (see `right_vectors`), the sample gives 0 and
    no gradient; `masked_kd_svd_loss` names these samples. A map that is not finite gives NaN.

    Args:
        student_features: maps from shallow to deep, each (B, C, H, W).
        teacher_features: as many, with the student's channels and any size; they get no gradient.
        rank: vectors compared per map, at most min(C, H * W).
        extra: further student vectors that may be matched, as far as the map has them.

    Returns:
        (B,), without unit.

    Raises:
        ValueError: unequal numbers of maps or channels, fewer than two maps, or a rank out of
            range.

    Source:
        Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition,
        ECCV 2018. Step 0 is ours: the relation depends on the relative sign of the front and the
        back vector, which a decomposition leaves open.

    Example:
        >>> first = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
        >>> student_back = torch.tensor([[0.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2)
        >>> teacher_back = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
        >>> kd_svd_loss([first, student_back], [first, teacher_back], 1, 0)
        tensor([0.0552])
        >>> kd_svd_loss([first, student_back], [first, teacher_back], 1, 1)   # a null vector fits
        tensor([0.])
    """
    return masked_kd_svd_loss(student_features, teacher_features, rank, extra).loss


def masked_kd_svd_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    rank: int = 1,
    extra: int = 3,
) -> MaskedLoss:
    """`kd_svd_loss`, and which samples have a vector of undefined direction.

    Arguments and errors are those of `kd_svd_loss`.

    Example:
        >>> alive = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
        >>> maps = [torch.cat([alive, alive]), torch.cat([alive, torch.zeros_like(alive)])]
        >>> masked_kd_svd_loss(maps, maps, 1, 0).masked
        tensor([False,  True])
    """
    pairs = _matched(student_features, teacher_features)
    maps = [_aligned(student, teacher, rank, extra) for student, teacher in pairs]
    total = torch.stack([_relation_gap(front, back) for front, back in pairwise(maps)]).sum(0)
    resolved = torch.stack([layer.resolved for layer in maps]).all(0)
    finite = torch.stack([layer.finite for layer in maps]).all(0)
    loss = torch.where(finite, torch.where(resolved, total, 0.0), torch.nan)
    return MaskedLoss(loss, ~resolved)


def _matched(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    if len(student_features) != len(teacher_features) or len(student_features) < 2:
        raise ValueError(
            f"kd_svd: {len(student_features)} student and {len(teacher_features)} teacher maps; "
            "wanted the same number, at least 2"
        )
    pairs = list(zip(student_features, teacher_features, strict=True))
    for student, teacher in pairs:
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f"kd_svd: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} need "
                "the same batch and channels; connect the student's map to the teacher's width"
            )
    return pairs


class _Aligned(NamedTuple):
    """One map's weighted vectors, (B, k, C); and (B,) whether they are defined and finite."""

    student: Tensor
    teacher: Tensor
    resolved: Tensor
    finite: Tensor


def _aligned(student: Tensor, teacher: Tensor, rank: int, extra: int) -> _Aligned:
    candidates = min(rank + extra, student.shape[1], student[0, 0].numel())
    if extra < 0 or candidates < rank:
        raise ValueError(
            f"kd_svd: rank {rank} and extra {extra} for a student's map {tuple(student.shape)}; "
            "rank must be in 1..min(C, H * W), extra at least 0"
        )
    with torch.no_grad():
        theirs = right_vectors(teacher, rank)
        weight = _weights(theirs)
        directions = _canonical(theirs.vectors)
    ours = nearest_right_vectors(student, directions, extra)
    return _Aligned(
        student=(ours.vectors * weight).mT,
        teacher=(directions * weight).mT,
        resolved=(ours.resolved & theirs.resolved).all(1),
        finite=ours.values[:, 0].isfinite() & theirs.values[:, 0].isfinite(),
    )


def _weights(teacher: RightVectors) -> Tensor:
    """s_l / |s_1..rank|, (B, 1, k)."""
    share = torch.where(teacher.resolved, teacher.values / teacher.values[:, :1], 0.0)
    return nn.functional.normalize(share, dim=1)[:, None]


def _canonical(vectors: Tensor) -> Tensor:
    """Columns with a sum of at least 0; where it cancels, with a positive largest entry."""
    total = vectors.sum(1, keepdim=True)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    decisive = torch.where(total.abs() < 1e-6, largest, total)
    return torch.where(decisive < 0, -vectors, vectors)


def _relation_gap(front: _Aligned, back: _Aligned) -> Tensor:
    """Sum over i, j, l of (R_student - R_teacher)^2, (B,), without forming a relation.

    R(a, b) = exp(-(a - b)^2 / 8) = sum_n f_n(a) f_n(b) by the series of exp(a b / 4), see
    `_features`. With the matrices F (N, C) and G (N, D) of f_n at the entries of the front and of
    the back vector, the two networks' relations differ by

        F_s^T G_s - F_t^T G_t = [F_s - F_t; F_t]^T [G_s; G_s - G_t] = U^T W,

    and |U^T W|^2 = tr(U U^T W W^T): (C + D) (2 N)^2 operations instead of some 50 C D, and no
    difference of large numbers.
    """
    ours, theirs = _features(front.student), _features(front.teacher)
    left = torch.cat([ours - theirs, _one_added(theirs)], 2)
    ours, theirs = _features(back.student), _features(back.teacher)
    right = torch.cat([_one_added(ours), ours - theirs], 2)
    with no_autocast(left):
        return ((left @ left.mT) * (right @ right.mT)).sum((1, 2, 3))


def _features(x: Tensor) -> Tensor:
    """f_n(x) = exp(-x^2 / 8) (x / 2)^n / sqrt(n!), less 1 for n = 0: (B, k, C) -> (B, k, N, C).

    Entries of weighted unit vectors are in [-1, 1], so the first term left out, (a b / 4)^N / N!,
    is at most 4e-10 in float32 and 3e-18 in float64.
    """
    # f_0 - 1 instead of f_0: entries are small, so f_0 is near 1 and would lose their digits.
    columns = [torch.expm1(x.square() / -8)]
    term = columns[0] + 1
    for n in range(1, TERMS[x.dtype]):
        term = term * x * (0.5 / math.sqrt(n))
        columns.append(term)
    return torch.stack(columns, 2)


def _one_added(features: Tensor) -> Tensor:
    return torch.cat([features[:, :, :1] + 1, features[:, :, 1:]], 2)


def clipped_merge(
    task_gradients: Gradients,
    transfer_gradients: Gradients,
    epoch: int,
    *,
    clip: Clip = "per_tensor",
    ramp: bool = True,
) -> Merged:
    """Adds the transfer gradient to the task gradient, clipped to at most its norm.

    g = g_task + g_transfer min(1, c / |g_transfer|), c = |g_task| sigmoid(epoch), for every
    parameter by itself or, with "global", with the norms over all of them. Where one loss has no
    gradient (None), the other's is left as it is: a connector has only the transfer loss to learn
    from. Does not wait for the device.

    Args:
        task_gradients: one per parameter.
        transfer_gradients: one per parameter.
        epoch: from 0; the first epochs allow 0.5, 0.731, 0.881, ... of the task's norm.
        clip: "per_tensor", "global", or "none" for the plain sum.
        ramp: False drops the factor sigmoid(epoch).

    Returns:
        One gradient per parameter, None where neither loss has one; and "clipped_share", the share
        of the parameters with both gradients whose transfer gradient was longer than its bound.

    Raises:
        ValueError: lists of unequal length, or an unknown `clip`.

    Source:
        The gradient clipping of KD-SVD, see `kd_svd_loss`, per tensor as in the authors' code.

    Example:
        >>> task, transfer = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
        >>> clipped_merge([task, None], [transfer, transfer], 0).gradients
        [tensor([4.5000, 6.0000]), tensor([6., 8.])]
        >>> clipped_merge([task, task], [transfer, 0.05 * transfer], 0).watched
        {'clipped_share': tensor(0.5000)}
    """
    one_of("clipped_merge", "clip", clip, get_args(Clip))
    pairs = list(zip(task_gradients, transfer_gradients, strict=True))
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    factors: Iterator[float | Tensor] = repeat(1.0)
    watched: dict[str, Tensor] = {}
    if both and clip != "none":
        share = 1 / (1 + math.exp(-epoch)) if ramp else 1.0
        tasks, transfers = zip(*both, strict=True)
        each, clipped = _clip_factors(tasks, transfers, share, clip)
        factors, watched["clipped_share"] = iter(each), clipped.float().mean()
    merged: list[Tensor | None] = []
    for task, transfer in pairs:
        if task is None or transfer is None:
            merged.append(transfer if task is None else task)
        else:
            merged.append(task + transfer * next(factors))
    return Merged(merged, watched)


def _clip_factors(
    task: Sequence[Tensor], transfer: Sequence[Tensor], share: float, clip: Clip
) -> tuple[Sequence[Tensor], Tensor]:
    """min(1, share |g_task| / |g_transfer|), 0 where |g_transfer| is 0; and where it is below 1."""
    task_norms, norms = (
        torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        for gradients in (task, transfer)
    )
    if clip == "global":
        task_norms, norms = (x.norm().expand_as(x) for x in (task_norms, norms))
    bounds = share * task_norms
    factors = torch.where(norms > 0, (bounds / norms).clamp(max=1), 0.0)
    return factors.unbind(), norms > bounds


SEARCH = {
    "rank": [1, 2],
    "scale": ["sum", "mean"],
    "weight": [0.1, 1.0, 10.0],
    "ramp": [True, False],
}
"""What tuning tries."""


def method(
    *,
    rank: int = 1,
    extra: int = 3,
    clip: Clip = "per_tensor",
    ramp: bool = True,
    scale: Scale = "sum",
    weight: float = 1.0,
    points: Literal["all"] | list[str] = "all",
    connectors: bool = True,
) -> Method:
    """KD-SVD: one stage of cross-entropy and the relations' loss, merged by clipped gradients.

    The curve "clipped_share" is the share of tensors and steps at the bound. On digits, cnn32 to
    cnn8, it is 0.41 at scale "sum" and 0.04 at "mean"; from cnn8 to cnn8, where no connector takes
    up a part of the loss, 0.80 and 0.005.

    Args:
        rank: singular vectors compared per map.
        extra: further student vectors that may be matched.
        clip: bound on the transfer gradient, see `clipped_merge`.
        ramp: the bound grows with sigmoid(epoch).
        scale: of the loss that is clipped: "sum" over the batch, the authors', or its "mean".
        weight: on the transfer loss. A clipped gradient does not depend on it; the gradient of the
            connectors, which is not clipped, does.
        points: "all" three stage outputs, or a list of taps from shallow to deep; each map is
            related to the next.
        connectors: 1x1 convolution and BatchNorm where widths differ; False makes such a pair not
            applicable.

    Raises:
        ValueError: a value out of range, fewer than two points, or an unknown `clip`.

    Example:
        >>> [(stage.name, stage.taps) for stage in method().plan]
        [('distil', ('stage1', 'stage2', 'stage3'))]
    """
    taps = sensing_points("kd_svd", points, {"all": STAGE_OUTPUTS})
    one_of("kd_svd", "clip", clip, get_args(Clip))
    one_of("kd_svd", "scale", scale, get_args(Scale))
    above_zero("kd_svd", weight=weight)
    if rank < 1 or extra < 0 or len(taps) < 2:
        raise ValueError(
            f"kd_svd: rank {rank} must be at least 1, extra {extra} at least 0, and points "
            f"{list(taps)} at least 2"
        )

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        student = [connector(tap, pair.student[tap]) for tap in taps]
        return masked_kd_svd_loss(student, [pair.teacher[tap] for tap in taps], rank, extra)

    def connect(student: Shapes, teacher: Shapes) -> Connectors:
        layers = connect_widths(taps, student, teacher, allowed=connectors)
        _check_rank(rank, taps, student, teacher)
        return layers

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=taps,
        transfer_weight=weight,
        reduction=scale,
        merge=partial(clipped_merge, clip=clip, ramp=ramp),
    )
    return Method(category="shared-representation", source=SOURCE, plan=(stage,), connect=connect)


def _check_rank(rank: int, taps: Sequence[str], student: Shapes, teacher: Shapes) -> None:
    for tap in taps:
        for name, (_, height, width) in (("student", student[tap]), ("teacher", teacher[tap])):
            vectors = min(teacher[tap][0], height * width)
            if rank > vectors:
                raise NotApplicable(
                    f"rank {rank}, but the {name}'s map at {tap} has {vectors} singular vectors"
                )
