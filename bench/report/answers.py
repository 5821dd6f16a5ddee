"""The answer for each pair as lines of text: what is proven, the best bet, what is still open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.decide.decision import BEST_BET, PROVEN, Answer
from bench.decide.evidence import Pair
from bench.decide.over_pairs import Overall
from bench.report.wording import chance_text, cost_text, gain_text, points, row_title

FEW_REACHED = 0.5
"""A row whose transfer loss reached a smaller share of the samples is named first."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the answers are of.

    Attributes:
        grid: its name, for commands; empty for results of another code base.
        narrowed: the rows that took part, where the command line left some out.
    """

    grid: str = ""
    narrowed: Sequence[str] = ()


def answer_lines(title: str, answer: Answer, pair: Pair, asked: Asked) -> list[str]:
    """One pair: its title, what to know first, and three lines of answer.

    Args:
        title: of the pair.
        answer: what was decided.
        pair: the evidence.
        asked: what the answer is of.
    """
    lines = [title, *(f"  note: {text}" for text in caveats(answer, pair, asked))]
    if answer.named is None:
        return [*lines, f"  no answer: {answer.problem}"]
    lines.append(f"  proven: {_proven(answer, pair)}")
    lines.append(f"  {'best bet' if answer.verdict in (PROVEN, BEST_BET) else 'undecided'}: "
                 f"{_bet(answer, pair)}")  # fmt: skip
    race = ", ".join(row_title(row) for row in answer.in_the_race)
    lines.append(f"  still in the race: {race}{_settled_by(answer, asked)}")
    return lines


def caveats(answer: Answer, pair: Pair, asked: Asked) -> list[str]:
    """What a reader must know before the answer, each in one sentence."""
    found = []
    if asked.narrowed:
        found.append(f"only these rows took part: {', '.join(map(row_title, asked.narrowed))}.")
    if answer.teacher_no_better:
        found.append("the teacher is no better than the student.")
    if answer.recipe_too_short:
        found.append("the recipe is too short: the student still gains by longer training alone.")
    if answer.look == 2:
        found.append("second look: the first one had 4 % of the level, this one 1 %.")
    if answer.exploratory:
        found.append("every row has the same seeds: claims about a single pair are exploratory.")
    if pair.teachers is not None and answer.teachers is not None and answer.teachers.count > 1:
        found.append(_teachers(answer))
    return found


def _teachers(answer: Answer) -> str:
    found = answer.teachers
    assert found is not None
    if found.deviation is None:
        return f"the claim is for these {found.count} teachers."
    return (
        f"the claim is for these {found.count} teachers; the gain differs between them by "
        f"{100 * found.deviation:.1f} points (standard deviation)."
    )


def _proven(answer: Answer, pair: Pair) -> str:
    claims = [claim for claim in answer.claims if claim.proven and claim.gain is not None]
    if not claims:
        seeds = max((claim.gain.n for claim in answer.claims if claim.gain), default=0)
        against = row_title(answer.reference)
        return f"nothing ({len(answer.claims)} rows against {against}, {seeds} seeds)"
    claims.sort(key=lambda claim: claim.row != answer.named)
    first, *others = claims
    assert first.gain is not None
    text = (
        f"{row_title(first.row)}, {gain_text(first.gain)} over {row_title(answer.reference)} on "
        f"this test set, {first.gain.n} seeds, {cost_text(_cost(pair, first.row))}"
    )
    return text + (f"; also {', '.join(row_title(c.row) for c in others)}" if others else "")


def _bet(answer: Answer, pair: Pair) -> str:
    assert answer.named is not None
    chance = answer.chance(answer.named)
    if chance is None:
        return row_title(answer.named)
    return (
        f"{row_title(answer.named)}, {points(chance.gain)} points believed, better than "
        f"{row_title(answer.reference)} with {chance_text(chance.better)}, the best with "
        f"{chance_text(chance.best)}, {cost_text(_cost(pair, answer.named))}"
    )


def _settled_by(answer: Answer, asked: Asked) -> str:
    """The one command that could settle what is open; empty if nothing could."""
    settle = answer.settle
    if settle is None or not asked.grid:
        return ""
    if settle.extend and settle.chance is not None:
        return (
            f"; to settle it: run_all.py run --grid {asked.grid} --extend (proves it with "
            f"{chance_text(settle.chance)})"
        )
    if settle.seeds is None:
        return "; no number of seeds up to 1,000 is likely to settle it"
    fresh = f"seeds.first=100 seeds.confirm={settle.seeds}"
    if answer.exploratory:
        fresh = f"--seeds 100-{99 + settle.seeds}"
    return f"; fresh seeds could settle it: run_all.py run --grid {asked.grid} {fresh}"


def _cost(pair: Pair, name: str) -> float | None:
    return next((row.cost for row in pair.rows if row.name == name), None)


def overall_lines(overall: Sequence[Overall]) -> list[str]:
    """The headline of a grid of equal seeds: each row's mean gain over the pairs, best first."""
    if not overall:
        return []
    lines = [
        f"mean gain over {overall[0].pooled.interval.n} pairs (random effects, Holm over rows):"
    ]
    for row in sorted(overall, key=lambda row: -row.pooled.mean):
        mark = "proven" if row.proven else "not proven"
        lines.append(f"  {row_title(row.row)}: {gain_text(row.pooled.interval)}, {mark}")
    return lines
