"""Students of one architecture that take their steps together, their networks computed as one.

A student's numbers do not depend on who is beside it (see `bench.models.stacked`), but they differ
by rounding from those of its network's own form. So the form is settled for a whole run, before it
starts, and every record names it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.cell import Cell
from bench.models.network import Network
from bench.models.stacked import NotStackable, Stack
from bench.train.device import autocast, is_device_lost, is_out_of_memory, to_device
from bench.train.diagnostics import cosine
from bench.train.engine import Student
from bench.train.step import CELL_FAULTS, Losses, Seen

WORTH = 1.15
"""So many times faster a stack must be measured to be used: numbers change for it, by rounding."""

ROUNDS, BUDGET_SECONDS = 7, 3.0


class TornStackError(Exception):
    """A joint pass failed, and which of its students is to blame does not show.

    No fault of a cell's own: whoever trains them is to try them one by one.
    """


Attempt = Callable[[list[Student], Callable[[], None]], None]


def form_of(cell: Cell, image_shape: Sequence[int]) -> str:
    """What is stacked or not as one: the architecture at its shapes, "cnn8 1x8x8 batch 50".

    Args:
        cell: with the model, batch size and precision.
        image_shape: (C, H, W).
    """
    model = cell.model if isinstance(cell.model, str) else json.dumps(cell.model, sort_keys=True)
    sides = "x".join(map(str, image_shape))
    return f"{model} {sides} batch {cell.recipe.batch_size} {cell.precision}"


class StackedStudents:
    """Students in one kind of stage, for one epoch."""

    def __init__(self, students: Sequence[Student]) -> None:
        """Stacks their networks; see `groups` for which may be together."""
        self.students = list(students)
        self._stack = Stack([student.network for student in students])
        self._taps = tuple(dict.fromkeys(tap for student in students for tap in student.reads))

    def step(self, batch: Seen, attempt: Attempt) -> None:
        """One batch for all of them.

        Args:
            batch: the same for all.
            attempt: runs what can fail by one student's fault, and leaves out who failed before.

        Raises:
            TornStackError: the joint pass failed; nobody's weights have moved in it.
        """
        one = self.students[0]
        with autocast(one.cell, one.device):
            views = self._stack.views(batch.images, self._taps)
        found: list[tuple[Student, Losses, Tensor]] = []
        for student, view in zip(self.students, views, strict=True):
            attempt([student], lambda s=student, v=view: found.append(_minimised(s, v, batch)))
        if not found:
            return
        if len(self.students) == 1:
            attempt([one], lambda: self._backward(found))
        else:
            try:
                self._backward(found)
            except CELL_FAULTS as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                raise TornStackError(f"{type(error).__name__}: {error}") from error
        for student, losses, _ in found:
            attempt([student], lambda s=student, it=losses: s.end_step(it, batch))

    def _backward(self, found: Sequence[tuple[Student, Losses, Tensor]]) -> None:
        self._diagnose([(student, losses) for student, losses, _ in found if student.diagnosed])
        totals = [total for *_, total in found]
        sum(totals[1:], start=totals[0]).backward()
        self._stack.hand_out_gradients()

    def _diagnose(self, found: Sequence[tuple[Student, Losses]]) -> None:
        """Points of "gradient_cosine": two more joint backward passes give everybody's."""
        if not found:
            return
        task, transfer = (
            self._stack.gradients(torch.stack([getattr(it, part) for _, it in found]).sum())
            for part in ("task", "transfer")
        )
        for student, _ in found:
            position = self.students.index(student)
            trunk = student.trunk()
            student.note_cosine(cosine(
                [task[position].get(parameter) for parameter in trunk],
                [transfer[position].get(parameter) for parameter in trunk],
            ))  # fmt: skip


def _minimised(student: Student, view: dict[str, Tensor], batch: Seen) -> tuple:
    losses = student.losses_of(view, batch)
    return student, losses, student.total(losses)


def groups(
    students: Sequence[Student], forms: Collection[str], shape: Sequence[int]
) -> list[list[Student]]:
    """Who takes steps together: students of one architecture that train the same parts."""
    together: dict[tuple[str, frozenset[str]], list[Student]] = {}
    for student in students:
        form = form_of(student.cell, shape)
        if form in forms and student.stackable:
            together.setdefault((form, student.stage.trains), []).append(student)
    return list(together.values())


# --- which form is faster ------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What one step of several students costs, in both forms.

    Attributes:
        count: students.
        apart_ms: (lower quartile, median, upper quartile) of one step of all of them.
        stacked_ms: likewise.
        rounds: interleaved.
        exact: whether a student's bits were the same with and without its neighbours.
    """

    count: int
    apart_ms: tuple[float, float, float]
    stacked_ms: tuple[float, float, float]
    rounds: int
    exact: bool

    @property
    def ratio(self) -> float:
        """How many times faster the stack is, by medians."""
        return self.apart_ms[1] / self.stacked_ms[1]

    @property
    def stack(self) -> bool:
        """Whether to stack."""
        return self.exact and self.ratio >= WORTH


def compare_forms(
    networks: Sequence[Network], images: Tensor, labels: Tensor, cell: Cell
) -> Comparison | None:
    """Times forward and backward passes of plain students, apart and stacked.

    Args:
        networks: freshly made; at least two. Their state is spent.
        images: (B, C, H, W) on the device.
        labels: (B,).
        cell: any of theirs, for the precision.

    Returns:
        what was measured; None if they cannot be stacked.
    """
    device = images.device
    own = [to_device(copy.deepcopy(network), device).train() for network in networks]
    try:
        stack = Stack([to_device(network, device).train() for network in networks])
    except NotStackable:
        return None

    def apart() -> None:
        for network in own:
            with autocast(cell, device):
                logits = network(images)
            cross_entropy(logits.float(), labels).backward()
            network.zero_grad()

    def stacked() -> None:
        with autocast(cell, device):
            views = stack.views(images, ("logits",))
        _plain_loss(views, labels).backward()
        stack.hand_out_gradients()

    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for number in range(ROUNDS + 1):
        for action, seconds in zip((apart, stacked), times, strict=True):
            start = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        if number >= 3 and time.perf_counter() - began > BUDGET_SECONDS:
            break
    for seconds in times:
        del seconds[0]  # it warmed up
    exact = _is_exact(own, images, labels, cell)
    lower, upper = (_quartiles(seconds) for seconds in times)
    return Comparison(len(own), lower, upper, len(times[0]), exact)


def _plain_loss(views: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
    return torch.stack([cross_entropy(v["logits"].float(), labels) for v in views]).sum()


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return round(1e3 * low, 3), round(1e3 * middle, 3), round(1e3 * high, 3)


def _is_exact(networks: Sequence[Network], images: Tensor, labels: Tensor, cell: Cell) -> bool:
    """Whether a student's gradients are the same bits with neighbours as without; on the CPU only.

    CUDA promises no such thing, nor does the harness there.
    """
    if images.device.type != "cpu":
        return True

    def gradients(chosen: Sequence[Network], position: int) -> list[Tensor]:
        copies = [copy.deepcopy(network) for network in chosen]
        stack = Stack(copies)
        with autocast(cell, images.device):
            views = stack.views(images, ("logits",))
        _plain_loss(views, labels).backward()
        stack.hand_out_gradients()
        return [p.grad for p in copies[position].parameters() if p.grad is not None]

    last = len(networks) - 1
    beside, alone = gradients(networks, last), gradients(networks[last:], 0)
    return all(torch.equal(a, b) for a, b in zip(beside, alone, strict=True))
