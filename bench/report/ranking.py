"""Rows ranked over the pairs of a grid: a pair is one block, by its means over common seeds.

Seeds of one pair share data, teacher and student: they are no blocks of their own, or two pairs
with fifty seeds would pass for a hundred settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.record import Plan, Record
from bench.report.statistics import (
    ALPHA,
    Friedman,
    friedman,
    indistinct,
    mean_interval,
    nemenyi_critical_difference,
)
from bench.report.summary import PairKey, measured_groups

LEAST_BLOCKS = 10
"""Pairs from which on Friedman's chi-square holds: Demšar, JMLR 7, 2006, section 3.2.2.

Below it rows are not ranked over pairs.
"""

LETTERS = "abcdefghijklmnopqrstuvwxyz"

Series = Mapping[int, float]
"""Seed -> accuracy of the last epoch, in [0, 1]."""


def measured_pairs(
    plan: Plan, records: Mapping[str, Record]
) -> dict[PairKey, dict[str, dict[int, float]]]:
    """Pair -> row -> its accuracy by seed, without teachers; pairs with any record."""
    return {
        key: {
            group.label: group.by_seed("last_accuracy")
            for group in groups
            if group.role != "teacher"
        }
        for key, groups in measured_groups(plan, records).items()
    }


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What is ranked: k rows in each of N pairs.

    Attributes:
        labels: the k rows that every pair measured, in the plan's order.
        pairs: the N pairs.
        matrix: (N, k) mean accuracies over the pair's common seeds.
        seeds: how many seeds all k rows have in common, for each pair.
        left_out: row -> the pairs that did not measure it.
        without_seeds: pairs left out: no seed at which all k rows finished.
    """

    labels: tuple[str, ...]
    pairs: tuple[PairKey, ...]
    matrix: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, tuple[PairKey, ...]]
    without_seeds: tuple[PairKey, ...] = ()

    @property
    def rankable(self) -> bool:
        """Whether there are two rows and `LEAST_BLOCKS` pairs at least."""
        return len(self.labels) > 1 and len(self.pairs) >= LEAST_BLOCKS


def blocks_of(pairs: Mapping[PairKey, Mapping[str, Series]]) -> Blocks:
    """The rows that every pair measured, with their means over the seeds common to all of them.

    Args:
        pairs: pair -> row -> accuracy by seed.
    """
    named = dict.fromkeys(label for rows in pairs.values() for label in rows)
    missing = {x: tuple(key for key, rows in pairs.items() if not rows.get(x)) for x in named}
    ranked = tuple(label for label in named if not missing[label])
    common = {
        key: sorted(set.intersection(*(set(rows[label]) for label in ranked))) if ranked else []
        for key, rows in pairs.items()
    }
    kept = tuple(key for key, seeds in common.items() if seeds)
    return Blocks(
        labels=ranked,
        pairs=kept,
        matrix=tuple(
            tuple(_mean([pairs[key][label][seed] for seed in common[key]]) for label in ranked)
            for key in kept
        ),
        seeds=tuple(len(common[key]) for key in kept),
        left_out={label: where for label, where in missing.items() if where},
        without_seeds=tuple(key for key, seeds in common.items() if ranked and not seeds),
    )


def _mean(values: Sequence[float]) -> float:
    return round(mean_interval(values).mean, 12)  # or ties would be broken by the last bit


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks and what they are evidence of.

    Attributes:
        blocks: what was ranked.
        mean_ranks: of each row, 1 is best.
        test: Friedman's.
        critical_difference: Nemenyi's at 5 %, in ranks.
        runs: first and last place, by mean rank, of rows that cannot be told apart.
        groups: letters of each row, one a run; rows that share one cannot be told apart.
    """

    blocks: Blocks
    mean_ranks: tuple[float, ...]
    test: Friedman
    critical_difference: float
    runs: tuple[tuple[int, int], ...]
    groups: tuple[str, ...]

    def order(self) -> list[int]:
        """Positions of the rows, the best mean rank first."""
        return _order(self.mean_ranks)

    @property
    def told_apart(self) -> bool:
        """Whether Friedman's test says that any row differs."""
        return self.test.p <= ALPHA


def _order(ranks: Sequence[float]) -> list[int]:
    return sorted(range(len(ranks)), key=lambda place: ranks[place])


def dependence(blocks: Blocks) -> str:
    """What the pairs share, which makes them fewer than they look; empty if nothing."""
    n = len(blocks.pairs)
    counts = {
        "data set": len({(key.data, key.axes) for key in blocks.pairs}),
        "teacher": len({key.teacher for key in blocks.pairs}),
        "student": len({key.student for key in blocks.pairs}),
    }
    shared = [
        f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count < n
    ]
    if not shared:
        return ""
    return (
        f"The {n} pairs share {', '.join(shared)}: they are not independent blocks, and p is "
        "smaller than it should be."
    )


def rank(blocks: Blocks) -> Ranks:
    """Ranks rows over pairs and tests the ranks.

    Nemenyi's test counts only after Friedman's rejects: otherwise all rows share one letter.

    Args:
        blocks: at least two rows and two pairs; see `Blocks.rankable`.

    Raises:
        ValueError: fewer.

    Source:
        Demšar: Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    test = friedman(blocks.matrix)
    means = tuple(test.mean_ranks)
    difference = nemenyi_critical_difference(len(blocks.labels), len(blocks.pairs))
    order = _order(means)
    runs = indistinct([means[i] for i in order], difference)
    alone = set(range(len(order))) - {i for a, b in runs for i in range(a, b + 1)}
    runs = sorted([*runs, *((i, i) for i in alone)]) if test.p <= ALPHA else [(0, len(order) - 1)]
    letters = [""] * len(order)
    for letter, (first, last) in enumerate(runs):
        for place in range(first, last + 1):
            letters[order[place]] += LETTERS[letter % 26] + "'" * (letter // 26)
    return Ranks(
        blocks=blocks,
        mean_ranks=means,
        test=test,
        critical_difference=difference,
        runs=tuple(runs),
        groups=tuple(letters),
    )
