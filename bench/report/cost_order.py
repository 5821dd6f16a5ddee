"""The survey's order of cost against the measured one: response, multi-connection, shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import median
from typing import NamedTuple

from scipy import stats

from bench.cost.record import FAST, FORMS, REFERENCE, CostRecord, Costs, Quartiles
from bench.record import FINISHED
from bench.report.measured import measured_with, pair_title, textbook_of
from bench.report.tables import Column, Entry, Table

ORDER = ("response", "multi-connection", "shared-representation")
"""The categories from the cheapest to the costliest, as the survey claims."""

SUPPORTED, PARTLY, NOT_SUPPORTED = "supported", "partly supported", "not supported"

MEASURES: Mapping[str, Callable[[CostRecord], Quartiles | None]] = {
    "transfer loss (ms)": lambda record: record.loss and record.loss.ms,
    "whole training (x plain)": lambda record: record.training_cost_ratio,
}

CATEGORY_COLUMNS = (
    Column(key="form", name="losses", align="left"),
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
    Column(key="form", name="losses", align="left"),
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
    f"Losses {FORMS[REFERENCE]}: in their textbook form where there are two; a loss of one form is "
    f"in both groups.",
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
        form: of the losses, "fast" or "reference".
        measure: one of `MEASURES`.
        claim: "response < multi-connection".
        in_order: comparisons that came out as claimed.
        undecided: comparisons whose middle halves overlap.
        violations: (should cost less, should cost more) of those that came out against it.
        verdict: one of the three.
        whole: whether it is the whole order, not one of its parts.
        spearman: rank correlation, of the whole order; None if all costs are equal.
    """

    form: str
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


def in_form(records: Sequence[CostRecord], costs: Costs, form: str) -> list[CostRecord]:
    """The records, those with a textbook form replaced by it if that is what is asked for."""
    if form == FAST:
        return list(records)
    textbook = textbook_of(costs)
    return [textbook.get((*record.place, record.label), record) for record in records]


def findings(records: Sequence[CostRecord], costs: Costs) -> list[Finding]:
    """The claim's three parts and the whole of it, by both forms and measures.

    Args:
        records: of one pair under one set of conditions, as shipped.
        costs: has their textbook forms.

    Returns:
        Parts with nothing to compare are left out, and so is the whole of one part.
    """
    found = []
    for form, measure in product(FORMS, MEASURES):
        rows = ranked(in_form(records, costs, form), measure)
        parts = [part for pair in combinations(ORDER, 2)
                 if (part := _part(form, measure, rows, *pair)) is not None]  # fmt: skip
        found += [*parts, *([_whole(form, measure, rows, parts)] if len(parts) > 1 else [])]
    return found


def _part(form: str, measure: str, rows: Sequence[Ranked], less: str, more: str) -> Finding | None:
    pairs = list(product(*([r for r in rows if r.category == kind] for kind in (less, more))))
    if not pairs:
        return None
    in_order = sum(a.cost.q3 < b.cost.q1 for a, b in pairs)
    against = tuple((a.label, b.label) for a, b in pairs if a.cost.q1 > b.cost.q3)
    undecided = len(pairs) - in_order - len(against)
    verdict = SUPPORTED if in_order == len(pairs) else NOT_SUPPORTED
    if len(against) < in_order < len(pairs):
        verdict = PARTLY
    return Finding(form, measure, f"{less} < {more}", in_order, undecided, against, verdict)


def _whole(form: str, measure: str, rows: Sequence[Ranked], parts: Sequence[Finding]) -> Finding:
    verdicts = {part.verdict for part in parts}
    verdict = verdicts.pop() if len(verdicts) == 1 else PARTLY
    ranks, costs = zip(*((ORDER.index(r.category), r.cost.median) for r in rows), strict=True)
    return Finding(
        form=form,
        measure=measure,
        claim=" < ".join(kind for kind in ORDER if any(row.category == kind for row in rows)),
        in_order=sum(part.in_order for part in parts),
        undecided=sum(part.undecided for part in parts),
        violations=tuple(pair for part in parts for pair in part.violations),
        verdict=verdict,
        whole=True,
        spearman=None if len(set(costs)) == 1 else float(stats.spearmanr(ranks, costs)[0]),  # pyright: ignore
    )


def category_table(records: Sequence[CostRecord], costs: Costs) -> Table:
    """Median, least and most of each category's costs, of one pair under one set of conditions."""
    return Table(
        title=f"Cost by category, {pair_title(records[0])}",
        columns=CATEGORY_COLUMNS,
        rows=tuple(_category_rows(records, costs)),
        notes=(measured_with(records), *NOTES[1:3]),
    )


def _category_rows(records: Sequence[CostRecord], costs: Costs) -> Iterator[tuple[Entry, ...]]:
    for form, measure, category in product(FORMS, MEASURES, ORDER):
        rows = ranked(in_form(records, costs, form), measure)
        rows = sorted((r for r in rows if r.category == category), key=lambda r: r.cost.median)
        if rows:
            values = [row.cost.median for row in rows]
            numbers = (len(rows), median(values), values[0], values[-1])
            names = (rows[0].label, rows[-1].label)
            yield tuple(map(Entry, (FORMS[form], measure, category, *numbers, *names)))


def order_table(records: Sequence[CostRecord], costs: Costs) -> Table:
    """The claimed order of cost against the measured one, with what goes against it."""
    return Table(
        title=f"Claimed order of cost, {pair_title(records[0])}",
        columns=ORDER_COLUMNS,
        rows=tuple(_order_row(finding) for finding in findings(records, costs)),
        notes=NOTES,
    )


def _order_row(finding: Finding) -> tuple[Entry, ...]:
    against = len(finding.violations)
    return (
        Entry(FORMS[finding.form]),
        Entry(finding.measure),
        Entry(finding.claim),
        Entry(finding.in_order + against + finding.undecided),
        Entry(finding.in_order),
        Entry(against),
        Entry(finding.undecided),
        Entry(finding.spearman),
        Entry(finding.verdict),
        Entry(None if finding.whole else _named(finding.violations)),
    )


def _named(violations: Sequence[tuple[str, str]]) -> str | None:
    """ "rkd costs less than fitnet, activation_boundary"; None for none."""
    cheaper: dict[str, list[str]] = {}
    for less, more in violations:
        cheaper.setdefault(more, []).append(less)
    texts = (f"{more} costs less than {', '.join(less)}" for more, less in cheaper.items())
    return "; ".join(texts) or None
