"""Which cells train side by side, in which order, and when each job would begin and end.

The rule, for one worker or a thousand: teachers and sources first, those with the longest work
behind them in front; then cohorts, longest first; whoever is free takes the first job that is
ready. A cohort too large for a worker's memory is cut into balanced parts. Then the cohort that
would end last is cut into one part more, again and again, and the plan that ends first is kept: a
part pays the teacher's forward pass anew, so that cutting is no gain of itself.

Estimates steer all of this and no number depends on them: a cell's results are the same wherever
and beside whom it trains.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from bench.cell import Cell
from bench.launch.job import Job, total_epochs

Seconds = Callable[[Sequence[Cell]], float]
"""What a job of these cells takes on one worker; any unit will do for planning."""

Fits = Callable[[Sequence[Cell]], bool]
"""Whether a worker can train these cells side by side."""

GOOD_ENOUGH = 1.02
"""A plan this close to the bound that no plan beats is not improved any further."""

WORTH_A_SPLIT = 0.99
"""A plan of more jobs must end so much earlier to be chosen."""


def plan_jobs(
    cells: Iterable[Cell], workers: int, seconds: Seconds | None = None, fits: Fits | None = None
) -> list[Job]:
    """The jobs for cells that share no order yet, in the order in which workers take them.

    Teachers and sources come first, each a job of its own. Cells with one stream and one teacher
    form a cohort; a baseline joins any cohort with its stream.

    Args:
        cells: those to train, teachers among them.
        workers: how many jobs can run at once.
        seconds: estimates a job; None for a rough proxy.
        fits: None where every cohort does. A cell that does not fit even alone is a job all the
            same: nobody can cut it.

    Raises:
        ValueError: fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"plan_jobs: {workers} workers, wanted at least 1")
    estimate = _Memo.of(seconds or proxy_seconds)
    teachers, groups = group_cells(cells)
    cohorts = [part for group in groups for part in cut_to_fit(group, estimate, fits)]
    return balanced([Job((cell,), None) for cell in teachers], cohorts, workers, estimate)


def group_cells(cells: Iterable[Cell]) -> tuple[list[Cell], list[list[Cell]]]:
    """The cells that others need, and the cohorts that the rest forms."""
    cells = list(cells)
    teaching = {need.id for cell in cells for need in cell.needs}
    groups: dict[tuple[str, str], list[Cell]] = {}
    rest = [(cell.id in teaching, cell) for cell in cells]
    for cell in sorted((c for own, c in rest if not own), key=lambda c: c.teacher is None):
        stream = cell.stream
        same = [key for key in groups if key[0] == stream]
        own = (stream, cell.teacher.id if cell.teacher else "")
        key = same[0] if same and cell.teacher is None else own
        groups.setdefault(key, []).append(cell)
    return [cell for own, cell in rest if own], list(groups.values())


def _job(cells: Sequence[Cell]) -> Job:
    teacher = next((cell.teacher for cell in cells if cell.teacher is not None), None)
    return Job(tuple(cells), teacher)


def proxy_seconds(cells: Sequence[Cell]) -> float:
    """Epochs over images, where nothing is known of the networks.

    A step forward and back counts 3 forward passes, and the teacher's is as long as a student's.

    Example:
        >>> from bench.cell import DataSpec, Recipe
        >>> plain = Cell(
        ...     model="cnn4", data=DataSpec(source="digits", fraction=0.5), fingerprint="f",
        ...     method="student", code="", hyperparameters={}, seed=0,
        ...     recipe=Recipe(epochs=10, batch_size=8, learning_rate=0.1))
        >>> proxy_seconds([plain, plain])
        30.0
    """
    trained = sum(3.0 * total_epochs(cell) * cell.data.fraction for cell in cells)
    taught = [total_epochs(cell) * cell.data.fraction for cell in cells if cell.teacher is not None]
    return trained + max(taught, default=0.0)


class _Memo:
    """An estimate that is asked for the same job many times; and ids, which are hashes."""

    def __init__(self, seconds: Seconds) -> None:
        self._seconds = seconds
        self._ids: dict[int, tuple[Cell, str]] = {}
        self._known: dict[tuple[str, ...], float] = {}

    @classmethod
    def of(cls, seconds: Seconds) -> _Memo:
        return seconds if isinstance(seconds, cls) else cls(seconds)

    def __call__(self, cells: Sequence[Cell]) -> float:
        key = tuple(map(self.id_of, cells))
        if key not in self._known:
            self._known[key] = self._seconds(cells)
        return self._known[key]

    def id_of(self, cell: Cell) -> str:
        if id(cell) not in self._ids:
            self._ids[id(cell)] = cell, cell.id
        return self._ids[id(cell)][1]

    def needs_of(self, job: Job) -> set[str]:
        return {self.id_of(need) for cell in job.cells for need in cell.needs}


# --- cohorts that a worker can hold ---------------------------------------------------------------


def cut_to_fit(
    cells: Sequence[Cell], seconds: Seconds, fits: Fits | None = None
) -> list[list[Cell]]:
    """The cells in as few balanced parts as a worker can hold, each in the order given."""
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

    The longest cell goes first, each into the part that is then shortest, of those that it fits
    into. A cell counts by what is its own: what all of them share, every part pays.
    """
    own = _own_seconds(cells, seconds)
    parts: list[list[int]] = [[] for _ in range(count)]
    for position in sorted(range(len(cells)), key=lambda p: -own[p]):

        def holds(part: list[int], new: int = position) -> bool:
            return fits is None or fits([cells[p] for p in (*part, new)])

        free = [part for part in parts if holds(part)] or parts
        shortest = min(free, key=lambda part: (sum(own[p] for p in part), len(part)))
        shortest.append(position)
    return [[cells[p] for p in sorted(part)] for part in parts if part]


def _own_seconds(cells: Sequence[Cell], seconds: Seconds) -> list[float]:
    """What each cell takes without what all of them share."""
    alone = [seconds([cell]) for cell in cells]
    shared = (sum(alone) - seconds(cells)) / max(1, len(cells) - 1)
    return [max(0.0, time - max(0.0, shared)) for time in alone]


# --- order and balance ----------------------------------------------------------------------------


def ordered(jobs: Sequence[Job], seconds: Seconds) -> list[Job]:
    """Jobs that others wait for, then the rest; in both, the longest way to the end first.

    The way to the end is the job itself and the longest of those that wait for it.
    """
    chains = _Chains(jobs, seconds)
    return sorted(jobs, key=lambda job: (not chains.behind(job), -chains.seconds_to_end(job)))


class _Chains:
    """How long it takes at least from a job's begin to the end of all that waits for it."""

    def __init__(self, jobs: Sequence[Job], seconds: Seconds) -> None:
        self._seconds = _Memo.of(seconds)
        self._waiting: dict[str, list[Job]] = {}
        for job in jobs:
            for need in self._seconds.needs_of(job):
                self._waiting.setdefault(need, []).append(job)
        self._known: dict[int, float] = {}

    def behind(self, job: Job) -> list[Job]:
        """The jobs that wait for this one."""
        ids = map(self._seconds.id_of, job.cells)
        return [other for cell_id in ids for other in self._waiting.get(cell_id, ())]

    def seconds_to_end(self, job: Job) -> float:
        if id(job) not in self._known:
            longest = max(map(self.seconds_to_end, self.behind(job)), default=0.0)
            self._known[id(job)] = self._seconds(job.cells) + longest
        return self._known[id(job)]


def balanced(
    teachers: Sequence[Job], cohorts: Sequence[Sequence[Cell]], workers: int, seconds: Seconds
) -> list[Job]:
    """All jobs in order, cohorts cut into parts as long as that lets the last job end earlier.

    Args:
        teachers: jobs that stay as they are.
        cohorts: cells that may train side by side.
        workers: how many jobs can run at once.
        seconds: estimates a job.
    """
    parts = [[_job(cohort)] for cohort in cohorts]
    tried = chosen = ordered([*teachers, *chain.from_iterable(parts)], seconds)
    schedule = simulate(tried, workers, seconds)
    bound = GOOD_ENOUGH * lower_bound(tried, workers, seconds)
    shortest = taken = schedule.seconds
    # Cutting one of several cohorts that end together shows only when all of them are cut.
    patience, in_vain = 3 * workers + 8, 0
    while in_vain < patience and shortest > bound:
        owner = {id(job): n for n, jobs in enumerate(parts) for job in jobs}
        last = [(s.end, s.end - s.begin, owner[id(s.job)]) for s in schedule.slots
                if len(s.job.cells) > 1 and id(s.job) in owner]  # fmt: skip
        if not last:
            break
        *_, n = max(last)
        parts[n] = [_job(part) for part in split(cohorts[n], len(parts[n]) + 1, seconds)]
        tried = ordered([*teachers, *chain.from_iterable(parts)], seconds)
        schedule = simulate(tried, workers, seconds)
        in_vain = 0 if schedule.seconds < shortest else in_vain + 1
        shortest = min(shortest, schedule.seconds)
        if schedule.seconds < WORTH_A_SPLIT * taken:
            chosen, taken = tried, schedule.seconds
    return chosen


def lower_bound(jobs: Sequence[Job], workers: int, seconds: Seconds) -> float:
    """What no plan of these cells beats: all the work shared out, or the longest chain of cells.

    Args:
        jobs: with cohorts as large as they get: the teacher's forward pass is paid least often.
        workers: how many jobs can run at once.
        seconds: estimates a job.
    """
    return max(sum(seconds(job.cells) for job in jobs) / workers, longest_chain(jobs, seconds))


def longest_chain(jobs: Sequence[Job], seconds: Seconds) -> float:
    """The longest way from a teacher's begin to the end of a cell, every cell a job of its own."""
    alone = [_job([cell]) for job in jobs for cell in job.cells]
    chains = _Chains(alone, seconds)
    return max(map(chains.seconds_to_end, alone), default=0.0)


# --- when what would run --------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One job on one worker, from `begin` to `end` in seconds after the start."""

    job: Job
    worker: int
    begin: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """When what runs where.

    Attributes:
        slots: one a job, in the order of their begin.
        workers: how many there are.
    """

    slots: tuple[Slot, ...]
    workers: int

    @property
    def seconds(self) -> float:
        """From the start to the end of the last job."""
        return max((slot.end for slot in self.slots), default=0.0)

    @property
    def busy_seconds(self) -> float:
        """Of all workers together."""
        return math.fsum(slot.end - slot.begin for slot in self.slots)

    @property
    def efficiency(self) -> float:
        """Share of the workers' time in which they had a job."""
        whole = self.workers * self.seconds
        return self.busy_seconds / whole if whole else 1.0


def simulate(jobs: Sequence[Job], workers: int, seconds: Seconds, startup: float = 0.0) -> Schedule:
    """Runs the jobs on a clock of its own, by the rule of the launchers.

    Whoever is free takes the first job of the list whose needs are done; a need that is no job's
    cell is taken to be done already.

    Args:
        jobs: in the order in which workers take them.
        workers: how many jobs can run at once.
        seconds: estimates a job.
        startup: seconds before a worker's first job.

    Raises:
        ValueError: jobs that wait for each other.
    """
    memo = _Memo.of(seconds)
    maker = {memo.id_of(cell): n for n, job in enumerate(jobs) for cell in job.cells}
    missing = [{maker[need] for need in memo.needs_of(job) if need in maker} for job in jobs]
    behind: dict[int, list[int]] = {}
    for n, needs in enumerate(missing):
        for need in needs:
            behind.setdefault(need, []).append(n)
    ready = [n for n, needs in enumerate(missing) if not needs]
    heapq.heapify(ready)
    free, running = list(range(min(workers, len(jobs)))), []
    now, slots = startup, []
    while ready or running:
        while ready and free:
            n, worker = heapq.heappop(ready), heapq.heappop(free)
            end = now + memo(jobs[n].cells)
            heapq.heappush(running, (end, worker, n))
            slots.append(Slot(jobs[n], worker, now, end))
        now, worker, n = heapq.heappop(running)
        heapq.heappush(free, worker)
        for other in behind.get(n, ()):
            missing[other].discard(n)
            if not missing[other]:
                heapq.heappush(ready, other)
    if len(slots) < len(jobs):
        raise ValueError("simulate: some jobs wait for each other and never start")
    return Schedule(tuple(slots), workers)
