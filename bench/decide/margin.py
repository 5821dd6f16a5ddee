"""What is shown to differ by less than a margin: cheaper and as good."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from bench.statistics import holm, mean_and_deviation, seeds_needed

MARGIN, COARSE_MARGIN, FEW_IMAGES = 0.005, 0.01, 1000
"""Accuracy that does not matter; the coarse one on a test set of few images."""


def margin_for(test_images: int) -> float:
    """The margin in accuracy, by the size of the test set."""
    return COARSE_MARGIN if test_images < FEW_IMAGES else MARGIN


@dataclass(frozen=True)
class Within:
    """Whether a mean difference, in accuracy, is below a margin.

    Attributes:
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

    `differences` are those of each pair, row -> better row - row by seed, two seeds at least;
    `alpha` is of the whole family.

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
