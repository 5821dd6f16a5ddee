"""Similarity-preserving distillation: images that the teacher finds alike stay alike.

Only similarities within the batch are compared, so the two networks' maps may differ in every size.
"""

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import above_zero, one_of
from methods._points import deepest_map
from methods._precision import full_precision, no_autocast
from methods._zero_rows import detach_zero_rows

Reduction = Literal["peers", "rows"]

SOURCE = """\
F. Tung, G. Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019.
Deviations: the last stage's map alone, as public classification benchmarks have it, with their \
weight of 3000, which belongs to batches of 64; a row of similarities that are all 0 takes no \
gradient, where public code divides by 1e-12."""


def sp_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "peers") -> Tensor:
    """Squared difference of both networks' normalised similarities.

    ||G_t - G_s||_F^2 / B^2, where row i of G is that of A A^T, divided by its length (at least
    1e-12), and A (B, C H W) holds the flattened maps. A row whose squared length is at most 1e-12
    of its network's longest takes no gradient; its sample still does, from the other rows.

    Args:
        student: maps (B, C, H, W), or any (B, ...).
        teacher: likewise, of any size. No gradient flows to them.
        reduction: "peers" divides by B^2, as public code does; "rows" by B, so that the value
            does not fall with B.

    Returns:
        (), without unit; below 4 / B ("rows": 4), and at most half of that for maps that are
        nowhere negative.

    Raises:
        ValueError: nothing after B, different batches, or an unknown reduction.

    Source:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])     # G_s = I
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])     # G_t = 1 / sqrt(2) everywhere
        >>> sp_loss(student, teacher)
        tensor(0.2929)
    """
    return masked_sp_loss(student, teacher, reduction).loss


def masked_sp_loss(student: Tensor, teacher: Tensor, reduction: Reduction = "peers") -> MaskedLoss:
    """`sp_loss`, and which samples have similarities of 0 alone."""
    one_of("sp_loss", "reduction", reduction, get_args(Reduction))
    if min(student.dim(), teacher.dim()) < 2 or len(student) != len(teacher):
        raise ValueError(
            f"sp_loss: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be "
            "features (B, ...) of the same batch"
        )
    ours, student_zero = _similarities(student)
    theirs, teacher_zero = _similarities(teacher.detach())
    rows = (theirs - ours).square().sum(dim=1)
    loss = rows.mean() if reduction == "rows" else rows.mean() / len(rows)
    return MaskedLoss(loss, student_zero | teacher_zero)


def _similarities(features: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of all samples in rows of length 1, (B, B), and (B,) whether a row is zero."""
    flat = full_precision(features).flatten(1)
    with no_autocast(flat):
        rows, zero = detach_zero_rows(flat @ flat.mT)
    return normalize(rows, dim=1, eps=1e-12), zero


SEARCH = {"weight": [30.0, 300.0, 3000.0]}
"""What tuning tries."""


def method(*, weight: float = 3000.0, reduction: Reduction = "peers") -> Method:
    """L = CE(z_s, y) + weight ||G_t - G_s||_F^2 / B^2 at the last stage's output, one stage.

    Args:
        weight: of `sp_loss`, above 0. At B = 64, 46.9 with "rows" is 3000 with "peers".
        reduction: see `sp_loss`.

    Raises:
        ValueError: a weight that is not above 0, or an unknown reduction.

    Example:
        >>> stage = method().plan[0]
        >>> stage.taps, stage.optional_taps, stage.transfer_weight
        (('stage3',), ('stage4',), 3000.0)
    """
    above_zero("sp", weight=weight)
    one_of("sp", "reduction", reduction, get_args(Reduction))

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        tap = deepest_map(pair.student, pair.teacher)
        return masked_sp_loss(pair.student[tap], pair.teacher[tap], reduction)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("stage3",),
        optional_taps=("stage4",),
        transfer_weight=weight,
    )
    return Method(category="shared-representation", source=SOURCE, plan=(stage,))
