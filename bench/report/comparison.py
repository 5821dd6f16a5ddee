"""Rows held against a reference by seed, pair by pair, and ranked over all pairs of a grid.

Within a pair seeds are what repeats: differences are paired by seed and the tests corrected for
how many rows are looked at. Over a grid pairs are what repeats: seeds of one pair share data and
networks, so a pair counts once, by its means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.report.statistics import (
    Interval,
    bootstrap_interval,
    effect_size,
    holm,
    mean_interval,
    paired_differences,
    paired_t_p,
)

ALPHA = 0.05
"""The chance, within one pair and reference, of any verdict that is chance alone."""

RESAMPLES = 10_000
BETTER, WORSE, UNDECIDED = "better", "worse", "not enough seeds to tell"

Series = Mapping[int, float]
"""Seed -> accuracy of the last epoch, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row against a reference, over the seeds that both finished.

    Attributes:
        differences: row - reference, one a seed, by seed; empty without a common seed.
        gain: their mean with its 95 % t interval, of this row looked at alone.
        bootstrap: the same mean with its percentile bootstrap interval.
        p: of the paired t test that the mean is the margin; None where there is no spread to
            judge it by: one seed, or differences all equal but not to the margin.
        holm_p: p corrected for all rows held against this reference; None as `p`.
        effect: Cohen's d_z; None for one seed.
        verdict: `BETTER` or `WORSE` where `holm_p` is at most `ALPHA`, else `UNDECIDED`.
    """

    differences: tuple[float, ...]
    gain: Interval | None
    bootstrap: Interval | None
    p: float | None
    holm_p: float | None
    effect: float | None
    verdict: str

    @property
    def n(self) -> int:
        """Seeds in common."""
        return len(self.differences)


def compare(
    rows: Mapping[str, Series], reference: Series, margin: float = 0.0
) -> dict[str, Compared]:
    """Every row against one reference, with Holm's correction over the rows.

    Equal differences at every seed estimate no spread (accuracies are counts of a few hundred
    images, so that happens): they are no evidence, and neither is one seed. Such a row counts
    among the tests with p = 1.

    Args:
        rows: label -> accuracy by seed; without the reference itself.
        reference: accuracy by seed.
        margin: what the difference is tested against, in accuracy.

    Returns:
        By label, in the order given.

    Source:
        Student 1908 for the test, Holm 1979 for the correction; see `bench.report.statistics`.

    Example:
        >>> rows = {"a": {0: 0.75, 1: 0.76, 2: 0.77}, "b": {0: 0.9}}
        >>> found = compare(rows, {0: 0.70, 1: 0.70, 2: 0.70})
        >>> found["a"].verdict, found["b"].verdict
        ('better', 'not enough seeds to tell')
    """
    differences = {
        label: _rounded(paired_differences(row, reference)) for label, row in rows.items()
    }
    raw = {label: _p(values, margin) for label, values in differences.items()}
    adjusted = holm([1.0 if p is None else p for p in raw.values()])
    return {
        label: _compared(values, raw[label], corrected, margin)
        for (label, values), corrected in zip(differences.items(), adjusted, strict=True)
    }


def _rounded(differences: Sequence[float]) -> list[float]:
    # 0.76 - 0.74 and 0.73 - 0.71 differ in the last bit: a spread that is not there.
    return [round(difference, 12) for difference in differences]


def _p(differences: Sequence[float], margin: float) -> float | None:
    shifted = _rounded([difference - margin for difference in differences])
    if len(shifted) < 2 or math.isinf(effect_size(shifted)):
        return None
    return paired_t_p(shifted)


def _compared(
    differences: Sequence[float], p: float | None, adjusted: float, margin: float
) -> Compared:
    gain = mean_interval(differences) if differences else None
    verdict = UNDECIDED
    if gain is not None and p is not None and adjusted <= ALPHA:
        verdict = BETTER if gain.mean > margin else WORSE
    return Compared(
        differences=tuple(differences),
        gain=gain,
        bootstrap=bootstrap_interval(differences, resamples=RESAMPLES) if differences else None,
        p=p,
        holm_p=None if p is None else adjusted,
        effect=effect_size(differences) if len(differences) > 1 else None,
        verdict=verdict,
    )
