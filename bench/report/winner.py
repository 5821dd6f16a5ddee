"""The one network of a grid to take home: the best proven row, else the best bet."""

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from bench.cost.costs import Costs
from bench.decide.decision import PROVEN, Answer
from bench.decide.evidence import Pair
from bench.decide.records import decide_plan, group_by_pair
from bench.record import FINISHED, Plan, Record, Row
from bench.report.answers import bet_text, proven_text


class Winner(NamedTuple):
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
    finished = [
        row
        for row in group_by_pair(plan)[key]
        if row.label == answer.named
        and row.cell_id in records
        and records[row.cell_id].status == FINISHED
    ]
    row = min(finished, key=lambda row: row.seed)
    kind, text = ("proven", proven_text) if proven else ("best bet, not proven", bet_text)
    why = f"{kind}: for {key.title}, {text(answer, pairs[key])}."
    return Winner(row, f"{why} Seed {row.seed} is the first of {len(finished)}, not the best.")


def _rank(answer: Answer, pair: Pair) -> tuple[bool, float]:
    """Proven rows first, by mean accuracy; then best bets, by believed gain."""
    if answer.verdict == PROVEN:
        accuracies = next(row for row in pair.rows if row.name == answer.named).every_seed
        return True, fmean(accuracies.values())
    chance = answer.chance(answer.named)
    return False, chance.gain if chance is not None else 0.0
