"""Which rows are proven better than a reference, as good within a margin, or better over pairs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from scipy import special

from bench.decide.evidence import Pair, Row
from bench.statistics import (
    ALPHA,
    Interval,
    holm,
    holm_of_tested,
    mean_and_deviation,
    mean_interval,
    means_by_seed,
    paired_differences,
    paired_p,
    seeds_needed,
)

FIRST_LOOK, SECOND_LOOK = 0.04, 0.01  # how alpha is split where the design allows one extension


class Family(NamedTuple):
    """Rows of one pair that are held against one reference."""

    reference: Row
    rows: tuple[Row, ...]

    def differences(self, look: int) -> dict[str, list[float]]:
        """Row -> row - reference, one for each seed that both have at this look."""
        reference = self.reference.at_look(look)
        return {row.name: paired_differences(row.at_look(look), reference) for row in self.rows}


class Claim(NamedTuple):
    """One row held against the reference.

    Attributes:
        gain: row - reference over the shared seeds, with an interval that holds for all rows of
            the pair at once, if there is a spread; None without a shared seed.
        p: at the last look, after Holm's correction over all rows and pairs; None without a
            spread to judge by.
        proven: whether the row is better than the reference, at this look or the one before.
    """

    row: str
    gain: Interval | None
    p: float | None
    proven: bool


def prove(families: Sequence[Family], alphas: Sequence[float]) -> list[tuple[Claim, ...]]:
    """Paired t tests by seed, with Holm's correction over the rows of all families.

    A row is proven if its mean difference is above 0 and its two-sided p, corrected, is at most
    the alpha of a look. The looks' alphas sum to the whole level, so that false claims stay below
    it although the second look contains the first one's seeds (Bonferroni over looks). What the
    first look proved remains, unless all seeds together lose.

    Each interval is Student's at 1 - alpha / k over the k rows of its family: all k hold at once
    with probability 1 - alpha at least, however the rows correlate and however unequal their
    variances are, which Dunnett's method does not allow for (Bonferroni over rows). With several
    pairs Holm's family is larger than an interval's: an interval above 0 is not yet a proof.

    `families` are those of all pairs of a grid, `alphas` of the first look, and of the second one
    where there may be one.

    Source:
        Student 1908 and Holm 1979, see `bench.statistics`.
    """
    proven: set[tuple[int, str]] = set()
    found: list[tuple[Claim, ...]] = []
    extended = any(row.extension for family in families for row in family.rows)
    for look, alpha in enumerate(alphas[: 1 + extended], 1):
        samples = [family.differences(look) for family in families]
        tests = iter(holm_of_tested([paired_p(v) for rows in samples for v in rows.values()]))
        found = []
        for place, rows in enumerate(samples):
            claims = []
            for name, values in rows.items():
                p = next(tests)
                gain = mean_interval(values, 1 - alpha / len(rows)) if values else None
                if gain is not None and p is not None and gain.mean > 0 and p <= alpha:
                    proven.add((place, name))
                elif gain is not None and gain.mean <= 0:  # what the second look turns round
                    proven.discard((place, name))
                claims.append(Claim(name, gain, p, (place, name) in proven))
            found.append(tuple(claims))
    return found


class Within(NamedTuple):
    """Whether a mean difference, in accuracy, is shown to be below a margin, by n seeds.

    `p` is after the correction; 1 where there is no spread to judge by. `needed` seeds show it with
    probability 0.8 if the true difference is 0; None if unknown or above 1,000.
    """

    row: str
    p: float
    shown: bool
    n: int
    needed: int | None

    @property
    def too_few(self) -> bool:
        """Whether n seeds could hardly have shown it, even for equal rows."""
        return not self.shown and (self.needed is None or self.needed > self.n)


def within_margin(
    differences: Iterable[Mapping[str, Sequence[float]]], margins: Sequence[float], alpha: float
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
    found = []
    for rows, margin in both:
        shown = []
        for row, values in rows.items():
            p, deviation = next(adjusted), mean_and_deviation(values)[1]
            needed = seeds_needed(margin / deviation, alpha / len(raw)) if deviation else None
            shown.append(Within(row, p, p <= alpha, len(values), needed))
        found.append(tuple(shown))
    return found


def all_within_margin(
    differences: Iterable[Sequence[float]], margin: float, alpha: float, pairs: int
) -> bool:
    """Whether every row's gain is below the margin: "no method helps by more than that".

    An intersection-union test: the greatest p of the rows counts, without a correction over them,
    and with Bonferroni's over the pairs of the grid. Without rows nothing is shown.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    return pairs * max((_p(values, margin) for values in differences), default=1.0) <= alpha


def _p(differences: Sequence[float], margin: float) -> float:
    """One-sided p that the mean difference is the margin or more; 1 without a spread."""
    mean, deviation = mean_and_deviation(differences) if len(differences) > 1 else (0.0, 0.0)
    if deviation == 0:
        return 1.0
    t = (mean - margin) * math.sqrt(len(differences)) / deviation
    return float(special.stdtr(len(differences) - 1, t))


class Overall(NamedTuple):
    """One row's mean gain over students, with its 95 % interval, on so many pairs.

    `p` is after Holm's correction over rows; None without a spread to judge by.
    """

    row: str
    gain: Interval
    pairs: int
    p: float | None
    proven: bool


def over_pairs(pairs: Sequence[Pair]) -> tuple[Overall, ...]:
    """Every row's mean gain over the pairs' students, by falling mean: t tests over students.

    Pairs of one student share its cells and are one piece of evidence: gains are averaged by seed
    first, over the seeds that all of them have, and then over seeds, to one gain a student.
    Students weigh the same: variances of a few seeds are too uncertain for weights.
    Left out are pairs with fewer than two seeds, and rows with fewer than two students.
    """
    found = defaultdict[str, dict[object, list[dict[int, float]]]](dict)
    for place, pair in enumerate(pairs):
        alone = pair.reference.confirmation
        for row in pair.finalists:
            gains = {s: x - alone[s] for s, x in row.confirmation.items() if s in alone}
            if row.nameable and len(gains) > 1:
                found[row.name].setdefault(pair.alone or place, []).append(gains)
    tested: dict[str, tuple[list[float], int]] = {}
    for row, students in found.items():
        kept = [(means, len(each)) for each in students.values() if (means := means_by_seed(each))]
        if len(kept) > 1:
            tested[row] = [round(fmean(means), 12) for means, _ in kept], sum(n for _, n in kept)
    p_values = holm_of_tested([paired_p(gains) for gains, _ in tested.values()])
    made = []
    for (row, (gains, count)), p in zip(tested.items(), p_values, strict=True):
        gain = mean_interval(gains, 1 - ALPHA)
        proven = p is not None and p <= ALPHA and gain.mean > 0
        made.append(Overall(row, gain, count, p, proven))
    return tuple(sorted(made, key=lambda row: -row.gain.mean))
