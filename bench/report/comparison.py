"""The rows of a pair held against a reference.

Differences are paired by seed, and the tests corrected for how many rows are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.statistics import (
    ALPHA,
    Interval,
    holm,
    mean_interval,
    paired_differences,
    paired_p,
)

BETTER, WORSE, UNDECIDED = "better", "worse", "not enough seeds to tell"

STUDENT = "student"

Series = Mapping[int, float]
"""Seed -> accuracy of the last epoch, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row against a reference, over the seeds that both finished.

    Attributes:
        differences: row - reference, one a seed, by seed; empty without a common seed.
        gain: their mean with its 95 % t interval, of this row looked at alone.
        holm_p: p of the paired t test that the mean is the margin, corrected for all rows held
            against this reference; None where there is no spread to judge it by: one seed, or
            differences all equal but not to the margin.
        verdict: `BETTER` or `WORSE` where `holm_p` is at most `ALPHA`, else `UNDECIDED`.
    """

    differences: tuple[float, ...]
    gain: Interval | None
    holm_p: float | None
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
        Student 1908 for the test, Holm 1979 for the correction; see `bench.statistics`.

    Example:
        >>> rows = {"a": {0: 0.75, 1: 0.76, 2: 0.77}, "b": {0: 0.9}}
        >>> found = compare(rows, {0: 0.70, 1: 0.70, 2: 0.70})
        >>> found["a"].verdict, found["b"].verdict
        ('better', 'not enough seeds to tell')
    """
    differences = {label: paired_differences(row, reference) for label, row in rows.items()}
    raw = {label: paired_p(values, margin) for label, values in differences.items()}
    adjusted = holm([1.0 if p is None else p for p in raw.values()])
    return {
        label: _compared(values, raw[label], corrected, margin)
        for (label, values), corrected in zip(differences.items(), adjusted, strict=True)
    }


def told(difference: Interval | None) -> bool:
    """Whether an interval tells a difference from 0: not without a spread to judge by."""
    return difference is not None and difference.low != difference.high and difference.excludes_zero


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
        holm_p=None if p is None else adjusted,
        verdict=verdict,
    )
