"""The one network of a grid to take home: the best proven row, else the best bet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cost.costs import Costs
from bench.record import FINISHED, Plan, Record, Row
from bench.report.candidates import STUDENT
from bench.report.recommend import recommend
from bench.report.summary import group_by_pair


@dataclass(frozen=True)
class Winner:
    """A finished cell, and why it.

    Attributes:
        row: what was trained.
        why: for a reader, one paragraph that begins with "proven" or "best bet, not proven".
    """

    row: Row
    why: str


def winner(plan: Plan, records: Mapping[str, Record], costs: Costs | None = None) -> Winner | None:
    """The network to take home from a grid.

    Of the recommended rows that are proven better than the plain student, one a pair at most, the
    one with the highest mean accuracy. If there is none, the best bet: the row of the highest mean
    gain over its plain student. Of the row's seeds the first finished one, never the best seed:
    that would be chosen on the test set.

    Args:
        plan: the grid.
        records: by cell id.
        costs: what was profiled of it, if anything was.

    Returns:
        None where no row has a higher mean than its plain student over two seeds or more.
    """
    choices = recommend(plan, records, costs)
    proven = [
        (c.mean.mean, choice, c)
        for choice in choices
        if (c := choice.chosen) is not None and c.label != STUDENT and c.mean is not None
    ]
    bets = [
        (c.gain, choice, c)
        for choice in choices
        for c in choice.candidates
        if not c.excluded and c.gain > 0
    ]
    if not (proven or bets):
        return None
    # The plan's first one of equals.
    number, choice, best = max(proven or bets, key=lambda found: found[0])
    rows = [row for row in group_by_pair(plan)[choice.key] if row.label == best.label]
    finished = [
        row for row in rows if row.cell_id in records and records[row.cell_id].status == FINISHED
    ]
    row = min(finished, key=lambda row: row.seed)
    seed = f"Seed {row.seed} is the first one, not the best one."
    if proven:
        return Winner(
            row,
            f"proven: for {choice.key.title}, {best.label} is better than the plain student "
            f"(Holm's correction over the pair's rows); mean test accuracy {number:.2%} over "
            f"{len(finished)} seeds. {seed}",
        )
    return Winner(
        row,
        f"best bet, not proven: for {choice.key.title}, {best.label} has the highest mean gain "
        f"over the plain student, {100 * number:+.2f} points over {len(finished)} seeds, which may "
        f"be chance. {seed}",
    )
