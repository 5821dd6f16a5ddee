"""Students of one architecture that take their steps together, their networks computed as one.

A student's numbers do not depend on who is beside it (see `bench.models.stacked`), but they differ
by rounding from those of its network's own form. So which form a cell has depends on nothing but
itself and what the user asked for, and every record names it: cells under a teacher, of which a
cohort has several, are stacked even if they are alone; cells without one, which may be the teachers
of others and have nobody beside them, never are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from bench.cell import Cell
from bench.faults import CODE_FAULTS
from bench.models.stacked import Stack
from bench.train.device import autocast, is_device_lost, is_out_of_memory
from bench.train.diagnostics import cosine
from bench.train.engine import Student
from bench.train.step import Losses, Seen


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
            except CODE_FAULTS as error:
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
    """Who takes steps together: students of one architecture that train the same parts.

    Args:
        students: of one stream, each in its stage.
        forms: whose networks are stacked, as `form_of` names them.
        shape: (C, H, W) of the images.
    """
    together: dict[tuple[str, frozenset[str]], list[Student]] = {}
    for student in students:
        form = form_of(student.cell, shape)
        if student.cell.teacher is not None and form in forms and student.stackable:
            together.setdefault((form, student.stage.trains), []).append(student)
    return list(together.values())
