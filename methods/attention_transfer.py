"""Attention transfer: the student responds at the positions where its teacher does."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._blocks import blocks_of_samples, samples_per_block
from methods._checks import above_zero, between, one_of
from methods._points import STAGE_OUTPUTS, sensing_points
from methods._pool import pool_alike
from methods._precision import full_precision
from methods._two_stages import finetune

SOURCE = """\
Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017 (arXiv 1612.03928).
Deviations: two stages, initialisation by the attention loss and then fine-tuning, as the survey \
deck has it (the paper's single stage: mode="joint"); the root of the sum of squares as the map \
(the paper's: kind="sumsq"); the larger map is pooled to the smaller one after its channels are \
collapsed; a sample with a zero map has loss 0."""

Kind = Literal["l2", "sumsq"]
Mode = Literal["init_finetune", "joint"]
POINTS = {"all": STAGE_OUTPUTS}
SMALLEST_NORM = {"l2": 1e-8, "sumsq": 1e-8**2}  # in each map's own unit


def attention_map(feature: Tensor, kind: Kind = "l2") -> Tensor:
    """How strongly a feature map responds at each position, before normalising.

    m[b, h, w] = sqrt(sum_c feature[b, c, h, w]^2), without the root for "sumsq".

    Args:
        feature: (B, C, H, W), any C.
        kind: "l2", or "sumsq" as in the paper and its code.

    Returns:
        (B, H, W), in the feature's units, or their square for "sumsq"; never negative.

    Raises:
        ValueError: not a map, or an unknown kind.

    Source:
        Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, section 3.1.

    Example:
        >>> feature = torch.tensor([[1.0, 0.0], [2.0, 1.0]]).view(1, 2, 1, 2)
        >>> attention_map(feature, "sumsq")
        tensor([[[5., 1.]]])
    """
    one_of("attention_map", "kind", kind, get_args(Kind))
    if feature.dim() != 4:
        raise ValueError(f"attention_map: {tuple(feature.shape)} is no feature map (B, C, H, W)")
    energy = _Energy.apply(full_precision(feature))
    if kind == "sumsq":
        return energy
    # The root's gradient is infinite at 0, and infinity times 0 is NaN.
    silent = energy == 0
    return torch.where(silent, 0.0, torch.where(silent, 1.0, energy).sqrt())


def attention_transfer_loss(student: Tensor, teacher: Tensor, kind: Kind = "l2") -> Tensor:
    """Mean squared difference of the two networks' normalised attention maps.

    (1 / P) sum_p (q_s[p] - q_t[p])^2, with q = m / ||m||_2 over the P = H W positions. The larger
    map is average-pooled to the smaller one's size first. A sample has loss 0 if the norm of either
    map is below 1e-8 (its square for "sumsq", the square's unit): the map's direction is rounding
    noise and its gradient would be huge.

    Args:
        student: feature map (B, C, H, W).
        teacher: feature map (B, D, H', W'); any channels and size.
        kind: see `attention_map`.

    Returns:
        (B,), without unit, in [0, 2 / P].

    Raises:
        ValueError: not maps, different batches, or an unknown kind.

    Source:
        Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, eq. 2; squared, as in
        their code.

    Example:
        >>> student = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
        >>> teacher = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> attention_transfer_loss(student, teacher)       # q_s = (.6, .8), q_t = (1, 0)
        tensor([0.4000])
    """
    return masked_attention_transfer_loss(student, teacher, kind).loss


def masked_attention_transfer_loss(
    student: Tensor, teacher: Tensor, kind: Kind = "l2"
) -> MaskedLoss:
    """`attention_transfer_loss`, and which samples have no direction to compare."""
    ours, theirs = attention_map(student, kind), attention_map(teacher, kind)
    if len(ours) != len(theirs):
        raise ValueError(
            f"attention_transfer_loss: batches of {len(ours)} (student) and {len(theirs)} (teacher)"
        )
    ours, theirs = pool_alike(ours, theirs, "average")
    student_map, student_dead = _normalised(ours, SMALLEST_NORM[kind])
    teacher_map, teacher_dead = _normalised(theirs, SMALLEST_NORM[kind])
    distance = (student_map - teacher_map).square().mean(dim=1)
    dead = student_dead | teacher_dead
    return MaskedLoss(torch.where(dead, 0.0, distance), dead)


class _Energy(torch.autograd.Function):
    """sum_c feature[b, c, h, w]^2, (B, H, W), squaring only a few samples at a time."""

    @staticmethod
    def forward(ctx, feature: Tensor) -> Tensor:
        energy = feature.new_empty(len(feature), *feature.shape[2:])
        squares = torch.empty_like(feature[: samples_per_block(feature)])
        for block in blocks_of_samples(feature):
            part = feature[block]
            torch.sum(torch.mul(part, part, out=squares[: len(part)]), dim=1, out=energy[block])
        ctx.save_for_backward(feature)
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore
        (feature,) = ctx.saved_tensors
        return feature * (2 * grad[:, None])


def _normalised(maps: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """(B, P) unit vectors, and (B,) whether a map is too small to have a direction."""
    flat = maps.flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return flat / norm.clamp_min(smallest), norm[:, 0] < smallest


SEARCH = {
    "beta": [1.0, 10.0, 100.0, 1000.0],
    "init_lr_factor": [0.1, 1.0],
    "init_share": [0.1, 0.3],
}
"""What tuning tries."""
READ_WHEN = {
    "init_lr_factor": {"mode": "init_finetune"},
    "init_share": {"mode": "init_finetune"},
}
"""A hyper-parameter -> the settings under which it has an effect."""


def method(
    *,
    mode: Mode = "init_finetune",
    kind: Kind = "l2",
    beta: float = 1000.0,
    points: Literal["all"] | list[str] = "all",
    stage2: Literal["ce+kd", "ce"] = "ce+kd",
    temperature: float = 3.0,
    init_share: float = 0.3,
    init_lr_factor: float = 1.0,
) -> Method:
    """Stage "init": beta times the sum over points of the attention loss; then "finetune".

    L_AT = sum_l (1 / P) ||q_s - q_t||^2. The first stage reads no labels and trains the student up
    to the deepest point; then L = CE + lambda KD_T, lambda from 4 to 1, without T^2. mode="joint"
    is a single stage "distil" with L = CE + beta L_AT; only `kind`, `beta` and `points` apply.

    Args:
        mode: "init_finetune", or the paper's "joint".
        kind: "l2", or the paper's "sumsq".
        beta: weight of L_AT in either mode, above 0.
        points: "all" three stage outputs, or a list of taps.
        stage2: "ce+kd", or "ce" for labels alone.
        temperature: T of the second stage's KD, above 0.
        init_share: part of the epochs for the first stage, in (0, 1).
        init_lr_factor: the first stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> [stage.name for stage in method().plan]
        ['init', 'finetune']
        >>> [(stage.name, stage.transfer_weight) for stage in method(mode="joint").plan]
        [('distil', 1000.0)]
    """
    taps = sensing_points("attention_transfer", points, POINTS)
    one_of("attention_transfer", "mode", mode, get_args(Mode))
    one_of("attention_transfer", "kind", kind, get_args(Kind))
    above_zero("attention_transfer", beta=beta)
    between("attention_transfer", 0, 1, init_share=init_share)

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        losses, dead = zip(
            *(
                masked_attention_transfer_loss(pair.student[tap], pair.teacher[tap], kind)
                for tap in taps
            ),
            strict=True,
        )
        return MaskedLoss(torch.stack(losses).sum(dim=0), torch.stack(dead).any(dim=0))

    if mode == "joint":
        joint = Stage(name="distil", share=1.0, transfer=transfer, taps=taps, transfer_weight=beta)
        return Method(category="multi-connection", source=SOURCE, plan=(joint,))
    init = Stage(
        name="init",
        share=init_share,
        transfer=transfer,
        taps=taps,
        task_weight=0.0,
        transfer_weight=beta,
        trains=frozenset({"trunk"}),
        lr_factor=init_lr_factor,
    )
    second = finetune(stage2, share=1 - init_share, temperature=temperature)
    return Method(category="multi-connection", source=SOURCE, plan=(init, second))
