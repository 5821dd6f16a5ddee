"""Probabilistic knowledge transfer: each image draws its neighbours as the teacher's does.

Only cosines within the batch are compared, so the embeddings' sizes may differ. Two close
distributions differ by a small remainder of terms that cancel, so the loss computes in float64.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import above_zero, one_of, same_batch
from methods._zero_rows import detach_zero_rows

Reduction = Literal["peers", "rows"]

SOURCE = """\
N. Passalis, A. Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV \
2018.
Deviations: next to cross-entropy, with the weight of 30000 that public classification benchmarks \
have for batches of 64 (the authors transfer without labels); an embedding of length zero takes no \
gradient, where public code gives NaN."""

EPS = 1e-7


def pkt_loss(
    student: Tensor, teacher: Tensor, *, reduction: Reduction = "peers", eps: float = EPS
) -> Tensor:
    """Divergence of the student's neighbour probabilities from the teacher's.

    Mean over (i, j) of q_ij (log(q_ij + eps) - log(p_ij + eps)), with p_ij = k_ij / sum_l k_il the
    student's, q the teacher's, and k_ij = (cos(x_i, x_j) + 1) / 2; the cosine is that of
    x / (||x|| + eps). A sample counts itself. One whose squared length is at most 1e-12 of its
    network's longest takes no gradient.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, E); E may differ from D. No gradient flows to them.
        reduction: "peers": the mean over all B^2 entries, as public code takes it; "rows": the
            mean over i of the sum over j, so that the value does not fall with B.
        eps: added to lengths and to probabilities under a logarithm.

    Returns:
        (), in nats; at least 0 up to the size of eps.

    Raises:
        ValueError: not matrices of equal B, or an unknown reduction.

    Source:
        Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV
        2018, with their cosine kernel.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])     # p = (2/3, 1/3), (1/3, 2/3)
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])     # q = 1/2 everywhere
        >>> pkt_loss(student, teacher)
        tensor(0.0294)
    """
    return masked_pkt_loss(student, teacher, reduction, eps).loss


def masked_pkt_loss(
    student: Tensor, teacher: Tensor, reduction: Reduction = "peers", eps: float = EPS
) -> MaskedLoss:
    """`pkt_loss`, and which samples have no direction."""
    one_of("pkt_loss", "reduction", reduction, get_args(Reduction))
    same_batch("pkt_loss", student, teacher)
    ours, student_zero = _probabilities(student, eps)
    theirs, teacher_zero = _probabilities(teacher.detach(), eps)
    rows = (theirs * ((theirs + eps).log() - (ours + eps).log())).sum(dim=1)
    loss = rows.mean() if reduction == "rows" else rows.mean() / len(rows)
    dtype = torch.promote_types(student.dtype, torch.float32)
    return MaskedLoss(loss.to(dtype), student_zero | teacher_zero)


def _probabilities(points: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of each sample's neighbours, in float64, rows of (B, B), and (B,) whether a point is zero."""
    alive, zero = detach_zero_rows(points.double())
    units = alive / (torch.linalg.vector_norm(alive, dim=1, keepdim=True) + eps)
    kernel = (units @ units.mT + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True), zero


SEARCH = {"weight": [300.0, 3000.0, 30000.0]}
"""What tuning tries."""


def method(*, weight: float = 30000.0, reduction: Reduction = "peers") -> Method:
    """L = CE(z_s, y) + weight * mean_ij q_ij log(q_ij / p_ij) of the embeddings, one stage.

    Args:
        weight: of `pkt_loss`, above 0. At B = 64, 468.75 with "rows" is 30000 with "peers".
        reduction: see `pkt_loss`.

    Raises:
        ValueError: a weight that is not above 0, or an unknown reduction.

    Example:
        >>> [(stage.name, stage.taps, stage.transfer_weight) for stage in method().plan]
        [('distil', ('embedding',), 30000.0)]
    """
    above_zero("pkt", weight=weight)
    one_of("pkt", "reduction", reduction, get_args(Reduction))

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        return masked_pkt_loss(pair.student["embedding"], pair.teacher["embedding"], reduction)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("embedding",),
        transfer_weight=weight,
    )
    return Method(category="shared-representation", source=SOURCE, plan=(stage,))
