"""Checks of arguments that losses and methods share; each error is one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    """Refuses tensors that would broadcast and so give another loss.

    Args:
        function: the caller's name, for the message.
        student: any shape.
        teacher: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} "
            "need one shape; put a connector on the student"
        )


def one_of(where: str, name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuses an unknown choice.

    Args:
        where: the method's or function's name, for the message.
        name: the argument's name.
        value: its value.
        allowed: the known choices.

    Raises:
        ValueError: `value` is not one of `allowed`.
    """
    if value not in allowed:
        known = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{where}: {name} {value!r} must be one of {known}")


def between(where: str, low: float, high: float, **values: float) -> None:
    """Refuses NaN and numbers outside the open interval (low, high).

    Args:
        where: the method's or function's name, for the message.
        low: lower bound, excluded.
        high: upper bound, excluded.
        **values: name -> number.

    Raises:
        ValueError: a number is outside; names the first one.
    """
    for name, value in values.items():
        if not low < value < high:
            wanted = f"above {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise ValueError(f"{where}: {name} {value} must be {wanted}")


def above_zero(where: str, **values: float) -> None:
    """Refuses numbers that are not above 0 and finite; see `between`."""
    between(where, 0.0, math.inf, **values)
