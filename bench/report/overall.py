"""One row for all pairs of a grid, where the ranks over them say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cost.costs import Quartiles
from bench.report.comparison import STUDENT
from bench.report.ranking import Ranks, blocks_of, dependence, rank
from bench.report.reasons import wrapped
from bench.report.recommend import Choice, NotCovered


@dataclass(frozen=True, kw_only=True)
class Overall:
    """One row for all pairs, if the ranks say so.

    Attributes:
        label: the row; None where no row can be told from the plain student over the pairs.
        ranks: of the rows allowed in every pair.
        reasons: one line each.
    """

    label: str | None
    ranks: Ranks
    reasons: tuple[str, ...]

    def to_text(self) -> str:
        """The answer for a terminal."""
        head = f"over all pairs\n  choose: {self.label or 'pair by pair'}"
        return "\n".join([head, *(wrapped(line, 4) for line in self.reasons)]) + "\n"


def overall(choices: Sequence[Choice]) -> Overall | None:
    """One row for all pairs that have an answer, by mean rank; None for too few to be tested.

    A row is chosen if Friedman's test rejects and its mean rank is better than the plain
    student's by Nemenyi's critical difference; among such rows those within it of the best are
    tied, and the cheapest of them is taken where all costs are known.
    """
    answered = [choice for choice in choices if choice.label is not None]
    if not answered:
        return None
    allowed = {choice.key: choice.allowed() for choice in answered}
    labels = set.intersection(*(set(found) for found in allowed.values()))
    blocks = blocks_of(
        {key: {x: c.accuracy for x, c in found.items()} for key, found in allowed.items()},
        sorted(labels),
    )
    if not blocks.rankable:
        return None
    ranks = rank(blocks)
    means = dict(zip(blocks.labels, ranks.mean_ranks, strict=True))
    equals = _better_by_rank(ranks, means)
    costs = {x: [found[x].cost for found in allowed.values()] for x in equals}
    return Overall(
        label=_cheapest(equals, costs), ranks=ranks,
        reasons=tuple(_rank_reasons(ranks, means, equals)),
    )  # fmt: skip


def _better_by_rank(ranks: Ranks, means: Mapping[str, float]) -> list[str]:
    """Rows told from the plain student and not from the best, the best first."""
    if STUDENT not in means or not ranks.told_apart:
        return []
    order = [ranks.blocks.labels[i] for i in ranks.order()]
    reach = ranks.critical_difference
    better = [label for label in order if means[STUDENT] - means[label] > reach]
    return [label for label in better if means[label] - means[better[0]] <= reach]


def _cheapest(labels: Sequence[str], costs: Mapping[str, Sequence[Quartiles | None]]) -> str | None:
    """By the mean over pairs; the first of them where a cost is missing."""
    means = {
        label: sum(cost.median for cost in found if cost is not None) / len(found)
        for label, found in costs.items()
    }
    if any(cost is None for found in costs.values() for cost in found):
        return labels[0] if labels else None
    return min(labels, key=lambda label: means[label], default=None)


def _rank_reasons(ranks: Ranks, means: Mapping[str, float], equals: Sequence[str]) -> list[str]:
    first = [ranks.blocks.labels[i] for i in ranks.order()][:5]
    listed = ", ".join(f"{label} {means[label]:.2f}" for label in first)
    student = (
        f"; {STUDENT} {means[STUDENT]:.2f}" if STUDENT not in first and STUDENT in means else ""
    )
    n = len(ranks.blocks.pairs)
    lines = [f"mean ranks over {n} pairs of {len(means)} rows: {listed}{student}"]
    lines.append(
        f"Friedman p = {ranks.test.p:.2g}; Nemenyi's critical difference "
        f"{ranks.critical_difference:.2f} ranks"
    )
    if equals:
        tied = f", tied: {', '.join(equals)}" if len(equals) > 1 else ""
        lines.append(f"better than the plain student over the pairs beyond doubt{tied}")
    else:
        lines.append("no row can be told from the plain student over the pairs")
    return [*lines, *filter(None, [dependence(ranks.blocks)])]


def answer(choices: Sequence[Choice]) -> str:
    """All choices as one text for a terminal.

    Raises:
        NotCovered: none of them has an answer; one line with the reasons.
    """
    if not any(choice.label for choice in choices):
        problems = dict.fromkeys(choice.problem for choice in choices)
        raise NotCovered(f"the evidence does not cover the question: {'; '.join(problems)}")
    whole = overall(choices)
    texts = [choice.to_text() for choice in choices]
    return "\n".join(texts + ([whole.to_text()] if whole is not None else []))
