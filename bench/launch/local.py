"""This machine: jobs in worker processes, one per core or GPU."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.queues import Queue

import torch

from bench.launch.crew import DIED, POLL_SECONDS, Crew
from bench.launch.job import Job, Report, WorkerConfig, run_job
from bench.launch.lease import Leases
from bench.launch.share import Done
from bench.train.device import is_device_lost, is_out_of_memory


def run_processes(
    jobs: Sequence[Job],
    setting: WorkerConfig,
    devices: Sequence[str],
    report: Report,
    leases: Leases,
) -> Generator[Done]:
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
    yield from _Processes(setting, devices, report, leases).run(jobs)


class _Processes(Crew[Future[None]]):
    """A pool of worker processes, one for each device."""

    def __init__(
        self, setting: WorkerConfig, devices: Sequence[str], report: Report, leases: Leases
    ) -> None:
        super().__init__(setting, report, leases)
        self.devices = list(devices)
        self.context = multiprocessing.get_context("spawn")
        self.events: Queue = self.context.Queue()
        self._open()

    def _open(self) -> None:
        free: Queue = self.context.Queue()
        for device in self.devices:
            free.put(device)
        self.pool = ProcessPoolExecutor(
            len(self.devices), self.context, _start_worker, (self.setting, free, self.events)
        )

    def has_room(self, alone: bool) -> bool:
        # A process that dies takes the whole pool with it: by itself it tells which cell it was.
        if alone:
            return not self.running
        return len(self.running) < len(self.devices) and not any(
            map(self.is_suspect, self.running.values())
        )

    def submit(self, job: Job, alone: bool) -> Future[None]:
        return self.pool.submit(_work, job)

    def collect(self) -> Iterator[Done]:
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
                yield from self.take_apart(job, error)

    def _after_death(self) -> Iterator[Done]:
        """Opens a new pool; every job that was under way is a suspect."""
        self.pool.shutdown(wait=True)
        jobs = list(self.running.values())
        self.running.clear()
        self._open()
        for job in jobs:
            yield from self.take_apart(job, RuntimeError(DIED))

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


# --- inside a worker -----------------------------------------------------------------------------

_setting: WorkerConfig | None = None
_send: Callable[..., None] = print


def _start_worker(setting: WorkerConfig, free: Queue, events: Queue) -> None:
    global _setting, _send
    end_with_parent()
    _setting = replace(setting, device=free.get())
    _send = lambda *event: events.put(event)  # noqa: E731


def end_with_parent() -> None:
    """A coordinator that is killed cannot stop its workers: each, in a thread, awaits its end."""
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
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
