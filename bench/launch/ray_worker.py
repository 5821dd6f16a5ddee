"""What runs on a node of a Ray cluster: one job, for a coordinator that may be elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import bench
from bench.launch.code import code_digest
from bench.launch.depot import Call, SentCheckpoints, SentStore
from bench.launch.job import Job, Library, WorkerConfig, run_job
from bench.plugin import PluginError, plugged


class NodeFaultError(Exception):
    """A node cannot do what any other could; the message says what it lacks."""


@dataclass(frozen=True)
class Order:
    """A job, and what a node must know to do it.

    Attributes:
        job: its needs are finished.
        code: of the coordinator, see `bench.launch.code`.
        attempt: names this try of the job, see `Depot.end`.
        setting: paths are absolute; those of the work directory are the coordinator's.
        marker: a file of the work directory that is there as long as the coordinator lives.
        node_dir: folder of a node's own, where nodes share no disk; may name environment
            variables of the node.
    """

    job: Job
    code: str
    attempt: str
    setting: WorkerConfig
    marker: Path
    node_dir: str | None

    def to_json(self) -> bytes:
        """What travels: data, not objects that a node would have to trust."""
        return TypeAdapter(Order).dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> Order:
        """The order written by `to_json`.

        Raises:
            ValueError: it is by another version.
        """
        return TypeAdapter(Order).validate_json(text)


def do(order: Order, call: Call) -> None:
    """Runs a job on this node.

    Args:
        order: what to do.
        call: (name of a method of `Depot`, arguments) -> its result.

    Raises:
        NodeFaultError: this node has other code or data, no GPU, or does not see the disk.
        SupersededError: the coordinator gave this attempt up.
    """

    def report(*event: Any) -> None:
        call("report", order.attempt, "epoch", *event)

    call("report", order.attempt, "begin", order.attempt)
    with _warnings_to(order.attempt, call), _plugged(order.setting):
        _check_code(order)
        _check_device(order.setting)
        if order.node_dir is None:
            if not order.marker.is_file():
                raise NodeFaultError(
                    f"it does not see {order.setting.store.parent}; put --work-dir on a disk that "
                    "all nodes share, or name a folder of each node's own with --node-dir"
                )
            _check_data(order.job, order.setting)
            run_job(order.job, order.setting, report)
            return
        with _own_folder(_expanded(order.node_dir)) as folder:
            setting = replace(order.setting, cache=folder.parent / "data")
            _check_data(order.job, setting)
            store = SentStore(folder / "cells", order.attempt, call)
            store.fetch(order.job.needs)
            kept = None
            if setting.checkpoints is not None:
                seconds = setting.checkpoint_seconds
                kept = SentCheckpoints(folder / "checkpoints", seconds, order.attempt, call)
                kept.fetch(order.job.cells)
            run_job(order.job, setting, report, store=store, kept=kept)


@contextmanager
def _plugged(setting: WorkerConfig) -> Iterator[None]:
    """With the user's own files, which ran at the coordinator already."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plugged(setting.plugins))
        except PluginError as error:
            raise NodeFaultError(str(error)) from None
        yield


def _check_code(order: Order) -> None:
    if code_digest() != order.code:
        raise NodeFaultError(
            f"the code in {Path(bench.__file__).parent} is another than the coordinator's, or was "
            "changed since it began; install the same version on every node, and start again"
        )


def _check_device(setting: WorkerConfig) -> None:
    from bench.train.device import pick_device

    try:
        pick_device(setting.device)
    except ValueError as error:
        raise NodeFaultError(str(error)) from None


def _check_data(job: Job, setting: WorkerConfig) -> None:
    """Data sets are every node's own, and must be those that the cells name."""
    library = Library(setting.data_root, setting.cache)
    cells = [cell for one in job.cells for cell in (one, one.source) if cell is not None]
    for spec, wanted in {(cell.data, cell.fingerprint) for cell in cells}:
        try:
            found = library.fingerprint(spec)
        except (ValueError, OSError) as error:
            raise NodeFaultError(f"data set {spec.source!r}: {error}") from None
        if found != wanted:
            raise NodeFaultError(
                f"its data set {spec.source!r} has another content than the coordinator's "
                f"(data root: {setting.data_root}); copy the same files to every node"
            )


def _expanded(node_dir: str) -> Path:
    """The folder on this node: variables and `~` stand for what they are here."""
    path = os.path.expanduser(os.path.expandvars(node_dir))
    if "$" in path or not os.path.isabs(path):
        raise NodeFaultError(
            f"--node-dir {node_dir}: is {path!r} here, wanted an absolute path; set the variables "
            "that it names on every node, or name a folder such as /tmp/kd-bench"
        )
    return Path(path)


@contextmanager
def _own_folder(node_dir: Path) -> Iterator[Path]:
    """A folder for one job, removed at its end; those that killed processes left go too."""
    try:
        node_dir.mkdir(parents=True, exist_ok=True)
        for old in node_dir.glob("job-*"):
            _remove_if_left(old)
        # Locked before it has its name: nobody may think that its job ended.
        new = Path(tempfile.mkdtemp(dir=node_dir, prefix=".job-"))
        lock = (new / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(node_dir / new.name[1:])
    except OSError as error:
        raise NodeFaultError(f"--node-dir {node_dir}: {error.strerror}") from None
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    ended_or_running = contextlib.suppress(FileNotFoundError, BlockingIOError)
    with ended_or_running, (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _warnings_to(attempt: str, call: Call) -> Iterator[None]:
    """What the harness warns of here (a damaged checkpoint, say) is shown by the coordinator."""
    handler, logger = _Teller(attempt, call), logging.getLogger("bench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(self, attempt: str, call: Call) -> None:
        super().__init__(logging.WARNING)
        self._attempt, self._call = attempt, call

    def emit(self, record: logging.LogRecord) -> None:
        self._call("report", self._attempt, "say", self.format(record))
