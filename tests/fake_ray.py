"""A stand-in for the parts of Ray that the coordinator uses, in one process.

A task runs inside `wait`, on the first node that is alive. A test makes faults happen through
`on_event`, which sees every event that a task sends before it arrives.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PATIENCE = 200
"""How many times in a row the coordinator may find nothing to wait for."""


class NodeDies(BaseException):
    """Raised in a task by a test: its node is gone. Nothing in the training catches it."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause, self.traceback_str = cause, "in a task of another process"


OutOfMemoryError, WorkerCrashedError, NodeDiedError = (
    type(name, (RayError,), {})
    for name in ("OutOfMemoryError", "WorkerCrashedError", "NodeDiedError")
)


class Ref:
    """A task that has been submitted, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.done = call, False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        self.done = True
        try:
            self.value = self.call()
        except NodeDies:
            self.error = NodeDiedError("the node is dead")
        except RayError as error:
            self.error = error
        except Exception as error:  # as Ray does with whatever a task raises
            self.error = RayTaskError(error)


def as_task(target: Callable[..., Any]) -> SimpleNamespace:
    """What `ray.remote` makes of a function."""
    made = SimpleNamespace(remote=lambda *values: Ref(lambda: target(*values)))
    return SimpleNamespace(options=lambda **options: made)


class FakeRay(ModuleType):
    """The module. Nodes may be added and killed at any time."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = sys.modules[__name__]
        self.nodes_there: list[dict[str, Any]] = []
        self.ran_on: list[str] = []
        self.cancelled: list[Ref] = []
        self.on_event: Callable[..., None] = lambda *event: None
        self.before_wait: Callable[[], None] = lambda: None
        self.waited_in_vain = self.shut_down = 0

    def add_node(self, name: str, **resources: float) -> dict[str, Any]:
        node = {"NodeID": name, "Alive": True, "Resources": resources}
        self.nodes_there.append(node)
        return node

    def nodes(self) -> list[dict[str, Any]]:
        return self.nodes_there

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        return as_task

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Ref], **how: Any) -> tuple[list[Ref], list[Ref]]:
        self.before_wait()
        for ref in refs:
            alive = [node["NodeID"] for node in self.nodes_there if node["Alive"]]
            if alive and not ref.done:
                self.ran_on.append(alive[0])
                ref.run()
            if ref.done:
                return [ref], [other for other in refs if other is not ref]
        self.waited_in_vain += 1
        assert self.waited_in_vain < PATIENCE, "the coordinator would wait for ever"
        return [], refs

    def cancel(self, ref: Ref, force: bool) -> None:
        self.cancelled.append(ref)
        ref.done = True

    def shutdown(self) -> None:
        self.shut_down += 1

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: "head")


@pytest.fixture
def fake_ray(monkeypatch) -> FakeRay:
    """Replaces the package, installed or not."""
    fake = FakeRay()

    class Queue:
        def __init__(self, **options: Any) -> None:
            self.events: list[Any] = []

        def put(self, event: tuple[Any, ...]) -> None:
            fake.on_event(*event)
            self.events.append(event)

        def qsize(self) -> int:
            return len(self.events)

        def get_nowait_batch(self, count: int) -> list[Any]:
            batch, self.events = self.events[:count], self.events[count:]
            return batch

        def shutdown(self, force: bool) -> None:
            pass

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.queue", SimpleNamespace(Queue=Queue))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return fake
