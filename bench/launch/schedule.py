"""Which cells train side by side, and in which order workers take the jobs.

Teachers and sources come first, then the cohorts, longest first. A free worker takes the first job
that is ready. A cohort too large for a worker's memory is cut into balanced parts. Long cohorts are
cut further where all workers are then done earlier. Each part pays the teacher's forward pass anew.

Only time depends on the schedule. A cell's numbers are the same in every job and on every worker.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from bench.cell import Cell
from bench.data.library import Library
from bench.launch.job import Job, WorkerConfig

Seconds = Callable[[Sequence[Cell]], float]
"""Duration of a job of these cells on one worker. Planning accepts any unit."""

JOBS_PER_WORKER = (1, 2, 4, 8)
"""A cohort longer than 1/n of a worker's part of the work is cut; these n are compared."""


def plan_jobs(
    cells: Iterable[Cell],
    workers: int,
    seconds: Seconds = len,
    fits: Callable[[Sequence[Cell]], bool] = lambda cells: True,
) -> list[Job]:
    """The jobs of a grid, in the order in which workers take them.

    Cells that others learn from are jobs of their own. Cells with one stream and one teacher form
    a cohort. A baseline joins any cohort with its stream.

    Args:
        cells: those to train, teachers among them.
        workers: how many jobs can run at once, at least 1.
        seconds: estimates a job; by default the number of its cells.
        fits: whether one worker can train these cells side by side. A cell that does not fit even
            alone still gets a job.
    """
    teachers, groups = group_cells(cells)
    first = [[cell] for cell in teachers]
    cohorts = [part for group in groups for part in cut_to_memory(group, seconds, fits)]
    plans = [_ordered([*first, *cohorts], seconds)]
    each_worker = sum(seconds(job.cells) for job in plans[0]) / workers
    for n in JOBS_PER_WORKER if workers > 1 else ():
        cuts = [cut(c, math.ceil(n * seconds(c) / each_worker), seconds) for c in cohorts]
        plans.append(_ordered([*first, *chain.from_iterable(cuts)], seconds))
    return min(plans, key=lambda plan: max(simulate(plan, workers, seconds), default=0.0))


def plan_training(
    cells: Sequence[Cell],
    config: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    room_bytes: int | None = None,
) -> list[Job]:
    """The jobs of a run, planned by counted work and memory; nothing is timed.

    There is one device for each job that can run at once. The cells of a job fill at most
    `room_bytes`, unless a cohort's size is configured; None if no limit is known.
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


def cut_to_memory(
    cells: Sequence[Cell], seconds: Seconds, fits: Callable[[Sequence[Cell]], bool]
) -> list[list[Cell]]:
    """The cells in as few balanced parts as fit a worker, each in the order given."""
    cuts = (cut(cells, count, seconds) for count in range(1, len(cells)))
    return next((parts for parts in cuts if all(map(fits, parts))), [[cell] for cell in cells])


def cut(cells: Sequence[Cell], count: int, seconds: Seconds) -> list[list[Cell]]:
    """The cells in at most `count` parts of about equal length, each in the order given.

    The longest cell is placed first. Each goes into the shortest part. A cell's length leaves out
    what all of them share, because every part pays that.
    """
    alone = [seconds([cell]) for cell in cells]
    shared = max(0.0, (sum(alone) - seconds(cells)) / max(1, len(cells) - 1))
    count = min(count, len(cells))
    parts: list[list[int]] = [[] for _ in range(count)]
    lengths = [0.0] * count
    for new in sorted(range(len(cells)), key=lambda n: -alone[n]):
        shortest = min(range(count), key=lambda p: (lengths[p], len(parts[p])))
        parts[shortest].append(new)
        lengths[shortest] += max(0.0, alone[new] - shared)
    return [[cells[n] for n in sorted(part)] for part in parts if part]


def _ordered(groups: Sequence[Sequence[Cell]], seconds: Seconds) -> list[Job]:
    """A job for each group: those that others wait for, then the longest first.

    Of those that others wait for, the one with the longest job behind it comes first.
    """
    jobs, behind = [], {}
    for cells in groups:
        jobs.append(Job(tuple(cells)))
        for need in jobs[-1].needs:
            behind[need.id] = max(seconds(cells), behind.get(need.id, 0.0))

    def rank(job: Job) -> tuple[bool, float]:
        after = behind.get(job.cells[0].id)
        return after is None, -seconds(job.cells) - (after or 0.0)

    return sorted(jobs, key=rank)


def simulate(jobs: Sequence[Job], workers: int, seconds: Seconds) -> list[float]:
    """When each job ends, by the rule of the launchers.

    A free worker takes the first job of the list with all its needs finished. A need that no job
    trains counts as finished.
    """
    made = {cell.id: math.inf for job in jobs for cell in job.cells}
    waiting = {n: [need.id for need in job.needs] for n, job in enumerate(jobs)}
    ends, free = [math.inf] * len(jobs), [0.0] * workers

    def begin(n: int, now: float) -> float:
        return max([now, *(made.get(need, 0.0) for need in waiting[n])])

    while waiting:
        now = heapq.heappop(free)
        ready = ((now, n) for n in waiting if begin(n, now) <= now)
        start, taken = next(ready, None) or min((begin(n, now), n) for n in waiting)
        ends[taken] = start + seconds(jobs[taken].cells)
        made.update({cell.id: ends[taken] for cell in jobs[taken].cells})
        heapq.heappush(free, ends[taken])
        del waiting[taken]
    return ends
