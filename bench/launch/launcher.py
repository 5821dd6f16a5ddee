"""The launcher: gives jobs to workers, tries cells again, and shares them with other commands."""

import errno
import logging
import math
import time
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from bench.cell import Cell
from bench.faults import UserError, is_out_of_memory
from bench.launch.job import NEED_FAILED, Job, Report, WorkerConfig
from bench.launch.leases import Leases, check_held
from bench.launch.workers import Workers
from bench.progress import duration
from bench.record import FAILED, FINISHED, Store
from bench.train.failure import fail, record_of

FOLLOW_SECONDS = 1.0  # time between two looks at the cells that other commands train
NAME_SECONDS = 60.0  # time between two lines that say for whom it waits
logger = logging.getLogger(__name__)
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class Done(NamedTuple):
    """Cells that have a record now; `here` if this launcher trained them, not another command."""

    cells: tuple[Cell, ...]
    here: bool = True


class Launcher:
    """Jobs that wait, jobs that run, and cells that other commands train.

    A job that raises, or loses its process, costs itself and nothing else: its cells without a
    record are tried once more, each in a job of its own, and a cell that fails again is recorded
    as failed. A job that ran out of memory is halved first; a single cell that ran out of memory
    is tried again when nothing else runs.

    Jobs in `waiting` start in order, as soon as a worker is free and what they need is finished.
    `elsewhere` are jobs of cells that other commands hold.
    """

    def __init__(
        self, devices: Sequence[str], config: WorkerConfig, report: Report, leases: Leases
    ) -> None:
        """Starts nothing. `report` is called after every epoch, in this process."""
        self.workers = Workers(devices, config)
        self.config, self.report, self.leases = config, report, leases
        self.store = Store(config.store, lambda cell_id: check_held(leases.generation(cell_id)))
        self.waiting: list[Job] = []
        self.elsewhere: list[Job] = []
        self._followed = self._waits = 0.0
        self._named = -math.inf

    def run(self, jobs: Sequence[Job]) -> Generator[Done]:
        """Runs the jobs, and yields cells as they are done. Workers end with it, whatever ends it.

        OSError if the disk is full or broken; LeaseLostError if another command took its cells.
        """
        self.waiting = list(jobs)
        try:
            while self.waiting or self.workers.running or self.elsewhere:
                self.leases.check()
                yield from self._follow()
                yield from self._start()
                self._check_needs()
                for job, error in self.workers.collect(self.report):
                    yield from self._after_end(job, error)
        finally:
            self.workers.stop()

    def _start(self) -> Iterator[Done]:
        """Starts what can start now; what is to run alone comes last."""
        running = self.workers.running
        for job in sorted(self.waiting, key=lambda job: job.alone):
            if not self.workers.has_room() or any(one.alone for one in running.values()):
                return
            if self._is_ready(job) and not (job.alone and running):
                self.waiting = [other for other in self.waiting if other is not job]
                yield from self._start_job(job)

    def _check_needs(self) -> None:
        """UserError if nothing runs that could train what the waiting jobs need: it is gone."""
        active = self.workers.running or self.elsewhere
        if self.waiting and not active and not any(map(self._is_ready, self.waiting)):
            raise UserError(
                f"records of finished cells are gone from {self.config.store}; was the work "
                "directory removed? Start the same command again"
            )

    def _start_job(self, job: Job) -> Iterator[Done]:
        """Starts the part of a job that is this launcher's; what others hold is followed."""
        mine, recorded, held = [], [], []
        for cell in job.cells:
            if not self.leases.acquire(cell.id):
                held.append(cell)
            elif self.store.read(cell.id) is not None:
                self.leases.release(cell.id, forget=True)
                recorded.append(cell)
            else:
                self.store.discard(cell.id)  # files that a killed process left half-written
                mine.append(cell)
        if held:
            self.elsewhere.append(Job(tuple(held)))
        if recorded:
            yield Done(tuple(recorded), here=False)
        left = without_failed_needs(job._replace(cells=tuple(mine)), self.store, self.config)
        if left.cells:
            leases = {cell.id: self.leases.generation(cell.id) for cell in left.cells}
            self.workers.submit(left, leases)
        yield from self._release_all_but(left.cells, mine)

    def _is_ready(self, job: Job) -> bool:
        return all(self.store.read(need.id) is not None for need in job.needs)

    def _after_end(self, job: Job, error: BaseException | None) -> Iterator[Done]:
        """Releases the cells of an ended job that have a record, and tries the others again."""
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise error
        if left := self._without_record(job):
            error = error or RuntimeError(f"it ended without a record in {self.config.store}")
            left = self._try_again(job, left, error)
        yield from self._release_all_but(left, job.cells)

    def _without_record(self, job: Job) -> list[Cell]:
        """The cells of a job that have no record."""
        return [cell for cell in job.cells if self.store.read(cell.id) is None]

    def _try_again(self, job: Job, cells: list[Cell], error: BaseException) -> list[Cell]:
        """Queues these cells of a failed job, or records their failure; returns those queued."""
        if is_out_of_memory(error) and not job.alone:
            if len(cells) == 1:
                self.waiting.append(Job(tuple(cells), alone=True))
            else:
                self.waiting[:0] = [Job(tuple(cells[0::2])), Job(tuple(cells[1::2]))]
            return cells
        if not (job.retried or job.alone):
            self.waiting[:0] = [Job((cell,), retried=True) for cell in cells]
            return cells
        for cell in cells:
            self.store.write(fail(cell, error, self.config.provenance))
        return []

    def _release_all_but(self, left: Sequence[Cell], cells: Sequence[Cell]) -> Iterator[Done]:
        if done := [cell for cell in cells if cell not in left]:
            for cell in done:
                self.leases.release(cell.id, forget=True)
            yield Done(tuple(done))

    def _follow(self) -> Iterator[Done]:
        """Looks from time to time at cells that others hold: recorded, or free to be taken."""
        now = time.monotonic()
        if now - self._followed < FOLLOW_SECONDS:
            return
        self._followed = now
        followed, self.elsewhere = self.elsewhere, []
        for job in followed:
            left = self._without_record(job)
            if recorded := [cell for cell in job.cells if cell not in left]:
                yield Done(tuple(recorded), here=False)
            free = [cell for cell in left if self.leases.holder(cell.id) is None]
            if free:
                self.waiting.append(Job(tuple(free)))
            if held := [cell for cell in left if cell not in free]:
                self.elsewhere.append(Job(tuple(held)))
        self._name_holders(now)

    def _name_holders(self, now: float) -> None:
        """Says from time to time for whom it waits, while nothing of its own runs."""
        if self.workers.running or not self.elsewhere:
            self._waits, self._named = now, -math.inf
        elif now - self._named >= NAME_SECONDS:
            self._named = now
            cells = [cell for job in self.elsewhere for cell in job.cells]
            holders = {self.leases.holder(cell.id) or "another command" for cell in cells}
            who, since = " and ".join(sorted(holders)), duration(now - self._waits)
            logger.warning("waiting for %s: cells %d, %s so far", who, len(cells), since)


def without_failed_needs(job: Job, store: Store, config: WorkerConfig) -> Job:
    """The cells of a job with finished teacher and source; the others are recorded as failed."""
    errors: dict[str, str] = {}
    for need in job.needs:
        record = store.read(need.id)
        if record is None or record.status != FINISHED:
            why = "it has no record" if record is None else record.error
            errors[need.id] = f"{NEED_FAILED}: {need}, which it learns from, did not finish: {why}"
    kept = []
    for cell in job.cells:
        if error := next((errors[need.id] for need in cell.needs if need.id in errors), ""):
            store.write(record_of(cell, FAILED, config.provenance, error=error))
        else:
            kept.append(cell)
    return job._replace(cells=tuple(kept))
