"""This machine: jobs in worker processes, one per core or GPU."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.queues import Queue

import torch

from bench.cell import Cell
from bench.launch.job import Job, Report, Setting, run_job
from bench.launch.lease import Leases
from bench.launch.share import Done, Share
from bench.record import FAILED, FINISHED, Store
from bench.train.cohort import fail, unfinished
from bench.train.device import is_device_lost, is_out_of_memory

POLL_SECONDS = 0.2
NO_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def run_processes(
    jobs: Sequence[Job],
    setting: Setting,
    devices: Sequence[str],
    report: Report,
    leases: Leases,
) -> Iterator[Done]:
    """Runs the jobs in one process per entry of `devices`; tells of cells as they are done.

    A job that raises, or whose process dies (killed, out of memory), is taken apart: each of its
    cells is tried once more, by itself and with nothing beside it. The cell that does it again is
    recorded as failed; all others are as if nothing had happened. A job that tells that memory ran
    out is halved first. Whoever has a checkpoint goes on from it.

    Other launchers may work on the same cells: each is trained by whoever holds its lease. Cells
    that others hold are waited for, and taken over if their holder dies.

    Args:
        jobs: in any order; a job waits for the teachers and sources that it needs.
        setting: where things are; its device is replaced by each worker's own.
        devices: the workers' devices, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"].
        report: called after every epoch, in this process.
        leases: of this process, entered.

    Raises:
        OSError: the disk is full or broken: that is no cell's fault, and ends the run.
        LeaseLostError: this process was suspended for so long that others took its cells.
    """
    crew = _Crew(setting, devices, report, leases)
    try:
        yield from crew.run(list(jobs))
    finally:
        crew.stop()


class _Crew:
    """A pool of worker processes and the jobs that wait for it."""

    def __init__(
        self, setting: Setting, devices: Sequence[str], report: Report, leases: Leases
    ) -> None:
        self.setting, self.devices, self.report = setting, list(devices), report
        self.store, self.leases = Store(setting.store), leases
        self.share = Share(self.store, leases)
        self.context = multiprocessing.get_context("spawn")
        self.events: Queue = self.context.Queue()
        self.waiting: list[Job] = []
        self.suspects: list[Job] = []
        self.tried_alone: set[str] = set()
        self.running: dict[Future[None], Job] = {}
        self._open()

    def _open(self) -> None:
        free: Queue = self.context.Queue()
        for device in self.devices:
            free.put(device)
        self.pool = ProcessPoolExecutor(
            len(self.devices), self.context, _start_worker, (self.setting, free, self.events)
        )

    def run(self, jobs: list[Job]) -> Iterator[Done]:
        self.waiting = jobs
        while self.waiting or self.running or self.suspects or self.share.elsewhere:
            self.leases.check()
            yield from self._start()
            for news in self.share.look():
                if isinstance(news, Done):
                    yield news
                else:
                    self.waiting.append(news)
            yield from self._collect()

    def _collect(self) -> Iterator[Done]:
        """Waits a little for what runs."""
        if not self.running:  # all that is left is held by others, or waits for them
            self.leases.pause(POLL_SECONDS)
        finished, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
        self._drain()
        errors = {future: future.exception() for future in finished}
        if any(isinstance(error, BrokenProcessPool) for error in errors.values()):
            yield from self._after_death()
            return
        for future, error in errors.items():
            job = self.running.pop(future)
            if error is None:
                yield self.share.give_back(job.cells)
            else:
                yield from self._take_apart(job, error)

    def _start(self) -> Iterator[Done]:
        """Starts what can start; tells of jobs that lost what they need."""
        if self.suspects:
            # Alone, so that a process that dies tells which cell it was.
            if not self.running:
                suspect = self.suspects.pop()
                self.tried_alone |= {cell.id for cell in suspect.cells}
                self._submit(suspect)
            return
        for job in [job for job in self.waiting if self._ready(job)]:
            if len(self.running) == len(self.devices):
                return
            self.waiting.remove(job)
            mine, done = self.share.take(job)
            if done.cells:
                yield done
            for part in without_lost_needs(mine, self.store, self.setting):
                if part.cells:
                    self._submit(part)
                if lost := [cell for cell in mine.cells if cell not in part.cells]:
                    yield self.share.give_back(lost)

    def _submit(self, job: Job) -> None:
        self.running[self.pool.submit(_work, job)] = job

    def _ready(self, job: Job) -> bool:
        return all(self.store.read(need.id) is not None for need in job.needs)

    def _after_death(self) -> Iterator[Done]:
        """Opens a new pool; every job that was under way is a suspect."""
        self.pool.shutdown(wait=True)
        jobs = list(self.running.values())
        self.running.clear()
        self._open()
        error = RuntimeError("its process died, twice: killed, or out of memory")
        for job in jobs:
            yield from self._take_apart(job, error)

    def _take_apart(self, job: Job, error: BaseException) -> Iterator[Done]:
        """Tries a job's cells without a record again, or fails the one that did it again."""
        if isinstance(error, OSError) and error.errno in NO_DISK:
            raise error
        left = [cell for cell in job.cells if self.store.read(cell.id) is None]
        if len(left) > 1 and is_out_of_memory(error):
            halves = (left[0::2], left[1::2])
            self.waiting[:0] = [Job(tuple(half), job.teacher) for half in halves]
        elif left and all(cell.id in self.tried_alone for cell in left):
            for cell in left:
                self.store.write(fail(cell, error, self.setting.provenance))
            left = []
        else:
            self.suspects += [Job((cell,), cell.teacher) for cell in left]
        if done := [cell for cell in job.cells if cell not in left]:
            yield self.share.give_back(done)

    def _drain(self) -> None:
        while True:
            try:
                self.report(*self.events.get_nowait())
            except queue.Empty:
                return

    def stop(self) -> None:
        """Ends the workers; at once if jobs are under way."""
        for process in list((getattr(self.pool, "_processes", None) or {}).values()):
            if self.running:
                process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.events.close()


def without_lost_needs(job: Job, store: Store, setting: Setting) -> list[Job]:
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
            store.write(unfinished(cell, FAILED, error, setting.provenance))
    kept = tuple(c for c in job.cells if not any(need.id in lost for need in c.needs))
    return [Job(kept, next((cell.teacher for cell in kept if cell.teacher), None))]


def _finished(cell: Cell, store: Store) -> bool:
    found = store.read(cell.id)
    return found is not None and found.status == FINISHED


# --- inside a worker -----------------------------------------------------------------------------

_setting: Setting | None = None
_send: Callable[..., None] = print


def _start_worker(setting: Setting, free: Queue, events: Queue) -> None:
    global _setting, _send
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _setting = replace(setting, device=free.get())
    _send = lambda *event: events.put(event)  # noqa: E731


def _end_with_parent() -> None:
    """A coordinator that is killed cannot stop its workers: each watches for its end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> None:
    assert _setting is not None
    try:
        run_job(job, _setting, _send)
    except RuntimeError as error:
        if is_device_lost(error) and not is_out_of_memory(error):
            # Whatever ran here next would fail too: a new process takes this one's place.
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        raise
    finally:
        # Workers may share a device: what this one keeps for later, another may need now.
        torch.cuda.empty_cache()
