"""Knowledge review: a student's deeper maps help to predict each of its teacher's maps."""

from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Shapes, Stage, View
from methods._checks import above_zero, same_shape
from methods._connector import channels
from methods._points import STAGE_OUTPUTS, common_stages
from methods._pool import pooled
from methods._precision import full_precision
from methods._warm_up import PUBLISHED, warm_up

SOURCE = """\
Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021 (arXiv 2104.09044).
Deviations, from the authors' code for CIFAR: the warm-up is a share of the epochs; shapes are \
those of the networks at hand (the code has tables of them, which mdistiller's lacks for some \
pairs); the pooled sizes of a map that is not square depend on its shorter side. The weight 5 is \
that of most of their pairs; others have 0.6 to 8."""

POOLED = (4, 2, 1)
WIDEST = 512


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: mean square of the difference, at its own size and pooled.

    [ mse(d) + sum_i 2^-i mse(pool_i(d)) ] / (1 + sum_i 2^-i), d = student - teacher, i = 1, 2...
    over those of the sizes 4 x 4, 2 x 2 and 1 x 1 that are below the map's shorter side; pool_i is
    average pooling to that size.

    Args:
        student: predicted map, (B, C, H, W).
        teacher: (B, C, H, W).

    Returns:
        (B,), in the maps' units squared.

    Raises:
        ValueError: the shapes differ, or they are not those of maps.

    Source:
        Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021, section 3.3.

    Example:
        >>> student = torch.tensor([1.0, -1.0, 1.0, 1.0]).view(1, 1, 2, 2)
        >>> hcl_loss(student, torch.zeros_like(student))     # (1 + 1/2 (1/2)^2) / (1 + 1/2)
        tensor([0.7500])
    """
    same_shape("hcl_loss", student, teacher)
    if student.dim() != 4:
        raise ValueError(f"hcl_loss: {tuple(student.shape)} is no feature map (B, C, H, W)")
    difference = full_precision(student) - full_precision(teacher).detach()
    loss, weight, total = _mean_square(difference), 1.0, 1.0
    for side in POOLED:
        if side < min(difference.shape[2:]):
            weight /= 2
            total += weight
            loss = loss + weight * _mean_square(pooled(difference, (side, side), "average"))
    return loss / total


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(dim=1)


def nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) resized to `size`: position i of m shows position floor(i n / m) of n.

    Example:
        >>> nearest(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1, 2))
        tensor([[[[1., 2.]]]])
    """
    for dim, wanted in zip((2, 3), size, strict=True):
        given = maps.shape[dim]
        if wanted % given == 0:
            # Its gradient is a plain sum: that of an index adds in any order on a GPU.
            maps = maps.repeat_interleave(wanted // given, dim) if wanted > given else maps
        else:
            index = torch.arange(wanted, device=maps.device) * given // wanted
            maps = maps.index_select(dim, index)
    return maps


class Level(nn.Module):
    """One level of the review: its student map joins the deeper ones and predicts the teacher's.

    r = g_1 in(f) + g_2 y, o = out(r), with y the deeper level's r, resized, and gates g from the
    sigmoid of a 1x1 convolution of both; r = in(f) at the deepest level.
    """

    def __init__(self, student: int, teacher: int, width: int, *, deepest: bool) -> None:
        """`student`, `teacher` and `width` are channels: of f, of o, and of r."""
        super().__init__()
        enter = nn.Conv2d(student, width, 1, bias=False)
        leave = nn.Conv2d(width, teacher, 3, padding=1, bias=False)
        for layer in (enter, leave):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.enter = nn.Sequential(enter, nn.BatchNorm2d(width))
        self.leave = nn.Sequential(leave, nn.BatchNorm2d(teacher))
        self.gates = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())

    def forward(
        self, student: Tensor, deeper: Tensor | None, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """r and o, both resized to `size`, from f and the deeper level's r."""
        joined = self.enter(student)
        if self.gates is not None and deeper is not None:
            deeper = nearest(deeper, joined.shape[2:])
            gates = self.gates(torch.cat([joined, deeper], dim=1))
            joined = joined * gates[:, :1] + deeper * gates[:, 1:]
        joined = nearest(joined, size)
        return joined, self.leave(joined)


class Review(nn.Module):
    """All levels, from shallow to deep."""

    def __init__(self, levels: Sequence[Level]) -> None:
        """The last level is that of the embedding."""
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, student: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The predictions of the teacher's maps, of these sizes, from the student's maps."""
        joined, predictions = None, []
        for level, feature, size in reversed([*zip(self.levels, student, sizes, strict=True)]):
            joined, prediction = level(feature, joined, size)
            predictions.append(prediction)
        return predictions[::-1]


def connect(student: Shapes, teacher: Shapes) -> Review:
    """A level for each stage that both networks have, and one for the embedding."""
    (here,), (there,) = student["embedding"], teacher["embedding"]
    widths = [channels(student[tap], teacher[f"{tap}.pre"]) for tap in _stages(student, teacher)]
    middle = min(WIDEST, here)
    levels = [Level(*pair, middle, deepest=False) for pair in widths]
    return Review([*levels, Level(here, there, middle, deepest=True)])


def _stages(student: Container[str], teacher: Container[str]) -> list[str]:
    """The common stages whose maps before the ReLU are there, too."""
    return [
        tap
        for tap in common_stages(student, teacher)
        if f"{tap}.pre" in student and f"{tap}.pre" in teacher
    ]


def _maps(view: View, taps: Sequence[str]) -> list[Tensor]:
    return [*(view[tap] for tap in taps), view["embedding"][:, :, None, None]]


SEARCH = {"weight": [0.05, 0.5, 5.0]}
"""What tuning tries."""


def method(*, weight: float = 5.0, warmup: float = PUBLISHED) -> Method:
    """L = CE(z_s, y) + w(p) weight sum_l HCL(o_l, t_l), one stage, w rising to 1 at its start.

    t_l are the teacher's maps before the ReLU of each stage, and its embedding as a map of one
    position; o_l is predicted from the student's outputs of that stage and of all deeper ones. The
    prediction's layers are trained with the student.

    Args:
        weight: on the sum over levels, above 0.
        warmup: part of the epochs until w is 1, at least 0; see `warm_up`.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> stage = method(warmup=0.0).plan[0]
        >>> stage.weight_at(0.0), len(stage.taps)
        (5.0, 7)
    """
    above_zero("reviewkd", weight=weight)
    rising = warm_up(warmup)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        stages = _stages(pair.student, pair.teacher)
        student = _maps(pair.student, stages)
        teacher = _maps(pair.teacher, [f"{tap}.pre" for tap in stages])
        predictions = connector(student, [x.shape[2:] for x in teacher])
        losses = [hcl_loss(o, t) for o, t in zip(predictions, teacher, strict=True)]
        return torch.stack(losses).sum(dim=0)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=(*STAGE_OUTPUTS, *(f"{tap}.pre" for tap in STAGE_OUTPUTS), "embedding"),
        optional_taps=("stage4", "stage4.pre"),
        transfer_weight=lambda progress: weight * rising(progress),
    )
    return Method(category="multi-connection", source=SOURCE, plan=(stage,), connect=connect)
