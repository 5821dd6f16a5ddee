"""What every launcher does: jobs wait for what they need, run, and are tried again in parts.

A launcher adds where they run: processes of this machine, tasks of a cluster.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from bench.cell import Cell
from bench.launch.job import Job, Report, WorkerConfig
from bench.launch.lease import Leases
from bench.launch.share import Done, Share
from bench.record import FAILED, FINISHED, Store
from bench.train.cohort import fail, record_without_result
from bench.train.device import is_out_of_memory

POLL_SECONDS = 0.2
DIED = "its process died, twice: killed, or out of memory"
NO_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
Handle = TypeVar("Handle")


class Crew(ABC, Generic[Handle]):
    """Workers of some kind and the jobs that wait for them.

    Attributes:
        waiting: jobs that nobody tried yet, or that are to be tried again as they are.
        suspects: single cells of jobs that came to grief: tried once more, each by itself.
        running: what runs -> its job.
    """

    def __init__(self, setting: WorkerConfig, report: Report, leases: Leases) -> None:
        """Nothing runs yet.

        Args:
            setting: for the workers.
            report: called after every epoch, in this process.
            leases: of this process, entered.
        """
        self.setting, self.report, self.leases = setting, report, leases
        self.store = Store(setting.store)
        self.share = Share(self.store, leases)
        self.waiting: list[Job] = []
        self.suspects: list[Job] = []
        self.running: dict[Handle, Job] = {}
        self._tried_alone: set[str] = set()

    # --- what a launcher adds -------------------------------------------------------------------

    @abstractmethod
    def has_room(self, alone: bool) -> bool:
        """Whether one more job can start.

        Args:
            alone: whether it is a suspect.
        """

    @abstractmethod
    def submit(self, job: Job, alone: bool) -> Handle:
        """Starts a job."""

    @abstractmethod
    def collect(self) -> Iterator[Done]:
        """Waits at most `POLL_SECONDS` for what runs; takes it out of `running` as it ends."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the workers; at once if jobs are under way."""

    # --- what all share -------------------------------------------------------------------------

    def run(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Runs the jobs, and stops the workers at the end, whatever it is."""
        self.waiting = list(jobs)
        try:
            while self.waiting or self.running or self.suspects or self.share.elsewhere:
                self.leases.check()
                yield from self._start()
                for news in self.share.look():
                    if isinstance(news, Done):
                        yield news
                    else:
                        self.waiting.append(news)
                yield from self.collect()
        finally:
            self.stop()

    def is_suspect(self, job: Job) -> bool:
        """Whether the job's cells are tried by themselves, for the last time."""
        return all(cell.id in self._tried_alone for cell in job.cells)

    def _start(self) -> Iterator[Done]:
        """Starts what can start; tells of jobs that lost what they need."""
        while self.suspects and self.has_room(alone=True):
            suspect = self.suspects.pop()
            self._tried_alone |= {cell.id for cell in suspect.cells}
            self.running[self.submit(suspect, alone=True)] = suspect
        if self.suspects:
            return
        for job in [job for job in self.waiting if self._ready(job)]:
            if not self.has_room(alone=False):
                return
            self.waiting.remove(job)
            mine, done = self.share.take(job)
            if done.cells:
                yield done
            for part in without_lost_needs(mine, self.store, self.setting):
                if part.cells:
                    self.running[self.submit(part, alone=False)] = part
                if lost := [cell for cell in mine.cells if cell not in part.cells]:
                    yield self.share.give_back(lost)

    def _ready(self, job: Job) -> bool:
        return all(self.store.read(need.id) is not None for need in job.needs)

    def take_apart(self, job: Job, error: BaseException) -> Iterator[Done]:
        """Tries a job's cells without a record again, or fails the one that did it again.

        Args:
            job: it runs no more.
            error: what ended it.

        Raises:
            OSError: it was the disk, which is no cell's fault.
        """
        if isinstance(error, OSError) and error.errno in NO_DISK:
            raise error
        left = [cell for cell in job.cells if self.store.read(cell.id) is None]
        if len(left) > 1 and is_out_of_memory(error):
            halves = (left[0::2], left[1::2])
            self.waiting[:0] = [Job(tuple(half), job.teacher) for half in halves]
        elif left and all(cell.id in self._tried_alone for cell in left):
            for cell in left:
                self.store.write(fail(cell, error, self.setting.provenance))
            left = []
        else:
            self.suspects += [Job((cell,), cell.teacher) for cell in left]
        yield from self._give_back_all_but(left, job)

    def put_back(self, job: Job) -> Iterator[Done]:
        """Runs a job again that ended through no fault of its cells: those without a record."""
        left = [cell for cell in job.cells if self.store.read(cell.id) is None]
        if left:
            self.waiting.insert(0, Job(tuple(left), job.teacher))
        yield from self._give_back_all_but(left, job)

    def _give_back_all_but(self, left: Sequence[Cell], job: Job) -> Iterator[Done]:
        if done := [cell for cell in job.cells if cell not in left]:
            yield self.share.give_back(done)


def without_lost_needs(job: Job, store: Store, setting: WorkerConfig) -> list[Job]:
    """The job, or what is left of it if a teacher or source failed: cells that do not need it.

    The others are recorded as failed here, naming what they needed.
    """
    lost = {need.id: need for need in job.needs if not _finished(need, store)}
    if not lost:
        return [job]
    for cell in job.cells:
        need = next((need for need in cell.needs if need.id in lost), None)
        if need is not None:
            found = store.read(need.id)
            reason = found.error if found is not None else "it has no record"
            error = f"NeedFailed: {need}, which it learns from, did not finish: {reason}"
            store.write(record_without_result(cell, FAILED, error, setting.provenance))
    kept = tuple(c for c in job.cells if not any(need.id in lost for need in c.needs))
    return [Job(kept, next((cell.teacher for cell in kept if cell.teacher), None))]


def _finished(cell: Cell, store: Store) -> bool:
    found = store.read(cell.id)
    return found is not None and found.status == FINISHED
