"""This machine: jobs in worker processes, one per core or GPU."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.queues import Queue

from bench.cell import Cell
from bench.launch.job import Job, Report, Setting, run_job
from bench.record import FAILED, FINISHED, Store
from bench.train.cohort import fail, unfinished

POLL_SECONDS = 0.2


def run_processes(
    jobs: Sequence[Job], setting: Setting, devices: Sequence[str], report: Report
) -> Iterator[Job]:
    """Runs the jobs in one process per entry of `devices`; gives each back when it is done.

    A job that raises, or whose process dies (killed, out of memory), is taken apart: each of its
    cells is tried once more, by itself and with nothing beside it. The cell that does it again is
    recorded as failed; all others are as if nothing had happened.

    Args:
        jobs: in any order; a job waits for the teachers and sources that it needs.
        setting: where things are; its device is replaced by each worker's own.
        devices: the workers' devices, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"].
        report: called after every epoch, in this process.
    """
    crew = _Crew(setting, devices, report)
    try:
        yield from crew.run(list(jobs))
    finally:
        crew.stop()


class _Crew:
    """A pool of worker processes and the jobs that wait for it."""

    def __init__(self, setting: Setting, devices: Sequence[str], report: Report) -> None:
        self.setting, self.devices, self.report = setting, list(devices), report
        self.store = Store(setting.store)
        self.context = multiprocessing.get_context("spawn")
        self.events: Queue = self.context.Queue()
        self.suspects: list[Job] = []
        self.running: dict[Future[None], Job] = {}
        self._open()

    def _open(self) -> None:
        free: Queue = self.context.Queue()
        for device in self.devices:
            free.put(device)
        self.pool = ProcessPoolExecutor(
            len(self.devices), self.context, _start_worker, (self.setting, free, self.events)
        )

    def run(self, waiting: list[Job]) -> Iterator[Job]:
        while waiting or self.running or self.suspects:
            yield from self._start(waiting)
            finished, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
            self._drain()
            errors = {future: future.exception() for future in finished}
            if any(isinstance(error, BrokenProcessPool) for error in errors.values()):
                yield from self._after_death()
                continue
            for future, error in errors.items():
                job = self.running.pop(future)
                if error is None:
                    yield job
                else:
                    yield from self._take_apart(job, error)

    def _start(self, waiting: list[Job]) -> Iterator[Job]:
        """Starts what can start; gives back jobs that lost what they need."""
        if self.suspects:
            # Alone, so that a process that dies tells which cell it was.
            if not self.running:
                self._submit(self.suspects.pop())
            return
        for job in [job for job in waiting if self._ready(job)]:
            if len(self.running) == len(self.devices):
                return
            waiting.remove(job)
            for part in without_lost_needs(job, self.store, self.setting):
                if part.cells:
                    self._submit(part)
                else:
                    yield job

    def _submit(self, job: Job) -> None:
        self.running[self.pool.submit(_work, job)] = job

    def _ready(self, job: Job) -> bool:
        return all(self.store.read(need.id) is not None for need in job.needs)

    def _after_death(self) -> Iterator[Job]:
        """Opens a new pool; every job that was under way is a suspect."""
        self.pool.shutdown(wait=True)
        jobs = list(self.running.values())
        self.running.clear()
        self._open()
        error = RuntimeError("its process died, twice: killed, or out of memory")
        for job in jobs:
            yield from self._take_apart(job, error, sure=len(jobs) == 1)

    def _take_apart(self, job: Job, error: BaseException, sure: bool = True) -> Iterator[Job]:
        """Makes suspects of a job's cells without a record, or fails the one that did it."""
        left = [cell for cell in job.cells if self.store.read(cell.id) is None]
        if len(job.cells) == 1 and left and sure:
            self.store.write(fail(left[0], error, self.setting.provenance))
            left = []
        self.suspects += [Job((cell,), cell.teacher) for cell in left]
        done = tuple(cell for cell in job.cells if cell not in left)
        if done:
            yield Job(done, job.teacher)

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
    run_job(job, _setting, _send)
