"""How rows, pairs, gains and costs are worded, everywhere a reader meets them."""

from collections.abc import Callable, Iterable
from itertools import groupby

from bench.decide.proof import Overall
from bench.faults import counted
from bench.statistics import Interval


def points(value: float) -> str:
    """A difference of accuracies in percentage points.

    Example:
        >>> points(0.0234), points(-0.004), points(-0.0001)
        ('+2.3', '-0.4', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return text[1:] if float(text) == 0 else text


def mean_over(overall: Iterable[Overall]) -> str:
    """What the means of these rows are over, at most: "6 pairs", or "6 pairs (2 students)"."""
    pairs, students = max(((row.pairs, row.gain.n) for row in overall), default=(0, 0))
    return counted(pairs, "pair") + (f" ({students} students)" if students < pairs else "")


def gain_text(gain: Interval) -> str:
    """A gain in percentage points with its interval, if it has one."""
    said = f"{points(gain.mean)} points"
    if gain.low is None or gain.high is None:
        return said
    return f"{said} ({points(gain.low)} to {points(gain.high)})"


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
