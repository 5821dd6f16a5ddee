"""The losses of methods/ as a paper's reader would write them in torch: whole tensors, no chunks.

Each equals the shipped loss of the same name and arguments to rounding, in value and gradient.
They are what the shipped forms are timed against (tests/benchmarks) and held to at real sizes
(tests/test_losses_fast_forms.py); oracles.py is independent of torch and slower still.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Method, Pair, Transfer
from methods import activation_boundary, attention_transfer, fitnet, fsp, kd_svd, rkd

COINCIDE = 1e-12  # squared distances up to this share of the largest count as zero


def hint_loss(student: Tensor, teacher: Tensor, scale: str = "mean") -> Tensor:
    """From all squared differences, (B, C, H, W)."""
    squares = (student - teacher).square().flatten(1)
    return 0.5 * (squares.mean(1) if scale == "mean" else squares.sum(1))


def attention_transfer_loss(student: Tensor, teacher: Tensor, kind: str = "l2") -> Tensor:
    """From the squares of both maps, (B, C, H, W)."""
    maps = [feature.square().sum(1) for feature in (student, teacher)]
    if kind == "l2":
        # sqrt(0) has an infinite slope: a silent position gives 0 and takes no gradient.
        maps = [torch.where(m == 0, 0.0, torch.where(m == 0, 1.0, m).sqrt()) for m in maps]
    size = [min(sides) for sides in zip(*(m.shape[1:] for m in maps), strict=True)]
    flat = [F.adaptive_avg_pool2d(m, size).flatten(1) for m in maps]
    ours, theirs = (F.normalize(m, dim=1) for m in flat)
    alive = torch.stack([m.norm(dim=1) >= 1e-8 for m in flat]).all(0)
    return torch.where(alive, (ours - theirs).square().mean(1), 0.0)


def activation_boundary_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """|| rho(t) max(0, mu - s) + (1 - rho(t)) max(0, mu + s) ||^2, rho(t) = [t > 0]."""
    fires = (teacher > 0).to(student.dtype)
    shortfall = fires * (margin - student).relu() + (1 - fires) * (margin + student).relu()
    return shortfall.square().flatten(1).sum(1)


def fsp_loss(
    student_first: Tensor,
    student_second: Tensor,
    teacher_first: Tensor,
    teacher_second: Tensor,
    scale: str = "sum",
) -> Tensor:
    """From the products of all channels at all positions, (B, C, D, H, W)."""
    student, teacher = (
        (first[:, :, None] * second[:, None]).mean((3, 4))
        for first, second in ((student_first, student_second), (teacher_first, teacher_second))
    )
    squares = (student - teacher).square().flatten(1)
    return squares.sum(1) if scale == "sum" else squares.mean(1)


def kd_svd_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    rank: int = 1,
    extra: int = 3,
) -> Tensor:
    """By a whole SVD of every map and all relations at once.

    It masks no vector without direction: the gradient is NaN there.
    """
    maps = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        flat = [x.flatten(2).mT for x in (student, teacher.detach())]
        candidates = torch.linalg.svd(flat[0], full_matrices=False)[2][:, : rank + extra]
        _, values, rows = torch.linalg.svd(flat[1], full_matrices=False)
        wanted = _with_canonical_sign(rows[:, :rank])
        products = wanted @ candidates.detach().mT
        index = products.abs().argmax(2, keepdim=True)
        side = torch.where(products.gather(2, index) < 0, -1.0, 1.0)
        nearest = side * candidates.gather(1, index.expand(-1, -1, candidates.shape[2]))
        weight = values[:, :rank, None] / values[:, :rank].norm(dim=1)[:, None, None]
        maps.append((nearest * weight, wanted * weight))
    losses = [
        (_relation(a, b) - _relation(c, d)).square().sum((1, 2, 3))
        for (a, c), (b, d) in pairwise(maps)
    ]
    return torch.stack(losses).sum(0)


def _relation(front: Tensor, back: Tensor) -> Tensor:
    return torch.exp(-(front[..., :, None] - back[..., None, :]).square() / 8)


def _with_canonical_sign(rows: Tensor) -> Tensor:
    total = rows.sum(2, keepdim=True)
    largest = rows.gather(2, rows.abs().argmax(2, keepdim=True))
    return torch.where(torch.where(total.abs() < 1e-6, largest, total) < 0, -rows, rows)


def rkd_distance_loss(student: Tensor, teacher: Tensor, *, reduction: str = "peers") -> Tensor:
    """From all difference vectors, (B, B, D)."""
    relative = []
    for points in (student, teacher):
        distances, _ = _distances(points[:, None] - points)
        relative.append(distances * (len(points) * (len(points) - 1) / distances.sum()))
    return F.huber_loss(*relative, reduction="sum") / _tuples(len(student), 2, reduction)


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, reduction: str = "peers") -> Tensor:
    """From all unit difference vectors, (B, B, D)."""
    cosines = []
    for points in (student, teacher):
        differences = points - points[:, None]
        units = differences * _distances(differences)[1][..., None]
        cosines.append(units @ units.mT)
    return F.huber_loss(*cosines, reduction="sum") / _tuples(len(student), 3, reduction)


def _distances(differences: Tensor) -> tuple[Tensor, Tensor]:
    """d and 1 / d, (B, B); both 0 and without gradient where two points coincide."""
    squared = differences.square().sum(-1)
    apart = squared > COINCIDE * squared.detach().max()
    inverse = torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)
    return squared * inverse, inverse


def _tuples(batch: int, size: int, reduction: str) -> int:
    return batch**size if reduction == "peers" else math.perm(batch, size)


TEXTBOOK: Mapping[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        hint_loss,
        attention_transfer_loss,
        activation_boundary_loss,
        fsp_loss,
        kd_svd_loss,
        rkd_distance_loss,
        rkd_angle_loss,
    )
}


def in_textbook_form(method: Method) -> Method:
    """The method with textbook losses: the same numbers at the textbook's cost.

    While it computes, all methods have textbook losses; not for several threads at once.
    """

    def textbook(transfer: Transfer) -> Transfer:
        def compute(pair: Pair, connector: nn.Module) -> Tensor:
            with ExitStack() as stack:
                for module in (activation_boundary, attention_transfer, fitnet, fsp, kd_svd, rkd):
                    for name in TEXTBOOK.keys() & vars(module).keys():
                        stack.enter_context(patch.object(module, name, TEXTBOOK[name]))
                return transfer(pair, connector)

        return compute

    plan = tuple(
        replace(stage, transfer=stage.transfer and textbook(stage.transfer))
        for stage in method.plan
    )
    return replace(method, plan=plan)
