"""Which row to choose for a pair, with its evidence: what is known, what is not, what it costs.

The rule, for each pair: a row may be chosen if it is better than the plain student beyond doubt
(by more than the least gain asked for) and within the limits. Among those, whichever cannot be
told from the best is as good as it, and the cheapest of them is chosen. If no row is better
beyond doubt, the plain student stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cost.costs import Costs, Quartiles
from bench.faults import UserError
from bench.record import Plan, Record, Row
from bench.report.candidates import ANYTHING, Candidate, Question, candidates_of, costs_of
from bench.report.comparison import BETTER, STUDENT, WORSE, Compared
from bench.report.reasons import ACCURACY, COST, changes, points, reasons, wrapped
from bench.report.standing import Standing
from bench.report.summary import PairKey, group_by_pair
from bench.report.tables import Column, Table, Value
from bench.statistics import Interval


class NotCovered(UserError):
    """The evidence does not cover the question at all; one line with the cure."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The answer for one pair.

    Attributes:
        key: the pair.
        label: the chosen row; "student" where the plain student stands; None where the evidence
            does not cover the question.
        reference: the row that the others are held against: of those better than the plain
            student beyond doubt the one of the highest gain, else the plain student; None
            without an answer.
        ties: allowed rows that cannot be told from the reference, it among them, without the
            chosen one. Where a row is chosen for being better than the plain student, that is
            none.
        problem: why there is no answer, one line; empty if there is one.
        reasons: why this row, one line each.
        changes: what would change the choice, one line each.
        candidates: every row of the pair, those ruled out with the reason.
        behind: label -> reference - row of an allowed row, with its interval.
        costs: under which conditions costs were measured; empty without costs.
        question: what was asked.
    """

    key: PairKey
    label: str | None
    reference: str | None = None
    ties: tuple[str, ...] = ()
    problem: str = ""
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    behind: Mapping[str, Interval] | None = None
    costs: str = ""
    question: Question = ANYTHING

    @property
    def chosen(self) -> Candidate | None:
        """The chosen row's evidence."""
        return next((c for c in self.candidates if c.label == self.label), None)

    def to_text(self) -> str:
        """The answer for a terminal, several lines."""
        if self.label is None:
            return f"{self.key.title}\n{wrapped(f'no answer: {self.problem}', 2)}\n"
        excluded = [f"{c.label}: {c.excluded}" for c in self.candidates if c.excluded]
        blocks = (("", self.reasons), ("would change it", self.changes), ("ruled out", excluded))
        lines = [self.key.title, f"  choose: {self.label}"]
        for heading, block in blocks:
            lines += [f"  {heading}:"] if heading and block else []
            lines += [wrapped(line, 4) for line in block]
        return "\n".join(lines) + "\n"

    def to_table(self) -> Table:
        """Every row of the pair with what the choice rests on, the chosen one first."""
        order = sorted(self.candidates, key=lambda c: (c.label != self.label, bool(c.excluded)))
        return Table.by_name(
            title=f"Candidates, {self.key.title}",
            columns=CANDIDATE_COLUMNS,
            rows=[_candidate_row(self, candidate) for candidate in order],
            notes=_candidate_notes(self),
        )


def recommend(
    plan: Plan,
    records: Mapping[str, Record],
    costs: Costs | None = None,
    question: Question = ANYTHING,
) -> tuple[Choice, ...]:
    """The choice for each pair that the question names.

    Args:
        plan: the grid.
        records: by cell id.
        costs: what was profiled of it, if anything was.
        question: which pairs, and under which limits.

    Returns:
        One choice a pair, in the plan's order, those without an answer with the reason.

    Raises:
        NotCovered: the grid has no such pair.

    Source:
        The rows that cannot be told from the reference hold the truly best allowed one with 95 %
        confidence: Gupta, On Some Multiple Decision (Selection and Ranking) Rules, Technometrics
        7, 1965, with paired t intervals and Bonferroni's bound in place of his constant.
    """
    pairs = _asked(plan, question)
    return tuple(_choose(key, rows, records, costs, question) for key, rows in pairs.items())


def answer(choices: Sequence[Choice]) -> str:
    """All choices as one text for a terminal.

    Raises:
        NotCovered: none of them has an answer; one line with the reasons.
    """
    if not any(choice.label for choice in choices):
        problems = dict.fromkeys(choice.problem for choice in choices)
        raise NotCovered(f"the evidence does not cover the question: {'; '.join(problems)}")
    return "\n".join(choice.to_text() for choice in choices)


def _asked(plan: Plan, question: Question) -> dict[PairKey, list[Row]]:
    pairs = group_by_pair(plan)
    if question.pair is not None:
        known = list(dict.fromkeys(f"{key.teacher}:{key.student}" for key in pairs))
        if question.pair not in known:
            raise NotCovered(
                f"pair {question.pair!r} is not in grid {plan.name}; it has: {', '.join(known)}"
            )
        teacher, _, student = question.pair.partition(":")
        pairs = {k: v for k, v in pairs.items() if (k.teacher, k.student) == (teacher, student)}
    return pairs


# --- one pair --------------------------------------------------------------------------------


def _choose(
    key: PairKey,
    rows: Sequence[Row],
    records: Mapping[str, Record],
    costs: Costs | None,
    question: Question,
) -> Choice:
    measured, conditions = costs_of(costs, key)
    candidates = candidates_of(key, rows, records, measured, question)
    problem = _problem(candidates, question)
    if problem:
        return Choice(
            key=key, label=None, problem=problem, candidates=tuple(candidates), question=question
        )
    standing = Standing.of([c for c in candidates if not c.excluded])
    chosen = standing.choose()
    return Choice(
        key=key,
        label=chosen.label,
        reference=standing.reference.label,
        ties=tuple(c.label for c in standing.tied if c is not chosen),
        reasons=tuple(reasons(chosen, standing, candidates, conditions, question)),
        changes=tuple(changes(chosen, standing, candidates, question)),
        candidates=tuple(candidates),
        behind=standing.behind,
        costs=conditions,
        question=question,
    )


def _problem(candidates: Sequence[Candidate], question: Question) -> str:
    """Why the evidence does not cover the question; empty if it does."""
    student = next((c for c in candidates if c.label == STUDENT), None)
    methods = [c for c in candidates if c.label != STUDENT]
    if student is None or not student.accuracy:
        return "the plain student has no finished cell, and gains are over it"
    if not any(c.accuracy for c in methods):
        return "no row but the plain student has a finished cell"
    if all(c.gained is None or c.gained.n < 2 for c in methods):
        return "one seed says nothing about spread: train at least two, better five, seeds"
    rated = [c for c in methods if not c.is_student and c.accuracy]
    if question.needs_costs and rated and all(c.cost is None for c in rated):
        return "costs are limited, but no method's is measured: run_all.py profile measures them"
    return ""


# --- the table -------------------------------------------------------------------------------

CANDIDATE_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="n"),
    ACCURACY,
    Column(key="gain", name="gain over student", unit="pp", digits=2, signed=True, interval=True),
    Column(key="holm_p", name="p, Holm", digits=4, p_value=True),
    Column(
        key="behind", name="reference minus row", unit="pp", digits=2, signed=True, interval=True
    ),
    COST,
    Column(key="standing", name="standing", align="left"),
)

GAIN_NOTE = (
    "Gain: row - student, paired by seed, 95 % t interval of the row looked at alone; p of the "
    "paired t test after Holm's correction over all rows of the pair."
)
COST_NOTE = (
    "Cost: whole training over the plain student's, median and quartiles; a longer-trained "
    "student's by definition."
)


def _candidate_notes(choice: Choice) -> tuple[str, ...]:
    if choice.reference is None:
        return GAIN_NOTE, COST_NOTE
    why = "the highest mean of the rows that are better than the plain student beyond doubt"
    if choice.reference == STUDENT:
        why = "no allowed row is better than it beyond doubt; rows below 0 have a higher mean"
    reference = (
        f"Reference: {choice.reference} ({why}). Reference minus row: paired by seed, intervals "
        "that hold for all allowed rows together (Bonferroni, 95 %); tied: not all of the interval "
        "is above 0, the row cannot be told from the reference or lies above it."
    )
    return GAIN_NOTE, reference, COST_NOTE


def _candidate_row(choice: Choice, candidate: Candidate) -> dict[str, Value]:
    gained = candidate.gained
    return {
        "label": candidate.label,
        "category": candidate.category,
        "n": len(candidate.accuracy),
        "accuracy": candidate.mean,
        "gain": gained.gain if gained else None,
        "holm_p": gained.holm_p if gained else None,
        "behind": (choice.behind or {}).get(candidate.label),
        "cost": cost_value(candidate.cost),
        "standing": _standing(choice, candidate),
    }


def cost_value(cost: Quartiles | None) -> Value:
    """A cost as a table shows it: with its quartiles if it was measured."""
    return cost.median if cost is not None and cost.n == 1 else cost and Interval(*cost)


def _standing(choice: Choice, candidate: Candidate) -> str:
    if candidate.label == choice.label:
        return "chosen"
    if candidate.excluded:
        return f"ruled out: {candidate.excluded}"
    parts = ["tied"] if candidate.label in choice.ties else []
    if candidate.gained is not None:
        parts.append(_verdict(candidate.gained, choice.question.min_gain))
    if len(candidate.accuracy) < candidate.planned:
        parts.append(f"{len(candidate.accuracy)} of {candidate.planned} seeds")
    return "; ".join(parts) or "the baseline"


def _verdict(gained: Compared, margin: float | None) -> str:
    if not margin or gained.verdict not in (BETTER, WORSE):
        return gained.verdict
    than = "more" if gained.verdict == BETTER else "less"
    return f"gains {than} than {points(margin)}"
