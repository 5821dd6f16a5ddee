"""Whether one row is superior everywhere, or none is: tests over all pairs at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.report.measures import LEAST_SEEDS, Observed, final, read
from bench.report.statistics import ALPHA, effect_size, holm, paired_t_p
from bench.report.summary import PairKey

LEAST_PAIRS = 2
"""On a single pair some row is always the best: nothing can be said about all."""

Rows = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Superiority:
    """What the accuracies say about the best row.

    Attributes:
        pairs: with accuracies of two rows or more.
        compared: methods' rows that were held against another one.
        seeds: the fewest that any comparison has.
        unbeaten: methods' rows that no other row beats significantly on any pair.
        superior: rows that beat every other row significantly on every pair.
    """

    pairs: int
    compared: int
    seeds: int
    unbeaten: tuple[str, ...]
    superior: tuple[str, ...]


def superiority(observed: Observed) -> Superiority:
    """Holds every method's row against every other row of its pair, by seed.

    A row is beaten if another one is significantly better on some pair: paired t tests, Holm over
    all its comparisons on all pairs. That every row is beaten is an intersection of such findings
    and needs no further correction (Berger 1982). That one row beats all others everywhere is an
    intersection as well; it is asked of every row, with Holm over them.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    pairs = {key: _rows(observed, key) for key in observed.groups}
    pairs = {key: rows for key, rows in pairs.items() if len(rows) > 1}
    labels = dict.fromkeys(
        group.label
        for key in pairs
        for group in observed.groups[key]
        if group.role == "method" and group.category != "baseline" and group.label in pairs[key]
    )
    met = {label: _comparisons(label, pairs) for label in labels}
    return Superiority(
        pairs=len(pairs),
        compared=sum(bool(found) for found in met.values()),
        seeds=min((len(d) for found in met.values() for d in found.values()), default=0),
        unbeaten=tuple(label for label, found in met.items() if not _is_beaten(found)),
        superior=tuple(_superior(met, sum(len(rows) - 1 for rows in pairs.values()))),
    )


def _rows(observed: Observed, key: PairKey) -> Rows:
    groups = [group for group in observed.groups[key] if group.role in ("student", "method")]
    found = {group.label: read(group, final("last_accuracy")) for group in groups}
    return {label: series for label, series in found.items() if series}


def _comparisons(label: str, pairs: Mapping[PairKey, Rows]) -> dict[str, list[float]]:
    """Every other row, on every pair -> other - this, by seed."""
    found = {}
    for key, rows in pairs.items():
        own = rows.get(label, {})
        for other, series in rows.items():
            seeds = sorted(own.keys() & series.keys())
            if other != label and seeds:
                found[f"{key}: {other}"] = [series[seed] - own[seed] for seed in seeds]
    return found


def _is_beaten(comparisons: Mapping[str, Sequence[float]]) -> bool:
    return any(p <= ALPHA for p in holm([_p(values, 1) for values in comparisons.values()]))


def _superior(met: Mapping[str, Mapping[str, Sequence[float]]], comparisons: int) -> list[str]:
    """The rows that all `comparisons` favour, each at the level, with Holm over the rows."""
    least = [
        max(_p(values, -1) for values in found.values()) if len(found) == comparisons else 1.0
        for found in met.values()
    ]
    return [label for label, p in zip(met, holm(least), strict=True) if p <= ALPHA]


def _p(differences: Sequence[float], sign: int) -> float:
    """Two-sided p of a mean difference of that sign; 1 where there is nothing to judge by."""
    # The last bits of a difference of accuracies are no spread.
    rounded = [round(difference, 12) for difference in differences]
    if len(rounded) < LEAST_SEEDS or statistics.fmean(rounded) * sign <= 0:
        return 1.0
    return 1.0 if math.isinf(effect_size(rounded)) else paired_t_p(rounded)
