"""A stand-in for the parts of Ray that a cluster uses, in one process.

A task runs inside `wait`, on the first node that is alive.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PATIENCE = 200
"""How many times in a row the cluster may find nothing to wait for."""


class NodeDies(BaseException):
    """Raised in a task by a test: its node is gone. Nothing in the training catches it."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


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
            self.error = RayError("The node is dead. It had an id.")
        except Exception as error:  # as Ray does with whatever a task raises
            self.error = RayTaskError(f"in a task of another process: {error}")


class FakeRay(ModuleType):
    """The module. Nodes may be added and killed at any time."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = sys.modules[__name__]
        self.nodes_there: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.submitted: list[Ref] = []
        self.cancelled: list[Ref] = []
        self.before_wait: Callable[[], None] = lambda: None
        self.waited_in_vain = self.shut_down = 0

    def init(self, *where: object, **how: object) -> None:
        pass

    def add_node(self, **resources: float) -> dict[str, Any]:
        self.nodes_there.append({"Alive": True, "Resources": resources})
        return self.nodes_there[-1]

    def nodes(self) -> list[dict[str, Any]]:
        return self.nodes_there

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        self.options = options

        def submit(target: Callable[..., Any], *values: Any) -> Ref:
            self.submitted.append(Ref(lambda: target(*values)))
            return self.submitted[-1]

        return lambda target: SimpleNamespace(remote=lambda *values: submit(target, *values))

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Ref], **how: Any) -> tuple[list[Ref], list[Ref]]:
        self.before_wait()
        for ref in refs:
            if any(node["Alive"] for node in self.nodes_there) and not ref.done:
                ref.run()
            if ref.done:
                return [ref], [other for other in refs if other is not ref]
        self.waited_in_vain += 1
        assert self.waited_in_vain < PATIENCE, "the cluster would wait for ever"
        return [], refs

    def cancel(self, ref: Ref) -> None:
        self.cancelled.append(ref)
        ref.done = True

    def shutdown(self) -> None:
        self.shut_down += 1


@pytest.fixture
def fake_ray(monkeypatch) -> FakeRay:
    """Replaces the package, installed or not."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    return fake
