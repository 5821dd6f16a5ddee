"""The one network of a grid to take home: the best proven row, else the best bet."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cost.costs import Costs
from bench.decide.decision import PROVEN, Answer
from bench.decide.evidence import Pair
from bench.design import PairId
from bench.evidence import decide_plan, group_by_pair
from bench.record import FINISHED, Plan, Record, Row
from bench.report.wording import chance_text, gain_text, points, row_title


@dataclass(frozen=True)
class Winner:
    """A finished cell, and why: text that begins with "proven" or "best bet, not proven"."""

    row: Row
    why: str


def winner(plan: Plan, records: Mapping[str, Record], costs: Costs) -> Winner | None:
    """The network to take home from a grid.

    Of the rows that are proven better than the plain student, one a pair at most, the one of the
    highest mean accuracy. If there is none, the best bet of the highest believed gain. Of the
    row's seeds the first finished one, never the best seed: that would be chosen on the test set.

    None where no row is believed to be better than the plain student.
    """
    pairs, decision = decide_plan(plan, records, costs)
    found = [
        (_rank(answer, pair), key, answer)
        for (key, pair), answer in zip(pairs.items(), decision.answers, strict=True)
        if answer.named is not None
    ]
    if not found:
        return None
    # The plan's first one of equals.
    (proven, number), key, answer = max(found, key=lambda item: item[0])
    if not proven and number <= 0:
        return None
    row, n = _first_finished(plan, records, key, answer.named or "")
    return Winner(row, f"{_why(answer, key)} Seed {row.seed} is the first of {n}, not the best.")


def _rank(answer: Answer, pair: Pair) -> tuple[bool, float]:
    """Proven rows first, by mean accuracy; then best bets, by believed gain."""
    if answer.verdict == PROVEN:
        accuracies = next(row for row in pair.rows if row.name == answer.named).every_seed
        return True, sum(accuracies.values()) / len(accuracies)
    chance = answer.chance(answer.named)
    return False, chance.gain if chance is not None else 0.0


def _first_finished(
    plan: Plan, records: Mapping[str, Record], pair: PairId, label: str
) -> tuple[Row, int]:
    finished = [
        row
        for row in group_by_pair(plan)[pair]
        if row.label == label and row.cell_id in records and records[row.cell_id].status == FINISHED
    ]
    return min(finished, key=lambda row: row.seed), len(finished)


def _why(answer: Answer, pair: PairId) -> str:
    title = row_title(answer.named or "")
    if (gain := answer.proven_gain) is not None:
        return (
            f"proven: for {pair.title}, {title} is better than the student alone, by "
            f"{gain_text(gain)} over {gain.n} seeds."
        )
    chance = answer.chance(answer.named)
    assert chance is not None  # a named row has one
    return (
        f"best bet, not proven: for {pair.title}, {title} is believed to gain "
        f"{points(chance.gain)} points over the student alone, and to be better than it with "
        f"{chance_text(chance.better)}."
    )
