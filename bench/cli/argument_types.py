"""Types of command-line options: names, numbers, paths.

Each refuses other text in one line, before anything is read or started.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


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
    *, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """The type of a finite number.

    Args:
        at_least: the smallest number that is accepted.
        above: a lower bound that is not accepted itself.
        below: an upper bound that is not accepted itself.

    Returns:
        A function that reads the number. It raises argparse.ArgumentTypeError for other text.

    Example:
        >>> number(at_least=0)("2.5")
        2.5
        >>> number(above=0, below=1)("nan")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: got 'nan', wanted a finite number above 0 and below 1
    """
    bounds = {"of at least": at_least, "above": above, "below": below}
    said = [f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound)]
    wanted = " ".join(["a finite number", " and ".join(said)]).strip()

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= at_least and above < value < below):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
        return value

    return read


def integer(*, at_least: int, at_most: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of a whole number from `at_least` to `at_most`.

    Example:
        >>> integer(at_least=1)("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: got '0', wanted a whole number of at least 1
    """
    most = "" if at_most == 2**31 - 1 else f" and at most {at_most}"

    def read(text: str) -> int:
        if not text.isdecimal() or not at_least <= int(text) <= at_most:
            wanted = f"a whole number of at least {at_least}{most}"
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
        return int(text)

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


def auto_or_integer(text: str) -> int | None:
    """None for "auto", or a whole number of at least 1."""
    return None if text == "auto" else integer(at_least=1)(text)


def path(text: str) -> Path:
    """A file or a folder. Empty text, as of an unset variable, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path; . is the current folder")
    return Path(text)
