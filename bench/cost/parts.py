"""What a training is made of, in seconds, operations and bytes: the pieces that are measured once.

Cells of one kind differ in seed and number of epochs only, and cost the same a step. A cohort is
the sum of its pieces; see `bench.cost.forecast`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.cell import Cell

MEASURED, EXTRAPOLATED = "measured", "extrapolated"


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """One stage of one kind of cell.

    Attributes:
        name: the stage's.
        reads_teacher: whether every step needs the teacher's forward pass.
        clean: whether the teacher passes once over all training images before it.
        apart: whether it has images of its own, and so batches of its own.
        kept: those images as a share of all.
        has_head: whether its epochs are evaluated.
        step_seconds: of one batch, without the teacher's forward pass.
        epoch_seconds: of an epoch's begin, its end without evaluation, and what its first step
            takes longer.
        enter_seconds: once, without the teacher's pass.
        step_flops: operations of one batch, without the teacher's.
    """

    name: str
    reads_teacher: bool
    clean: bool
    apart: bool
    kept: float
    has_head: bool
    step_seconds: float
    epoch_seconds: float
    enter_seconds: float
    step_flops: int


@dataclass(frozen=True, kw_only=True)
class StudentParts:
    """One kind of cell.

    Attributes:
        stages: of its method, in order.
        test_seconds: of one evaluation on all test images.
        test_flops: likewise.
        held_bytes: parameters, buffers and momentum, of network and connector.
        step_bytes: the most that a step holds beyond that.
        checkpoint_seconds: of one checkpoint.
        origin: "measured", or "extrapolated" from counted operations.
    """

    stages: tuple[StageParts, ...]
    test_seconds: float
    test_flops: int
    held_bytes: int
    step_bytes: int
    checkpoint_seconds: float = 0.0
    origin: str = MEASURED


@dataclass(frozen=True, kw_only=True)
class TeacherParts:
    """One teacher on one stream.

    Attributes:
        view_seconds: its forward pass over a batch.
        view_flops: likewise.
        clean_seconds: its pass over all training images without augmentation.
        clean_flops: likewise.
        look_seconds: what a cohort looks at first: weights read, predictions on the test set.
        test_flops: of those predictions.
        held_bytes: parameters and buffers.
        view_bytes: the most that a forward pass holds beyond that.
        together: seconds of a whole cohort's training over the sum of its pieces.
        cell_seconds: of a student's admission and of its record, weights and diagnostics.
    """

    view_seconds: float = 0.0
    view_flops: int = 0
    clean_seconds: float = 0.0
    clean_flops: int = 0
    look_seconds: float = 0.0
    test_flops: int = 0
    held_bytes: int = 0
    view_bytes: int = 0
    together: float = 1.0
    cell_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StreamParts:
    """One stream of batches.

    Attributes:
        train_images: N.
        test_images: M.
        steps: batches of an epoch; a short last one counts by its images.
        open_seconds: until a job has the data in memory.
        batch_seconds: of making one batch.
        held_bytes: of the images.
    """

    train_images: int
    test_images: int
    steps: float
    open_seconds: float
    batch_seconds: float
    held_bytes: int


@dataclass(frozen=True)
class Parts:
    """All that is known, by `stream_kind`, `teacher_kind` and `kind`.

    Attributes:
        streams: by stream.
        teachers: by stream and teacher; cohorts without one have an entry of zeros.
        students: by kind of cell.
        startup_seconds: of a worker process.
        process_bytes: of a worker process that has trained nothing yet.
    """

    streams: Mapping[str, StreamParts] = field(default_factory=dict)
    teachers: Mapping[str, TeacherParts] = field(default_factory=dict)
    students: Mapping[str, StudentParts] = field(default_factory=dict)
    startup_seconds: float = 0.0
    process_bytes: int = 0

    def know(self, cell: Cell) -> bool:
        """Whether all pieces of a cell are there."""
        return (
            kind(cell) in self.students
            and stream_kind(cell) in self.streams
            and teacher_kind(cell) in self.teachers
        )


def kind(cell: Cell) -> str:
    """The same for cells that cost the same a step and an evaluation."""
    values = cell.resolved()
    for name in ("seed", "recipe", "source", "teacher"):
        del values[name]
    return _digest(values, _stream_values(cell), _network(cell.teacher), cell.source is not None)


def teacher_kind(cell: Cell) -> str:
    """The same for cells that one cohort's teacher costs the same."""
    return _digest(_stream_values(cell), _network(cell.teacher))


def stream_kind(cell: Cell) -> str:
    """The same for cells whose batches cost the same."""
    return _digest(_stream_values(cell))


def _network(cell: Cell | None) -> object:
    return cell and cell.model_dump(mode="json", include={"model", "network_code"})


def _stream_values(cell: Cell) -> list[object]:
    recipe = cell.recipe
    # Which images were drawn does not matter to their cost.
    data = cell.data.model_dump(mode="json", exclude={"split_seed"})
    return [data, cell.fingerprint, recipe.batch_size, recipe.drop_last, cell.precision,
            cell.deterministic]  # fmt: skip


def _digest(*values: object) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def student_from(values: Mapping[str, Any]) -> StudentParts:
    """The parts that `dataclasses.asdict` took apart.

    Raises:
        TypeError: other fields than those of this version.
        KeyError: no stages.
    """
    stages = tuple(StageParts(**stage) for stage in values["stages"])
    return StudentParts(**{**values, "stages": stages})
