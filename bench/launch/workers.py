"""Jobs in worker processes of this machine, one for each entry of a list of devices.

A worker takes one job after another, because importing torch costs seconds. A worker that dies
costs the job it held and no other: a new one takes its place, and the other workers go on.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.faults import CODE_FAULTS
from bench.launch.job import Job, Report, WorkerConfig, run_job
from bench.launch.launcher import POLL_SECONDS, Done, Launcher
from bench.launch.leases import Leases
from bench.train.device import is_device_lost, is_out_of_memory

DIED = "its process died twice (exit code {}): killed, or out of memory"
EPOCH, ENDED = "epoch", "ended"


class _Worker:
    """A worker process, as the launcher sees it. `config` names the worker's own device."""

    def __init__(self, config: WorkerConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self.config = config
        self.connection, its_end = context.Pipe()
        self.process = context.Process(target=serve_jobs, args=(its_end, config))
        # The process inherits the mask: Ctrl-C is for the launcher, which ends its workers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its_end.close()

    def send(self, job: Job) -> None:
        with contextlib.suppress(ConnectionError):  # it died: `receive` says so
            self.connection.send(job)

    def receive(self) -> tuple[Any, ...] | None:
        """(EPOCH, cell id, done, total, accuracy), (ENDED, error or None), or None: not yet."""
        is_alive = self.process.is_alive()  # asked first: what a dead process sent is still read
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            is_alive = False
        if is_alive:
            return None
        self.end()
        return ENDED, RuntimeError(DIED.format(self.process.exitcode))

    def end(self) -> None:
        self.process.terminate()
        self.connection.close()
        self.process.join()


class WorkerProcesses(Launcher[_Worker]):
    """Worker processes that start when there is a job for them."""

    def __init__(
        self, devices: Sequence[str], config: WorkerConfig, report: Report, leases: Leases
    ) -> None:
        """One process for each of the devices, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"]."""
        super().__init__(config, report, leases)
        self._free_devices = list(devices)
        self._idle: list[_Worker] = []

    def has_room(self) -> bool:
        """See `Launcher.has_room`."""
        return bool(self._idle or self._free_devices)

    def submit(self, job: Job, alone: bool) -> _Worker:
        """See `Launcher.submit`."""
        if self._idle:
            worker = self._idle.pop(0)
        else:
            worker = _Worker(replace(self.config, device=self._free_devices.pop(0)))
        worker.send(job)
        return worker

    def collect(self) -> Iterator[Done]:
        """See `Launcher.collect`."""
        if self.running:
            connections = [worker.connection for worker in self.running]
            wait([*connections, *(w.process.sentinel for w in self.running)], POLL_SECONDS)
        else:  # other commands hold all that is left, or what it waits for
            time.sleep(POLL_SECONDS)
        for worker in list(self.running):
            while (message := worker.receive()) is not None:
                kind, *values = message
                if kind == EPOCH:
                    self.report(*values)
                    continue
                (error,) = values
                job = self.running.pop(worker)
                if not worker.process.is_alive() or _is_device_lost(error):
                    worker.end()  # the next job for its device starts another
                    self._free_devices.append(worker.config.device)
                else:
                    self._idle.append(worker)
                yield from self.after_end(job, error)
                break

    def stop(self) -> None:
        """See `Launcher.stop`."""
        for worker in (*self.running, *self._idle):
            worker.process.terminate()
        for worker in (*self.running, *self._idle):
            worker.end()


def _is_device_lost(error: BaseException | None) -> bool:
    """Whether whatever ran next in that process would fail too: it lost its CUDA device."""
    return error is not None and is_device_lost(error) and not is_out_of_memory(error)


def serve_jobs(connection: Connection, config: WorkerConfig) -> None:
    """Runs the jobs that come in, until the launcher closes its end of the connection."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            error = _run(connection.recv(), config, connection)
            # Workers may share a device: memory that this one keeps may be needed by another.
            torch.cuda.empty_cache()
            connection.send((ENDED, error))


def _run(job: Job, config: WorkerConfig, connection: Connection) -> BaseException | None:
    """Runs a job; returns what ended it, if anything did."""
    try:
        run_job(job, config, lambda *event: connection.send((EPOCH, *event)))
    except BaseException as error:  # a plugin may raise what it likes, SystemExit too
        return _portable(error)
    return None


def _portable(error: BaseException) -> BaseException:
    """The error in a form that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        portable = pickle.loads(pickle.dumps(error))
    except (*CODE_FAULTS, pickle.PickleError):
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note(text)
    return portable


def _end_with_parent() -> None:
    """Ends this process with its launcher, which cannot stop it when it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
