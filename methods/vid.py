"""Variational information distillation: student maps predict their teacher's, with a variance."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Method, Pair, Shapes, Stage
from methods._checks import above_zero, same_shape
from methods._connector import Connectors, channels
from methods._points import DEEPER, STAGE_OUTPUTS, common_stages
from methods._pool import pool_alike
from methods._precision import full_precision

SOURCE = """\
Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge Transfer, \
CVPR 2019 (arXiv 1904.05835).
Deviations: a mean over channels and positions, as in the authors' code in RepDistiller. \
mdistiller keeps the variances out of its optimiser: they stay at 5, and the loss is a squared \
error with weight 0.1."""

LEAST_VARIANCE = 1e-5
FIRST_VARIANCE = 5.0


def vid_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map under a Gaussian that the student predicts.

    (1 / (C P)) sum_{c,p} 1/2 [ (m - t)^2 / v_c + log v_c ], P = H W: without the constant
    log(2 pi) / 2, so it may be negative. Lowest where v_c is the mean square error of channel c.

    Args:
        mean: m, the student's map after its regressor, (B, C, H, W).
        teacher: t, (B, C, H, W).
        variance: v, (C,), above 0, in the teacher's units squared.

    Returns:
        (B,), in nats.

    Raises:
        ValueError: the maps' shapes differ, or there is not one variance per channel.

    Source:
        Ahn et al.: Variational Information Distillation, CVPR 2019.

    Example:
        >>> teacher = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
        >>> vid_loss(torch.zeros(1, 1, 1, 2), teacher, torch.tensor([2.5]))   # 1/2 (1 + log 2.5)
        tensor([0.9581])
    """
    same_shape("vid_loss", mean, teacher)
    if variance.shape != mean.shape[1:2]:
        raise ValueError(
            f"vid_loss: variance {tuple(variance.shape)}, wanted one for each of {mean.shape[1]} "
            "channels"
        )
    mean, teacher = full_precision(mean), full_precision(teacher).detach()
    variance = variance.to(mean.dtype)
    errors = (mean - teacher).square().flatten(2).mean(dim=2)
    return (errors / variance + variance.log()).mean(dim=1) / 2


class Regressor(nn.Module):
    """The Gaussian of a teacher's map: three 1x1 convolutions, and a variance per channel.

    v_c = log(1 + exp(a_c)) + 1e-5, with a_c trained; v = 5 at first.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        """Of a student's map (B, student_channels, H, W)."""
        super().__init__()
        layer = partial(nn.Conv2d, out_channels=teacher_channels, kernel_size=1, bias=False)
        self.mean = nn.Sequential(
            layer(student_channels),
            nn.ReLU(),
            layer(teacher_channels),
            nn.ReLU(),
            layer(teacher_channels),
        )
        start = torch.full((teacher_channels,), FIRST_VARIANCE - LEAST_VARIANCE)
        self.raw_variance = nn.Parameter(start.expm1().log())

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """m, (B, C, H, W), and v, (C,)."""
        # softplus: exp would overflow for a large a_c.
        return self.mean(student), F.softplus(self.raw_variance) + LEAST_VARIANCE


def connect(student: Shapes, teacher: Shapes) -> Connectors:
    """A regressor for each stage that both networks have."""
    taps = common_stages(student, teacher)
    return Connectors({tap: Regressor(*channels(student[tap], teacher[tap])) for tap in taps})


SEARCH = {"weight": [0.01, 0.1, 1.0]}
"""What tuning tries."""


def method(*, weight: float = 1.0) -> Method:
    """L = CE(z_s, y) + weight sum_l L_l, one stage, over all stages of the networks.

    L_l is `vid_loss` of r_l(f_s) and f_t at the output of stage l; the larger map is average-pooled
    first, a student's before r_l. Regressors r_l and variances v_l are trained with the student.
    The curves "log_variance.<tap>" show the mean of log v_l: at -11.5 it has reached its bound, and
    gradients have grown by 10^5.

    Args:
        weight: on the sum over stages, above 0.

    Raises:
        ValueError: a weight out of range.

    Example:
        >>> method().plan[0].transfer_weight
        1.0
    """
    above_zero("vid", weight=weight)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        losses = []
        for tap in common_stages(pair.student, pair.teacher):
            student, teacher = pool_alike(pair.student[tap], pair.teacher[tap], "average")
            mean, variance = connector(tap, student)
            losses.append(vid_loss(mean, teacher, variance))
        return torch.stack(losses).sum(dim=0)

    def watch(pair: Pair, connector: nn.Module) -> dict[str, Tensor]:
        return {
            f"log_variance.{tap}": connector(tap, pair.student[tap])[1].log().mean()
            for tap in common_stages(pair.student, pair.teacher)
        }

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=STAGE_OUTPUTS,
        optional_taps=DEEPER,
        transfer_weight=weight,
        watch=watch,
    )
    return Method(category="multi-connection", source=SOURCE, plan=(stage,), connect=connect)
