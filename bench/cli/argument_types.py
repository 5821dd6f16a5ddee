"""Types of command-line options: names, numbers, paths.

Each refuses other text in one line, before anything is read or started.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.seeds import MOST_SEEDS

Number = TypeVar("Number", int, float)
LIMIT = 2**31 - 1
SIDE = re.compile("[1-9][0-9]{0,4}")
SEED = re.compile("[0-9]{1,10}")


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
        try:  # Python reads 1_0 and digits of any script
            value = kind(text) if text.isascii() and "_" not in text else math.nan
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
        ends = [first, last] if dash else [first, first]
        if not all(SEED.fullmatch(end) for end in ends):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted seeds such as 0-4 or 0,2,7")
        found += range(int(ends[0]), min(int(ends[1]), int(ends[0]) + MOST_SEEDS) + 1)
    if not 1 <= len(found) <= MOST_SEEDS or max(found) > LIMIT:
        wanted = f"wanted 1 to {MOST_SEEDS} seeds of at most {LIMIT}"
        raise argparse.ArgumentTypeError(f"got {text!r}, {wanted}")
    return found


def path(text: str) -> Path:
    """A file or a folder, named in UTF-8: records and MLflow keep names as text.

    Empty text, as of an unset variable, would mean the current folder.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path in UTF-8; rename it")
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
    if len(sides) not in (2, 3) or not all(SIDE.fullmatch(s) for s in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a size such as 64x64 or 1x8x8")
    channels, height, width = map(int, ["3", *sides][-3:])
    return channels, height, width
