"""A row's mean gain over pairs, and over the teachers of one pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.statistics import (
    ALPHA,
    Pooled,
    between_groups,
    holm,
    mean_and_deviation,
    random_effects,
)

LEAST_VARIANCE = 1e-12  # of a mean gain whose differences are all equal


@dataclass(frozen=True)
class Overall:
    """One row's mean gain over the pairs that have it; `p` is after Holm's correction over rows."""

    row: str
    gain: Pooled
    p: float
    proven: bool


def over_pairs(gains: Sequence[Mapping[str, Sequence[float]]]) -> tuple[Overall, ...]:
    """Every row's mean gain over pairs, by falling mean, with Holm's correction over rows.

    See `bench.statistics.random_effects`. A row on fewer than two pairs is left out, and so is a
    pair with fewer than two seeds. Pairs of one student share its seeds, so that their gains are
    not fully independent. `gains` are those of each pair, row -> row - student, one a seed.
    """
    pooled: dict[str, Pooled] = {}
    for row in dict.fromkeys(row for pair in gains for row in pair):
        samples = [pair[row] for pair in gains if len(pair.get(row, ())) > 1]
        if len(samples) > 1:
            means, deviations = zip(*map(mean_and_deviation, samples), strict=True)
            squares = [d**2 / len(s) for d, s in zip(deviations, samples, strict=True)]
            pooled[row] = random_effects(means, [max(v, LEAST_VARIANCE) for v in squares])
    adjusted = holm([gain.p for gain in pooled.values()])
    rows = [
        Overall(row, gain, p, p <= ALPHA and gain.interval.mean > 0)
        for (row, gain), p in zip(pooled.items(), adjusted, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -row.gain.interval.mean))


@dataclass(frozen=True)
class Teachers:
    """What is known of a row's gain over different teachers.

    `count` is how many it was measured with: the claim is about these. `deviation` is that of the
    true gain between teachers, in accuracy; None with one teacher, or with one seed for each, where
    it cannot be separated from the seeds'.
    """

    count: int
    deviation: float | None


def between_teachers(gains: Mapping[int, float], teachers: Mapping[int, str]) -> Teachers:
    """Groups gains (seed -> row - student) by the teacher (seed -> its name)."""
    groups: dict[str, list[float]] = {}
    for seed in sorted(gains.keys() & teachers.keys()):
        groups.setdefault(teachers[seed], []).append(gains[seed])
    return Teachers(len(groups), between_groups(list(groups.values())))
