"""A short calibration: the pieces of a grid's cells, measured on this machine and kept.

As many processes measure side by side as will train side by side, because workers slow each other
down; one that has nothing left to measure goes on training until the last is done. Every piece is
kept in a file of its own, under a name that hashes all that it depends on, so that nothing is
measured twice and nothing old is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cell import Cell
from bench.cost.extrapolate import extrapolate
from bench.cost.parts import (
    EXTRAPOLATED,
    Parts,
    StreamParts,
    StudentParts,
    TeacherParts,
    kind,
    stream_kind,
    student_from,
    teacher_kind,
)
from bench.faults import CODE_FAULTS
from bench.launch.code import code_digest
from bench.launch.job import Library, WorkerConfig
from bench.launch.memory import process_bytes
from bench.launch.schedule import group_cells
from bench.record import dump_json, write_atomically

if TYPE_CHECKING:
    from bench.cost.probe import Rehearsal

SCHEMA = 1
WORTH_TOGETHER = 0.5
"""A whole cohort is rehearsed where that is expected to take at most this share of the limit."""


class CalibrationError(RuntimeError):
    """Nothing could be measured; the message says why and what helps."""


@dataclass(frozen=True, eq=False)
class Group:
    """A cohort of one cell of each kind, to be measured."""

    cells: tuple[Cell, ...]

    @property
    def taught(self) -> Cell:
        """A cell with the group's teacher, if there is one."""
        return next((cell for cell in self.cells if cell.teacher is not None), self.cells[0])


def groups_of(cells: Iterable[Cell]) -> list[Group]:
    """What has to be measured for a grid: cohorts of one cell of each kind."""
    kinds = {}
    for cell in cells:
        kinds.setdefault(kind(cell), cell)
    teachers, cohorts = group_cells(kinds.values())
    return [Group((cell,)) for cell in teachers] + [Group(tuple(cohort)) for cohort in cohorts]


def conditions_of(setting: WorkerConfig, devices: Sequence[str]) -> dict[str, object]:
    """What every measurement depends on beside its cell."""
    from bench.train.device import conditions, pick_device

    return {
        **conditions(pick_device(devices[0])),
        "threads": setting.threads,
        "cores": len(os.sched_getaffinity(0)),
        "workers": len(devices),
        "code": code_digest("cost"),
        "forms": sorted(setting.forms),
        "plugins": [plugin.text for plugin in setting.plugins],
        "schema": SCHEMA,
    }


# --- what was measured before ---------------------------------------------------------------------


class Kept:
    """Pieces as files, `<root>/<hash of what it is and what it depends on>.json`."""

    def __init__(self, root: Path, conditions: Mapping[str, object]) -> None:
        """Nothing is created before the first write."""
        self.root, self.conditions = root, dict(conditions)

    def _path(self, what: str, key: object) -> Path:
        text = json.dumps([what, key, self.conditions], sort_keys=True)
        return self.root / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def read(self, what: str, key: object) -> dict[str, Any] | None:
        """The values kept under a key; None if there are none, or only damaged ones."""
        try:
            found = json.loads(self._path(what, key).read_text(encoding="utf-8"))
            return found["values"] if found["what"] == what else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, what: str, key: object, values: Mapping[str, Any]) -> None:
        """Keeps values under a key."""
        about = {"what": what, "key": key, "conditions": self.conditions, "values": values}
        write_atomically(self._path(what, key), dump_json(about))


def known_parts(groups: Sequence[Group], kept: Kept) -> Parts:
    """What of these groups was measured before, as far as it goes."""
    streams: dict[str, StreamParts] = {}
    teachers: dict[str, TeacherParts] = {}
    students: dict[str, StudentParts] = {}
    for group in groups:
        values = kept.read("teacher", teacher_kind(group.taught))
        whole = kept.read("cohort", _cohort_key(group))
        if values is not None:
            streams[stream_kind(group.taught)] = StreamParts(**values["stream"])
            _teach(teachers, group, TeacherParts(**(whole or values["teacher"])))
        for cell in group.cells:
            if (found := kept.read("student", kind(cell))) is not None:
                students[kind(cell)] = student_from(found["parts"])
    process = kept.read("process", "") or {"startup_seconds": 0.0, "process_bytes": 0}
    cells = {kind(cell): cell for group in groups for cell in group.cells}
    return extrapolate(Parts(streams, teachers, students, **process), cells)


def _cohort_key(group: Group) -> list[str]:
    return sorted(map(kind, group.cells))


def _teach(teachers: dict[str, TeacherParts], group: Group, parts: TeacherParts) -> None:
    """Enters a group's teacher, and nobody for those of its cells that have none."""
    teachers[teacher_kind(group.taught)] = parts
    alone = TeacherParts(cell_seconds=parts.cell_seconds)
    for cell in group.cells:
        teachers.setdefault(teacher_kind(cell), alone)


def read_parts(
    cells: Iterable[Cell], root: Path, setting: WorkerConfig, devices: Sequence[str]
) -> Parts | None:
    """The pieces of all these cells, if every one was measured before under these conditions."""
    cells = list(cells)
    kept = Kept(root, conditions_of(setting, devices))
    parts = known_parts(groups_of(cells), kept)
    return parts if all(map(parts.know, cells)) else None


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Something for a worker to measure.

    Attributes:
        what: "teacher", "student" or "cohort".
        group: whose.
        cells: students to measure.
        until: time (as `time.time` gives it) after which students are only sketched.
        pieces: of the group, for "cohort".
        counted: whether operations are enough, for "teacher".
    """

    what: str
    group: Group
    cells: tuple[Cell, ...] = ()
    until: float = math.inf
    pieces: Parts | None = None
    counted: bool = False


def calibrate(
    cells: Iterable[Cell],
    root: Path,
    setting: WorkerConfig,
    devices: Sequence[str],
    *,
    seconds: float,
    stand_in: bool = False,
    counted: bool = False,
    report: Callable[[str], None] = lambda what: None,
) -> Parts:
    """Measures what was not measured before; returns the pieces of all cells.

    Every network and every teacher is measured. Of the rows, no further one is begun when the
    time is up: their seconds are extrapolated from their counted operations.

    Args:
        cells: of a grid.
        root: folder of what is kept.
        setting: for the workers.
        devices: one entry per worker process.
        seconds: after which no further row is begun.
        stand_in: whether random images take the place of absent data.
        counted: whether operations are enough: then nothing is timed.
        report: told what is going on.

    Raises:
        CalibrationError: a process died, memory ran out, or a device was lost.
    """
    cells = list(cells)
    conditions = {**conditions_of(setting, devices), **({"counted": True} if counted else {})}
    groups, kept = groups_of(cells), Kept(root, conditions)
    missing = _Missing(groups, kept, seconds)
    if missing:
        with _Crew(setting, devices, stand_in) as crew:
            try:
                measure = _count if counted else _measure
                measure(missing, crew, kept, seconds, report)
            except BrokenProcessPool:
                raise CalibrationError(
                    "a calibrating process died: killed, or out of memory; --calibrate-seconds 0 "
                    "lists the cells without estimates"
                ) from None
            except (MemoryError, RuntimeError) as error:
                _raise_if_shared(error)
                raise
    return known_parts(groups, kept)


def _raise_if_shared(error: BaseException) -> None:
    """Says in one line what is no cell's fault, but that of all that were measured side by side.

    Raises:
        CalibrationError: memory ran out, or a device was lost.
    """
    from bench.train.device import is_device_lost, is_out_of_memory

    others = "--calibrate-seconds 0 lists the cells without estimates"
    if is_out_of_memory(error):
        raise CalibrationError(
            "no memory was left while calibrating; measure with fewer --workers or a smaller "
            f"recipe.batch_size; {others}"
        ) from error
    if is_device_lost(error):
        raise CalibrationError(
            f"a device was lost while calibrating ({str(error).splitlines()[0]}); start the same "
            f"command again: what was measured is kept; {others}"
        ) from error


class _Missing:
    """What is not kept yet, and whether there is something that a calibration would now add."""

    def __init__(self, groups: Sequence[Group], kept: Kept, seconds: float) -> None:
        self.groups = groups
        self.teachers = [g for g in groups if not kept.read("teacher", teacher_kind(g.taught))]
        self.students: list[tuple[Group, Cell]] = []
        seen: set[str] = set()
        for group in groups:
            for cell in group.cells:
                found = kept.read("student", kind(cell))
                if kind(cell) not in seen and (found is None or _worth_more(found, seconds)):
                    seen.add(kind(cell))
                    self.students.append((group, cell))
        self.cohorts = [g for g in groups if not kept.read("cohort", _cohort_key(g))]
        left_out = [kept.read("left out", _cohort_key(group)) for group in self.cohorts]
        self._due = any(found is not None and found["limit"] < seconds for found in left_out)

    def __bool__(self) -> bool:
        # A cohort that nobody spoke of is none: its turn comes with its teacher and students.
        return bool(self.teachers or self.students or self._due)


def _worth_more(found: Mapping[str, Any], seconds: float) -> bool:
    """Whether it was only sketched for want of time, and there is more of it now."""
    return found["parts"]["origin"] == EXTRAPOLATED and found["limit"] < seconds


def _measure(
    missing: _Missing, crew: _Crew, kept: Kept, seconds: float, report: Callable[[str], None]
) -> None:
    report("starting")
    kept.write("process", "", crew.ready())
    until = time.time() + seconds
    plain = [(g, c) for g, c in missing.students if c.teacher is None]
    report(f"{len(missing.teachers)} teachers, {len(plain)} plain students")
    tasks = [Task("teacher", g) for g in missing.teachers]
    _keep(crew.do([*tasks, *(Task("student", g, (c,)) for g, c in plain)]), kept, seconds)
    known = known_parts(missing.groups, kept)
    rows = [(g, c) for g, c in missing.students if c.teacher is not None]
    report(f"{len(rows)} rows")
    _keep(crew.do(_row_tasks(rows, known, until, len(crew.devices))), kept, seconds)
    report("whole cohorts")
    for group in missing.cohorts:  # until it is measured; the same limit would not do it again
        kept.write("left out", _cohort_key(group), {"limit": seconds})
    _keep(crew.do(_cohort_tasks(missing.cohorts, kept, until, seconds)), kept, seconds)


def _count(
    missing: _Missing, crew: _Crew, kept: Kept, seconds: float, report: Callable[[str], None]
) -> None:
    report(f"counting {len(missing.students)} rows")
    workers = len(crew.devices)
    tasks = [Task("teacher", group, counted=True) for group in missing.teachers]
    for group in missing.groups:
        cells = [cell for other, cell in missing.students if other is group]
        parts = [tuple(cells[n::workers]) for n in range(workers)]
        tasks += [Task("student", group, part, until=0.0) for part in parts if part]
    _keep(crew.do(tasks), kept, seconds)


def _row_tasks(
    rows: Sequence[tuple[Group, Cell]], known: Parts, until: float, workers: int
) -> list[Task]:
    """The rows of the cheapest group first, so that each is measured somewhere; shared out."""
    cost = {group: known.teachers[teacher_kind(group.taught)].view_seconds for group, _ in rows}
    tasks = []
    for group in sorted(cost, key=lambda g: cost[g]):
        cells = [cell for other, cell in rows if other is group]
        parts = [tuple(cells[n::workers]) for n in range(workers)]
        tasks += [Task("student", group, part, until) for part in parts if part]
    return tasks


def _cohort_tasks(groups: Sequence[Group], kept: Kept, until: float, seconds: float) -> list[Task]:
    """Whole cohorts whose rehearsal is affordable and whose pieces were all measured."""
    from bench.cost.forecast import Forecast

    tasks = []
    for group in groups:
        pieces = known_parts([group], kept)
        origins = [pieces.students[kind(c)].origin for c in group.cells if pieces.know(c)]
        if len(origins) < len(group.cells) or EXTRAPOLATED in origins or time.time() > until:
            continue
        whole = Forecast(pieces)
        epochs = max(whole.lesson(cell).spans[-1].end for cell in group.cells)
        stream = pieces.streams[stream_kind(group.taught)]
        few = 4 * min(4.0, stream.steps) / (epochs * stream.steps)
        if few * whole.training_seconds(group.cells) < WORTH_TOGETHER * seconds:
            tasks.append(Task("cohort", group, pieces=pieces))
    return tasks


def _keep(found: Iterable[tuple[str, object, dict[str, Any]]], kept: Kept, limit: float) -> None:
    for what, key, values in found:
        student = {"parts": values, "limit": limit}
        kept.write(what, key, student if what == "student" else values)


# --- the processes --------------------------------------------------------------------------------


class _Crew:
    """Processes that measure side by side. A context manager: on leaving it they end."""

    def __init__(self, setting: WorkerConfig, devices: Sequence[str], stand_in: bool) -> None:
        self.devices = list(devices)
        context = multiprocessing.get_context("spawn")
        self._stop, free = context.Event(), context.Queue()
        for device in devices:
            free.put(device)
        self._pool = ProcessPoolExecutor(
            len(devices), context, _start,
            (setting, stand_in, free, self._stop, context.Barrier(len(devices)),
             _waiting_for(len(devices))),
        )  # fmt: skip

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def ready(self) -> dict[str, float]:
        """Waits for all processes: how long they took to start, what they hold."""
        found = [self._pool.submit(_ready) for _ in self.devices]
        times, sizes = zip(*(future.result() for future in found), strict=True)
        return {"startup_seconds": max(times), "process_bytes": max(sizes)}

    def do(self, tasks: Sequence[Task]) -> Iterable[tuple[str, object, dict[str, Any]]]:
        """What the tasks found, as it is found."""
        self._stop.clear()
        futures = [self._pool.submit(_work, task) for task in tasks]
        # They start when the tasks are all taken, and keep their processors as busy as a run does.
        idle = [self._pool.submit(_keep_busy, task) for task in tasks[: len(self.devices) - 1]]
        try:
            for future in futures:
                yield from future.result()
        finally:
            self._stop.set()
        for future in idle:
            future.result()


def _waiting_for(workers: int) -> float:
    """How much longer a worker takes than its processor works: there may be more of them."""
    return max(1.0, workers / len(os.sched_getaffinity(0)))


_setting: WorkerConfig
_stand_in = False
_stop: Event
_all_ready: Barrier
_waiting = 1.0
_rehearsals: dict[str, Rehearsal] = {}
_plugged = ExitStack()


def _start(
    setting: WorkerConfig,
    stand_in: bool,
    free: Queue,
    stop: Event,
    all_ready: Barrier,
    waiting: float,
) -> None:
    global _setting, _stand_in, _stop, _all_ready, _waiting
    import torch

    # What a worker of a run imports, so that its start takes as long.
    from bench.launch.local import end_with_parent
    from bench.plugin import plugged

    end_with_parent()
    _setting, _stand_in, _stop = replace(setting, device=free.get()), stand_in, stop
    _all_ready, _waiting = all_ready, waiting
    _plugged.enter_context(plugged(setting.plugins))
    torch.set_num_threads(setting.threads)


def _ready() -> tuple[float, int]:
    """What this process took to start, as its processor counts, and what it holds."""
    found = time.process_time() * _waiting, process_bytes()
    _all_ready.wait()  # so that each process gets one of these
    return found


def _read(spec: Any) -> Any:
    return Library(_setting.data_root, _setting.cache, _stand_in).read(spec)


def _rehearse(group: Group) -> Rehearsal:
    """The group's rehearsal; the latest one is kept."""
    from bench.cost.probe import Rehearsal
    from bench.train.device import pick_device

    key = teacher_kind(group.taught)
    if key not in _rehearsals:
        _rehearsals.clear()
        device = pick_device(_setting.device)
        _rehearsals[key] = Rehearsal(group.taught, _read, device, _waiting)
    return _rehearsals[key]


def _work(task: Task) -> list[tuple[str, object, dict[str, Any]]]:
    from bench.cost.profiler import steady
    from bench.cost.together import together

    with steady():
        rehearsal = _rehearse(task.group)
        if task.what == "teacher":
            found = rehearsal.count_teacher() if task.counted else rehearsal.teach()
            values = {"stream": asdict(rehearsal.opened), "teacher": asdict(found)}
            return [("teacher", teacher_kind(task.group.taught), values)]
        if task.what == "cohort":
            assert task.pieces is not None
            found = together(rehearsal, task.group.cells, task.pieces, _setting.forms)
            return [("cohort", _cohort_key(task.group), asdict(found))]
        return [
            ("student", kind(cell), asdict(_student(rehearsal, cell, task.until)))
            for cell in task.cells
        ]


def _student(rehearsal: Rehearsal, cell: Cell, until: float) -> StudentParts:
    from bench.cost.probe import refused
    from bench.method import NotApplicable
    from bench.train.cohort import raise_if_shared

    try:
        return rehearsal.measure(cell) if time.time() < until else rehearsal.sketch(cell)
    except (NotApplicable, *CODE_FAULTS) as error:
        raise_if_shared(error)
        return refused(cell)  # it will not train either


def _keep_busy(task: Task) -> None:
    """Trains until all others are done."""
    from bench.cost.profiler import steady
    from bench.train.cohort import raise_if_shared

    with steady():
        rehearsal = _rehearse(task.group)
        plain = next((c for c in task.group.cells if c.teacher is None), task.group.cells[0])
        try:
            rehearsal.go_on(plain, _stop.is_set)
        except CODE_FAULTS as error:
            raise_if_shared(error)  # else it does not train in a run either: see `_student`
