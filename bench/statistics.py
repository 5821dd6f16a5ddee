"""Statistics over seeds: small pure functions of numbers.

Degenerate input (one seed, no spread, nothing in common) is answered by definition or refused,
never by nan.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

ALPHA = 0.05  # level of every test: the chance of a false verdict within one family of tests


class Interval(NamedTuple):
    """A mean of n values and its confidence interval; None for n = 1, which has no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean: mean +- t(level, n - 1) s / sqrt(n).

    There is one value a seed; `level` is the coverage. ValueError for no value, one that is not
    finite, or a level outside of (0, 1).

    Source:
        Student: The Probable Error of a Mean, Biometrika 6, 1908.
    """
    _check("mean_interval", values)
    if not 0 < level < 1:
        raise ValueError(f"mean_interval: level {level}, wanted one in (0, 1) such as 0.95")
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), None, None, 1)
    mean, deviation = mean_and_deviation(values)
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

    1 if every difference is 0. Other equal differences estimate no spread, and p is None:
    accuracies are counts of a few hundred images, so that happens, and it is no evidence. Neither
    is one seed. ValueError for a difference that is not finite.
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


class Pooled(NamedTuple):
    """A mean of effects that differ between pairs, with its 95 % interval; n counts the effects.

    `error` is its standard error, `tau` the deviation of the true effects, in their unit, and `p`
    two-sided, that the mean is 0.
    """

    interval: Interval
    error: float
    tau: float
    p: float


def random_effects(effects: Sequence[float], variances: Sequence[float]) -> Pooled:
    """Mean of effects that differ between pairs, from the effects y and their variances v.

    y_i ~ N(theta_i, v_i), theta_i ~ N(mu, tau^2); tau^2 by restricted maximum likelihood,
    w_i = 1 / (v_i + tau^2), mu = sum w_i y_i / sum w_i, with the variance max(1, q) / sum w_i,
    q = sum w_i (y_i - mu)^2 / (k - 1), and Student's t on k - 1 degrees of freedom: effects that
    are equal by chance are not known better than their variances say. ValueError for fewer than
    two effects, or a variance that is not above 0.

    Source:
        Viechtbauer: Bias and Efficiency of Meta-Analytic Variance Estimators, J. Educ. Behav.
        Stat. 30, 2005, for REML; Knapp, Hartung, Statistics in Medicine 22, 2003.
    """
    y, v = np.asarray(effects, float), np.asarray(variances, float)
    if len(y) < 2 or not np.all(v > 0):
        raise ValueError(
            f"random_effects: {len(y)} effects with variances {list(variances)}, wanted two or "
            "more, with variances above 0"
        )
    tau2, k = _tau2(y, v), len(y)
    w = 1 / (v + tau2)
    mean = float(w @ y / w.sum())
    error = math.sqrt(max(1.0, w @ (y - mean) ** 2 / (k - 1)) / w.sum())
    half = error * float(special.stdtrit(k - 1, 1 - ALPHA / 2))
    p = 2 * special.stdtr(k - 1, -abs(mean) / error)
    return Pooled(Interval(mean, mean - half, mean + half, k), error, math.sqrt(tau2), float(p))


def _tau2(y: np.ndarray, v: np.ndarray) -> float:
    """The tau^2 at which the derivative of the restricted log-likelihood is 0; 0 if it falls."""

    def slope(tau2: float) -> float:
        w = 1 / (v + tau2)
        mean = w @ y / w.sum()
        return float(w**2 @ (y - mean) ** 2 - w.sum() + (w**2).sum() / w.sum())

    high = float(((y - y.mean()) ** 2).sum() + v.max())
    if slope(0.0) <= 0:
        return 0.0
    return float(optimize.root_scalar(slope, bracket=(0.0, high), xtol=1e-16).root)


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
