"""Types of command-line options: names, numbers, paths.

Each refuses other text in one line, before anything is read or started.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)
LIMIT = 2**31 - 1


def names(text: str) -> list[str]:
    """Names between commas, at least one: none at all would mean all of them.

    Example:
        >>> names("fsp, rkd,")
        ['fsp', 'rkd']
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, which names nothing; leave the option out for all that the grid has"
        )
    return found


def number(
    kind: type[Number], at_least: float, at_most: float = math.inf
) -> Callable[[str], Number]:
    """The type of a finite number from `at_least` to `at_most`, both included.

    Returns:
        A function that reads the number. It raises argparse.ArgumentTypeError for other text.

    Example:
        >>> number(float, at_least=0)("2.5")
        2.5
        >>> number(int, at_least=1)("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: got '0', wanted a whole number of at least 1
    """
    wanted = f"a {'whole' if kind is int else 'finite'} number of at least {at_least:g}"
    wanted += f" and at most {at_most:g}" if at_most < math.inf else ""

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not at_least <= value <= at_most or abs(value) > LIMIT:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
        return kind(value)

    return read


def seeds(text: str) -> list[int]:
    """Seeds and ranges of seeds between commas.

    Example:
        >>> seeds("0-2,7")
        [0, 1, 2, 7]
    """
    found: list[int] = []
    for part in names(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted seeds such as 0-4 or 0,2,7")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, which names no seed")
    return found


def path(text: str) -> Path:
    """A file or a folder. Empty text, as of an unset variable, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path; . is the current folder")
    return Path(text)


def image_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width.

    Example:
        >>> image_shape("64x96"), image_shape("1x8x8")
        ((3, 64, 96), (1, 8, 8))
    """
    sides = text.lower().split("x")
    if len(sides) not in (2, 3) or not all(s.isdecimal() and 0 < int(s) <= LIMIT for s in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a size such as 64x64 or 1x8x8")
    channels, height, width = map(int, ["3", *sides][-3:])
    return channels, height, width
