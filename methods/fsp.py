"""Flow of solution procedure: how a network's features change from one layer to a later one."""

from collections.abc import Container
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Shapes, Stage
from methods._checks import between, one_of, same_shape
from methods._connector import Connectors, connect_widths
from methods._points import STAGE_OUTPUTS
from methods._pool import pool_alike
from methods._precision import full_precision, no_autocast
from methods._two_stages import BELOW_HEAD

SOURCE = """\
Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization \
and Transfer Learning, CVPR 2017.
Deviations: consecutive stage outputs are compared (points inside a stage: \
points="within_stage"); 1x1 convolution and BatchNorm on the student's points where widths differ, \
dropped after the first stage; in that stage the gradient is clipped at a global norm of 5 and \
the learning rate is a tenth of the recipe's."""

Points = Literal["stage_outputs", "within_stage"]
Scale = Literal["sum", "mean"]

OUTPUTS = ("stem", *STAGE_OUTPUTS)
ENTRIES = tuple(f"{stage}.entry" for stage in STAGE_OUTPUTS)


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow of solution procedure: mean over positions of channel products.

    G[b, i, j] = (1 / P) sum_p first[b, i, p] second[b, j, p], with P = H W positions.

    Args:
        first: feature map at the first point, (B, C, H, W).
        second: feature map at the second point, (B, D, H, W); same B, H and W.

    Returns:
        (B, C, D), in the maps' units multiplied.

    Raises:
        ValueError: batch or spatial sizes differ; max-pool the larger map.

    Source:
        Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation, CVPR 2017, eq. 1.

    Example:
        >>> ones = torch.ones(1, 2, 4, 4)
        >>> fsp_matrix(ones, 3 * ones[:, :1])          # every product is 3, so is the mean
        tensor([[[3.],
                 [3.]]])
    """
    if first.shape[0] != second.shape[0] or first.shape[2:] != second.shape[2:]:
        raise ValueError(
            f"fsp_matrix: first {tuple(first.shape)} and second {tuple(second.shape)} need the "
            "same B, H and W; max-pool the larger map"
        )
    with no_autocast(first):
        flat = full_precision(first).flatten(2)
        return torch.bmm(flat, full_precision(second).flatten(2).mT) / flat.shape[2]


def fsp_loss(
    student_first: Tensor,
    student_second: Tensor,
    teacher_first: Tensor,
    teacher_second: Tensor,
    scale: Scale = "sum",
) -> Tensor:
    """Squared Frobenius distance of the two networks' FSP matrices.

    ||G_t - G_s||_F^2 = sum_ij (G_t[i, j] - G_s[i, j])^2; "mean" divides it by C D.

    Args:
        student_first: (B, C, H, W).
        student_second: (B, D, H, W).
        teacher_first: (B, C, H', W'); its own size, the student's widths.
        teacher_second: (B, D, H', W').
        scale: "sum" as the paper has it, or "mean".

    Returns:
        (B,), in the features' units to the fourth.

    Raises:
        ValueError: sizes differ within a network, widths between them, or an unknown scale.

    Source:
        Yim et al.: A Gift from Knowledge Distillation, CVPR 2017, eq. 2.

    Example:
        >>> first = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
        >>> second = torch.eye(2).view(1, 2, 1, 2)          # G_s = [[.5, 1], [1.5, 2]]
        >>> teacher = 2**0.5 * second                       # G_t = I
        >>> fsp_loss(first, second, teacher, teacher)
        tensor([4.5000])
    """
    one_of("fsp_loss", "scale", scale, get_args(Scale))
    student = fsp_matrix(student_first, student_second)
    teacher = fsp_matrix(teacher_first, teacher_second)
    same_shape("fsp_loss", student, teacher)
    squares = (student - teacher).square().flatten(1)
    return squares.sum(dim=1) if scale == "sum" else squares.mean(dim=1)


SEARCH = {"scale": ["sum", "mean"], "init_lr_factor": [0.01, 0.1, 1.0], "init_share": [0.1, 0.3]}
"""What tuning tries."""


def method(
    *,
    points: Points = "stage_outputs",
    scale: Scale = "sum",
    connectors: bool = True,
    init_share: float = 0.3,
    init_lr_factor: float = 0.1,
    clip_norm: float | None = 5.0,
) -> Method:
    """Stage "init": sum over pairs of points of the FSP loss, without labels; then CE alone.

    L_FSP = sum_pairs ||G_t - G_s||_F^2. The stage trains the student up to the last point, and
    1x1 connectors where widths differ. Stage "main" is plain training, without a teacher.

    Args:
        points: "stage_outputs": stem to stage 1, 1 to 2, 2 to 3, the larger map max-pooled.
            "within_stage": from each stage's first block to its output; where either network has
            no such inner point, both use that stage's outputs.
        scale: "sum", or "mean" over the matrix, which weights narrow and wide pairs alike.
        connectors: False makes pairs of unequal widths not applicable.
        init_share: part of the epochs for the first stage, in (0, 1).
        init_lr_factor: the first stage's learning rate as a factor of the recipe's.
        clip_norm: bound on the first stage's gradient norm; None for no bound. The loss is of
            fourth order in the features, so early steps can explode.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> [(stage.name, stage.needs_teacher) for stage in method().plan]
        [('init', True), ('main', False)]
    """
    one_of("fsp", "points", points, get_args(Points))
    one_of("fsp", "scale", scale, get_args(Scale))
    between("fsp", 0, 1, init_share=init_share)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        pairs = _pairs(points, pair.student.taps, pair.teacher.taps)
        # Once per tap, even if it is in two pairs: every call updates BatchNorm's statistics.
        student = {tap: connector(tap, pair.student[tap]) for tap in _taps(pairs)}
        losses = [
            fsp_loss(
                *pool_alike(student[first], student[second], "max"),
                *pool_alike(pair.teacher[first], pair.teacher[second], "max"),
                scale,
            )
            for first, second in pairs
        ]
        return torch.stack(losses).sum(dim=0)

    def connect(student: Shapes, teacher: Shapes) -> Connectors:
        taps = _taps(_pairs(points, student, teacher))
        return connect_widths(taps, student, teacher, allowed=connectors)

    init = Stage(
        name="init",
        share=init_share,
        transfer=transfer,
        taps=OUTPUTS,
        optional_taps=ENTRIES if points == "within_stage" else (),
        task_weight=0.0,
        trains=BELOW_HEAD,
        lr_factor=init_lr_factor,
        clip_norm=clip_norm,
    )
    return Method(
        category="shared-representation",
        source=SOURCE,
        plan=(init, Stage(name="main", share=1 - init_share)),
        connect=connect,
    )


def _pairs(
    points: Points, student: Container[str], teacher: Container[str]
) -> list[tuple[str, str]]:
    """(first, second) point of each stage, among the taps that both networks have."""
    pairs = []
    for before, entry, after in zip(OUTPUTS[:-1], ENTRIES, STAGE_OUTPUTS, strict=True):
        inside = points == "within_stage" and entry in student and entry in teacher
        pairs.append((entry if inside else before, after))
    return pairs


def _taps(pairs: list[tuple[str, str]]) -> list[str]:
    """The taps of all pairs, each once, in order."""
    return list(dict.fromkeys(tap for pair in pairs for tap in pair))
