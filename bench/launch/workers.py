"""Jobs in worker processes of this machine, one for each entry of a list of devices.

Importing torch costs seconds: workers are forked from a process that has done so, and each takes
one job after another. A worker that dies costs the job it held and no other.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.faults import CODE_FAULTS, is_out_of_memory
from bench.launch.job import Held, Job, Report, WorkerConfig, run_job
from bench.train.device import is_device_lost
from bench.train.failure import KilledError

DIED = "its process died twice (exit code {}): killed, or out of memory"
EPOCH, ENDED = "epoch", "ended"
POLL_SECONDS = 0.2
OUTSIDE_CODES = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT, 255}
"""Exit codes of a process that something else ended: the system, a scheduler, a user.

255 is that of a worker that cannot be watched any more: what it was forked from was killed.
"""

PRELOADED = ["bench.train.cohort", "bench.train.teacher", "torch._dynamo"]
"""What workers are forked with. Torch's own is for optimisers, which import it as they are made."""

GRACE_SECONDS = 20.0
"""How long workers that are stopped may take for a last checkpoint. Slurm kills after 30."""


class _Worker:
    """A worker process, as the launcher sees it. `config` names the worker's own device."""

    def __init__(self, config: WorkerConfig) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.config = config
        self.connection, its_end = context.Pipe()
        self.process = context.Process(target=serve_jobs, args=(its_end, config))
        # Started first: its start lifts the mask of the signals below.
        resource_tracker.ensure_running()
        # Workers, and what they are forked from, inherit the mask: the launcher ends its workers.
        ending = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        its_end.close()

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
        code = self.process.exitcode
        kind = KilledError if code in OUTSIDE_CODES else RuntimeError
        return ENDED, kind(DIED.format(code))

    def end(self) -> None:
        self.process.kill()
        self.connection.close()
        self.process.join()


class Workers:
    """Worker processes that start when there is a job for them; `running` have one."""

    def __init__(self, devices: Sequence[str], config: WorkerConfig) -> None:
        """One process for each of the devices, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"]."""
        self.running: dict[_Worker, Job] = {}
        self._config = config
        self._free_devices = list(devices)
        self._alive: list[_Worker] = []

    def has_room(self) -> bool:
        """Whether one more job can start."""
        return len(self.running) < len(self._alive) + len(self._free_devices)

    def submit(self, job: Job, held: Held) -> None:
        """Starts a job, whose cells' leases are `held`."""
        worker = next((one for one in self._alive if one not in self.running), None)
        if worker is None:
            config = replace(self._config, device=self._free_devices.pop(0))
            with _without_interrupts() as interrupted:
                self._alive.append(worker := _Worker(config))
            if interrupted:
                signal.raise_signal(interrupted[0])
        with contextlib.suppress(ConnectionError):  # it died: `receive` says so
            worker.connection.send((job, held))
        self.running[worker] = job

    def collect(self, report: Report) -> Iterator[tuple[Job, BaseException | None]]:
        """Waits at most `POLL_SECONDS`; reports epochs, and yields jobs that ended, with errors."""
        if self.running:
            connections = [worker.connection for worker in self.running]
            wait([*connections, *(w.process.sentinel for w in self.running)], POLL_SECONDS)
        else:  # other commands hold all that is left, or what it waits for
            time.sleep(POLL_SECONDS)
        for worker in list(self.running):
            while (message := worker.receive()) is not None:
                kind, *values = message
                if kind == EPOCH:
                    report(*values)
                    continue
                (error,) = values
                job = self.running.pop(worker)
                if not worker.process.is_alive() or _is_lost(error):
                    worker.end()  # the next job for its device starts another
                    self._alive.remove(worker)
                    self._free_devices.append(worker.config.device)
                yield job, error
                break

    def stop(self) -> None:
        """Ends the workers. What runs gets the time for a last checkpoint, if an epoch ends.

        Another Ctrl-C meanwhile ends it at once.
        """
        until = time.monotonic() + GRACE_SECONDS
        with _without_interrupts() as interrupted:
            for worker in self._alive:
                if worker in self.running:
                    worker.process.terminate()
                else:
                    worker.connection.close()
            while (left := [w for w in self._alive if w.process.is_alive()]) and (
                time.monotonic() < until and signal.SIGINT not in interrupted
            ):
                wait([worker.process.sentinel for worker in left], POLL_SECONDS)
                for worker in left:  # a full pipe would keep it from its last checkpoint
                    with contextlib.suppress(EOFError, OSError):
                        while worker.connection.poll():
                            worker.connection.recv()
            for worker in self._alive:
                worker.end()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[list[int]]:
    """Collects the signals that end a command, which otherwise raise wherever it is."""
    found: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda number, frame: found.append(number))
    try:
        yield found
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _is_lost(error: BaseException | None) -> bool:
    """Whether what ran next in that process would fail too: it ends, or lost its CUDA device."""
    lost = error is not None and is_device_lost(error) and not is_out_of_memory(error)
    return lost or isinstance(error, KilledError)


def serve_jobs(connection: Connection, config: WorkerConfig) -> None:
    """Runs the jobs that come in, until the launcher closes its end of the connection.

    After SIGTERM the epoch that runs is the last one.
    """
    import torch

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(*event: object) -> None:
        connection.send((EPOCH, *event))

    with contextlib.suppress(EOFError, ConnectionError):
        while not stopping.is_set():
            job, held = connection.recv()
            ended = None
            try:
                run_job(job, config, report, held, stopping.is_set)
            except BaseException as error:  # a plugin may raise what it likes, SystemExit too
                ended = _portable(error)
            if ended is not None:
                gc.collect()  # what the traceback, which is gone now, referred to
            # Workers may share a device: memory that this one keeps may be needed by another. A
            # lost device gives none back.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
            connection.send((ENDED, ended))


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
