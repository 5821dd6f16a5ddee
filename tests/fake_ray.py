"""As much of Ray as the coordinator speaks to, in one process: faults happen when a test says so.

A task runs inside `wait`. A node that dies does so in the middle of a report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

VAIN = 200
"""So often in a row nothing may be there to wait for; it takes no time here."""


class NodeDies(BaseException):
    """Stands for the end of a node: nothing in the training catches it."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause, self.traceback_str = cause, "in a task of another process"


class OutOfMemoryError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class NodeDiedError(RayError):
    pass


class Ref:
    """A promise: a call that is still to be made, or what came of it."""

    def __init__(self, call: Callable[[], Any], asked: dict[str, Any]) -> None:
        self.call, self.asked = call, asked
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False

    def may_run_on(self, node: dict[str, Any]) -> bool:
        """Whether the node lives and is none of those that the task shuns."""
        _, _, asked = self.asked.get("scheduling_strategy", ("", (), {}))
        _, shunned, _ = asked.get("hard", {}).get("ray.io/node-id", ("NotIn", (), {}))
        return node["Alive"] and node["NodeID"] not in shunned

    def run(self) -> Ref:
        if self.done:
            return self
        self.done = True
        try:
            self.value = self.call()
        except NodeDies:
            self.error = NodeDiedError("the node is dead")
        except RayError as error:
            self.error = error
        except Exception as error:
            self.error = RayTaskError(error)
        return self


class Remote:
    """What `ray.remote` makes of a function, of a class, or of an object's method."""

    def __init__(self, target: Any, eager: bool = False, **asked: Any) -> None:
        self.target, self.eager, self.asked = target, eager, asked

    def options(self, **asked: Any) -> Remote:
        if "max_calls" in asked:
            raise ValueError("Setting 'max_calls' is not supported in '.options()'.")
        return Remote(self.target, self.eager, **{**self.asked, **asked})

    def remote(self, *values: Any) -> Any:
        if isinstance(self.target, type):
            return Actor(self.target(*values))
        ref = Ref(lambda: self.target(*values), self.asked)
        return ref.run() if self.eager else ref


class Actor:
    def __init__(self, inside: object) -> None:
        self.inside = inside

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self.inside, name), eager=True)


class FakeRay(ModuleType):
    """The module. `nodes_there` may change at any time; the first one that may runs a task."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = sys.modules[__name__]
        self.nodes_there: list[dict[str, Any]] = []
        self.tasks: list[Ref] = []
        self.cancelled: list[Ref] = []
        self.killed: list[Actor] = []
        self.here = "where the coordinator runs"
        self.waited_in_vain = self.shut_down = 0

    def add_node(self, name: str, **resources: float) -> None:
        self.nodes_there.append({"NodeID": name, "Alive": True, "Resources": resources})

    def nodes(self) -> list[dict[str, Any]]:
        return self.nodes_there

    def remote(self, target: Any = None, **asked: Any) -> Any:
        return Remote(target, **asked) if target else lambda target: Remote(target, **asked)

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def wait(self, refs: list[Ref], **how: Any) -> tuple[list[Ref], list[Ref]]:
        for ref in refs:
            node = next(filter(ref.may_run_on, self.nodes_there), None)
            if node is not None and not ref.done:
                self.here = node["NodeID"]
                self.tasks.append(ref.run())
            if ref.done:
                return [ref], [other for other in refs if other is not ref]
        self.waited_in_vain += 1
        assert self.waited_in_vain < VAIN, "the coordinator would wait for ever"
        return [], refs

    def cancel(self, ref: Ref, force: bool) -> None:
        self.cancelled.append(ref)
        ref.done = True

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)

    def shutdown(self) -> None:
        self.shut_down += 1

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: self.here)


@pytest.fixture
def fake_ray(monkeypatch) -> FakeRay:
    """Stands in for the package, installed or not."""
    fake = FakeRay()
    names = ("NodeAffinitySchedulingStrategy", "NodeLabelSchedulingStrategy", "NotIn")
    strategies = SimpleNamespace(**{name: _keep(name) for name in names})
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return fake


def _keep(name: str) -> Callable[..., Any]:
    return lambda *values, **words: (name, values, words)
