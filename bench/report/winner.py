"""The one network of a grid that goes into the model registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cost.record import Costs
from bench.record import FINISHED, Plan, Record, Row
from bench.report.candidates import STUDENT, Candidate
from bench.report.recommend import recommend
from bench.report.summary import group_by_pair


@dataclass(frozen=True)
class Winner:
    """A finished cell, and why it.

    Attributes:
        row: what was trained.
        why: for a reader, one paragraph.
    """

    row: Row
    why: str


def winner(plan: Plan, records: Mapping[str, Record], costs: Costs | None = None) -> Winner | None:
    """The network that stands for a grid.

    Of the recommended rows that beat the plain student beyond doubt, at most one a pair, the one
    with the highest mean accuracy; of its seeds the first finished one. Never the best seed: that
    would be chosen on the test set.

    Args:
        plan: the grid.
        records: by cell id.
        costs: what was profiled of it, if anything was.

    Returns:
        None where the plain student stands in every pair, or the evidence answers for none.
    """
    choices = [c for c in recommend(plan, records, costs) if c.label not in (None, STUDENT)]
    means = [(_mean(choice.chosen), choice) for choice in choices]
    if not means:
        return None
    mean, best = max(means, key=lambda entry: entry[0])  # the plan's first one of equals
    rows = group_by_pair(plan)[best.key]
    finished = [r for r in rows if r.label == best.label and _is_finished(records, r)]
    row = min(finished, key=lambda r: r.seed)
    others = f", the highest of the {len(means)} pairs with a winner" if len(means) > 1 else ""
    return Winner(
        row,
        f"Recommended for {best.key.title}: {best.label}, better than the plain student beyond "
        f"doubt; mean test accuracy {mean:.2%} over {len(finished)} seeds{others}. Seed "
        f"{row.seed} is the first one, not the best one.",
    )


def _mean(candidate: Candidate | None) -> float:
    assert candidate is not None
    assert candidate.mean is not None
    return candidate.mean.mean


def _is_finished(records: Mapping[str, Record], row: Row) -> bool:
    record = records.get(row.cell_id)
    return record is not None and record.status == FINISHED
