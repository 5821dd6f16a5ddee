"""A Ray cluster: nodes that train a grid together, and may join, leave and die meanwhile.

Ray only starts a command on each node. All nodes share the work directory, in which leases decide
who trains which cell, as in a job array; cells of a lost node go on elsewhere from checkpoints.
"""

import importlib.util
import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from bench.code_version import numerics_digest
from bench.faults import UserError, reason
from bench.launch.job import Job, Report, WorkerConfig
from bench.launch.launcher import Done
from bench.launch.leases import Leases
from bench.record import Store

LOSSES = 5
"""Nodes that may be lost before a cell is finished; one more is taken for the fault of a cell."""

POLL_SECONDS = 2.0
CANCEL_SECONDS = 30.0  # more than workers may take for a last checkpoint
logger = logging.getLogger(__name__)


class ClusterError(UserError):
    """No cluster, or none that can run the grid; one line with the cure."""


@dataclass
class RayCluster:
    """A connection to the Ray cluster of this node, or of RAY_ADDRESS. A context manager.

    Attributes:
        workers: the most jobs at once; None for as many as the nodes hold.
        gpus_per_job: a part of a GPU or whole ones; ignored where jobs run on CPUs.
        device: "cpu", "cuda", or "auto": CUDA if the cluster has a GPU, known once entered.
        threads: of a job, and so the CPUs that it takes.
    """

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
        # No reports home, no notes about the next version's defaults.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Otherwise Ray tries for a quarter of an hour to reach a head that is not there.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
        ray = import_module("ray")
        self._before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
            if self.device == "auto":
                self.device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        except BaseException as error:  # Ray raises bare `Exception` here, too
            self.__exit__()
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ClusterError(
                f"--launcher ray: {reason(error).rstrip('.')}; start it on a node of the cluster; "
                "all nodes need the same Ray, Python and RAY_AUTH_TOKEN (see: ray status)"
            ) from error
        # The command's handler again. Ray's own ends the process at once.
        signal.signal(signal.SIGTERM, self._before)
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnects."""
        import_module("ray").shutdown()
        signal.signal(signal.SIGTERM, self._before)

    def slots(self) -> int:
        """How many jobs the nodes can run at once now."""
        fitting = 0
        for node in import_module("ray").nodes():
            resources = node["Resources"] if node["Alive"] else {}
            jobs = int(resources.get("CPU", 0.0) / self.threads)
            if self.device == "cuda":
                gpus, each = resources.get("GPU", 0.0), self.gpus_per_job
                jobs = min(jobs, int(gpus / each) if each >= 1 else int(gpus) * int(1 / each))
            fitting += jobs
        return min(fitting, self.workers or fitting)


class NodeCommands:
    """One command on every node, and the cells that they finish."""

    def __init__(
        self,
        cluster: RayCluster,
        train: Callable[[], None],
        config: WorkerConfig,
        report: Report,
        leases: Leases,
    ) -> None:
        """`train` trains what no other command does. It is pickled; the cluster is entered.

        Epochs are not reported, only cells that are done.
        """
        ray = self.ray = import_module("ray")
        self.cluster, self.store = cluster, Store(config.store)
        code, heart = numerics_digest("methods/*.py"), leases.heart.absolute()
        self.order = pickle.dumps(train), code, heart
        # A process is not used again: it may hold a GPU's memory, or half of an import.
        options: dict[str, Any] = {"max_calls": 1, "max_retries": 0, "num_cpus": cluster.threads}
        if cluster.device == "cuda":
            options["num_gpus"] = cluster.gpus_per_job
        self.task = ray.remote(**options)(_task_body())
        self.running: list[Any] = []
        self.losses = 0

    def run(self, jobs: Sequence[Job]) -> Generator[Done]:
        """Yields cells as they are done. The commands end with it, whatever ends it.

        ClusterError if a node lacks the code, the data or the directory, or nodes are lost again
        and again.
        """
        waiting = [cell for job in jobs for cell in job.cells]
        if waiting and not self.cluster.slots():
            logger.warning("no node has room for a job now; waiting for one (see: ray status)")
        try:
            while waiting:
                # Twice as many as fit, so that an autoscaler sees some waiting.
                most = self.cluster.workers or 2 * max(1, self.cluster.slots())
                while len(self.running) < min(most, len(waiting)):
                    self.running.append(self.task.remote(*self.order))
                ended, _ = self.ray.wait(self.running, timeout=POLL_SECONDS, fetch_local=False)
                for handle in ended:
                    self.running.remove(handle)
                    self._check(handle)
                if done := [cell for cell in waiting if self.store.read(cell.id) is not None]:
                    self.losses = 0
                    waiting = [cell for cell in waiting if cell not in done]
                    yield Done(tuple(done))
        finally:
            self._stop()

    def _check(self, handle: Any) -> None:
        """Looks how a command ended; ClusterError if no other would do better."""
        exceptions = import_module("ray.exceptions")
        try:
            fault = self.ray.get(handle)
        except exceptions.RayTaskError:  # a fault of the program, with the node's traceback
            raise
        except exceptions.RayError as error:  # the node or the process died
            self.losses += 1
            logger.warning("a node or its process was lost; its cells go on elsewhere")
            why = reason(error).partition(". ")[0]
            fault = f"{self.losses} nodes were lost, and no cell finished meanwhile: {why}"
            fault = fault if self.losses > LOSSES else None
        if fault is not None:
            raise ClusterError(fault)

    def _stop(self) -> None:
        """Interrupts what runs and waits for last checkpoints: nothing is written afterwards."""
        for handle in self.running:
            self.ray.cancel(handle)
        if self.running:
            self.ray.wait(self.running, num_returns=len(self.running), timeout=CANCEL_SECONDS)


def _task_body() -> Callable[[bytes, str, Path], str | None]:
    """What a task runs; sent by value, so that a node without this package can say so."""

    def train_on_node(train: bytes, code: str, heartbeat: Path) -> str | None:
        """Runs a pickled function; returns what the user has to mend on this node, if anything.

        `code` is the digest of the driver's code, `heartbeat` a file that the driver writes.
        """
        # A node that a script starts in the background ignores the signal by which Ray cancels.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        node = f"node {socket.gethostname()}"
        try:
            from bench.code_version import ROOT, numerics_digest
            from bench.faults import UserError, reason

            if numerics_digest("methods/*.py") != code:
                return (
                    f"{node}: the code in {ROOT} differs from that of the command's own node; "
                    "install the same version on every node, and start again"
                )
            run = pickle.loads(train)
        except (ImportError, AttributeError) as error:
            return f"{node}: this kd-bench is not installed ({error})"
        if not heartbeat.is_file():
            folder = heartbeat.parents[2]
            return f"{node}: it does not see {folder}; put --work-dir on a disk that all share"
        try:
            run()
        except (UserError, OSError) as error:
            return f"{node}: {reason(error)}"
        return None

    return train_on_node
