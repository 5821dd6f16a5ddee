"""Marks between the parts of a real training step: the engine runs, and a meter is read.

The seams are those that a stage and a network offer anyway: the functions of a `Stage` and
`Network.view` are wrapped, gradients and the optimiser have hooks. So the step that is taken apart
is the engine's own, and its parts add up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.method import Merge, Pair, Stage, Transfer
from bench.models.network import Network

Meter = Callable[[], Sequence[float]]
"""Reads what only ever grows: a clock, a counter of operations."""


class Marks:
    """Attributes what a meter advances by to named parts. Without a meter, marks do nothing."""

    def __init__(self) -> None:
        """No meter yet."""
        self._meter: Meter | None = None
        self._last: Sequence[float] = ()
        self._parts: dict[str, Sequence[float]] = {}
        self._shown: list[Pair] | None = None

    @contextmanager
    def showing(self) -> Iterator[list[Pair]]:
        """Yields the pairs that transfer losses are given inside, filled while they run."""
        self._shown = []
        try:
            yield self._shown
        finally:
            self._shown = None

    def show(self, pair: Pair) -> None:
        """A transfer loss is given `pair`."""
        if self._shown is not None:
            self._shown.append(pair)

    @contextmanager
    def reading(self, meter: Meter) -> Iterator[dict[str, Sequence[float]]]:
        """Reads `meter` at every mark inside.

        Yields:
            part -> what the meter advanced by, filled while the marks are made.
        """
        self._parts, self._meter, self._last = {}, meter, meter()
        try:
            yield self._parts
        finally:
            self._meter = None

    def mark(self, part: str) -> None:
        """What ran since the last mark was of `part`."""
        if self._meter is None:
            return
        now = self._meter()
        before = self._parts.get(part, (0,) * len(now))
        advanced = (a + n - b for a, n, b in zip(before, now, self._last, strict=True))
        self._parts[part] = tuple(advanced)
        self._last = now

    def after_gradient(self, tensor: Tensor, part: str) -> None:
        """Marks the moment when the gradient has reached `tensor`."""
        if self._meter is not None and tensor.requires_grad:
            tensor.register_hook(lambda _: self.mark(part))


def marked_stage(stage: Stage, marks: Marks) -> Stage:
    """The stage with marks around its losses, their gradients and the merging of gradients.

    The engine runs backward functions in the reverse order of their making, and the losses are
    made last: their gradient is complete before any of the student's layers starts on its own.
    """
    return replace(
        stage,
        transfer=stage.transfer and _marked_transfer(stage.transfer, marks),
        beside=stage.beside and _marked_transfer(stage.beside, marks),
        merge=stage.merge and _marked_merge(stage.merge, marks),
    )


def _marked_transfer(transfer: Transfer, marks: Marks) -> Transfer:
    def marked(pair: Pair, connector: nn.Module) -> Tensor:
        marks.show(pair)
        marks.mark("student_backward")
        loss = transfer(pair, connector)
        marks.mark("loss_forward")
        marks.after_gradient(loss, "student_backward")
        for tap in pair.student.taps.values():
            marks.after_gradient(tap, "loss_backward")
        return loss

    return marked


def _marked_merge(merge: Merge, marks: Marks) -> Merge:
    def marked(
        task: Sequence[Tensor | None], transfer: Sequence[Tensor | None], epoch: int
    ) -> Sequence[Tensor | None]:
        merged = merge(task, transfer, epoch)
        marks.mark("second_backward")
        return merged

    return marked


class MarkedNetwork(Network):
    """A network with a mark at the end of its forward pass."""

    def __init__(self, network: Network, marks: Marks) -> None:
        """Takes the network over."""
        super().__init__()
        self.network = network
        self.tap_names = network.tap_names
        self._marks = marks

    @property
    def head(self) -> nn.Module:
        """The network's own."""
        return self.network.head

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        shown = self.network.view(images, taps)
        self._marks.mark("student_forward")
        return shown


def mark_optimiser(optimiser: torch.optim.Optimizer, marks: Marks) -> None:
    """Marks where the optimiser's step begins; what is marked next ends it."""
    optimiser.register_step_pre_hook(lambda *_: marks.mark("student_backward"))
