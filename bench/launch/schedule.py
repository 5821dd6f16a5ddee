"""Which cells train side by side, and in which order workers take the jobs.

Teachers and sources come first, those with the longest work behind them in front. Then come the
cohorts, longest first. A free worker takes the first job that is ready. A cohort too large for a
worker's memory is cut into balanced parts. Then the cohort that would end last is cut again for as
long as the whole run ends earlier for it. Each part pays the teacher's forward pass anew.

Only time depends on the schedule. A cell's numbers are the same in every job and on every worker.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from bench.cell import Cell
from bench.data.library import Library
from bench.launch.job import Job, WorkerConfig

Seconds = Callable[[Sequence[Cell]], float]
"""Duration of a job of these cells on one worker. Planning accepts any unit."""

Fits = Callable[[Sequence[Cell]], bool]
"""Whether one worker can train these cells side by side."""

WORTH_A_CUT = 0.99
"""A schedule of more jobs is chosen if it takes at most this share of the other's time."""


def plan_jobs(
    cells: Iterable[Cell], workers: int, seconds: Seconds = len, fits: Fits | None = None
) -> list[Job]:
    """The jobs of a grid, in the order in which workers take them.

    Cells that others learn from are jobs of their own. Cells with one stream and one teacher form
    a cohort. A baseline joins any cohort with its stream.

    Args:
        cells: those to train, teachers among them.
        workers: how many jobs can run at once.
        seconds: estimates a job; by default the number of its cells.
        fits: None if every cohort does. A cell that does not fit even alone still gets a job.

    Raises:
        ValueError: fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"plan_jobs: {workers} workers, wanted at least 1")
    teachers, groups = group_cells(cells)
    cohorts = [part for group in groups for part in cut_to_memory(group, seconds, fits)]
    first = [_Task.of([cell], seconds) for cell in teachers]
    return [task.job for task in _cut_to_workers(first, cohorts, workers, seconds)]


def plan_training(
    cells: Sequence[Cell],
    config: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    room_bytes: int | None = None,
) -> list[Job]:
    """The jobs of a run, planned by counted work and memory; nothing is timed.

    Args:
        cells: those to train.
        config: of the workers; its cohort size takes the place of the memory limit.
        devices: one entry for each job that can run at once.
        library: reads their data.
        room_bytes: memory that the cells of one job may fill; None if no limit is known.
    """
    from bench.cost.footprint import Footprint

    footprint, most = Footprint(library.read), config.cohort

    def fits(cells: Sequence[Cell]) -> bool:
        if most is not None:
            return len(cells) <= most
        return room_bytes is None or footprint.bytes(cells) <= room_bytes

    return plan_jobs(cells, len(devices), footprint.work, fits)


def group_cells(cells: Iterable[Cell]) -> tuple[list[Cell], list[list[Cell]]]:
    """The cells that others learn from, and the cohorts of all others."""
    cells = list(cells)
    teaching = {need.id for cell in cells for need in cell.needs}
    teachers = [cell for cell in cells if cell.id in teaching]
    students = [cell for cell in cells if cell.id not in teaching]
    cohorts: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(students, key=lambda cell: cell.teacher is None):
        stream = cell.stream
        key = (stream, cell.teacher.id if cell.teacher else "")
        if cell.teacher is None:
            key = next((known for known in cohorts if known[0] == stream), key)
        cohorts.setdefault(key, []).append(cell)
    return teachers, list(cohorts.values())


@dataclass(frozen=True, eq=False)
class _Task:
    """A job as planning sees it, its estimate and the hashes of its cells taken once."""

    job: Job
    seconds: float
    makes: frozenset[str]
    needs: frozenset[str]

    @classmethod
    def of(cls, cells: Sequence[Cell], seconds: Seconds) -> _Task:
        teacher = next((cell.teacher for cell in cells if cell.teacher is not None), None)
        job = Job(tuple(cells), teacher)
        makes = frozenset(cell.id for cell in cells)
        return cls(job, seconds(cells), makes, frozenset(need.id for need in job.needs))


# --- cohorts that fit a worker ------------------------------------------------------------------


def cut_to_memory(
    cells: Sequence[Cell], seconds: Seconds, fits: Fits | None = None
) -> list[list[Cell]]:
    """The cells in as few balanced parts as fit a worker, each in the order given."""
    if fits is None or fits(cells):
        return [list(cells)]
    for count in range(2, len(cells)):
        parts = split(cells, count, seconds, fits)
        if all(fits(part) for part in parts):
            return parts
    return [[cell] for cell in cells]


def split(
    cells: Sequence[Cell], count: int, seconds: Seconds, fits: Fits | None = None
) -> list[list[Cell]]:
    """The cells in `count` parts of about equal length.

    The longest cell is placed first. Each goes into the shortest part that it fits into. A cell's
    length leaves out what all of them share, because every part pays that.
    """
    alone = [seconds([cell]) for cell in cells]
    shared = max(0.0, (sum(alone) - seconds(cells)) / max(1, len(cells) - 1))
    own = [max(0.0, time - shared) for time in alone]
    parts: list[list[int]] = [[] for _ in range(count)]
    for new in sorted(range(len(cells)), key=lambda n: -own[n]):
        free = [p for p in parts if fits is None or fits([cells[n] for n in (*p, new)])]
        shortest = min(free or parts, key=lambda part: (sum(own[n] for n in part), len(part)))
        shortest.append(new)
    return [[cells[n] for n in sorted(part)] for part in parts if part]


# --- order and balance --------------------------------------------------------------------------


def _cut_to_workers(
    first: Sequence[_Task], cohorts: Sequence[Sequence[Cell]], workers: int, seconds: Seconds
) -> list[_Task]:
    """All tasks in order, cohorts cut into parts for as long as the last one then ends earlier."""
    parts = [[_Task.of(cohort, seconds)] for cohort in cohorts]
    chosen, best, shortest, in_vain = [], math.inf, math.inf, 0
    # When several cohorts end together, time falls only after all of them are cut.
    patience = 3 * workers + 8 if workers > 1 else 1
    while in_vain < patience:
        tasks = _ordered([*first, *chain.from_iterable(parts)])
        slots = _simulate(tasks, workers)
        end = max((slot.end for slot in slots), default=0.0)
        if end < WORTH_A_CUT * best:
            chosen, best = tasks, end
        in_vain = 0 if end < shortest else in_vain + 1
        shortest = min(shortest, end)
        owner = {id(task): n for n, part in enumerate(parts) for task in part}
        cuttable = [
            s
            for s in slots
            if id(tasks[s.position]) in owner and len(tasks[s.position].job.cells) > 1
        ]
        if not cuttable:
            break
        last = max(cuttable, key=lambda slot: (slot.end, slot.end - slot.begin))
        n = owner[id(tasks[last.position])]
        pieces = split(cohorts[n], len(parts[n]) + 1, seconds)
        parts[n] = [_Task.of(piece, seconds) for piece in pieces]
    return chosen


def _ordered(tasks: Sequence[_Task]) -> list[_Task]:
    """Tasks that others wait for, then the rest. In both, the longest way to the end comes first.

    The way to the end is the task and the longest chain of tasks that wait for it.
    """
    waiting: dict[str, list[_Task]] = {}
    for task in tasks:
        for need in task.needs:
            waiting.setdefault(need, []).append(task)

    def behind(task: _Task) -> list[_Task]:
        return [other for cell_id in task.makes for other in waiting.get(cell_id, ())]

    def seconds_to_end(task: _Task) -> float:
        return task.seconds + max(map(seconds_to_end, behind(task)), default=0.0)

    return sorted(tasks, key=lambda task: (not behind(task), -seconds_to_end(task)))


# --- simulation ---------------------------------------------------------------------------------


class Slot(NamedTuple):
    """One job on one worker.

    Attributes:
        position: of the job, in the list that was simulated.
        worker: from 0.
        begin: seconds after the start.
        end: seconds after the start.
    """

    position: int
    worker: int
    begin: float
    end: float


def simulate(jobs: Sequence[Job], workers: int, seconds: Seconds) -> list[Slot]:
    """Runs the jobs on a simulated clock, by the rule of the launchers.

    A free worker takes the first job of the list with all its needs finished. A need that no job
    trains counts as finished.

    Args:
        jobs: in the order in which workers take them.
        workers: how many jobs can run at once.
        seconds: estimates a job.

    Returns:
        One slot for each job, in the order of their begin.

    Raises:
        ValueError: jobs that wait for each other.
    """
    return _simulate([_Task.of(job.cells, seconds) for job in jobs], workers)


def _simulate(tasks: Sequence[_Task], workers: int) -> list[Slot]:
    maker = {cell_id: n for n, task in enumerate(tasks) for cell_id in task.makes}
    missing = [{maker[need] for need in task.needs if need in maker} for task in tasks]
    waiting: dict[int, list[int]] = {}
    for n, needs in enumerate(missing):
        for need in needs:
            waiting.setdefault(need, []).append(n)
    ready = [n for n, needs in enumerate(missing) if not needs]  # sorted, so a heap
    free, running = list(range(min(workers, len(tasks)))), []
    now, slots = 0.0, []
    while ready or running:
        while ready and free:
            n, worker = heapq.heappop(ready), heapq.heappop(free)
            end = now + tasks[n].seconds
            heapq.heappush(running, (end, worker, n))
            slots.append(Slot(n, worker, now, end))
        now, worker, n = heapq.heappop(running)
        heapq.heappush(free, worker)
        for other in waiting.get(n, ()):
            missing[other].discard(n)
            if not missing[other]:
                heapq.heappush(ready, other)
    if len(slots) < len(tasks):
        raise ValueError("simulate: some jobs wait for each other and never start")
    return slots
