"""The survey's order of cost against the measured one: response, multi-connection, shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import median
from typing import NamedTuple

from scipy import stats

from bench.cost.costs import CostRecord, Quartiles
from bench.record import FINISHED
from bench.report.measured import measured_with, pair_title
from bench.report.tables import Column, Entry, Table, Value

ORDER = ("response", "multi-connection", "shared-representation")
"""The categories from the cheapest to the costliest, as the survey claims."""

SUPPORTED, PARTLY, NOT_SUPPORTED = "supported", "partly supported", "not supported"

MEASURES: Mapping[str, Callable[[CostRecord], Quartiles | None]] = {
    "transfer loss (ms)": lambda record: record.loss and record.loss.ms,
    "whole training (x plain)": lambda record: record.training_cost_ratio,
}

CATEGORY_COLUMNS = (
    Column(key="measure", name="cost", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="rows"),
    Column(key="median", name="median", digits=2),
    Column(key="min", name="least", digits=2),
    Column(key="max", name="most", digits=2),
    Column(key="cheapest", name="cheapest row", align="left"),
    Column(key="costliest", name="costliest row", align="left"),
)

ORDER_COLUMNS = (
    Column(key="measure", name="cost", align="left"),
    Column(key="claim", name="claim", align="left"),
    Column(key="comparisons", name="comparisons"),
    Column(key="in_order", name="as claimed"),
    Column(key="against", name="against"),
    Column(key="undecided", name="undecided"),
    Column(key="spearman", name="rank correlation", digits=2, signed=True),
    Column(key="verdict", name="verdict", align="left"),
    Column(key="violations", name="against it", align="left"),
)

NOTES = (
    f"Claim of the survey deck: {' < '.join(ORDER)} in cost.",
    "Transfer loss: of a row's costliest stage, alone, forward and backward, with its connectors. "
    "Whole training: over the plain student's, all stages by their epochs.",
    "Every row of one category is compared with every row of the other: undecided where the middle "
    "halves of their measurements overlap.",
    f"{SUPPORTED}: every comparison as claimed; {PARTLY}: more as claimed than against; "
    f"{NOT_SUPPORTED}: no more as claimed than against. The whole order is {SUPPORTED} if all "
    f"three parts are, {NOT_SUPPORTED} if none is even partly, else {PARTLY}.",
    "Rank correlation: Spearman's, between the rank of a row's category and its median cost.",
)


class Ranked(NamedTuple):
    """One row's cost by one measure."""

    label: str
    category: str
    cost: Quartiles


class Finding(NamedTuple):
    """One part of the claim against what was measured.

    Attributes:
        measure: one of `MEASURES`.
        claim: "response < multi-connection".
        in_order: comparisons that came out as claimed.
        undecided: comparisons whose middle halves overlap.
        violations: (should cost less, should cost more) of those that came out against it.
        verdict: one of the three.
        whole: whether it is the whole order, not one of its parts.
        spearman: rank correlation, of the whole order; None if all costs are equal.
    """

    measure: str
    claim: str
    in_order: int
    undecided: int
    violations: tuple[tuple[str, str], ...]
    verdict: str
    whole: bool = False
    spearman: float | None = None


def ranked(records: Sequence[CostRecord], measure: str) -> list[Ranked]:
    """The finished rows of the three categories by one measure, in the records' order."""
    found = [(r, MEASURES[measure](r)) for r in records
             if r.status == FINISHED and r.category in ORDER]  # fmt: skip
    return [Ranked(r.label, r.category, cost) for r, cost in found if cost is not None]


def findings(records: Sequence[CostRecord]) -> list[Finding]:
    """The claim's three parts and the whole of it, by both measures.

    Args:
        records: of one pair under one set of conditions.

    Returns:
        Parts with nothing to compare are left out, and so is the whole of one part.
    """
    found = []
    for measure in MEASURES:
        rows = ranked(records, measure)
        pairs = (_part(measure, rows, less, more) for less, more in combinations(ORDER, 2))
        parts = [part for part in pairs if part is not None]
        found += parts
        if len(parts) > 1:
            found.append(_whole(measure, rows, parts))
    return found


def _part(measure: str, rows: Sequence[Ranked], less: str, more: str) -> Finding | None:
    pairs = list(product(*([r for r in rows if r.category == kind] for kind in (less, more))))
    if not pairs:
        return None
    in_order = sum(a.cost.q3 < b.cost.q1 for a, b in pairs)
    against = tuple((a.label, b.label) for a, b in pairs if a.cost.q1 > b.cost.q3)
    undecided = len(pairs) - in_order - len(against)
    verdict = SUPPORTED if in_order == len(pairs) else NOT_SUPPORTED
    if len(against) < in_order < len(pairs):
        verdict = PARTLY
    return Finding(measure, f"{less} < {more}", in_order, undecided, against, verdict)


def _whole(measure: str, rows: Sequence[Ranked], parts: Sequence[Finding]) -> Finding:
    verdicts = {part.verdict for part in parts}
    verdict = verdicts.pop() if len(verdicts) == 1 else PARTLY
    ranks, costs = zip(*((ORDER.index(r.category), r.cost.median) for r in rows), strict=True)
    return Finding(
        measure=measure,
        claim=" < ".join(kind for kind in ORDER if any(row.category == kind for row in rows)),
        in_order=sum(part.in_order for part in parts),
        undecided=sum(part.undecided for part in parts),
        violations=tuple(pair for part in parts for pair in part.violations),
        verdict=verdict,
        whole=True,
        spearman=None if len(set(costs)) == 1 else float(stats.spearmanr(ranks, costs)[0]),  # pyright: ignore
    )


def category_table(records: Sequence[CostRecord]) -> Table:
    """Median, least and most of each category's costs, of one pair under one set of conditions."""
    return Table.by_name(
        f"Cost by category, {pair_title(records[0])}",
        CATEGORY_COLUMNS,
        _category_rows(records),
        (measured_with(records), NOTES[1]),
    )


def _category_rows(records: Sequence[CostRecord]) -> Iterator[dict[str, Entry | Value]]:
    for measure, category in product(MEASURES, ORDER):
        rows = [row for row in ranked(records, measure) if row.category == category]
        rows.sort(key=lambda row: row.cost.median)
        if rows:
            yield {
                "measure": measure,
                "category": category,
                "n": len(rows),
                "median": median(row.cost.median for row in rows),
                "min": rows[0].cost.median,
                "max": rows[-1].cost.median,
                "cheapest": rows[0].label,
                "costliest": rows[-1].label,
            }


def order_table(records: Sequence[CostRecord]) -> Table:
    """The claimed order of cost against the measured one, with what goes against it."""
    return Table.by_name(
        f"Claimed order of cost, {pair_title(records[0])}",
        ORDER_COLUMNS,
        map(_order_row, findings(records)),
        NOTES,
    )


def _order_row(finding: Finding) -> dict[str, Entry | Value]:
    against = len(finding.violations)
    return {
        "measure": finding.measure,
        "claim": finding.claim,
        "comparisons": finding.in_order + against + finding.undecided,
        "in_order": finding.in_order,
        "against": against,
        "undecided": finding.undecided,
        "spearman": finding.spearman,
        "verdict": finding.verdict,
        "violations": None if finding.whole else _named(finding.violations),
    }


def _named(violations: Sequence[tuple[str, str]]) -> str | None:
    """ "rkd costs less than fitnet, activation_boundary"; None for none."""
    cheaper: dict[str, list[str]] = {}
    for less, more in violations:
        cheaper.setdefault(more, []).append(less)
    texts = (f"{more} costs less than {', '.join(less)}" for more, less in cheaper.items())
    return "; ".join(texts) or None
