"""How the cost of each loss alone grows: with the batch, with channels, with positions.

Both networks get taps of one and the same shape, so that no connector has anything to do: what is
measured is the loss, forward and backward, on tensors that are already there.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.cost.loss import LossAlone
from bench.cost.profiler import LEAST_ROUNDS, Clock, Progress, count, measured_with, steady
from bench.cost.record import AXES, Quartiles, Scaling
from bench.cost.steps import Setting
from bench.hyperparameters import build_method
from bench.method import Method, Pair, Shapes, Stage, View
from bench.train.device import set_numerics

BASE = {"batch": 64, "channels": 32, "positions": 64}
"""The sizes that stay while another one grows."""

SIZES = {
    "batch": (16, 32, 64, 128),
    "channels": (16, 32, 64, 128),
    "positions": (16, 64, 256, 1024),
}


def random_loss(
    method: Method, stage: Stage, sizes: Mapping[str, int], setting: Setting
) -> LossAlone:
    """A stage's transfer loss on random taps of one shape in both networks.

    Args:
        method: for its connector.
        stage: with a transfer loss.
        sizes: one for each of `AXES`; positions must be a square.
        setting: gives device and classes.
    """
    assert stage.transfer is not None
    shapes = tap_shapes_of(stage.all_taps, sizes["channels"], sizes["positions"], setting.classes)
    draws, device = torch.Generator().manual_seed(0), setting.device

    def draw() -> dict[str, Tensor]:
        return {tap: torch.randn(sizes["batch"], *shape, generator=draws).to(device)
                for tap, shape in shapes.items()}  # fmt: skip

    student = {tap: x.requires_grad_() for tap, x in draw().items()}
    index = torch.arange(sizes["batch"], device=device)
    pair = Pair(View(student), View(draw()), index % setting.classes, index)
    return LossAlone([stage.transfer], pair, method.connect(shapes, shapes).to(device))


def tap_shapes_of(taps: Sequence[str], channels: int, positions: int, classes: int) -> Shapes:
    """Shapes for taps of any method: maps all of one shape, embeddings as wide as a map is deep.

    Example:
        >>> tap_shapes_of(["stage1", "embedding", "logits"], 32, 64, 10)
        {'stage1': (32, 8, 8), 'embedding': (32,), 'logits': (10,)}
    """
    side = round(positions**0.5)
    vectors = {"embedding": (channels,), "logits": (classes,)}
    return {tap: vectors.get(tap, (channels, side, side)) for tap in taps}


@dataclass
class _Line:
    """One method along one axis."""

    method: str
    category: str
    stage: str
    axis: str
    losses: list[LossAlone]
    times: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times = [[] for _ in self.losses]


def measure_scaling(
    methods: Sequence[str], setting: Setting, progress: Progress | None = None
) -> list[Scaling]:
    """The first transfer loss of every method, with its defaults, along all axes.

    Args:
        methods: names; those without a transfer loss are left out.
        setting: gives device, classes, rounds and time limit; its batch is not used.
        progress: called before every round.

    Returns:
        One entry a method and axis.
    """
    set_numerics(setting.cell("none"))  # which model does not matter to it
    lines = [line for name in methods for line in _lines(name, setting)]
    with steady():
        _measure(lines, setting, progress or (lambda what, done, total: None))
        return [_scaling(line, setting) for line in lines]


def _lines(name: str, setting: Setting) -> list[_Line]:
    method = build_method(name)
    stage = next((s for s in method.plan if s.transfer is not None), None)
    if stage is None:
        return []
    return [
        _Line(name, method.category, stage.name, axis, [
            random_loss(method, stage, {**BASE, axis: size}, setting) for size in SIZES[axis]
        ])
        for axis in AXES
    ]  # fmt: skip


def _measure(lines: Sequence[_Line], setting: Setting, report: Progress) -> None:
    turns = [turn for line in lines for turn in zip(line.losses, line.times, strict=True)]
    clock, began = Clock(setting.device), time.monotonic()
    for number in range(-1, setting.rounds):  # the round -1 warms up
        spent = time.monotonic() - began
        if setting.seconds is not None and spent > setting.seconds and number >= LEAST_ROUNDS:
            break
        report("losses alone: round", max(number, 0), setting.rounds)
        gc.collect()
        random.Random(number).shuffle(turns)
        for loss, times in turns:
            elapsed = clock.time(loss)
            if number >= 0:
                times.append(elapsed)


def _scaling(line: _Line, setting: Setting) -> Scaling:
    others = {axis: size for axis, size in BASE.items() if axis != line.axis}
    where = {k: v for k, v in measured_with(setting).items() if k not in ("batch", "image_shape")}
    return Scaling(
        method=line.method,
        category=line.category,
        stage=line.stage,
        axis=line.axis,
        sizes=list(SIZES[line.axis]),
        milliseconds=[Quartiles.of(times) for times in line.times],
        count=[count(loss) for loss in line.losses],
        conditions={**where, **others, "rounds": len(line.times[0])},
    )
