"""What is shown to differ by less than a margin: cheaper and as good, or no help at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from bench.statistics import holm, mean_and_deviation, seeds_needed

MARGIN, COARSE_MARGIN, FEW_IMAGES = 0.005, 0.01, 1000
"""Accuracy that does not matter; the coarse one on a test set of few images."""


def margin_for(test_images: int) -> float:
    """The margin in accuracy, by the size of the test set.

    Example:
        >>> margin_for(10_000), margin_for(500)
        (0.005, 0.01)
    """
    return COARSE_MARGIN if test_images < FEW_IMAGES else MARGIN


@dataclass(frozen=True)
class Within:
    """Whether a mean difference is below a margin.

    Attributes:
        row: whose difference.
        mean: of the differences, in accuracy.
        upper: its one-sided upper bound, at the level of Holm's first step.
        p: after the correction; 1 where there is no spread to judge by.
        shown: whether the difference is below the margin.
        n: seeds.
        needed: seeds that show it with probability 0.8 if the true difference is 0; None if
            unknown or above 1,000.
    """

    row: str
    mean: float
    upper: float
    p: float
    shown: bool
    n: int
    needed: int | None

    @property
    def too_few(self) -> bool:
        """Whether n seeds could hardly have shown it, even for equal rows."""
        return not self.shown and (self.needed is None or self.needed > self.n)


def within_margin(
    differences: Sequence[Mapping[str, Sequence[float]]], margins: Sequence[float], alpha: float
) -> list[tuple[Within, ...]]:
    """One-sided tests of non-inferiority, with Holm's correction over all rows and pairs.

    t = (mean - margin) / (s / sqrt(n)); the difference is below the margin if t is low enough.

    Args:
        differences: of each pair, row -> better row - row by seed, two seeds at least.
        margins: of each pair, in accuracy.
        alpha: of the whole family.

    Returns:
        What was found of each row, pair by pair.

    Source:
        Wellek: Testing Statistical Hypotheses of Equivalence and Noninferiority, 2nd ed., 2010,
        section 2.1; Holm 1979.
    """
    both = list(zip(differences, margins, strict=True))
    raw = [_p(values, margin) for rows, margin in both for values in rows.values()]
    adjusted = iter(holm(raw))
    return [
        tuple(_within(row, d, margin, next(adjusted), alpha, len(raw)) for row, d in rows.items())
        for rows, margin in both
    ]


def all_within_margin(
    differences: Mapping[str, Sequence[float]], margin: float, alpha: float, pairs: int
) -> Within | None:
    """Whether every row's gain is below the margin: "no method helps by more than that".

    An intersection-union test: the greatest p of the rows counts, without a correction over them,
    and with Bonferroni's over the pairs of the grid.

    Returns:
        What was found of the row that is furthest from it; None without rows.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    p = {row: _p(values, margin) for row, values in differences.items()}
    row = max(p, key=lambda name: p[name], default=None)
    if row is None:
        return None
    return _within(row, differences[row], margin, min(1.0, pairs * p[row]), alpha, pairs)


def _p(differences: Sequence[float], margin: float) -> float:
    """One-sided p that the mean difference is the margin or more; 1 without a spread."""
    mean, deviation = mean_and_deviation(differences)
    if deviation == 0:
        return 1.0
    t = (mean - margin) * math.sqrt(len(differences)) / deviation
    return float(special.stdtr(len(differences) - 1, t))


def _within(
    row: str, differences: Sequence[float], margin: float, p: float, alpha: float, tests: int
) -> Within:
    n, (mean, deviation) = len(differences), mean_and_deviation(differences)
    half = special.stdtrit(n - 1, 1 - alpha / tests) * deviation / math.sqrt(n)
    needed = seeds_needed(margin / deviation, alpha / tests) if deviation else None
    return Within(row, mean, float(mean + half), p, p <= alpha, n, needed)
