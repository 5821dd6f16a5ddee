"""SimKD: the student learns the teacher's last map and is deployed with its classifier."""

import copy
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from bench.method import Facts, Method, NotApplicable, Pair, Shapes, Stage
from bench.models.network import Network
from bench.models.staged import StagedNetwork
from methods._checks import above_zero, same_shape
from methods._connector import channels
from methods._points import deepest_map
from methods._pool import pooled
from methods._precision import full_precision
from methods._two_stages import BELOW_HEAD

SOURCE = """\
Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, \
CVPR 2022 (arXiv 2203.14001).
Deviations: the student's own head, and a convolution between its last stage and its head \
(MobileNetV2, ShuffleNetV2), are not part of what is deployed."""


def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of the projected map and the teacher's.

    (1 / (C H W)) sum_{c,h,w} (s - t)^2.

    Args:
        projected: s, the student's map after the projector, (B, C, H, W).
        teacher: t, (B, C, H, W).

    Returns:
        (B,), in the maps' units squared.

    Raises:
        ValueError: the shapes differ.

    Source:
        Chen et al.: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022, eq. 3.

    Example:
        >>> import torch
        >>> simkd_loss(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
        tensor([2.])
    """
    same_shape("simkd_loss", projected, teacher)
    difference = full_precision(projected) - full_precision(teacher).detach()
    return difference.square().flatten(1).mean(dim=1)


class Projector(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm and ReLU, to the teacher's channels."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], factor: int) -> None:
        """Shapes are (C, H, W); the inner layers have C_t // factor channels, at least one."""
        super().__init__()
        here, there = channels(student, teacher)
        inner = max(1, there // factor)
        # The size of the smaller map, per side: also what a deployed student pools to.
        height, width = (min(sides) for sides in zip(student[1:], teacher[1:], strict=True))
        self.size = (height, width)
        self.layers = nn.Sequential(
            *_unit(here, inner, 1), *_unit(inner, inner, 3), *_unit(inner, there, 1)
        )

    def forward(self, student: Tensor) -> Tensor:
        """(B, C_s, H_s, W_s) -> (B, C_t, *size)."""
        return self.layers(pooled(student, self.size, "average"))


def _unit(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class Reuse(nn.Module):
    """The projector, the tap that it reads, and the teacher's head as buffers: it never moves."""

    def __init__(self, tap: str, projector: Projector, head: tuple[Tensor, Tensor]) -> None:
        """`head` is weight (K, D) and bias (K,)."""
        super().__init__()
        self.tap, self.projector = tap, projector
        self.weight, self.bias = (nn.Buffer(x.clone()) for x in head)

    def forward(self, student: Tensor) -> Tensor:
        """The student's map in the teacher's channels; see `Projector`."""
        return self.projector(student)


class WithTeachersHead(Network):
    """A student's trunk, projector, mean over positions, and its teacher's head."""

    tap_names = ("embedding", "logits")

    def __init__(self, student: Network, reuse: Reuse) -> None:
        """Shares the projector and the head; the trunk is a copy."""
        super().__init__()
        necks = [m.neck for m in student.modules() if isinstance(m, StagedNetwork)]
        left_out = {id(part): nn.Identity() for part in (student.head, *necks)}
        self.trunk, self.tap = copy.deepcopy(student, left_out), reuse.tap
        self.projector = reuse.projector
        classes, width = reuse.weight.shape
        self.head = nn.Linear(width, classes)
        self.head.weight, self.head.bias = (
            nn.Parameter(x, requires_grad=False) for x in (reuse.weight, reuse.bias)
        )

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        projected = self.projector(self.trunk.view(images, (self.tap,))[self.tap])
        shown = {"embedding": projected.mean(dim=(2, 3))}
        if "logits" in taps:
            shown["logits"] = self.head(shown["embedding"])
        return {tap: shown[tap] for tap in taps}


def deploy(network: Network, connector: nn.Module) -> Network:
    """See `Method.deploy`."""
    assert isinstance(connector, Reuse)
    return WithTeachersHead(network, connector)


def _check_teacher(student: Shapes, teacher: Shapes, facts: Facts) -> tuple[Tensor, Tensor]:
    """The teacher's head; NotApplicable if it does not read the mean of the map that is learnt."""
    tap = deepest_map(teacher)
    if deepest_map(student) != tap:
        raise NotApplicable(
            f"the teacher's last stage is {tap}, the student's {deepest_map(student)}: the "
            "projector joins the last maps of networks with equally many stages"
        )
    if facts.head is None:
        raise NotApplicable("the teacher's classifier is not linear, so it cannot be reused")
    read = f"{tap}.pre"
    if read not in teacher or read not in student:
        raise NotApplicable(f"it reads tap {read!r}, which one of the networks lacks")
    (width,), maps = teacher["embedding"], teacher[read]
    if len(maps) != 3 or width != maps[0]:
        raise NotApplicable(
            f"the teacher's classifier reads {width} features, which are no means of its {tap} "
            f"{maps}: layers between them are not reused"
        )
    return facts.head


SEARCH = {"factor": [2, 4]}
"""What tuning tries."""


def method(*, factor: int = 2) -> Method:
    """L = mean (proj(f_s) - relu(f_t))^2, one stage, without labels or the student's own head.

    f_s is the student's last map, f_t the teacher's before its ReLU. What is deployed is the
    student up to that map, the projector, the mean over positions and the teacher's classifier. The
    larger map is average-pooled first, a student's before the projector. A teacher must classify
    by the mean over positions of relu(f_t), as ResNets, wide ResNets, VGGs and ShuffleNetV1 do;
    MobileNetV2 and ShuffleNetV2 are refused by their shapes, which cannot show every other pooling.

    Args:
        factor: of the teacher's channels to those inside the projector, at least 1.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> [(stage.name, stage.task_weight) for stage in method().plan]
        [('distil', 0.0)]
    """
    above_zero("simkd", factor=factor)

    def connect(student: Shapes, teacher: Shapes, facts: Facts) -> Reuse:
        head, tap = _check_teacher(student, teacher, facts), deepest_map(teacher)
        return Reuse(tap, Projector(student[tap], teacher[f"{tap}.pre"], factor), head)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        tap = deepest_map(pair.student, pair.teacher)
        projected = connector(pair.student[tap])
        height, width = projected.shape[2:]
        learnt = pooled(F.relu(pair.teacher[f"{tap}.pre"]), (height, width), "average")
        return simkd_loss(projected, learnt)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("stage3", "stage3.pre"),
        optional_taps=("stage4", "stage4.pre"),
        task_weight=0.0,
        trains=BELOW_HEAD,
    )
    return Method(
        category="multi-connection",
        source=SOURCE,
        plan=(stage,),
        connect=connect,
        deploy=deploy,
    )
