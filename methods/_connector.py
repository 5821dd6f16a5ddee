"""Trained layers between a student's tap and a teacher's: regressors and connectors.

They exist during the stages that read them and are never part of the student. They always map the
student's features to the teacher's shape: a layer trained on the teacher's side could reach a loss
of zero by mapping everything to zero.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

from bench.method import NotApplicable, Shapes
from methods._checks import one_of

Kind = Literal["auto", "conv"]
Relu = Literal["auto"] | bool


class _Axis(NamedTuple):
    """A convolution along one spatial axis; `up` for a transposed one."""

    kernel: int
    stride: int
    padding: int
    up: bool = False


def connector(
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
    *,
    relu: bool = False,
    kind: Kind = "auto",
) -> nn.Module:
    """A convolution from the student's map to the teacher's shape, BatchNorm, optionally ReLU.

    Each spatial axis takes the first rule that fits. Equal sizes: kernel 1. Student twice the
    teacher: kernel 3, stride 2, padding 1. Half of it: transposed, kernel 4, stride 2, padding 1.
    Larger: no padding, kernel Hs - Ht + 1 (the rule of the FitNet paper). Weights start as
    N(0, sqrt(2 / (Ct * kernel area))); there is no bias, because BatchNorm would cancel it.

    Args:
        student_shape: (Cs, Hs, Ws) of one sample.
        teacher_shape: (Ct, Ht, Wt) of one sample.
        relu: whether it ends in ReLU, which suits a target after a ReLU.
        kind: "auto" gives the identity for equal shapes, "conv" a convolution even then.

    Returns:
        A module (B, Cs, Hs, Ws) -> (B, Ct, Ht, Wt).

    Raises:
        NotApplicable: no rule fits these sizes, or a shape is not that of a map.
        ValueError: an unknown `kind`.

    Example:
        >>> import torch
        >>> up = connector((4, 8, 6), (16, 16, 12))
        >>> up(torch.ones(2, 4, 8, 6)).shape
        torch.Size([2, 16, 16, 12])
        >>> connector((4, 8, 8), (4, 8, 8))
        Identity()
    """
    one_of("connector", "kind", kind, get_args(Kind))
    _, width = channels(student_shape, teacher_shape)
    if kind == "auto" and student_shape == teacher_shape:
        return nn.Identity()
    layers = [_convolution(student_shape, teacher_shape), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def channels(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels of the student's map and of the teacher's; NotApplicable if one is no map."""
    if len(student_shape) != 3 or len(teacher_shape) != 3:
        raise NotApplicable(
            f"a connector needs maps (C, H, W); student {student_shape}, teacher {teacher_shape}"
        )
    return student_shape[0], teacher_shape[0]


def _convolution(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> nn.Module:
    axes = [_axis(s, t) for s, t in zip(student_shape[1:], teacher_shape[1:], strict=True)]
    height, width = axes
    up = any(axis is not None and axis.up for axis in axes)
    down = any(axis is not None and axis.kernel > 1 and not axis.up for axis in axes)
    if height is None or width is None or (up and down):
        raise NotApplicable(
            f"no connector from the student's {student_shape} to the teacher's {teacher_shape}: "
            "each side must be equal, larger, or half, and both sides must grow or both shrink"
        )
    kernel = (height.kernel, width.kernel)
    layer = (nn.ConvTranspose2d if up else nn.Conv2d)(
        student_shape[0],
        teacher_shape[0],
        kernel,
        stride=(height.stride, width.stride),
        padding=(height.padding, width.padding),
        bias=False,
    )
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / (teacher_shape[0] * math.prod(kernel))))
    return layer


def _axis(student: int, teacher: int) -> _Axis | None:
    if student == teacher:
        return _Axis(1, 1, 0)
    if student == 2 * teacher:
        return _Axis(3, 2, 1)
    if 2 * student == teacher:
        return _Axis(4, 2, 1, up=True)
    return _Axis(student - teacher + 1, 1, 0) if student > teacher else None


class Connectors(nn.Module):
    """One connector per tap, called as `connectors(tap, student_map)`."""

    def __init__(self, by_tap: Mapping[str, nn.Module]) -> None:
        """`by_tap`: tap name -> its connector."""
        super().__init__()
        self.by_tap = nn.ModuleDict({_key(tap): layers for tap, layers in by_tap.items()})

    def forward(self, tap: str, student: Tensor) -> Tensor:
        """The student's map at `tap`, in the teacher's shape."""
        return self.by_tap[_key(tap)](student)


def _key(tap: str) -> str:
    # A module's name may not hold a dot; a tap's ("stage1.pre") does.
    return tap.replace(".", "/")


def connect_points(
    points: Sequence[str],
    student: Shapes,
    teacher: Shapes,
    *,
    relu: Relu = False,
    kind: Kind = "auto",
) -> Connectors:
    """Connectors at `points`, which both networks have; see `connector`.

    They end in ReLU as `relu` says; "auto": where the teacher's tap `is_rectified`.
    """
    return Connectors(
        {
            tap: connector(
                student[tap],
                teacher[tap],
                relu=is_rectified(tap, teacher) if relu == "auto" else relu,
                kind=kind,
            )
            for tap in points
        }
    )


def connect_widths(
    points: Sequence[str], student: Shapes, teacher: Shapes, *, allowed: bool = True
) -> Connectors:
    """Connectors (1x1 convolution and BatchNorm) at the `points` where the widths differ.

    They serve relations within one network, which need equal channels but not equal sizes.

    Raises:
        NotApplicable: a tap is no map, or widths differ while not `allowed`.

    Example:
        >>> taps = {"stem": (16, 32, 32), "stage1": (16, 32, 32)}
        >>> wide = {"stem": (16, 32, 32), "stage1": (64, 16, 16)}
        >>> connectors = connect_widths(list(taps), taps, wide)
        >>> [type(layers).__name__ for layers in connectors.by_tap.values()]
        ['Identity', 'Sequential']
    """
    layers = {}
    for tap in points:
        here, there = student[tap], teacher[tap]
        if here[0] != there[0] and not allowed:
            raise NotApplicable(
                f"widths differ at {tap} (student {here[0]}, teacher {there[0]}) and connectors "
                "are off"
            )
        layers[tap] = connector(here, (there[0], *here[1:]))
    return Connectors(layers)


def is_rectified(tap: str, shapes: Shapes) -> bool:
    """Whether the features at `tap` have been through a ReLU, from the taps' order.

    Networks list their taps from shallow to deep, and "stageK.pre" is the input of stage K's ReLU.
    Where it is deeper than "stageK", as in pre-activation networks, the stage's entry and output
    are raw sums. Blocks with a linear end, like those of MobileNetV2, cannot be recognised.

    Example:
        >>> plain = {"stage1.pre": (16, 8, 8), "stage1": (16, 8, 8)}
        >>> is_rectified("stage1", plain), is_rectified("stage1.pre", plain)
        (True, False)
        >>> is_rectified("stage1", dict(reversed(plain.items())))
        False
    """
    stage, _, point = tap.partition(".")
    raw = [name for name in shapes if name in (stage, f"{stage}.pre")] == [stage, f"{stage}.pre"]
    return point != "pre" and not raw
