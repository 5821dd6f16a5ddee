"""A Ray cluster: jobs as tasks on nodes that may join, leave and die in mid-grid.

The coordinator is a driver on one of the nodes. It alone decides what runs again: a task that
raises or whose process dies is taken apart as on one machine, a job whose node was lost goes on
elsewhere from its checkpoints. All nodes share the work directory: Ray carries only small messages.
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
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pydantic import TypeAdapter

from bench.code_version import numerics_digest
from bench.launch.crew import DIED, POLL_SECONDS, Crew
from bench.launch.job import Job, Report, WorkerConfig
from bench.launch.lease import Leases
from bench.launch.share import Done

LOSSES = 3
"""So often a cell may lose its node without an epoch in between, before it is a suspect itself."""

RECORD_SECONDS = 90.0
"""So long a shared disk may take to show the coordinator a record that another node wrote."""

REPLACEMENT_SECONDS = 600.0
"""So long the last good node may take to be replaced, where those that are left cannot train."""

CANCEL_SECONDS = 10.0
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 1024**2
logger = logging.getLogger(__name__)


class ClusterError(ValueError):
    """No cluster, or none that can run this; the message says what is missing and the cure."""


@dataclass(frozen=True)
class Options:
    """Where the cluster is and what a job takes of it.

    Attributes:
        address: "auto" or HOST:PORT; None starts Ray on this machine, and stops it at the end.
        workers: at most so many jobs at once; None for as many as there is room for.
        gpus_per_job: a part of a GPU, or whole ones; only where jobs run on GPUs.
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
            raise ClusterError(
                f"--gpus-per-job: got {gpus:g}, wanted a part such as 0.5, or a whole number"
            )
        if self.address not in (None, "auto"):
            host, _, port = self.address.rpartition(":")
            if not host or "/" in host or not port.isdecimal():
                raise ClusterError(
                    f"--address: got {self.address!r}, wanted auto or HOST:PORT of the cluster's "
                    "head, from one of its nodes"
                )


class RayCluster:
    """A connection to Ray. A context manager: what it started it stops at the end.

    Attributes:
        device: "cpu" or "cuda", what jobs run on; known once entered.
        refused: nodes that are left out -> what they lack.
    """

    def __init__(self, options: Options, device: str, threads: int) -> None:
        """Nothing is connected yet.

        Args:
            options: of the command line.
            device: "cpu", "cuda", or "auto": CUDA if the cluster has a GPU.
            threads: of a job, and so the CPUs that it takes.

        Raises:
            ClusterError: Ray is not installed, or the device is one by number: Ray chooses it.
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
        """Connects, or starts Ray here.

        Raises:
            ClusterError: there is no such cluster, it is of another version, or Ray fails.
        """
        # No reports home, no notes about the next version's defaults.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._before = signal.getsignal(signal.SIGTERM)
        if self.options.address is not None:
            _check_answers(self.options.address)
            # Where something else than Ray listens, a try lasts 40 seconds; Ray would make 20.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
        self._connect()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C; Ray's own handler just exits
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects; stops Ray if it was started here."""
        self._leave()

    def _leave(self) -> None:
        """Undoes what `__enter__` did, and what Ray did with it: its handler of SIGTERM."""
        import ray  # pyright: ignore[reportMissingImports]

        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _connect(self) -> None:
        """Ray's part of it. What it raises here is one line, also a bare `Exception` of its own."""
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        how: dict[str, Any] = {"address": self.options.address}
        if self.options.address is None:
            how = {
                "address": "local", "include_dashboard": False, "num_cpus": self._cpus_here(),
                "object_store_memory": OBJECT_STORE_BYTES,
            }  # fmt: skip
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ClusterError(
                f"--launcher ray: Ray is installed, but cannot be imported: {error}; install it "
                "again with: pip install --force-reinstall 'kd-bench[cluster]'"
            ) from error
        try:
            ray.init(**how, **quiet)
            if self.device == "auto":
                self.device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        except BaseException as error:
            self._leave()  # what it had started by then
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ClusterError(self._no_start(error)) from error

    def _no_start(self, error: BaseException) -> str:
        """What to say of an error of Ray's at its start."""
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if self.options.address is None:
            return (
                f"--launcher ray: Ray does not start on this machine: {reason}; its logs "
                "(/tmp/ray/session_latest/logs) may say more: free memory or wait for CPUs and try "
                "again, or use --launcher local"
            )
        return (
            f"--address {self.options.address}: {reason}; wanted what `ray start --head` said, "
            "and on every node the same Ray, Python, RAY_AUTH_MODE and token"
        )

    def _cpus_here(self) -> int:
        """Of an instance of one's own: room for so many jobs, whatever the machine has."""
        if self.options.workers:
            return self.options.workers * self.threads
        return max(self.threads, len(os.sched_getaffinity(0)))

    @property
    def devices(self) -> list[str]:
        """One entry for every job that the nodes have room for now, but for at least one."""
        return [self.device] * max(1, self.slots())

    def slots(self) -> int:
        """How many jobs the nodes of this moment can run at once."""
        import ray  # pyright: ignore[reportMissingImports]

        fitting = [self._fit(node["Resources"]) for node in ray.nodes() if self._counts(node)]
        return min(sum(fitting), self.options.workers or sum(fitting))

    def lacks(self) -> list[str]:
        """What the nodes of this moment lack that are left out."""
        import ray  # pyright: ignore[reportMissingImports]

        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        return [self.refused[node] for node in alive if node in self.refused]

    def shortage(self) -> str:
        """What a job asks for, and what the largest node of this moment has of it."""
        import ray  # pyright: ignore[reportMissingImports]

        asked = {"CPU": float(self.threads)}
        if self.device == "cuda":
            asked = {"GPU": self.options.gpus_per_job, **asked}
        here = [node["Resources"] for node in ray.nodes() if self._counts(node)]
        amounts = [[resources.get(name, 0.0) for name in asked] for resources in here]
        if not amounts:
            return f"a job asks for {_amounts(asked)}, and there is no node"
        largest = dict(zip(asked, max(amounts), strict=True))
        return f"a job asks for {_amounts(asked)}, the largest node has {_amounts(largest)}"

    def _counts(self, node: dict[str, Any]) -> bool:
        return node["Alive"] and node["NodeID"] not in self.refused

    def _fit(self, resources: dict[str, float]) -> int:
        """How many jobs one node has room for."""
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        by_cpu = int(cpus / self.threads)
        if self.device == "cpu":
            return by_cpu
        each = self.options.gpus_per_job
        by_gpu = int(gpus / each) if each >= 1 else int(gpus) * int(1 / each)
        return min(by_cpu, by_gpu)

    def asks(self, alone: bool) -> dict[str, Any]:
        """The options of a job's task.

        Args:
            alone: whether it gets a GPU to itself.
        """
        wanted: dict[str, Any] = {"num_cpus": self.threads}
        if self.device == "cuda":
            each = self.options.gpus_per_job
            wanted["num_gpus"] = max(1, each) if alone else each
        if self.refused:
            from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
                NodeLabelSchedulingStrategy,
                NotIn,
            )

            others: dict[str, Any] = {"ray.io/node-id": NotIn(*sorted(self.refused))}
            wanted["scheduling_strategy"] = NodeLabelSchedulingStrategy(hard=others)
        return wanted

    def run(
        self,
        jobs: Sequence[Job],
        setting: WorkerConfig,
        devices: Sequence[str],
        report: Report,
        leases: Leases,
    ) -> Generator[Done]:
        """Runs the jobs as tasks; tells of cells as they are done.

        The contract is that of `bench.launch.local.run_processes`, with two more faults. A job
        whose node was lost runs again, from its checkpoints, and is nobody's fault until one cell
        has lost three nodes without an epoch in between. A node that lacks something is named and
        left out.

        Args:
            jobs: in any order.
            setting: where things are, for the coordinator.
            devices: what the jobs were planned for; nodes may have joined or left since.
            report: called after every epoch, in this process.
            leases: of this process, entered.

        Raises:
            ClusterError: no node is left that could run a job.
            OSError: the disk is full or broken.
            LeaseLostError: this process was suspended for so long that others took its cells.
        """
        yield from _Tasks(self, setting, report, leases).run(jobs)


def _check_answers(address: str) -> None:
    """Refuses an address where nobody listens: Ray itself would go on trying for minutes."""
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


def _amounts(resources: dict[str, float]) -> str:
    """{"GPU": 0.5, "CPU": 2} -> "0.5 GPUs and 2 CPUs"."""
    each = (f"{amount:g} {name}{'s' * (amount != 1)}" for name, amount in resources.items())
    return " and ".join(each)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Tasks(Crew[Any]):
    """Tasks of a Ray cluster; their handles are object references."""

    def __init__(
        self, cluster: RayCluster, setting: WorkerConfig, report: Report, leases: Leases
    ) -> None:
        super().__init__(setting, report, leases)
        import ray  # pyright: ignore[reportMissingImports]

        self.cluster, self.ray, self.code = cluster, ray, numerics_digest("methods/*.py")
        self.theirs = _for_nodes(setting, cluster.device)
        self.attempts: dict[Any, str] = {}
        self.begun: set[str] = set()
        self.trained = False
        self.no_room_since: float | None = None
        self.losses: Counter[str] = Counter()
        self.landed: dict[Any, float] = {}
        self.slots = cluster.slots()
        self.events = self._open_events()
        # A process that had a GPU is not used again: it may have lost it, or hold its memory.
        calls = {"max_calls": 1} if cluster.device == "cuda" else {}
        self.task = self.ray.remote(max_retries=0, **calls)(_body())

    def _open_events(self) -> Any:
        """A queue next to the coordinator, whom no lost node takes with it."""
        from ray.util.queue import Queue  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import (  # pyright: ignore[reportMissingImports]
            NodeAffinitySchedulingStrategy,
        )

        here = self.ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": strategy})

    def has_room(self, alone: bool) -> bool:
        if self.cluster.options.workers:
            return len(self.running) < self.cluster.options.workers
        # Beyond what runs now, as many wait in Ray's queue: an autoscaler looks at them.
        return len(self.running) < 2 * max(1, self.slots)

    def submit(self, job: Job, alone: bool) -> Any:
        from bench.launch.ray_worker import Order

        order = Order(job, uuid.uuid4().hex, self.code, self.theirs, self.leases.heart.absolute())
        task = self.task.options(**self.cluster.asks(alone))
        handle = task.remote(TypeAdapter(Order).dump_json(order), self.events)
        self.attempts[handle] = order.attempt
        return handle

    def collect(self) -> Iterator[Done]:
        under_way = [handle for handle in self.running if handle not in self.landed]
        ended: list[Any] = []
        if under_way:
            ended, _ = self.ray.wait(
                under_way, num_returns=1, timeout=POLL_SECONDS, fetch_local=False
            )
        else:
            self.leases.pause(POLL_SECONDS)
        self._show(self.events.get_nowait_batch(self.events.qsize()))
        for handle in ended:
            yield from self._after(handle)
        for handle in list(self.landed):
            yield from self._land(handle)
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        """Waits for nodes to join while none has room, unless those that are there say why not.

        A node that refused a job speaks for the cluster: others would lack the same. Only where
        another one trained before it was lost is there a hope of its like, for a time.
        """
        self.slots = self.cluster.slots()
        if self.slots:
            self.no_room_since = None
        if self.slots or self.landed or not self.running:
            return
        now, lacks = time.monotonic(), self.cluster.lacks()
        waited = 0.0 if self.no_room_since is None else now - self.no_room_since
        if lacks and (not self.trained or waited >= REPLACEMENT_SECONDS):
            raise ClusterError(lacks[0])
        if self.no_room_since is None:
            self.no_room_since = now
            logger.warning(
                "no node has room for a job; waiting for one to join: %s", self.cluster.shortage()
            )

    def _after(self, handle: Any) -> Iterator[Done]:
        """A job's task ended, one way or another."""
        from ray import exceptions  # pyright: ignore[reportMissingImports]

        job, attempt = self.running[handle], self.attempts.pop(handle)
        try:
            refusal = self.ray.get(handle)
        except exceptions.RayError as error:
            del self.running[handle]
            if isinstance(error, exceptions.RayTaskError):
                error.cause.add_note(error.traceback_str)
                yield from self.take_apart(job, error.cause)
            elif isinstance(error, exceptions.OutOfMemoryError):
                yield from self.take_apart(job, MemoryError(str(error)))
            elif isinstance(error, exceptions.WorkerCrashedError):
                yield from self.take_apart(job, RuntimeError(DIED))
            else:
                yield from self._after_loss(job, attempt, error)
            return
        if refusal is None:
            self.landed[handle] = time.monotonic() + RECORD_SECONDS
        else:
            del self.running[handle]
            yield from self._after_refusal(job, *refusal)

    def _after_loss(self, job: Job, attempt: str, error: BaseException) -> Iterator[Done]:
        """A job's node died or cannot be reached: it goes on elsewhere."""
        if attempt in self.begun:  # else Ray sent it to a node that was dead already
            self.losses.update(cell.id for cell in job.cells)
            logger.warning("a node was lost; its %d cells go on elsewhere", len(job.cells))
        if max(self.losses[cell.id] for cell in job.cells) < LOSSES:
            yield from self.put_back(job)
            return
        for cell in job.cells:
            del self.losses[cell.id]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield from self.take_apart(job, RuntimeError(f"it lost {LOSSES} nodes: {reason}"))

    def _after_refusal(self, job: Job, node: str, reason: str) -> Iterator[Done]:
        """A node lacks something: it is left out from here on."""
        if node not in self.cluster.refused:
            self.cluster.refused[node] = reason
            if self.trained or self.cluster.slots():
                logger.warning("%s; going on without that node", reason)
        yield from self.put_back(job)

    def _land(self, handle: Any) -> Iterator[Done]:
        """A job's task is done: gives its cells back once their records can be seen here."""
        job = self.running[handle]
        arrived = all(self._arrived(cell.id) for cell in job.cells)
        if not arrived and time.monotonic() < self.landed[handle]:
            return
        del self.running[handle], self.landed[handle]
        if arrived:
            yield self.share.give_back(job.cells)
        else:
            reason = f"it is done, but left no record in {self.setting.store}"
            yield from self.take_apart(job, RuntimeError(reason))

    def _arrived(self, cell_id: str) -> bool:
        folder = self.store.folder(cell_id)
        if folder.is_dir():
            # A network disk may hold on to the memory that a file is not there; listing its
            # folder makes it look again.
            os.listdir(folder)
        return self.store.read(cell_id) is not None

    def _show(self, events: Sequence[tuple[Any, ...]]) -> None:
        for kind, *values in events:
            if kind == "begin":
                self.begun.add(*values)
            elif kind == "warning":
                logger.warning("%s", *values)
            else:
                self.trained = True
                self.losses.pop(values[0], None)
                self.report(*values)

    def stop(self) -> None:
        """Cancels what runs and waits for its end, so that nobody writes afterwards."""
        handles = list(self.running)
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(handles, num_returns=len(handles), timeout=CANCEL_SECONDS)
        self.events.shutdown(force=True)


def _for_nodes(setting: WorkerConfig, device: str) -> WorkerConfig:
    """The setting as it is told to nodes, whose current folder is another."""

    def absolute(path: Path | None) -> Path | None:
        return path and path.absolute()

    return replace(
        setting, device=device, store=setting.store.absolute(), cache=setting.cache.absolute(),
        data_root=absolute(setting.data_root), checkpoints=absolute(setting.checkpoints),
    )  # fmt: skip


def _body() -> Callable[[bytes, Any], tuple[str, str] | None]:
    """What a task does; made in here, so that it travels by value, not by a name of this module.

    A node without this package can then say so.
    """

    def do_on_node(text: bytes, events: Any) -> tuple[str, str] | None:
        """Does a job; returns the node and why it cannot, if it cannot."""
        import socket

        import ray  # pyright: ignore[reportMissingImports]

        def send(*event: Any) -> None:
            events.put(event)

        node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()
        try:
            from pydantic import TypeAdapter

            from bench.launch.ray_worker import NodeFaultError, Order, run_order

            order = TypeAdapter(Order).validate_json(text)
        except (ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            return node, f"node {host}: it has not this kd-bench ({reason}); install it there"
        try:
            run_order(order, send)
        except NodeFaultError as error:
            return node, f"node {host}: {error}"
        return None

    return do_on_node
