"""Activation boundary: the student's neurons fire where the teacher's do.

Erratum. The survey deck prints minus the gradient of its loss with the wrong sign in the first
branch: for a neuron that should be active (t > 0) and is not yet past the margin (s < mu) it has
+2 (s - mu), where minus the gradient is -2 (s - mu). Taken literally, descent would push such
neurons down without bound. Here the loss decides, and its exact gradient is used.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.method import Method, Pair, Shapes, Stage
from methods._blocks import blocks_of_samples, samples_per_block
from methods._checks import above_zero, between, same_shape
from methods._connector import Connectors, connect_points
from methods._points import STAGE_OUTPUTS, sensing_points
from methods._precision import full_precision
from methods._two_stages import BELOW_HEAD, SecondStage, finetune

SOURCE = """\
Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden \
Neurons, AAAI 2019 (arXiv 1811.03233).
Deviations: the second stage adds CE and the weight lambda from 4 to 1 (the authors' code: \
stage2="kd_only"); the teacher stays in evaluation mode; strided and transposed connectors where \
sizes differ; the survey deck's derivative has a wrong sign in its first branch: the gradient here \
is that of the loss."""

POINTS = {"all": tuple(f"{stage}.pre" for stage in STAGE_OUTPUTS)}


def activation_boundary_loss(
    student_pre: Tensor, teacher_pre: Tensor, margin: float = 1.0
) -> Tensor:
    """Squared hinge that drives each neuron to its teacher's side of zero, past a margin.

    sum_{c,h,w} max(0, mu - y s)^2, y = +1 where the teacher's t > 0, -1 where t <= 0.
    Gradient: 2 (s - mu) where t > 0 and s < mu, 2 (s + mu) where t <= 0 and s > -mu, else 0.
    The loss of equal networks is not 0: neurons with |s| < mu still pay.

    Args:
        student_pre: s, features before the ReLU, after the connector, (B, C, H, W).
        teacher_pre: t, features before the ReLU, (B, C, H, W); only their signs count.
        margin: mu, above 0, in the student's units.

    Returns:
        (B,), in the student's units squared.

    Raises:
        ValueError: the shapes differ, or the margin is not above 0.

    Source:
        Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries, AAAI 2019.

    Example:
        >>> student = torch.tensor([0.5, -0.5, 2.0, -2.0]).view(1, 4, 1, 1)
        >>> teacher = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 4, 1, 1)
        >>> activation_boundary_loss(student, teacher)      # 0.25 + 2.25 + 0 + 0
        tensor([2.5000])
    """
    same_shape("activation_boundary_loss", student_pre, teacher_pre)
    above_zero("activation_boundary_loss", margin=margin)
    student_pre, teacher_pre = map(full_precision, (student_pre, teacher_pre))
    return _SquaredShortfall.apply(student_pre, teacher_pre.detach(), margin)


class _SquaredShortfall(torch.autograd.Function):
    """sum max(0, mu - y s)^2 of each sample, (B,), a few samples at a time; only s and t are saved.

    The backward pass computes the shortfall again, which costs less than storing it.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, margin: float) -> Tensor:
        loss = student.new_empty(len(student))
        spaces = [torch.empty_like(student[: samples_per_block(student)]) for _ in range(2)]
        per_sample = tuple(range(1, student.dim()))
        for block in blocks_of_samples(student):
            part = student[block]
            parts = (space[: len(part)] for space in spaces)
            shortfall = _shortfall(part, teacher[block], margin, *parts)
            torch.sum(shortfall.square_(), dim=per_sample, out=loss[block])
        ctx.save_for_backward(student, teacher)
        ctx.margin = margin
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        student, teacher = ctx.saved_tensors
        slope = torch.empty_like(student)
        space = torch.empty_like(student[: samples_per_block(student)])
        twice = 2 * grad.view(-1, *[1] * (student.dim() - 1))
        for block in blocks_of_samples(student):
            away = slope[block]
            shortfall = _shortfall(
                student[block], teacher[block], ctx.margin, away, space[: len(away)]
            )
            away.mul_(shortfall).mul_(twice[block])
        return slope, None, None


def _shortfall(
    student: Tensor, teacher: Tensor, margin: float, away: Tensor, shortfall: Tensor
) -> Tensor:
    """max(0, mu - y s) into `shortfall`, and -y into `away`."""
    # torch.where costs ten times as much as a product on a CPU.
    torch.gt(teacher, 0, out=away).mul_(-2).add_(1)
    return torch.addcmul(student.new_full((), margin), away, student, out=shortfall).relu_()


def activation_agreement(student_pre: Tensor, teacher_pre: Tensor) -> Tensor:
    """Share of neurons on the same side of zero, which the loss is a surrogate for.

    mean_{c,h,w} [ (s > 0) == (t > 0) ].

    Args:
        student_pre: s, (B, C, H, W), after the connector.
        teacher_pre: t, (B, C, H, W).

    Returns:
        (B,), in [0, 1].

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student = torch.tensor([0.5, -0.5, 2.0, -2.0]).view(1, 4, 1, 1)
        >>> activation_agreement(student, torch.ones_like(student))
        tensor([0.5000])
    """
    same_shape("activation_agreement", student_pre, teacher_pre)
    return ((student_pre > 0) == (teacher_pre > 0)).flatten(1).float().mean(dim=1)


SEARCH = {"weight": [3e-4, 3e-3, 3e-2], "init_lr_factor": [0.1, 0.3, 1.0], "init_share": [0.1, 0.3]}
"""What tuning tries."""


def method(
    *,
    margin: float = 1.0,
    weight: float = 0.003,
    points: Literal["all"] | list[str] = "all",
    stage2: SecondStage = "ce+kd",
    temperature: float = 3.0,
    init_share: float = 0.3,
    init_lr_factor: float = 1.0,
) -> Method:
    """Stage "init": the boundary loss at every point, without labels; then "finetune".

    L_AB = weight sum_l 2^-(L-1-l) l_l: the last of the L points has weight 1, the one before it
    1/2, then 1/4... The stage trains the student up to the last point, and the connectors
    (convolution and BatchNorm, no ReLU). Then L = CE + lambda KD_T, lambda from 4 to 1, without
    T^2. The curves "activation_agreement.<tap>" show the share of neurons that already agree.

    Args:
        margin: mu, above 0.
        weight: on the sum over points, above 0; 3 / 1000 as in the authors' code.
        points: "all" three stages before their ReLU, or a list of taps, shallow to deep.
        stage2: "ce+kd"; "ce" for labels alone; "kd_only" for the soft targets alone at weight 1.
        temperature: T of the second stage's KD, above 0.
        init_share: part of the epochs for the first stage, in (0, 1).
        init_lr_factor: the first stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> method().plan[0].taps
        ('stage1.pre', 'stage2.pre', 'stage3.pre')
    """
    taps = sensing_points("activation_boundary", points, POINTS)
    above_zero("activation_boundary", margin=margin, weight=weight)
    between("activation_boundary", 0, 1, init_share=init_share)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        losses = [
            activation_boundary_loss(connector(tap, pair.student[tap]), pair.teacher[tap], margin)
            for tap in taps
        ]
        return torch.stack([loss / 2**after for after, loss in enumerate(reversed(losses))]).sum(0)

    def watch(pair: Pair, connector: nn.Module) -> dict[str, Tensor]:
        return {
            f"activation_agreement.{tap}": activation_agreement(
                connector(tap, pair.student[tap]), pair.teacher[tap]
            ).mean()
            for tap in taps
        }

    def connect(student: Shapes, teacher: Shapes) -> Connectors:
        return connect_points(taps, student, teacher)

    init = Stage(
        name="init",
        share=init_share,
        transfer=transfer,
        taps=taps,
        task_weight=0.0,
        transfer_weight=weight,
        trains=BELOW_HEAD,
        lr_factor=init_lr_factor,
        watch=watch,
    )
    second = finetune(stage2, share=1 - init_share, temperature=temperature)
    return Method(category="multi-connection", source=SOURCE, plan=(init, second), connect=connect)
