"""A Ray cluster: jobs as tasks on nodes that may join, leave and die while a grid trains.

All nodes share the work directory, so that Ray carries only jobs and events. The coordinator, a
driver on one of the nodes, decides what runs again: a task that raises or loses its process as on
one machine, a job that lost its node elsewhere, from its checkpoints.
"""

import importlib.util
import logging
import os
import pickle
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import bench
from bench.code_version import numerics_digest
from bench.data.sources import Library
from bench.faults import UserError, reason
from bench.launch.job import Job, Report, WorkerConfig
from bench.launch.launcher import POLL_SECONDS, Done, Launcher
from bench.launch.leases import Leases
from bench.plugin import plugged
from bench.train.device import pick_device
from bench.train.failure import KilledError

LOSSES = 3
"""A cell that loses this many nodes, with no epoch completed in between, counts as the cause."""

RECORD_SECONDS = 90.0  # how long a shared disk may take to show a record that another node wrote
CANCEL_SECONDS = 10.0
CONNECT_SECONDS = 10.0
DIED = "its process died twice: killed, or out of memory"
logger = logging.getLogger(__name__)


class ClusterError(UserError):
    """No cluster, or none that can run the grid; one line with the cure."""


@dataclass
class RayCluster:
    """A connection to Ray. A context manager.

    Attributes:
        address: "auto" (the cluster of this node) or HOST:PORT of its head.
        workers: the most jobs at once; None for as many as the nodes hold.
        gpus_per_job: a part of a GPU or whole ones; ignored where jobs run on CPUs.
        device: "cpu", "cuda", or "auto": CUDA if the cluster has a GPU, known once entered.
        threads: of a job, and so the CPUs that it takes.
    """

    address: str = "auto"
    workers: int | None = None
    gpus_per_job: float = 1.0
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        """Connects to nothing; refuses what Ray would refuse, and a machine without Ray."""
        if importlib.util.find_spec("ray") is None:
            raise ClusterError(
                "--launcher ray needs Ray; install it with: pip install 'kd-bench[cluster]'"
            )
        if self.device not in ("auto", "cpu", "cuda"):  # Ray chooses the number
            raise ClusterError(f"--device: got {self.device!r}, wanted auto, cpu or cuda with Ray")
        part = self.gpus_per_job
        if not (0 < part <= 1 or (part > 1 and part % 1 == 0)):
            wanted = "wanted a part such as 0.5, or a whole number"
            raise ClusterError(f"--gpus-per-job: got {part:g}, {wanted}")

    def __enter__(self) -> Self:
        """Connects; ClusterError if there is no such cluster, or it has another version."""
        ray = import_module("ray")
        # No reports home, no notes about the next version's defaults.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._before = signal.getsignal(signal.SIGTERM)
        _check_address(self.address)
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
            if self.device == "auto":
                self.device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        except BaseException as error:  # Ray raises bare `Exception` here, too
            self.__exit__()
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ClusterError(
                f"--address {self.address}: {reason(error).rstrip('.')}; a cluster needs the same "
                "Ray, Python and RAY_AUTH_TOKEN on every node (see: ray status)"
            ) from error
        # The command's handler again. Ray's own ends the process at once.
        signal.signal(signal.SIGTERM, self._before)
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnects."""
        import_module("ray").shutdown()
        signal.signal(signal.SIGTERM, self._before)

    @property
    def devices(self) -> list[str]:
        """One entry for every job that the nodes have room for now, at least one."""
        return [self.device] * max(1, self.slots())

    def slots(self) -> int:
        """How many jobs the nodes can run at once now."""
        fitting = 0
        alive = [node for node in import_module("ray").nodes() if node["Alive"]]
        for resources in (node["Resources"] for node in alive):
            jobs = int(resources.get("CPU", 0.0) / self.threads)
            if self.device == "cuda":
                gpus, each = resources.get("GPU", 0.0), self.gpus_per_job
                jobs = min(jobs, int(gpus / each) if each >= 1 else int(gpus) * int(1 / each))
            fitting += jobs
        return min(fitting, self.workers or fitting)


def _check_address(address: str) -> None:
    """Refuses an address where nobody listens. Ray itself would try again for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: nobody answers ({error}); wanted auto or HOST:PORT of the "
            "cluster's head, from one of its nodes"
        ) from None


class RayTasks(Launcher[Any]):
    """Jobs as Ray tasks; ClusterError if a node lacks the code, the data or the directory."""

    def __init__(
        self, cluster: RayCluster, config: WorkerConfig, report: Report, leases: Leases
    ) -> None:
        """The cluster is entered."""
        super().__init__(config, report, leases)
        ray = self.ray = import_module("ray")
        self.cluster, self.code = cluster, numerics_digest("methods/*.py")
        # A task's current folder is another one.
        paths = {name: v.absolute() for name, v in vars(config).items() if isinstance(v, Path)}
        self.node_config = replace(config, device=cluster.device, **paths)
        self.losses: Counter[str] = Counter()
        # On this node, so that no other node takes it along when it dies.
        here = ray.get_runtime_context().get_node_id()
        strategies = import_module("ray.util.scheduling_strategies")
        strategy = strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self.events = import_module("ray.util.queue").Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": strategy}
        )
        # A process that had a GPU is not used again: it may have lost it, or hold its memory.
        calls = {"max_calls": 1} if cluster.device == "cuda" else {}
        self.task = ray.remote(max_retries=0, **calls)(_task_body())

    def has_room(self) -> bool:
        """See `Launcher.has_room`."""
        if self.cluster.workers:
            return len(self.running) < self.cluster.workers
        # As many jobs again wait in Ray's queue, for an autoscaler to see.
        return len(self.running) < 2 * max(1, self.cluster.slots())

    def submit(self, job: Job, alone: bool) -> Any:
        """See `Launcher.submit`."""
        order = job, self.node_config, self.held(job), self.code, self.leases.heart.absolute()
        options: dict[str, Any] = {"num_cpus": self.cluster.threads}
        if self.cluster.device == "cuda":
            each = self.cluster.gpus_per_job
            options["num_gpus"] = max(1, each) if alone else each
        task = self.task.options(**options)
        return task.remote(pickle.dumps(order), self.events)

    def collect(self) -> Iterator[Done]:
        """See `Launcher.collect`."""
        ended: list[Any] = []
        if self.running:
            ended, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS, fetch_local=False)
        else:
            time.sleep(POLL_SECONDS)
        for cell_id, *values in self.events.get_nowait_batch(self.events.qsize()):
            self.losses.pop(cell_id, None)
            self.report(cell_id, *values)
        for handle in ended:
            yield from self._after_task(handle)

    def _after_task(self, handle: Any) -> Iterator[Done]:
        exceptions = import_module("ray.exceptions")
        job = self.running.pop(handle)
        try:
            lack = self.ray.get(handle)
        except exceptions.RayTaskError as error:
            error.cause.add_note(error.traceback_str)
            failure: BaseException | None = error.cause
        except exceptions.OutOfMemoryError as error:
            failure = MemoryError(str(error))
        except exceptions.WorkerCrashedError:
            failure = KilledError(DIED)
        except exceptions.RayError as error:  # the node died, or cannot be reached
            failure = self._count_loss(job, error)
        else:
            if lack is not None:
                raise ClusterError(lack)
            self._wait_for_records(job)
            yield from self.after_end(job, None)
            return
        yield from self.after_end(job, failure, lost=failure is None)

    def _count_loss(self, job: Job, error: BaseException) -> BaseException | None:
        """Counts a lost node against the cells of its job; an error if one lost too many."""
        self.losses.update(cell.id for cell in job.cells)
        logger.warning("a node was lost; its %d cells go on elsewhere", len(job.cells))
        if max(self.losses[cell.id] for cell in job.cells) < LOSSES:
            return None
        for cell in job.cells:
            del self.losses[cell.id]
        why = str(error).partition("\n")[0] or type(error).__name__
        return KilledError(f"it lost {LOSSES} nodes: {why}")

    def _wait_for_records(self, job: Job) -> None:
        """Waits until the records of a job that ended can be seen here."""
        until = time.monotonic() + RECORD_SECONDS
        while self.without_record(job) and time.monotonic() < until:
            for cell in self.without_record(job):
                if (folder := self.store.folder(cell.id)).is_dir():
                    os.listdir(folder)  # makes a network disk forget that a file was missing
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Cancels what runs and waits for its end, so that nothing is written afterwards."""
        handles = list(self.running)
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(handles, num_returns=len(handles), timeout=CANCEL_SECONDS)
        self.events.shutdown(force=True)


def _task_body() -> Callable[[bytes, Any], str | None]:
    """What a task runs; sent by value, so that a node without this package can say so."""

    def run_on_node(order: bytes, events: Any) -> str | None:
        """Runs a job; returns what this node lacks, if it lacks something."""
        import pickle
        import socket

        node = f"node {socket.gethostname()}"
        try:
            from bench.launch.job import run_job

            missing_here = import_module("bench.launch.ray_cluster").missing_here
            job, config, held, code, heartbeat = pickle.loads(order)
        except (ImportError, AttributeError) as error:
            return f"{node}: this kd-bench is not installed ({error})"
        if missing := missing_here(job, config, code, heartbeat):
            return f"{node}: {missing}"
        run_job(job, config, lambda *event: events.put(event), held)
        return None

    return run_on_node


def missing_here(job: Job, config: WorkerConfig, code: str, heartbeat: Path) -> str | None:
    """What this node lacks to run a job, in words; None if it lacks nothing.

    `code` is the digest of the coordinator's code, `heartbeat` a file that exists while it lives.
    """
    if numerics_digest("methods/*.py") != code:
        return (
            f"the code in {Path(bench.__file__).parent} differs from the coordinator's; install "
            "the same version on every node, and start again"
        )
    if not heartbeat.is_file():
        return f"it does not see {config.store.parent}; put --work-dir on a disk that all share"
    cells = [cell for one in job.cells for cell in (one, one.source) if cell is not None]
    try:
        with plugged(config.plugins):
            pick_device(config.device)
            library = Library(config.data_root, config.cache)
            for spec, wanted in {(cell.data, cell.fingerprint) for cell in cells}:
                if library.fingerprint(spec) != wanted:
                    return (
                        f"its data set {spec.source!r} differs from the coordinator's "
                        f"(data root: {config.data_root}); copy the same files to every node"
                    )
    except (ValueError, OSError) as error:  # no device, no data, or a plugin that fails only here
        return reason(error)
    return None
