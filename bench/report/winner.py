"""The one network of a grid to take home: the best proven row, else the best bet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.cost.costs import Costs
from bench.record import FINISHED, Plan, Record, Row
from bench.report.candidates import STUDENT, Candidate
from bench.report.recommend import Choice, recommend
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
        (choice, candidate)
        for choice in choices
        if (candidate := choice.chosen) is not None and candidate.label != STUDENT
    ]
    if proven:
        choice, candidate = max(proven, key=lambda found: _accuracy(found[1]))
        row, seeds = _first_finished(plan, records, choice, candidate)
        return Winner(
            row,
            f"proven: for {choice.key.title}, {candidate.label} is better than the plain student "
            f"(Holm's correction over the pair's rows); mean test accuracy "
            f"{_accuracy(candidate):.2%} over {seeds} seeds. {_which_seed(row)}",
        )
    if (bet := _best_bet(choices)) is None:
        return None
    choice, candidate = bet
    row, seeds = _first_finished(plan, records, choice, candidate)
    return Winner(
        row,
        f"best bet, not proven: for {choice.key.title}, {candidate.label} has the highest mean "
        f"gain over the plain student, {100 * candidate.gain:+.2f} points over {seeds} seeds, "
        f"which may be chance. {_which_seed(row)}",
    )


def _best_bet(choices: Iterable[Choice]) -> tuple[Choice, Candidate] | None:
    better = [
        (choice, candidate)
        for choice in choices
        for candidate in choice.candidates
        if not candidate.excluded and candidate.gain > 0
    ]
    return max(better, key=lambda found: found[1].gain, default=None)


def _accuracy(candidate: Candidate) -> float:
    assert candidate.mean is not None
    return candidate.mean.mean


def _first_finished(
    plan: Plan, records: Mapping[str, Record], choice: Choice, candidate: Candidate
) -> tuple[Row, int]:
    """The row's first finished seed, and how many seeds finished."""
    rows = [row for row in group_by_pair(plan)[choice.key] if row.label == candidate.label]
    finished = [
        row for row in rows if row.cell_id in records and records[row.cell_id].status == FINISHED
    ]
    return min(finished, key=lambda row: row.seed), len(finished)


def _which_seed(row: Row) -> str:
    return f"Seed {row.seed} is the first one, not the best one."
