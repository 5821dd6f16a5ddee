"""A Ray cluster: jobs as tasks on nodes that may join, leave and die while a grid trains.

All nodes share the work directory, so that Ray carries only jobs and events. The coordinator is a
driver on one of the nodes. It alone decides what runs again: a task that raises, or loses its
process, is treated as on one machine; a job that lost its node goes on elsewhere from its
checkpoints.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from bench.code_version import numerics_digest
from bench.faults import UserError
from bench.launch.job import Job, Report, WorkerConfig
from bench.launch.launcher import POLL_SECONDS, Done, Launcher
from bench.launch.leases import Leases
from bench.launch.resources import usable_cpus

LOSSES = 3
"""How many times a cell may lose its node, with no epoch completed in between, before it counts as
the cause."""

RECORD_SECONDS = 90.0
"""How long a shared disk may take to show a record that another node wrote."""

CANCEL_SECONDS = 10.0
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 1024**2
DIED = "its process died twice: killed, or out of memory"
logger = logging.getLogger(__name__)


class ClusterError(UserError):
    """No cluster, or none that can run the grid; one line with the cure."""


@dataclass(frozen=True)
class Options:
    """Where the cluster is, and what a job takes of it.

    Attributes:
        address: "auto" or HOST:PORT; None starts Ray on this machine, and stops it at the end.
        workers: the most jobs at once; None for as many as the nodes hold.
        gpus_per_job: a part of a GPU or whole ones; ignored where jobs run on CPUs.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_job: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what Ray would refuse later, less clearly."""
        if self.workers is not None and self.workers < 1:
            raise ClusterError(f"--workers: got {self.workers}, wanted 1 or more")
        gpus = self.gpus_per_job
        if not (0 < gpus <= 1 or (gpus > 1 and float(gpus).is_integer())):
            wanted = "wanted a part such as 0.5, or a whole number"
            raise ClusterError(f"--gpus-per-job: got {gpus:g}, {wanted}")
        host, _, port = (self.address or "auto").rpartition(":")
        if self.address not in (None, "auto") and not (
            host and port.isdecimal() and "/" not in host
        ):
            wanted = "wanted auto or HOST:PORT of the cluster's head, from one of its nodes"
            raise ClusterError(f"--address: got {self.address!r}, {wanted}")


class RayCluster:
    """A connection to Ray. A context manager: it stops at the end what it started.

    Attributes:
        device: "cpu" or "cuda", what jobs run on; known once entered.
        refused: id of a node that is left out -> what the node lacks.
    """

    def __init__(self, options: Options, device: str, threads: int) -> None:
        """Connects to nothing yet.

        Args:
            options: of the command line.
            device: "cpu", "cuda", or "auto": CUDA if the cluster has a GPU.
            threads: of a job, and so the CPUs that it takes.

        Raises:
            ClusterError: Ray is not installed, or the device has a number: Ray chooses it.
        """
        if importlib.util.find_spec("ray") is None:
            raise ClusterError(
                "--launcher ray needs Ray; install it with: pip install 'kd-bench[cluster]'"
            )
        if device not in ("auto", "cpu", "cuda"):
            raise ClusterError(f"--device: got {device!r}, wanted auto, cpu or cuda with Ray")
        self.options, self.device, self.threads = options, device, threads
        self.refused: dict[str, str] = {}

    def __enter__(self) -> RayCluster:
        """Connects to Ray, or starts it here.

        Raises:
            ClusterError: there is no such cluster, it is of another version, or Ray fails.
        """
        import ray  # pyright: ignore[reportMissingImports]

        # No reports home, no notes about the next version's defaults.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._before = signal.getsignal(signal.SIGTERM)
        where: dict[str, Any] = {"address": self.options.address}
        if self.options.address is not None:
            _check_answers(self.options.address)
        else:
            jobs = self.options.workers or max(1, usable_cpus() // self.threads)
            where = {
                "address": "local", "include_dashboard": False, "num_cpus": jobs * self.threads,
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            if self.device == "auto":
                self.device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        except BaseException as error:  # Ray raises bare `Exception` here, too
            self.__exit__()
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ClusterError(self._why_not(error)) from error
        if threading.current_thread() is threading.main_thread():
            # As Ctrl-C. Ray's own handler ends the process at once.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnects; stops Ray if it was started here."""
        import ray  # pyright: ignore[reportMissingImports]

        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _why_not(self, error: BaseException) -> str:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if self.options.address is None:
            return (
                f"--launcher ray: Ray does not start on this machine: {reason}; free memory or "
                "CPUs and try again, or use --launcher local"
            )
        return (
            f"--address {self.options.address}: {reason}; wanted what `ray start --head` said, "
            "and on every node the same Ray, Python, RAY_AUTH_MODE and token"
        )

    @property
    def devices(self) -> list[str]:
        """One entry for every job that the nodes have room for now, at least one."""
        return [self.device] * max(1, self.slots())

    def slots(self) -> int:
        """How many jobs the nodes can run at once now."""
        fitting = sum(self._fit(node["Resources"]) for node in self.nodes())
        return min(fitting, self.options.workers or fitting)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive and not left out, as Ray describes them."""
        import ray  # pyright: ignore[reportMissingImports]

        return [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in self.refused]

    def _fit(self, resources: dict[str, float]) -> int:
        """How many jobs one node has room for."""
        by_cpu = int(resources.get("CPU", 0.0) / self.threads)
        if self.device == "cpu":
            return by_cpu
        gpus, each = resources.get("GPU", 0.0), self.options.gpus_per_job
        by_gpu = int(gpus / each) if each >= 1 else int(gpus) * int(1 / each)
        return min(by_cpu, by_gpu)

    def task_options(self, alone: bool) -> dict[str, Any]:
        """Ray's options of a job's task.

        Args:
            alone: whether it gets a whole GPU.
        """
        options: dict[str, Any] = {"num_cpus": self.threads}
        if self.device == "cuda":
            each = self.options.gpus_per_job
            options["num_gpus"] = max(1, each) if alone else each
        if self.refused:
            from ray.util import scheduling_strategies as strategies  # pyright: ignore

            others: dict[str, Any] = {"ray.io/node-id": strategies.NotIn(*sorted(self.refused))}
            options["scheduling_strategy"] = strategies.NodeLabelSchedulingStrategy(hard=others)
        return options

    def run(
        self,
        jobs: Sequence[Job],
        config: WorkerConfig,
        devices: Sequence[str],
        report: Report,
        leases: Leases,
    ) -> Generator[Done]:
        """Runs jobs as tasks, and yields cells as they are done.

        The contract and the arguments are those of `bench.launch.workers.run_processes`, with two
        more faults. A job that loses its node runs again from its checkpoints; that is no cell's
        fault until a cell has lost `LOSSES` nodes with no epoch completed in between. A node that
        lacks something is named and left out. `devices` says what jobs were planned for; nodes may
        have joined or left since.

        Raises:
            ClusterError: every node is left out.
            OSError: the disk is full or broken.
            LeaseLostError: this process was suspended, and another command took its cells.
        """
        yield from _Tasks(self, config, report, leases).run(jobs)


def _check_answers(address: str) -> None:
    """Refuses an address where nobody listens. Ray itself would try again for minutes."""
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = place.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"--address {address}: nobody answers at {place} ({error.strerror or error}); wanted "
            "what `ray start --head` said on the cluster's head"
        ) from None


class _Tasks(Launcher[Any]):
    """Jobs as Ray tasks; a handle is the reference to a task's result."""

    def __init__(
        self, cluster: RayCluster, config: WorkerConfig, report: Report, leases: Leases
    ) -> None:
        super().__init__(config, report, leases)
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.queue import Queue  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            NodeAffinitySchedulingStrategy,
        )

        self.cluster, self.ray, self.code = cluster, ray, numerics_digest("methods/*.py")
        # A task's current folder is another one.
        names = ("store", "cache", "data_root", "checkpoints")
        paths = {
            name: path and path.absolute() for name in names if (path := getattr(config, name))
        }
        self.node_config = replace(config, device=cluster.device, **paths)
        self.attempts: dict[Any, str] = {}
        self.begun: set[str] = set()
        self.losses: Counter[str] = Counter()
        self.deadlines: dict[Any, float] = {}
        self.slots, self.waits_for_nodes = cluster.slots(), False
        # On this node, so that no other node takes it along when it dies.
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        self.events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": strategy})
        # A process that had a GPU is not used again: it may have lost it, or hold its memory.
        calls = {"max_calls": 1} if cluster.device == "cuda" else {}
        self.task = ray.remote(max_retries=0, **calls)(_task_body())

    def has_room(self) -> bool:
        if self.cluster.options.workers:
            return len(self.running) < self.cluster.options.workers
        # As many jobs again wait in Ray's queue, for an autoscaler to see.
        return len(self.running) < 2 * max(1, self.slots)

    def submit(self, job: Job, alone: bool) -> Any:
        from bench.launch.ray_worker import Order

        attempt, heartbeat = uuid.uuid4().hex, self.leases.heart.absolute()
        order = Order(job, attempt, self.code, self.node_config, heartbeat)
        task = self.task.options(**self.cluster.task_options(alone))
        handle = task.remote(TypeAdapter(Order).dump_json(order), self.events)
        self.attempts[handle] = attempt
        return handle

    def collect(self) -> Iterator[Done]:
        under_way = [handle for handle in self.running if handle not in self.deadlines]
        ended: list[Any] = []
        if under_way:
            ended, _ = self.ray.wait(under_way, timeout=POLL_SECONDS, fetch_local=False)
        else:
            self.leases.pause(POLL_SECONDS)
        for kind, *values in self.events.get_nowait_batch(self.events.qsize()):
            if kind == "begin":
                self.begun.add(*values)
            else:
                self.losses.pop(values[0], None)
                self.report(*values)
        for handle in ended:
            yield from self._after_task(handle)
        for handle in list(self.deadlines):
            yield from self._after_record(handle)
        self._look_at_nodes()

    def _after_task(self, handle: Any) -> Iterator[Done]:
        from ray import exceptions  # pyright: ignore[reportMissingImports]

        attempt, job = self.attempts.pop(handle), self.running[handle]
        try:
            refusal = self.ray.get(handle)
        except exceptions.RayTaskError as error:
            error.cause.add_note(error.traceback_str)
            failure: BaseException | None = error.cause
        except exceptions.OutOfMemoryError as error:
            failure = MemoryError(str(error))
        except exceptions.WorkerCrashedError:
            failure = RuntimeError(DIED)
        except exceptions.RayError as error:  # the node died, or cannot be reached
            failure = self._count_loss(job, attempt, error)
        else:
            if refusal is None:
                self.deadlines[handle] = time.monotonic() + RECORD_SECONDS
                return
            node, reason = refusal
            if node not in self.cluster.refused:
                logger.warning("%s; going on without this node", reason)
            self.cluster.refused[node], failure = reason, None
        del self.running[handle]
        yield from self.after_loss(job) if failure is None else self.after_end(job, failure)

    def _count_loss(self, job: Job, attempt: str, error: BaseException) -> BaseException | None:
        """Counts a lost node against the cells that ran there; an error if one lost too many."""
        if attempt in self.begun:  # otherwise Ray sent it to a node that was dead already
            self.losses.update(cell.id for cell in job.cells)
            logger.warning("a node was lost; its %d cells go on elsewhere", len(job.cells))
        if max(self.losses[cell.id] for cell in job.cells) < LOSSES:
            return None
        for cell in job.cells:
            del self.losses[cell.id]
        reason = str(error).partition("\n")[0] or type(error).__name__
        return RuntimeError(f"it lost {LOSSES} nodes: {reason}")

    def _after_record(self, handle: Any) -> Iterator[Done]:
        """Ends a job once its records can be seen here, or when they should have been."""
        job = self.running[handle]
        for cell in job.cells:
            if (folder := self.store.folder(cell.id)).is_dir():
                os.listdir(folder)  # makes a network disk forget that a file was missing
        seen = all(self.store.read(cell.id) is not None for cell in job.cells)
        if seen or time.monotonic() >= self.deadlines[handle]:
            del self.running[handle], self.deadlines[handle]
            yield from self.after_end(job)

    def _look_at_nodes(self) -> None:
        """Says once that jobs wait for a node; ends the run if every node is left out."""
        self.slots = self.cluster.slots()
        waits = not self.slots and not self.deadlines and bool(self.running or self.waiting)
        if waits and self.cluster.refused and not self.cluster.nodes():
            raise ClusterError(next(iter(self.cluster.refused.values())))
        if waits and not self.waits_for_nodes:
            gpus = f"{self.cluster.options.gpus_per_job:g} GPU and "
            logger.warning(
                "no node has room for a job, which asks for %s%d CPU; waiting for one to join",
                gpus if self.cluster.device == "cuda" else "", self.cluster.threads,
            )  # fmt: skip
        self.waits_for_nodes = waits

    def stop(self) -> None:
        """Cancels what runs and waits for its end, so that nothing is written afterwards."""
        handles = list(self.running)
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(handles, num_returns=len(handles), timeout=CANCEL_SECONDS)
        self.events.shutdown(force=True)


def _task_body() -> Callable[[bytes, Any], tuple[str, str] | None]:
    """What a task runs. Defined in a function, so that Ray sends it by value.

    A node without this package can then say so.
    """

    def run_on_node(text: bytes, events: Any) -> tuple[str, str] | None:
        """Runs a job; returns the node's id and what it lacks, if it lacks something."""
        import socket

        import ray  # pyright: ignore[reportMissingImports]

        node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()
        try:
            from pydantic import TypeAdapter

            from bench.launch.ray_worker import NodeFaultError, Order, run_order

            order = TypeAdapter(Order).validate_json(text)
        except (ImportError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            return node, f"node {host}: this kd-bench is not installed ({reason})"
        try:
            run_order(order, lambda *event: events.put(event))
        except NodeFaultError as error:
            return node, f"node {host}: {error}"
        return None

    return run_on_node
