"""Overhaul of feature distillation: maps before the ReLU, but for what the ReLU hides anyway."""

import math
from collections.abc import Container
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bench.method import Facts, Method, NotApplicable, Pair, Shapes, Stage
from methods._checks import above_zero, one_of, same_shape
from methods._connector import connector
from methods._points import DEEPER, STAGE_OUTPUTS
from methods._precision import full_precision

SOURCE = """\
Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019 \
(arXiv 1904.01866).
Deviations: the teacher is in evaluation mode (both the authors' code and mdistiller's train its \
BatchNorm statistics along); the margin "data" follows the teacher's responses in training; \
strided and transposed connectors where sizes differ, for which the authors have none; one \
optimiser for all epochs. The margin "bn" takes a map for the output of one BatchNorm. In VGGs and \
wide ResNets it is. In ResNets it is the sum of that output, the branch's, and of a shortcut: the \
margin is that of the branch, as in the authors' code."""

Margin = Literal["bn", "data"]
RARE = 1e-3
POINTS, DEEPER_POINTS = (tuple(f"{tap}.pre" for tap in taps) for taps in (STAGE_OUTPUTS, DEEPER))


def margin(mean: Tensor, deviation: Tensor) -> Tensor:
    """What a teacher's channel responds with on average where it is negative.

    m = E[t | t < 0], t ~ N(mu, sigma^2), which is mu - sigma phi(x) / Phi(-x) with x = mu / sigma;
    -3 sigma where t is hardly ever negative, Phi(-x) <= 0.001; min(mu, 0) where sigma is 0.

    Args:
        mean: mu, (C,).
        deviation: sigma, (C,), at least 0.

    Returns:
        (C,), at most 0, in the responses' units.

    Raises:
        ValueError: the shapes differ.

    Source:
        Heo et al.: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, section 3.2.

    Example:
        >>> margin(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0]))
        tensor([-0.7979, -3.0000])
    """
    if mean.shape != deviation.shape:
        raise ValueError(
            f"margin: mean {tuple(mean.shape)} and deviation {tuple(deviation.shape)} must have "
            "one shape"
        )
    mean, deviation = full_precision(mean), full_precision(deviation)
    ratio = mean / deviation.where(deviation > 0, 1.0)
    below, density = torch.special.ndtr(-ratio), (-ratio.square() / 2).exp() / math.sqrt(math.tau)
    expected = torch.where(below > RARE, mean - deviation * density / below, -3 * deviation)
    return torch.where(deviation > 0, expected, mean.clamp(max=0))


def ofd_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance: a student below a negative target pays nothing.

    sum_{c,h,w} (s - t')^2 [s > t' or t' > 0], t' = max(t, m_c).

    Args:
        student: s, features before the ReLU, after the connector, (B, C, H, W).
        teacher: t, features before the ReLU, (B, C, H, W).
        margin: m, (C,), at most 0, in the teacher's units.

    Returns:
        (B,), in the features' units squared.

    Raises:
        ValueError: the maps' shapes differ, or there is not one margin per channel.

    Source:
        Heo et al.: A Comprehensive Overhaul of Feature Distillation, ICCV 2019, section 3.

    Example:
        >>> student = torch.tensor([2.0, -1.0, 0.5, -2.0]).view(1, 1, 2, 2)
        >>> teacher = torch.tensor([1.0, 1.0, -0.5, -2.0]).view(1, 1, 2, 2)
        >>> ofd_loss(student, teacher, torch.tensor([-0.8]))   # 1 + 4 + 1 + 0
        tensor([6.])
    """
    same_shape("ofd_loss", student, teacher)
    if margin.shape != teacher.shape[1:2]:
        raise ValueError(
            f"ofd_loss: margin {tuple(margin.shape)}, wanted one for each of {teacher.shape[1]} "
            "channels"
        )
    student, teacher = full_precision(student), full_precision(teacher).detach()
    target = torch.maximum(teacher, margin.to(teacher.dtype)[:, None, None])
    counts = (student > target) | (target > 0)
    return (student - target).where(counts, 0.0).square().flatten(1).sum(dim=1)


class Point(nn.Module):
    """A connector, and a margin for each channel: given, or the mean of negative responses."""

    def __init__(self, layers: nn.Module, width: int, given: Tensor | None) -> None:
        """`width` is C, and the margin that is `given` (C,)."""
        super().__init__()
        self.layers, self.follows = layers, given is None
        total = torch.zeros(width) if given is None else given
        # In float64, because the responses of a whole training are added up.
        self.total = nn.Buffer(total.to(torch.float64, copy=True))
        self.count = nn.Buffer(torch.full_like(self.total, 0 if self.follows else 1))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map in the teacher's shape, and m: 0 where no response was negative."""
        if self.follows and self.training:
            negative = teacher.detach().clamp(max=0)
            self.total += negative.sum(dim=(0, 2, 3), dtype=torch.float64)
            self.count += (negative < 0).sum(dim=(0, 2, 3))
        return self.layers(student), self.total / self.count.clamp(min=1)


def _points(*networks: Container[str]) -> tuple[str, ...]:
    return (*POINTS, *(tap for tap in DEEPER_POINTS if all(tap in taps for taps in networks)))


def _bn_margin(tap: str, width: int, facts: Facts) -> Tensor:
    """The margin of the BatchNorm that gives a tap of `width` channels."""
    weight, bias = facts.norms.get(tap, (None, None))
    if weight is None or bias is None or len(weight) != width:
        found = "none is known" if weight is None else f"it has {len(weight)} for {width} channels"
        raise NotApplicable(
            f"the margin is computed from the BatchNorm that gives the teacher's {tap}, and "
            f"{found}; margin: data needs none"
        )
    return margin(bias, weight.abs())


SEARCH = {"weight": [1e-5, 1e-4, 1e-3]}
"""What tuning tries."""


def method(*, weight: float = 1e-3, margin: Margin = "bn") -> Method:
    """L = CE(z_s, y) + weight sum_l 2^-(L - l) L_l, one stage, over all stages of the networks.

    L_l is `ofd_loss` of r_l(f_s) and f_t before the ReLU of stage l; the last of the L stages
    counts in full. The connectors r_l, a convolution and BatchNorm even where shapes are equal, are
    trained with the student.

    Args:
        weight: on the sum over stages, above 0. The loss is a sum over elements: larger maps need
            a lower weight.
        margin: where the margins come from: "bn", shift and scale of the BatchNorm that gives the
            teacher's map; "data", the mean of its negative responses so far in training.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> method().plan[0].taps
        ('stage1.pre', 'stage2.pre', 'stage3.pre')
    """
    above_zero("ofd", weight=weight)
    one_of("ofd", "margin", margin, get_args(Margin))

    def connect(student: Shapes, teacher: Shapes, facts: Facts) -> nn.ModuleList:
        points = nn.ModuleList()
        for tap in _points(student, teacher):
            layers, width = connector(student[tap], teacher[tap], kind="conv"), teacher[tap][0]
            given = _bn_margin(tap, width, facts) if margin == "bn" else None
            points.append(Point(layers, width, given))
        return points

    def transfer(pair: Pair, points: nn.Module) -> Tensor:
        losses = []
        taps = _points(pair.student, pair.teacher)
        for tap, point in zip(taps, points.children(), strict=True):
            student, least = point(pair.student[tap], pair.teacher[tap])
            losses.append(ofd_loss(student, pair.teacher[tap], least))
        return torch.stack([loss / 2**after for after, loss in enumerate(reversed(losses))]).sum(0)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=POINTS,
        optional_taps=DEEPER_POINTS,
        transfer_weight=weight,
    )
    return Method(category="multi-connection", source=SOURCE, plan=(stage,), connect=connect)
