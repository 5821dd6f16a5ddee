"""What a grid will cost: the pieces of every cell and cohort added up, before anything trains.

    cohort = data read + teacher read + batches + teacher's forward passes     (once for all)
           + sum over students of (steps + epochs + evaluations + stages entered + record)

A student whose stage has images of its own (selective distillation, few labels) gets batches and a
teacher's pass of its own. Seconds are those of one worker beside as many others as were running
while the pieces were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from bench.cell import Cell
from bench.cost.parts import (
    EXTRAPOLATED,
    Parts,
    StageParts,
    StreamParts,
    StudentParts,
    TeacherParts,
    kind,
    stream_kind,
    teacher_kind,
)
from bench.method import split_epochs
from methods import registry


@dataclass(frozen=True)
class Span:
    """A stage of one student, from epoch `begin` to before `end`."""

    begin: int
    end: int
    parts: StageParts

    @property
    def epochs(self) -> int:
        """How many."""
        return self.end - self.begin


@dataclass(frozen=True)
class Lesson:
    """One cell's own part of a cohort.

    Attributes:
        spans: its stages, in order.
        training_seconds: its steps and epochs, and for stages with images of their own their
            batches and the teacher's pass over them.
        testing_seconds: its evaluations.
        flops: of all that.
    """

    spans: tuple[Span, ...]
    training_seconds: float
    testing_seconds: float
    flops: int


@dataclass
class Forecast:
    """Adds pieces up.

    Attributes:
        parts: the pieces, of every cell that is asked for.
        checkpoint_every: seconds between two checkpoints of a cohort; 0 for none.
    """

    parts: Parts
    checkpoint_every: float = 0.0
    _lessons: dict[tuple[object, ...], Lesson] = field(default_factory=dict)
    _kinds: dict[int, tuple[Cell, str, str, str]] = field(default_factory=dict)

    # --- a cell ---------------------------------------------------------------------------------

    def lesson(self, cell: Cell) -> Lesson:
        """The cell's own part of a cohort; KeyError for a cell whose pieces are not known."""
        recipe = cell.recipe
        key = (*self._kinds_of(cell), recipe.epochs, recipe.budget, recipe.evaluate_every)
        if key not in self._lessons:
            self._lessons[key] = self._lesson(cell)
        return self._lessons[key]

    def _lesson(self, cell: Cell) -> Lesson:
        student, stream, teacher = self._of(cell)
        spans = spans_of(cell, student)
        tests = evaluations(cell, spans) + (cell.teacher is not None)
        # With diagnostics a trained student is tested on its training images too.
        passes = tests + cell.diagnostics * stream.train_images / max(stream.test_images, 1)
        training, flops = 0.0, passes * student.test_flops
        for span in spans:
            stage, steps = span.parts, span.epochs * span.parts.kept * stream.steps
            training += stage.enter_seconds + span.epochs * stage.epoch_seconds
            training += steps * stage.step_seconds
            flops += steps * stage.step_flops
            if stage.apart:
                views = steps * stage.reads_teacher
                training += steps * stream.batch_seconds + views * teacher.view_seconds
                flops += views * teacher.view_flops
        return Lesson(spans, training, passes * student.test_seconds, round(flops))

    def _kinds_of(self, cell: Cell) -> tuple[str, str, str]:
        if id(cell) not in self._kinds:
            self._kinds[id(cell)] = cell, kind(cell), stream_kind(cell), teacher_kind(cell)
        return self._kinds[id(cell)][1:]

    def _of(self, cell: Cell) -> tuple[StudentParts, StreamParts, TeacherParts]:
        own, stream, teacher = self._kinds_of(cell)
        parts = self.parts
        return parts.students[own], parts.streams[stream], parts.teachers[teacher]

    # --- a cohort -------------------------------------------------------------------------------

    def seconds(self, cells: Sequence[Cell]) -> float:
        """What a job of these cells takes on one worker, its start-up apart."""
        shared, teacher = self._shared(cells), self.teacher_of(cells)
        testing = math.fsum(self.lesson(cell).testing_seconds for cell in cells)
        training = teacher.together * self.training_seconds(cells)
        total = shared.once_seconds + training + testing + len(cells) * teacher.cell_seconds
        if not self.checkpoint_every:
            return total
        saves = math.floor(total / self.checkpoint_every)
        return total + saves * sum(self._of(cell)[0].checkpoint_seconds for cell in cells)

    def training_seconds(self, cells: Sequence[Cell]) -> float:
        """The sum of the pieces of a cohort's epochs, evaluations apart."""
        own = math.fsum(self.lesson(cell).training_seconds for cell in cells)
        return self._shared(cells).training_seconds + own

    def flops(self, cells: Sequence[Cell]) -> int:
        """Operations of a job, the teacher's among them."""
        return self.shared_flops(cells) + sum(self.lesson(cell).flops for cell in cells)

    def shared_flops(self, cells: Sequence[Cell]) -> int:
        """Those of the teacher, which all cells of a job share."""
        return self._shared(cells).flops

    def shared_seconds(self, cells: Sequence[Cell]) -> float:
        """Seconds of a job that are no single cell's: the teacher's, batches, reading."""
        shared = self._shared(cells)
        return shared.once_seconds + self.teacher_of(cells).together * shared.training_seconds

    def own_seconds(self, cell: Cell, cells: Sequence[Cell]) -> float:
        """Seconds of a job of `cells` that are this cell's own."""
        teacher, lesson = self.teacher_of(cells), self.lesson(cell)
        training = teacher.together * lesson.training_seconds
        return training + lesson.testing_seconds + teacher.cell_seconds

    def _shared(self, cells: Sequence[Cell]) -> _Shared:
        stream, teacher = self._of(cells[0])[1], self.teacher_of(cells)
        spans = [span for cell in cells for span in self.lesson(cell).spans]
        side_by_side = [span for span in spans if not span.parts.apart]
        batches = covered((s.begin, s.end) for s in side_by_side) * stream.steps
        taught = covered((s.begin, s.end) for s in side_by_side if s.parts.reads_teacher)
        views, clean = taught * stream.steps, any(span.parts.clean for span in spans)
        return _Shared(
            once_seconds=stream.open_seconds + teacher.look_seconds,
            training_seconds=batches * stream.batch_seconds + views * teacher.view_seconds
            + clean * teacher.clean_seconds,
            flops=round(views * teacher.view_flops) + teacher.test_flops
            + clean * teacher.clean_flops,
        )  # fmt: skip

    def teacher_of(self, cells: Sequence[Cell]) -> TeacherParts:
        """The pieces of whoever teaches these cells; of nobody if none is taught."""
        taught = next((cell for cell in cells if cell.teacher is not None), cells[0])
        return self._of(taught)[2]

    # --- memory ---------------------------------------------------------------------------------

    def student_bytes(self, cell: Cell) -> int:
        """The most that one student holds."""
        student = self._of(cell)[0]
        return student.held_bytes + student.step_bytes

    def bytes(self, cells: Sequence[Cell]) -> int:
        """The most that a job holds beside what a worker process holds anyway.

        Every student's step counts, though they step in turns on the CPU: on a device they may
        overlap, and what one frees is not always what the next one can use.
        """
        stream, teacher = self._of(cells[0])[1], self.teacher_of(cells)
        shared = stream.held_bytes + teacher.held_bytes + teacher.view_bytes
        return shared + sum(map(self.student_bytes, cells))

    def extrapolated(self, cells: Iterable[Cell]) -> int:
        """How many kinds of these cells were not measured."""
        kinds = {self._kinds_of(cell)[0] for cell in cells}
        return sum(self.parts.students[k].origin == EXTRAPOLATED for k in kinds)


@dataclass(frozen=True)
class _Shared:
    once_seconds: float
    training_seconds: float
    flops: int


def spans_of(cell: Cell, student: StudentParts) -> tuple[Span, ...]:
    """The epochs of each stage, from 0."""
    spans, begin = [], 0
    for stage, epochs in zip(student.stages, _epochs(cell), strict=True):
        spans.append(Span(begin, begin + epochs, stage))
        begin += epochs
    return tuple(spans)


def _epochs(cell: Cell) -> tuple[int, ...]:
    hyperparameters = tuple(sorted(cell.hyperparameters.items(), key=lambda item: item[0]))
    recipe = cell.recipe
    return _split(cell.method, _Frozen(hyperparameters), recipe.epochs, recipe.budget)


class _Frozen(tuple):
    """Hyper-parameters as a key, lists and all."""

    def __hash__(self) -> int:
        return hash(repr(self))


@cache
def _split(method: str, hyperparameters: _Frozen, epochs: int, budget: str) -> tuple[int, ...]:
    plan = registry.build(method, **dict(hyperparameters)).plan
    return tuple(split_epochs(plan, epochs, budget))


def evaluations(cell: Cell, spans: Iterable[Span]) -> int:
    """How often a cell is tested while it trains."""
    every = cell.recipe.evaluate_every
    spans = tuple(spans)
    due = sum(span.end // every - span.begin // every for span in spans if span.parts.has_head)
    last = spans[-1]
    return due + (last.end % every != 0 or not last.parts.has_head)


def steps_of(stage: StageParts, stream: StreamParts) -> float:
    """Batches of one of the stage's epochs; a short last one counts by its images."""
    return stage.kept * stream.steps


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Epochs that lie in any of the spans.

    Example:
        >>> covered([(0, 3), (2, 5), (7, 8)])
        6
    """
    total, reached = 0, 0
    for begin, end in sorted(set(spans)):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def at_throughput(parts: Parts, flops_per_second: float) -> Parts:
    """The same pieces on a device that does so many operations a second, and waits for nothing.

    Args:
        parts: with counted operations.
        flops_per_second: sustained, not peak.
    """

    def seconds(flops: int) -> float:
        return flops / flops_per_second

    def student(found: StudentParts) -> StudentParts:
        stages = tuple(
            replace(s, step_seconds=seconds(s.step_flops), epoch_seconds=0.0, enter_seconds=0.0)
            for s in found.stages
        )
        return replace(
            found, stages=stages, test_seconds=seconds(found.test_flops), checkpoint_seconds=0.0
        )

    def teacher(found: TeacherParts) -> TeacherParts:
        return replace(
            found, view_seconds=seconds(found.view_flops), clean_seconds=seconds(found.clean_flops),
            look_seconds=seconds(found.test_flops), together=1.0, cell_seconds=0.0,
        )  # fmt: skip

    return Parts(
        {k: replace(s, open_seconds=0.0, batch_seconds=0.0) for k, s in parts.streams.items()},
        {k: teacher(t) for k, t in parts.teachers.items()},
        {k: student(s) for k, s in parts.students.items()},
        process_bytes=parts.process_bytes,
    )
