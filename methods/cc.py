"""Correlation congruence: how the samples of a batch correlate is what the student keeps.

Two losses carry this name in public code; `form` says which. All compute in float64.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.method import MaskedLoss, Method, Pair, Shapes, Stage, no_connector
from methods._checks import above_zero, one_of, same_batch, same_shape
from methods._projections import Projections
from methods._zero_rows import detach_zero_rows

Form = Literal["kernel", "pairs", "neighbours"]

SOURCE = """\
B. Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019.
Deviations: form="kernel" compares Taylor series of Gaussian kernels of the embeddings, of weight \
100, as public code has it; form="neighbours", of weight .02, is another loss, which the authors \
gave to a public benchmark: it depends on the order of the batch, and two layers that ignore their \
input bring it to 0; form="pairs" is its mean over all orders, and our own. Samples are not drawn \
by class; an embedding of length zero takes no gradient."""

PUBLISHED_WEIGHT: dict[Form, float] = {"kernel": 100.0, "pairs": 0.02, "neighbours": 0.02}
WIDTH = 128  # of the embeddings that "pairs" and "neighbours" compare


def cc_loss(
    student: Tensor,
    teacher: Tensor,
    form: Form = "kernel",
    *,
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """How far the correlations of the student's samples are from the teacher's.

    "kernel": mean over (i, j) of (k(s_i, s_j) - k(t_i, t_j))^2, with k the Taylor series of the
    Gaussian kernel exp(-gamma |x - y|^2) of unit vectors,
    k(x, y) = sum_{p = 0..order} exp(-2 gamma) (2 gamma)^p / p! <x / |x|, y / |y|>^p.
    A sample whose squared length is at most 1e-12 of its network's longest takes no gradient.

    With d_i = |s_i - t_i|, elementwise, of embeddings of one size, "neighbours" is the mean of
    <d_i, d_{i+1}> over consecutive samples, and "pairs" that of <d_i, d_j> over i != j.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, E); E may differ from D for "kernel", where no gradient flows to
            them. In the other forms a trained layer gives them.
        form: "kernel", "pairs" or "neighbours".
        gamma: of the kernel, in 1 / squared length.
        order: of the kernel's series, at least 1.

    Returns:
        (), without unit for "kernel", else in squared units of the embeddings; 0 for B < 2.

    Raises:
        ValueError: not matrices of equal B, unequal sizes where they are compared, or an unknown
            form.

    Source:
        Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
        >>> teacher = torch.zeros(3, 2)
        >>> cc_loss(student, teacher, "neighbours")              # (<d_0, d_1> + <d_1, d_2>) / 2
        tensor(2.5000)
        >>> cc_loss(student, teacher, "pairs")                   # (2 + 3 + 0) / 3
        tensor(1.6667)
    """
    return masked_cc_loss(student, teacher, form, gamma, order).loss


def masked_cc_loss(
    student: Tensor, teacher: Tensor, form: Form = "kernel", gamma: float = 0.4, order: int = 2
) -> MaskedLoss:
    """`cc_loss`, and which samples have no direction (of form "kernel")."""
    one_of("cc_loss", "form", form, get_args(Form))
    same_batch("cc_loss", student, teacher)
    ours, theirs, masked = student.double(), teacher.double(), None
    if len(student) < 2:
        loss = ours[:0].sum()  # 0, and still part of the student's graph
    elif form == "kernel":
        (ours, ours_zero), (theirs, theirs_zero) = map(_unit_rows, (ours, theirs.detach()))
        gap = _kernel(ours, gamma, order) - _kernel(theirs, gamma, order)
        loss, masked = gap.square().mean(), ours_zero | theirs_zero
    else:
        same_shape("cc_loss", student, teacher)
        loss = _mean_product((ours - theirs).abs(), form)
    return MaskedLoss(loss.to(torch.promote_types(student.dtype, torch.float32)), masked)


def _unit_rows(points: Tensor) -> tuple[Tensor, Tensor]:
    alive, zero = detach_zero_rows(points)
    return normalize(alive, dim=1, eps=1e-12), zero


def _kernel(units: Tensor, gamma: float, order: int) -> Tensor:
    """The series at all pairs of rows, (B, B)."""
    cosines = units @ units.mT
    terms = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(dim=0)


def _mean_product(gaps: Tensor, form: Form) -> Tensor:
    """Mean inner product of the rows (B, D): of neighbours, or of all pairs of different ones."""
    if form == "neighbours":
        return (gaps[:-1] * gaps[1:]).sum(dim=1).mean()
    # All pairs, less those of a row with itself.
    return (gaps.sum(dim=0).square().sum() - gaps.square().sum()) / math.perm(len(gaps), 2)


SEARCH = {"weight": [1.0, 10.0, 100.0]}
"""What tuning tries."""


def method(*, form: Form = "kernel", weight: float | None = None) -> Method:
    """L = CE(z_s, y) + weight * `cc_loss` of the embeddings, one stage.

    "pairs" and "neighbours" compare the embeddings after a trained linear layer to 128 numbers on
    each side; "kernel" is of gamma = 0.4 and order 2.

    Args:
        form: see `cc_loss`.
        weight: above 0; None for the published one: 100 for "kernel", 0.02 for the others.

    Raises:
        ValueError: an unknown form, or a weight that is not above 0.

    Example:
        >>> method().plan[0].transfer_weight, method(form="pairs").plan[0].transfer_weight
        (100.0, 0.02)
    """
    one_of("cc", "form", form, get_args(Form))
    weight = PUBLISHED_WEIGHT[form] if weight is None else weight
    above_zero("cc", weight=weight)

    def connect(student: Shapes, teacher: Shapes) -> Projections:
        return Projections(student["embedding"][0], teacher["embedding"][0], WIDTH)

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        student, teacher = pair.student["embedding"], pair.teacher["embedding"]
        if form != "kernel":
            student, teacher = connector(student, teacher)
        return masked_cc_loss(student, teacher, form)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("embedding",),
        transfer_weight=weight,
    )
    return Method(
        category="shared-representation",
        source=SOURCE,
        plan=(stage,),
        connect=no_connector if form == "kernel" else connect,
    )
