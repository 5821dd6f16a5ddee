"""Checks of arguments that losses and methods share; each error is one line."""

import math
from collections.abc import Sequence

from torch import Tensor


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    """ValueError, in the name of `function`, for tensors that would broadcast to another loss."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} "
            "need one shape; put a connector on the student"
        )


def same_batch(function: str, student: Tensor, teacher: Tensor) -> None:
    """ValueError, in the name of `function`, for tensors that are not embeddings of one batch."""
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"{function}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must "
            "be embeddings (B, D) and (B, E) of the same batch"
        )


def one_of(where: str, name: str, value: object, allowed: Sequence[object]) -> None:
    """ValueError if argument `name` of `where`, a method or function, is no allowed choice."""
    if value not in allowed:
        known = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{where}: {name} {value!r} must be one of {known}")


def between(where: str, low: float, high: float, **values: float) -> None:
    """ValueError for the first argument that is NaN or outside the open interval (low, high)."""
    for name, value in values.items():
        if not low < value < high:
            wanted = f"above {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise ValueError(f"{where}: {name} {value} must be {wanted}")


def above_zero(where: str, **values: float) -> None:
    """ValueError for the first argument that is not above 0 and finite; see `between`."""
    between(where, 0.0, math.inf, **values)


def weights(where: str, **values: float) -> None:
    """ValueError unless all of these weights of terms are at least 0, and one of them above."""
    if min(values.values()) < 0 or not any(values.values()):
        given = " and ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(f"{where}: {given} must be at least 0, and one of them above")
