"""What every loss and every plan refuses, with one clear line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    """Refuses tensors that would broadcast: the loss would silently be another one.

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
    """Refuses a switch in a position that it does not have.

    Args:
        where: the method's or function's name, for the message.
        name: the switch's name.
        value: what came.
        allowed: what may come.

    Raises:
        ValueError: `value` is none of `allowed`.
    """
    if value not in allowed:
        known = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{where}: {name} {value!r} is none of {known}")


def between(where: str, low: float, high: float, **values: float) -> None:
    """Refuses numbers outside the open interval (low, high), NaN among them.

    Args:
        where: the method's or function's name, for the message.
        low: not allowed itself.
        high: not allowed itself.
        **values: name -> number.

    Raises:
        ValueError: naming the first number outside.
    """
    for name, value in values.items():
        if not low < value < high:
            wanted = f"above {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise ValueError(f"{where}: {name} {value} must be {wanted}")


def above_zero(where: str, **values: float) -> None:
    """Refuses numbers that are not finite and above 0; see `between`."""
    between(where, 0.0, math.inf, **values)
