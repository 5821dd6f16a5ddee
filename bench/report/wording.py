"""How rows, pairs, gains and costs are worded, everywhere a reader meets them."""

import re
from collections.abc import Callable, Iterable
from itertools import groupby

from bench.statistics import Interval

LONGER = re.compile(r"student \(epochs_factor=(?P<factor>[0-9.e+]+)\)")


def row_title(label: str) -> str:
    """A row as people say it.

    Example:
        >>> [row_title(x) for x in ("student", "student (epochs_factor=2)", "fitnet (stage2=ce)")]
        ['no teacher', 'no teacher, 2× epochs', 'fitnet (stage2=ce)']
    """
    if label == "student":
        return "no teacher"
    found = LONGER.fullmatch(label)
    return f"no teacher, {found['factor']}× epochs" if found else label


def reference_title(label: str) -> str:
    """The row that others are held against, as it reads in a sentence.

    Example:
        >>> reference_title("student"), reference_title("rkd")
        ('the student alone', 'rkd')
    """
    return "the student alone" if label == "student" else row_title(label)


def points(value: float) -> str:
    """A difference of accuracies in percentage points.

    Example:
        >>> points(0.0234), points(-0.004)
        ('+2.3', '-0.4')
    """
    return f"{100 * value:+.1f}"


def gain_text(gain: Interval) -> str:
    """A gain in percentage points with its interval, if it has one."""
    if gain.low is None or gain.high is None:
        return f"{points(gain.mean)} points (one seed)"
    return f"{points(gain.mean)} points ({points(gain.low)} to {points(gain.high)})"


def cost_text(cost: float | None) -> str:
    """A cost as a multiple of the plain student's training."""
    return "cost not measured" if cost is None else f"cost ×{cost:.1f}"


def chance_text(probability: float) -> str:
    """A probability in whole per cent, never 0 or 100.

    Example:
        >>> chance_text(0.987), chance_text(0.9999), chance_text(0.001)
        ('99 %', 'over 99 %', 'under 1 %')
    """
    if probability > 0.99:
        return "over 99 %"
    return "under 1 %" if probability < 0.01 else f"{probability:.0%}".replace("%", " %")


def range_text(values: Iterable[float], show: Callable[[float], str]) -> str:
    """One value, or the least and the greatest of several.

    Example:
        >>> range_text([0.031, 0.036], points), range_text([0.02], points)
        ('+3.1 to +3.6', '+2.0')
    """
    found = list(values)
    low, high = show(min(found)), show(max(found))
    return low if low == high else f"{low} to {high}"


def seeds_text(seeds: Iterable[int]) -> str:
    """Seeds as ranges.

    Example:
        >>> seeds_text([0, 1, 2, 7, 1])
        '0-2, 7'
    """
    # Along a run a seed and its place rise alike.
    runs = groupby(enumerate(sorted(set(seeds))), key=lambda item: item[1] - item[0])
    found = [[seed for _, seed in run] for _, run in runs]
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in found)
