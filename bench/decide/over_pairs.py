"""A row's mean gain over pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.statistics import (
    ALPHA,
    Pooled,
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
