"""This machine: jobs in this process, or in several processes, one per core or GPU."""

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
from bench.train.cohort import unfinished

POLL_SECONDS = 0.2


def run_here(jobs: Sequence[Job], setting: Setting, report: Report) -> Iterator[Job]:
    """Runs the jobs one after another in this process; gives each back when it is done.

    Args:
        jobs: teachers before their students.
        setting: where things are.
        report: called after every epoch.
    """
    store = Store(setting.store)
    for planned in jobs:
        for job in without_lost_needs(planned, store, setting):
            if job.cells:
                run_job(job, setting, report)
        yield planned


def run_processes(
    jobs: Sequence[Job], setting: Setting, devices: Sequence[str], report: Report
) -> Iterator[Job]:
    """Runs the jobs in one process per entry of `devices`; gives each back when it is done.

    A job whose process dies (killed, out of memory) is tried once more; then its cells are
    recorded as failed, and the other jobs go on.

    Args:
        jobs: teachers before their students.
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
        self.deaths: dict[str, int] = {}
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
        while waiting or self.running:
            for job in [j for j in waiting if self._ready(j)]:
                if len(self.running) == len(self.devices):
                    break
                waiting.remove(job)
                for part in without_lost_needs(job, self.store, self.setting):
                    if part.cells:
                        self.running[self.pool.submit(_work, part)] = part
                    else:
                        yield job
            finished, _ = wait(self.running, POLL_SECONDS, FIRST_COMPLETED)
            self._drain()
            broken = [f for f in finished if isinstance(f.exception(), BrokenProcessPool)]
            for future in [f for f in finished if f not in broken]:
                job = self.running.pop(future)
                future.result()
                yield job
            if broken:
                waiting[:0] = self._after_death()

    def _ready(self, job: Job) -> bool:
        return all(self.store.read(need.id) is not None for need in job.needs)

    def _after_death(self) -> list[Job]:
        """Opens a new pool; gives back the jobs that were under way, those left to try."""
        self.pool.shutdown(wait=True)
        again = []
        for job in self.running.values():
            cells = tuple(c for c in job.cells if self.store.read(c.id) is None)
            key = cells[0].id if cells else ""
            self.deaths[key] = self.deaths.get(key, 0) + 1
            if self.deaths[key] > 1:
                error = "WorkerDied: its process was killed twice (out of memory?)"
                for cell in cells:
                    self.store.write(unfinished(cell, FAILED, error, self.setting.provenance))
            again.append(replace(job, cells=cells if self.deaths[key] == 1 else ()))
        self.running.clear()
        self._open()
        return again

    def _drain(self) -> None:
        while True:
            try:
                self.report(*self.events.get_nowait())
            except queue.Empty:
                return

    def stop(self) -> None:
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
    kept = [cell for cell in job.cells if not any(need.id in lost for need in cell.needs)]
    for cell in job.cells:
        for need in (need for need in cell.needs if need.id in lost):
            found = store.read(need.id)
            reason = found.error if found is not None else "it has no record"
            error = f"NeedFailed: {need}, which it learns from, did not finish: {reason}"
            store.write(unfinished(cell, FAILED, error, setting.provenance))
            break
    if not lost:
        return [job]
    return [Job(tuple(kept), job.teacher if any(cell.teacher for cell in kept) else None)]


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
