"""Losses in two forms: the textbook one, and the fast one that equals it to rounding.

`@has_reference` on a loss is the one place that says so. The fast form runs, unless a method was
put through `in_reference_form` to measure what the fast form is worth. The form is no
hyper-parameter: it changes no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor, nn

from bench.method import Method, Pair, Transfer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_textbook: ContextVar[bool] = ContextVar("textbook", default=False)


class Forms(NamedTuple):
    """One loss in two forms, equal to rounding in value and gradient.

    Attributes:
        fast: what runs by default.
        reference: the textbook form, with the same signature.
    """

    fast: Callable[..., Tensor]
    reference: Callable[..., Tensor]


def has_reference(loss: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Marks a loss as the fast form of its module's function `<name>_reference`.

    Example:
        >>> def total_reference(numbers):
        ...     return "textbook"
        >>> @has_reference
        ... def total(numbers):
        ...     return "fast"
        >>> total([1, 2])
        'fast'
        >>> with reference_forms():
        ...     total([1, 2])
        'textbook'
    """

    @wraps(loss)
    def either(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return (_reference_of(loss) if _textbook.get() else loss)(*args, **kwargs)

    vars(either)["has_reference"] = True
    return either


def _reference_of(loss: Any) -> Any:
    # Looked up when it is asked for, so that the fast form, with the documentation, stands first.
    return loss.__globals__[f"{loss.__name__}_reference"]


def two_forms(module: ModuleType) -> dict[str, Forms]:
    """A module's own losses of two forms, by name.

    Example:
        >>> from methods import rkd
        >>> sorted(two_forms(rkd))
        ['rkd_angle_loss', 'rkd_distance_loss']
    """
    return {
        name: Forms(loss.__wrapped__, _reference_of(loss.__wrapped__))
        for name, loss in vars(module).items()
        if "has_reference" in getattr(loss, "__dict__", ()) and loss.__module__ == module.__name__
    }


@contextmanager
def reference_forms() -> Iterator[None]:
    """Inside, in this thread, losses of two forms run in their textbook form."""
    before = _textbook.set(True)
    try:
        yield
    finally:
        _textbook.reset(before)


def in_reference_form(method: Method) -> Method:
    """The method with every loss in its textbook form: the same numbers, at the textbook's cost."""
    plan = tuple(
        replace(
            stage,
            transfer=stage.transfer and _in_reference_form(stage.transfer),
            beside=stage.beside and _in_reference_form(stage.beside),
        )
        for stage in method.plan
    )
    return replace(method, plan=plan)


def _in_reference_form(transfer: Transfer) -> Transfer:
    def textbook(pair: Pair, connector: nn.Module) -> Tensor:
        with reference_forms():
            return transfer(pair, connector)

    return textbook
