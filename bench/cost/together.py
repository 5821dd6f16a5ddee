"""What only a whole cohort shows: how its training compares with the sum of its pieces.

A cohort of one cell of each kind trains twice on a rehearsal's cut of the data, as a worker does
it, once for some epochs more. The difference tells what its epochs take beside the sum of their
pieces (students of one network may train as one), the rest what a cell takes beside its training.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch

from bench.cell import Cell
from bench.cost.forecast import Forecast
from bench.cost.parts import Parts, StudentParts, TeacherParts, teacher_kind
from bench.cost.probe import Rehearsal, lasting
from bench.record import Store, write_atomically
from bench.train.cohort import Cohort, build_network
from methods import registry

RECORD_FILES = 3
"""Written for every cell: its settings, its weights, its record."""

REPEATS = 4
"""Of what is too short to be timed once."""


def together(
    rehearsal: Rehearsal, cells: Sequence[Cell], pieces: Parts, forms: Collection[str] = ()
) -> TeacherParts:
    """The teacher's pieces with `together` and `cell_seconds` measured.

    Args:
        rehearsal: of their stream and teacher.
        cells: one of each kind.
        pieces: theirs, measured on this machine.
        forms: whose networks are stacked in a run.
    """
    taught = next((cell for cell in cells if cell.teacher is not None), cells[0])
    teacher = pieces.teachers[teacher_kind(taught)]
    few = max(len(registry.build(c.method, **c.hyperparameters).plan) for c in cells)
    runs = [_run(rehearsal, cells, epochs, pieces, forms) for epochs in (few, 3 * few)]
    (short, expected_short, beside), (long, expected_long, beside_long) = runs
    expected = expected_long - expected_short
    grown = (long - beside_long) - (short - beside)
    factor = grown / expected if expected > 0 and grown > 0 else 1.0
    rest = short - beside - factor * expected_short
    each = max(0.0, rest) / len(cells) + RECORD_FILES * _file_seconds()
    return replace(teacher, together=factor, cell_seconds=each)


def _run(
    rehearsal: Rehearsal,
    cells: Sequence[Cell],
    epochs: int,
    pieces: Parts,
    forms: Collection[str],
) -> tuple[float, float, float]:
    """Seconds of a cohort's run: in fact, expected of its training, and of its tests."""
    short = [lasting(cell, epochs) for cell in cells]
    stream, device = rehearsal.stream, rehearsal.device
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        _write_sources(rehearsal, short, store)
        cohort = Cohort(stream, rehearsal.teacher, store, device, lambda *event: None, forms=forms)
        seconds = rehearsal.seconds(lambda: cohort.run(short))
    forecast = Forecast(_on_the_cut(rehearsal, pieces))
    tests = sum(forecast.lesson(cell).testing_seconds for cell in short)
    return seconds, forecast.training_seconds(short), tests


def _write_sources(rehearsal: Rehearsal, cells: Sequence[Cell], store: Store) -> None:
    """Weights that a student may start from; which they are does not matter."""
    stream = rehearsal.stream
    for source in {c.source.id: c.source for c in cells if c.source is not None}.values():
        network = build_network(source, stream.classes, stream.image_shape)
        weights = safetensors.torch.save(network.state_dict())
        write_atomically(store.folder(source.id) / "weights.safetensors", weights)


def _on_the_cut(rehearsal: Rehearsal, pieces: Parts) -> Parts:
    """The pieces as they are on the cut of the data."""
    images, tested = rehearsal.stream.train_images, len(rehearsal.stream.test.labels)
    steps = images / rehearsal.cell.recipe.batch_size
    streams = {
        key: replace(
            s, steps=min(s.steps, steps), train_images=min(s.train_images, images),
            test_images=min(s.test_images, tested),
        )
        for key, s in pieces.streams.items()
    }  # fmt: skip
    teachers = {
        key: replace(t, clean_seconds=t.clean_seconds / rehearsal.scale)
        for key, t in pieces.teachers.items()
    }
    students = {key: _student_on_the_cut(rehearsal, s) for key, s in pieces.students.items()}
    return Parts(streams, teachers, students)


def _student_on_the_cut(rehearsal: Rehearsal, student: StudentParts) -> StudentParts:
    stages = (
        replace(s, enter_seconds=s.enter_seconds / rehearsal.scale) if s.clean else s
        for s in student.stages
    )
    tests = student.test_seconds / rehearsal.test_scale
    return replace(student, stages=tuple(stages), test_seconds=tests)


def _file_seconds() -> float:
    """Until a small file is safe on the disk."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            began = time.perf_counter()
            write_atomically(Path(folder) / "file", "x" * 4096)
            times.append(time.perf_counter() - began)
    return statistics.median(times)
