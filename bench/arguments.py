"""What the options of every command accept, as argparse types: names, numbers, paths.

Text that is none of it is refused here, in one line, before anything is read or started.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def parts(text: str) -> list[str]:
    """What lies between commas.

    Example:
        >>> parts("fsp, rkd,")
        ['fsp', 'rkd']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def names(text: str) -> list[str]:
    """Names with commas between them.

    Raises:
        argparse.ArgumentTypeError: there is none, which would stand for all of them.
    """
    found = parts(text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, which names nothing; leave the option out for all that the grid has"
        )
    return found


def number(*, at_least: float = -math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """The type of a finite number.

    Args:
        at_least: the smallest one that is accepted.
        above: a bound that is not accepted itself.

    Returns:
        What reads it; it raises argparse.ArgumentTypeError for any other text.

    Example:
        >>> number(at_least=0)("2.5")
        2.5
        >>> number(at_least=0)("nan")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: got 'nan', wanted a finite number of at least 0
    """
    wanted = "a finite number"
    if at_least > -math.inf:
        wanted += f" of at least {at_least:g}"
    if above > -math.inf:
        wanted += f" above {above:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= at_least and value > above):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")
        return value

    return read


def path(text: str) -> Path:
    """A file or a folder.

    Raises:
        argparse.ArgumentTypeError: the text is empty, as of a variable that is not set; it would
            stand for the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path; . is the current folder")
    return Path(text)
