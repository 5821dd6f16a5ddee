"""Which cells train side by side, and in which order workers take the jobs.

Teachers and sources come first, then the cohorts, longest first. A cohort too large for a worker's
memory is cut into balanced parts, and a long one where all workers are then done earlier, although
each part pays the teacher's forward pass anew. Only time depends on it.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence

from bench.cell import Cell
from bench.data.sources import Library
from bench.launch.job import Job, WorkerConfig

Seconds = Callable[[Sequence[Cell]], float]
"""Duration of a job of these cells on one worker. Planning accepts any unit."""

JOBS_PER_WORKER = (0, 1, 2)
"""A cohort longer than 1/n of a worker's part of the work is cut, for 0 none; these n are compared.

On 400 random grids the best took 0.6 % longer than the best of five n; n = 1 alone took 4 %.
"""


def plan_jobs(
    cells: Iterable[Cell],
    workers: int,
    seconds: Seconds = len,
    fits: Callable[[Sequence[Cell]], bool] = lambda cells: True,
) -> list[Job]:
    """The jobs of cells, teachers among them, in the order in which workers take them.

    `seconds` estimates a job. `fits` says whether one worker can train cells side by side; one that
    does not fit even alone still gets a job.
    """
    teachers, cohorts = group_cells(cells)
    first = [[cell] for cell in teachers]
    each_worker = sum(map(seconds, [*first, *cohorts])) / workers or 1.0
    plans = []
    for n in JOBS_PER_WORKER if workers > 1 else (0,):
        parts = list(first)
        for cohort in cohorts:
            parts += cut(cohort, math.ceil(n * seconds(cohort) / each_worker), seconds, fits)
        plans.append(_ordered(parts, seconds))
    return min(plans, key=lambda plan: makespan(plan, workers, seconds))


def plan_training(
    cells: Sequence[Cell],
    config: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    room_bytes: int | None = None,
) -> list[Job]:
    """The jobs of a run, planned by counted work and memory; nothing is timed.

    There is one device for each job that can run at once. The cells of a job fill at most
    `room_bytes`; None if no limit is known.
    """
    from bench.cost.footprint import Footprint

    footprint, most = Footprint(library.read, devices[0]), config.cohort

    def fits(cells: Sequence[Cell]) -> bool:
        few = most is None or len(cells) <= most
        return few and (room_bytes is None or footprint.bytes(cells) <= room_bytes)

    return plan_jobs(cells, len(devices), footprint.work, fits)


def group_cells(cells: Iterable[Cell]) -> tuple[list[Cell], list[list[Cell]]]:
    """The cells that others learn from, and the cohorts of all others.

    Cells with one stream and one teacher form a cohort. A baseline joins any with its stream.
    """
    cells = list(cells)
    teaching = {need.id for cell in cells for need in cell.needs}
    teachers = [cell for cell in cells if cell.id in teaching]
    students = [cell for cell in cells if cell.id not in teaching]
    cohorts: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(students, key=lambda cell: cell.teacher is None):
        key = (cell.stream, cell.teacher.id if cell.teacher else "")
        if cell.teacher is None:
            key = next((known for known in cohorts if known[0] == key[0]), key)
        cohorts.setdefault(key, []).append(cell)
    return teachers, list(cohorts.values())


def cut(
    cells: Sequence[Cell],
    least: int,
    seconds: Seconds,
    fits: Callable[[Sequence[Cell]], bool] = lambda cells: True,
) -> list[list[Cell]]:
    """The cells in at least `least` parts of about equal length that fit, in the order given.

    The longest cell is placed first. Each goes into the shortest part. A cell's length leaves out
    what all of them share, because every part pays that.
    """
    alone = [seconds([cell]) for cell in cells]
    shared = max(0.0, (sum(alone) - seconds(cells)) / max(1, len(cells) - 1))
    for count in range(max(1, least), len(cells)):
        parts: list[list[int]] = [[] for _ in range(count)]
        lengths = [0.0] * count
        for new in sorted(range(len(cells)), key=lambda n: -alone[n]):
            shortest = min(range(count), key=lambda p: (lengths[p], len(parts[p])))
            parts[shortest].append(new)
            lengths[shortest] += max(0.0, alone[new] - shared)
        found = [[cells[n] for n in sorted(part)] for part in parts]
        if all(map(fits, found)):
            return found
    return [[cell] for cell in cells]


def _ordered(groups: Sequence[Sequence[Cell]], seconds: Seconds) -> list[Job]:
    """A job for each group: what others wait for, the longest wait first; then the longest."""
    jobs, behind = [Job(tuple(cells)) for cells in groups], {}
    for job in jobs:
        for need in job.needs:
            behind[need.id] = max(seconds(job.cells), behind.get(need.id, 0.0))

    def rank(job: Job) -> tuple[bool, float]:
        after = behind.get(job.cells[0].id)
        return after is None, -seconds(job.cells) - (after or 0.0)

    return sorted(jobs, key=rank)


def makespan(jobs: Sequence[Job], workers: int, seconds: Seconds) -> float:
    """When the last job ends, if workers take the jobs in turn and wait for what each needs."""
    free, ends = [0.0] * workers, {}
    for job in jobs:
        begin = max([heapq.heappop(free), *(ends.get(need.id, 0.0) for need in job.needs)])
        heapq.heappush(free, begin + seconds(job.cells))
        ends.update(dict.fromkeys((c.id for c in job.cells), begin + seconds(job.cells)))
    return max(free)
