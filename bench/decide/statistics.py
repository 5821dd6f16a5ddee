"""Statistics over seeds: small pure functions of numbers.

Pairing is the point: all methods of one data set, teacher and seed saw the same order of images
and the same augmentation, so what differs between them is the method. Degenerate input (one
seed, no spread, nothing in common) is answered by definition or refused, never by nan.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

ALPHA = 0.05
"""Level of every test: the chance of a false verdict within one family of tests."""


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: of the n values, in their unit.
        low: lower bound; None for n = 1, which says nothing about spread.
        high: upper bound; None for n = 1.
        n: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside of it, its ends counted as inside."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


# --- one sample, and two paired by seed ------------------------------------------------------


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean: mean +- t(level, n - 1) s / sqrt(n).

    Args:
        values: one a seed, at least one.
        level: coverage, in (0, 1).

    Raises:
        ValueError: no value, a value that is not finite, or a level outside of (0, 1).

    Source:
        Student: The Probable Error of a Mean, Biometrika 6, 1908.

    Example:
        >>> mean_interval([0.70, 0.72]).mean, mean_interval([0.70])
        (0.71, Interval(mean=0.7, low=None, high=None, n=1))
    """
    _check("mean_interval", values)
    _check_level("mean_interval", level)
    # statistics.mean and stdev are exact: equal values have a deviation of exactly 0.
    mean, n = float(statistics.mean(values)), len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = special.stdtrit(n - 1, (1 + level) / 2) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), n)


def paired_differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """a - b at every seed that both have, by seed.

    Example:
        >>> paired_differences({0: 0.76, 1: 0.73, 2: 0.9}, {1: 0.71, 0: 0.74})
        [0.02, 0.02]
    """
    # 0.76 - 0.74 and 0.73 - 0.71 differ in the last bit: a spread that is not there.
    return [round(a[seed] - b[seed], 12) for seed in sorted(a.keys() & b.keys())]


def paired_t_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test that the mean difference is 0.

    Args:
        differences: one a pair, see `paired_differences`; at least two.

    Returns:
        p in [0, 1]. Without any spread, t is infinite and p is 0, or 1 if all differences are 0.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.

    Source:
        Student: The Probable Error of a Mean, Biometrika 6, 1908.
    """
    t = effect_size(differences) * math.sqrt(len(differences))
    return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def paired_p(differences: Sequence[float], margin: float = 0.0) -> float | None:
    """p of the paired t test that the mean is the margin; None without a spread to judge it by.

    Equal differences at every seed estimate no spread: accuracies are counts of a few hundred
    images, so that happens, and it is no evidence. Neither is one seed.

    Example:
        >>> paired_p([0.02, 0.02, 0.02]), paired_p([0.02])
        (None, None)
    """
    shifted = [round(difference - margin, 12) for difference in differences]
    if len(shifted) < 2 or math.isinf(effect_size(shifted)):
        return None
    return paired_t_p(shifted)


def effect_size(differences: Sequence[float]) -> float:
    """Cohen's d_z of paired differences: their mean over their standard deviation.

    Args:
        differences: one a pair, see `paired_differences`; at least two.

    Returns:
        d_z, without a unit. Without any spread, infinite, or 0 if all differences are 0.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.

    Source:
        Cohen: Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.3.5.

    Example:
        >>> effect_size([1.0, 2.0, 3.0])
        2.0
    """
    _check("effect_size", differences, least=2)
    mean, deviation = float(statistics.mean(differences)), statistics.stdev(differences)
    if deviation == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / deviation


def seeds_needed(
    differences: Sequence[float], level: float = 0.95, power: float = 0.8, most: int = 1000
) -> int | None:
    """How many seeds would tell such a difference from 0, if it is what these differences show.

    The least n whose two-sided paired t test at 1 - level rejects with probability `power` when
    the true effect size is the observed one: T'(n - 1, |d_z| sqrt(n)) above t(level, n - 1), T'
    the noncentral t. The observed effect is itself uncertain: a plan, not a promise.

    Args:
        differences: one a pair, see `paired_differences`; at least two.
        level: 1 - alpha of the test, in (0, 1).
        power: in (0, 1).
        most: the largest n looked at.

    Returns:
        n, at least 2; None if more than `most` are needed.

    Raises:
        ValueError: fewer than two differences, one that is not finite, a level or power outside
            of (0, 1), or `most` below 2.

    Source:
        Cohen: Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.4.

    Example:
        >>> seeds_needed([1.0, 2.0, 3.0]), seeds_needed([1.0, -1.0])
        (5, None)
    """
    _check_level("seeds_needed", level)
    if not 0 < power < 1 or most < 2:
        raise ValueError(f"seeds_needed: power {power} and most {most}, wanted (0, 1) and 2 up")
    size = min(abs(effect_size(differences)), 10.0)  # beyond it two or three seeds do
    if size == 0:
        return None
    n = np.arange(2, most + 1)
    critical = stats.t.ppf((1 + level) / 2, n - 1)
    enough = np.flatnonzero(stats.nct.sf(critical, n - 1, size * np.sqrt(n)) >= power)
    return int(n[enough[0]]) if len(enough) else None


# --- many comparisons ------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the i-th smallest of m times m - i + 1, never decreasing.

    Args:
        p_values: of m tests, each in [0, 1].

    Returns:
        Adjusted p in the order given; each at or below alpha is a rejection that keeps the
        chance of any false one at alpha.

    Raises:
        ValueError: a value outside of [0, 1].

    Source:
        Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Stat. 6, 1979.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"holm: p-values {list(p_values)}, wanted each in [0, 1]")
    adjusted, running, left = [0.0] * len(p_values), 0.0, len(p_values)
    for position in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        running = max(running, min(1.0, left * p_values[position]))
        adjusted[position] = running
        left -= 1
    return adjusted


def _check(name: str, values: Sequence[float], least: int = 1) -> None:
    if len(values) < least:
        raise ValueError(f"{name}: {len(values)} values, wanted at least {least}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{name}: {list(values)} are not all finite; leave out what is missing")


def _check_level(name: str, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"{name}: level {level}, wanted one in (0, 1) such as 0.95")
