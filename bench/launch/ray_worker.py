"""What runs on a node of a Ray cluster: one job, for a coordinator that may be on another node."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import bench
from bench.code_version import numerics_digest
from bench.data.library import Library
from bench.launch.job import Job, Report, WorkerConfig, run_job
from bench.plugin import plugged


class NodeFaultError(Exception):
    """A node cannot do what other nodes can; the message says what it lacks."""


@dataclass(frozen=True)
class Order:
    """A job, and what a node needs to run it.

    Attributes:
        job: its teachers and sources are finished.
        code: digest of the coordinator's code, see `bench.code_version`.
        config: with absolute paths.
        heartbeat: a file of the work directory that exists while the coordinator lives.
    """

    job: Job
    code: str
    config: WorkerConfig
    heartbeat: Path


def run_order(order: Order, report: Report) -> None:
    """Runs a job on this node, which calls `report` after every epoch.

    Raises:
        NodeFaultError: this node has other code or data, no GPU, or does not see the work
            directory.
    """
    from bench.train.device import pick_device

    if numerics_digest("methods/*.py") != order.code:
        raise NodeFaultError(
            f"the code in {Path(bench.__file__).parent} differs from the coordinator's; install "
            "the same version on every node, and start again"
        )
    if not order.heartbeat.is_file():
        raise NodeFaultError(
            f"it does not see {order.config.store.parent}; put --work-dir on a disk that all nodes "
            "share"
        )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plugged(order.config.plugins))
            pick_device(order.config.device)
        except ValueError as error:  # PluginError is one; the files have run at the coordinator
            raise NodeFaultError(str(error)) from None
        _check_data(order.job, order.config)
        run_job(order.job, order.config, report)


def _check_data(job: Job, config: WorkerConfig) -> None:
    """Refuses a node that lacks a data set of the job, or has other files under its name."""
    library = Library(config.data_root, config.cache)
    cells = [cell for one in job.cells for cell in (one, one.source) if cell is not None]
    for spec, wanted in {(cell.data, cell.fingerprint) for cell in cells}:
        try:
            found = library.fingerprint(spec)
        except (ValueError, OSError) as error:
            raise NodeFaultError(f"data set {spec.source!r}: {error}") from None
        if found != wanted:
            raise NodeFaultError(
                f"its data set {spec.source!r} differs from the coordinator's "
                f"(data root: {config.data_root}); copy the same files to every node"
            )
