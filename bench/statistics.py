"""Statistics over seeds: small pure functions of numbers.

Degenerate input (one seed, no spread, nothing in common) is answered by definition or refused,
never by nan.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import special

ALPHA = 0.05  # level of every test: the chance of a false verdict within one family of tests


class Interval(NamedTuple):
    """A mean of n values and its confidence interval; None where the values have no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean: mean +- t(level, n - 1) s / sqrt(n).

    There is one value a seed; `level` is the coverage. Equal values estimate no spread: accuracies
    are counts of images, so that happens with few seeds. ValueError for no value, one that is not
    finite, or a level outside of (0, 1).

    Source:
        Student: The Probable Error of a Mean, Biometrika 6, 1908.
    """
    _check("mean_interval", values)
    if not 0 < level < 1:
        raise ValueError(f"mean_interval: level {level}, wanted one in (0, 1) such as 0.95")
    n = len(values)
    mean, deviation = mean_and_deviation(values) if n > 1 else (float(values[0]), 0.0)
    if deviation == 0:
        return Interval(mean, None, None, n)
    half = special.stdtrit(n - 1, (1 + level) / 2) * deviation / math.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), n)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, with n - 1 below; the deviation of equal values is exactly 0."""
    # About the first value, so that no rounding turns equal values into a spread.
    shifted = [value - values[0] for value in values]
    mean = math.fsum(shifted) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in shifted)
    return float(values[0] + mean), math.sqrt(squares / (len(values) - 1))


def paired_differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """a - b at every seed that both have, by seed."""
    # 0.76 - 0.74 and 0.73 - 0.71 differ in the last bit: a spread that is not there.
    return [round(a[seed] - b[seed], 12) for seed in sorted(a.keys() & b.keys())]


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t test that the mean difference is 0 (Student 1908).

    1 if every difference is 0. Other equal differences are no evidence, and p is None; neither is
    one seed. ValueError for a difference that is not finite.
    """
    _check("paired_p", differences, least=0)
    n = len(differences)
    mean, deviation = mean_and_deviation(differences) if n > 1 else (0.0, 0.0)
    if n < 2 or deviation == 0:
        return 1.0 if n > 1 and mean == 0 else None
    return float(2 * special.stdtr(n - 1, -abs(mean / deviation) * math.sqrt(n)))


def means_by_seed(series: Sequence[Mapping[int, float]]) -> list[float]:
    """The mean of several series at every seed that all of them have, by seed."""
    seeds = sorted(set.intersection(*map(set, series))) if series else []
    # The last bits of a sum are no spread.
    return [round(math.fsum(round(x[s], 12) for x in series) / len(series), 12) for s in seeds]


def power(effect: float, n: int, alpha: float) -> float:
    """Chance that n >= 2 seeds prove a gain: T'(n - 1, d sqrt(n)) above t(1 - alpha, n - 1).

    T' is the noncentral t, d the effect, the true mean difference over its deviation, and alpha
    that of one tail, in (0, 1): half of a two-sided level.

    Source:
        Cohen: Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.4.
    """
    noncentrality = min(max(effect, -10.0), 10.0) * math.sqrt(n)  # beyond it, a certainty
    critical = special.stdtrit(n - 1, 1 - alpha)
    return float(1 - special.nctdtr(n - 1, noncentrality, critical))


def seeds_needed(effect: float, alpha: float, wanted: float = 0.8, most: int = 1000) -> int | None:
    """The least n, from 2 to `most`, whose `power` is the wanted one; None if there is none.

    An effect taken from data is itself uncertain: a plan, not a promise. ValueError for an alpha or
    a power outside of (0, 1), or `most` below 2.
    """
    if not (0 < alpha < 1 and 0 < wanted < 1 and most >= 2):
        raise ValueError(
            f"seeds_needed: alpha {alpha}, power {wanted} and most {most}, wanted (0, 1), (0, 1) "
            "and 2 up"
        )
    if not effect > 0 or power(effect, most, alpha) < wanted:
        return None
    return 2 + bisect.bisect_left(range(2, most), wanted, key=lambda n: power(effect, n, alpha))


def between_groups(groups: Sequence[Sequence[float]]) -> float | None:
    """Deviation of the groups' true means, in the values' unit, by one-way analysis of variance.

    tau^2 = max(0, (MS_between - MS_within) / n0), n0 = (N - sum n_g^2 / N) / (k - 1). None for
    fewer than two groups, or one value in each.

    Source:
        Searle, Casella, McCulloch: Variance Components, 1992, section 3.6.
    """
    k, total = len(groups), sum(map(len, groups))
    if k < 2 or total == k:
        return None
    grand, means = sum(map(sum, groups)) / total, [sum(group) / len(group) for group in groups]
    both = list(zip(groups, means, strict=True))
    between = sum(len(group) * (mean - grand) ** 2 for group, mean in both) / (k - 1)
    within = sum((x - mean) ** 2 for group, mean in both for x in group) / (total - k)
    size = (total - sum(len(group) ** 2 for group in groups) / total) / (k - 1)
    return math.sqrt(max((between - within) / size, 0.0))


def holm_of_tested(p_values: Sequence[float | None]) -> list[float | None]:
    """`holm`, where None, a test without a spread to judge by, counts as 1 and stays None."""
    adjusted = holm([1.0 if p is None else p for p in p_values])
    return [None if raw is None else p for raw, p in zip(p_values, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the i-th smallest of m times m - i + 1, never decreasing.

    The adjusted p are in the order given; each at or below alpha is a rejection that keeps the
    chance of any false one at alpha. ValueError for a p outside of [0, 1].

    Source:
        Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Stat. 6, 1979.
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
