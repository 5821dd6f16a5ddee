"""Which row to choose for a pair, with its evidence: what is known, what is not, what it costs.

The rule, for each pair: a row may be chosen if it is better than the plain student beyond doubt
(by more than the least gain asked for) and within the limits. Among those, whichever cannot be
told from the best is as good as it, and the cheapest of them is chosen. If no row is better
beyond doubt, the plain student stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cost.record import Costs, Quartiles
from bench.record import Plan, Record, Row
from bench.report.candidates import (
    STUDENT,
    Candidate,
    Limits,
    candidates_of,
    costs_of,
)
from bench.report.comparison import BETTER, Compared
from bench.report.ranking import ALPHA
from bench.report.statistics import (
    Interval,
    mean_interval,
    paired_differences,
    seeds_needed,
)
from bench.report.summary import PairKey, group_by_pair
from bench.report.tables import Column, Entry, Table, show

GAIN = Column(key="gain", name="gain", unit="pp", digits=2, signed=True, interval=True)
ACCURACY = Column(key="accuracy", name="accuracy", unit="%", digits=2, interval=True)
COST = Column(key="cost", name="cost", unit="x plain", digits=2, interval=True)


class NotCovered(ValueError):
    """The evidence does not cover the question at all; one line with the cure."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        pair: teacher:student; None for every pair of the grid.
        max_cost: whole training over the plain student's, at least 1.
        max_memory_mib: peak memory of a step above the plain student's.
        min_gain: least accuracy over the plain student, in [0, 1): 0.01 is one point.
        category: only methods of this one.
        extra_parameters: whether parameters may be trained beside the student.
        fraction: of the training images; None for every one in the grid.
    """

    pair: str | None = None
    max_cost: float | None = None
    max_memory_mib: float | None = None
    min_gain: float | None = None
    category: str | None = None
    extra_parameters: bool = True
    fraction: float | None = None

    def __post_init__(self) -> None:
        """Refuses limits that nothing could meet or miss."""
        if self.max_cost is not None and not self.max_cost >= 1:
            raise ValueError(
                f"max cost: got {self.max_cost:g}, wanted 1 or more: the plain student costs 1"
            )
        if self.max_memory_mib is not None and not self.max_memory_mib >= 0:
            raise ValueError(f"max memory: got {self.max_memory_mib:g} MiB, wanted 0 or more")
        if self.min_gain is not None and not 0 <= self.min_gain < 1:
            raise ValueError(
                f"min gain: got {self.min_gain:g}, wanted an accuracy in [0, 1): 0.01 is one "
                "percentage point"
            )

    @property
    def limits(self) -> Limits:
        """What it asks of every row."""
        return Limits(
            max_cost=self.max_cost, max_memory_mib=self.max_memory_mib, min_gain=self.min_gain,
            category=self.category, extra_parameters=self.extra_parameters,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The answer for one pair.

    Attributes:
        key: the pair.
        label: the chosen row; "student" where the plain student stands; None where the evidence
            does not cover the question.
        ties: allowed rows that cannot be told from the best, it among them, without the chosen
            one. Where a row is chosen for being better than the plain student, that is none.
        problem: why there is no answer, one line; empty if there is one.
        reasons: why this row, one line each.
        changes: what would change the choice, one line each.
        candidates: every row of the pair, those ruled out with the reason.
        behind: label -> how far an allowed row lies behind the best, with its interval.
        costs: under which conditions costs were measured; empty without costs.
    """

    key: PairKey
    label: str | None
    ties: tuple[str, ...] = ()
    problem: str = ""
    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    behind: Mapping[str, Interval] | None = None
    costs: str = ""

    @property
    def chosen(self) -> Candidate | None:
        """The chosen row's evidence."""
        return next((c for c in self.candidates if c.label == self.label), None)

    def to_text(self) -> str:
        """The answer for a terminal, several lines."""
        if self.label is None:
            return f"{self.key.title}\n  no answer: {self.problem}\n"
        excluded = [f"{c.label}: {c.excluded}" for c in self.candidates if c.excluded]
        blocks = (("", self.reasons), ("would change it", self.changes), ("ruled out", excluded))
        lines = [self.key.title, f"  choose: {self.label}"]
        for heading, block in blocks:
            lines += [f"  {heading}:"] if heading and block else []
            lines += [f"    {line}" for line in block]
        return "\n".join(lines) + "\n"

    def to_table(self) -> Table:
        """Every row of the pair with what the choice rests on, the chosen one first."""
        order = sorted(self.candidates, key=lambda c: (c.label != self.label, bool(c.excluded)))
        return Table(
            title=f"Candidates, {self.key.title}",
            columns=CANDIDATE_COLUMNS,
            rows=tuple(_candidate_row(self, candidate) for candidate in order),
            notes=CANDIDATE_NOTES,
        )


def recommend(
    plan: Plan,
    records: Mapping[str, Record],
    costs: Costs | None = None,
    question: Question = Question(),
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
        NotCovered: the grid has no such pair, fraction or category.

    Source:
        The rows that cannot be told from the best hold the truly best one with 95 % confidence:
        Gupta, On Some Multiple Decision (Selection and Ranking) Rules, Technometrics 7, 1965,
        with Bonferroni's bound in place of his constant.
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
    if question.category is not None:
        known = list(dict.fromkeys(r.category for r in plan.rows if r.role == "method"))
        if question.category not in known:
            raise NotCovered(
                f"category {question.category!r} is not in grid {plan.name}; it has: "
                f"{', '.join(known)}"
            )
    if question.pair is not None:
        known = list(dict.fromkeys(f"{key.teacher}:{key.student}" for key in pairs))
        if question.pair not in known:
            raise NotCovered(
                f"pair {question.pair!r} is not in grid {plan.name}; it has: {', '.join(known)}"
            )
        teacher, _, student = question.pair.partition(":")
        pairs = {k: v for k, v in pairs.items() if (k.teacher, k.student) == (teacher, student)}
    if question.fraction is not None:
        there = sorted({_fraction(key) for key in pairs})
        pairs = {k: v for k, v in pairs.items() if math.isclose(_fraction(k), question.fraction)}
        if not pairs:
            raise NotCovered(
                f"data fraction {question.fraction:g} is not in grid {plan.name}; it has: "
                f"{', '.join(f'{value:g}' for value in there)}"
            )
    return pairs


def _fraction(key: PairKey) -> float:
    return dict(key.axes).get("fraction", 1.0)


# --- one pair --------------------------------------------------------------------------------


def _choose(
    key: PairKey,
    rows: Sequence[Row],
    records: Mapping[str, Record],
    costs: Costs | None,
    question: Question,
) -> Choice:
    measured, conditions = costs_of(costs, key)
    candidates = candidates_of(key, rows, records, measured, question.limits)
    problem = _problem(candidates, bool(measured), question)
    if problem:
        return Choice(key=key, label=None, problem=problem, candidates=tuple(candidates))
    ranking = Ranking.of([c for c in candidates if not c.excluded])
    chosen = ranking.choose()
    return Choice(
        key=key,
        label=chosen.label,
        ties=tuple(c.label for c in ranking.tied if c is not chosen),
        reasons=tuple(_reasons(chosen, ranking, candidates, conditions, question)),
        changes=tuple(_changes(chosen, ranking, candidates, question)),
        candidates=tuple(candidates),
        behind=ranking.behind,
        costs=conditions,
    )


def _problem(candidates: Sequence[Candidate], profiled: bool, question: Question) -> str:
    """Why the evidence does not cover the question; empty if it does."""
    student = next((c for c in candidates if c.label == STUDENT), None)
    methods = [c for c in candidates if c.label != STUDENT]
    if student is None or not student.accuracy:
        return "the plain student has no finished cell, and gains are over it"
    if not any(c.accuracy for c in methods):
        return "no row but the plain student has a finished cell"
    if all(c.gained is None or c.gained.n < 2 for c in methods):
        return "one seed says nothing about spread: train at least two, better five, seeds"
    if question.limits.needs_costs and not profiled:
        return "costs are limited but none are measured: run run_all.py profile on this grid"
    return ""


@dataclass(frozen=True)
class Ranking:
    """The allowed rows of a pair against the best of them.

    Attributes:
        allowed: the candidates that no limit rules out.
        proven: those better than the plain student beyond doubt.
        best: the proven one of the highest gain; the plain student if none is proven.
        behind: label -> best - row with an interval that holds for all rows together.
        tied: the best, and the allowed rows that cannot be told from it, by falling gain. The
            plain student is none of them where a row is better than it beyond doubt.
    """

    allowed: tuple[Candidate, ...]
    proven: tuple[Candidate, ...]
    best: Candidate
    behind: dict[str, Interval]
    tied: tuple[Candidate, ...]

    @property
    def equals(self) -> tuple[Candidate, ...]:
        """What is chosen from; the plain student alone if nothing is proven."""
        return tuple(c for c in self.tied if c in self.proven) or (self.best,)

    @classmethod
    def of(cls, allowed: Sequence[Candidate]) -> Ranking:
        """Ranks candidates, the plain student among them."""
        proven = sorted(
            (c for c in allowed if c.gained is not None and c.gained.verdict == BETTER),
            key=lambda c: -c.gain,
        )
        student = next(c for c in allowed if c.label == STUDENT)
        best = proven[0] if proven else student
        level = _level(len(allowed) - 1)
        behind = {}
        for other in allowed:
            differences = paired_differences(best.accuracy, other.accuracy)
            if other is not best and differences:
                behind[other.label] = mean_interval(differences, level)
        beaten = {c.label for c in allowed if _told(behind.get(c.label))}
        if proven:
            beaten.add(STUDENT)
        tied = sorted((c for c in allowed if c.label not in beaten), key=lambda c: -c.gain)
        return cls(tuple(allowed), tuple(proven), best, behind, tuple(tied))

    def choose(self) -> Candidate:
        """The cheapest of the equals, of equal costs the best; the best if a cost is missing."""
        costs = [c.cost for c in self.equals]
        if any(cost is None for cost in costs):
            return self.best
        least = min((cost for cost in costs if cost is not None), key=lambda cost: cost.median)
        # Costs whose middle halves overlap are the same cost: then the higher accuracy decides.
        return next(c for c in self.equals if c.cost is not None and c.cost.q1 <= least.q3)


def _level(comparisons: int) -> float:
    """Of each interval, so that all hold together with 95 % (Bonferroni)."""
    return 1 - ALPHA / max(1, comparisons)


def _told(difference: Interval | None) -> bool:
    """Whether the interval says that the best is better."""
    return difference is not None and difference.low is not None and difference.low > 0


# --- in words --------------------------------------------------------------------------------


def _reasons(
    chosen: Candidate,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    conditions: str,
    question: Question,
) -> list[str]:
    tested = sum(c.gained is not None and c.gained.n > 1 for c in candidates)
    lines = [_evidence(chosen)]
    if chosen.label == STUDENT:
        wanted = f" by more than {_points(question.min_gain)}" if question.min_gain else ""
        lines = [
            f"no allowed row is better{wanted} than the plain student beyond doubt "
            f"(paired t test, Holm's correction over the pair's {tested} rows, p <= {ALPHA:g}): "
            "the plain student stands",
            *(f"nearest: {_evidence(c)}" for c in _hopeful(ranking)[:1]),
        ]
    else:
        lines += [_why_this(chosen, ranking), *_untold(ranking)]
        lines += _simultaneous(chosen, tested)
    lines += [f"runner-up: {_evidence(c)}" for c in _runners_up(chosen, ranking)]
    lines.append(_equal_compute(chosen, ranking, candidates))
    lines.append(
        f"costs measured {conditions}" if conditions else "costs not measured: run_all.py profile"
    )
    return lines


def _evidence(candidate: Candidate) -> str:
    mean = candidate.mean
    parts = [f"{show(ACCURACY, Entry(mean))} %" if mean else "no accuracy"]
    gained = candidate.gained
    if gained is not None and gained.gain is not None:
        p = "p undefined" if gained.holm_p is None else f"p {gained.holm_p:.2g}"
        gain = show(GAIN, Entry(gained.gain))
        parts.append(f"gain over the student {gain} pp, n = {gained.n}, {p} after Holm")
    parts.append(f"cost {_cost(candidate.cost)}")
    return f"{candidate.label}: {'; '.join(parts)}"


def _cost(cost: Quartiles | None) -> str:
    if cost is None:
        return "not measured"
    if cost.n == 1:
        return f"x{cost.median:.2f}"
    return f"x{cost.median:.2f} [{cost.q1:.2f}, {cost.q3:.2f}]"


def _points(value: float | None) -> str:
    return f"{show(Column(key='', name='', unit='pp', digits=2), Entry(value))} pp"


def _why_this(chosen: Candidate, ranking: Ranking) -> str:
    others = [c.label for c in ranking.equals if c is not chosen]
    if len(ranking.proven) == 1:
        return "no other allowed row is better than the student beyond doubt"
    if not others:
        return "every other row that is better than the student lies behind it beyond doubt"
    names = ", ".join(others)
    tie = f"tied, not to be told from the best ({ranking.best.label}): {chosen.label}, {names}"
    if any(c.cost is None for c in ranking.equals):
        return f"{tie}; not all their costs are measured: the highest mean is chosen"
    return f"{tie}; the cheapest of them is chosen, of equal costs the highest mean"


def _untold(ranking: Ranking) -> list[str]:
    """The ties that may not be chosen: not shown to be better than the student."""
    names = [c.label for c in ranking.tied if c not in ranking.equals]
    if not names:
        return []
    return [
        "not to be told from the best either, but not better than the student beyond doubt: "
        f"{', '.join(names)}"
    ]


def _simultaneous(chosen: Candidate, tested: int) -> list[str]:
    if chosen.gained is None:
        return []
    interval = mean_interval(chosen.gained.differences, _level(tested))
    column = Column(key="", name="", unit="pp", digits=2, signed=True)
    low, high = (show(column, Entry(end)) for end in (interval.low, interval.high))
    return [
        f"picked as one of {tested} rows, so its gain is likely too high (winner's curse): "
        f"allowing for that, {low} to {high} pp; seeds not used here would tell"
    ]


def _hopeful(ranking: Ranking) -> list[Candidate]:
    """Allowed rows above the student on average and not proven, the highest first."""
    unproven = [c for c in ranking.allowed if c.gain > 0 and c not in ranking.proven]
    return sorted(unproven, key=lambda c: -c.gain)


def _runners_up(chosen: Candidate, ranking: Ranking) -> list[Candidate]:
    return [c for c in ranking.proven if c is not chosen][:3]


def _equal_compute(chosen: Candidate, ranking: Ranking, candidates: Sequence[Candidate]) -> str:
    """How the choice stands against the plain student trained longer for about the same cost."""
    longer = [c for c in ranking.allowed if c.factor is not None]
    if not longer:
        there = any(c.factor is not None for c in candidates)
        why = "no such row is allowed" if there else "the grid has no such row"
        return (
            f"against the plain student trained longer at the same cost: {why} "
            "(student: {epochs_factor: 1.5}), so this is not known"
        )
    matched = _matched(chosen, longer)
    if matched is chosen:
        return "it is itself the plain student, trained longer: no method is needed"
    level = _level(1)
    differences = paired_differences(chosen.accuracy, matched.accuracy)
    if len(differences) < 2:
        return f"against {matched.label}: fewer than 2 seeds in common"
    gain = mean_interval(differences, level)
    verdict = "told apart" if gain.excludes_zero else "not told apart"
    return (
        f"against {matched.label}, plain training at cost {_cost(matched.cost)}: "
        f"{show(GAIN, Entry(gain))} pp, {verdict}"
    )


def _matched(chosen: Candidate, longer: Sequence[Candidate]) -> Candidate:
    """The cheapest longer-trained student that costs as much as the choice, or else the longest."""
    ordered = sorted(longer, key=lambda c: c.factor or 1.0)
    if chosen.cost is not None:
        cost = chosen.cost.median
        return next((c for c in ordered if (c.factor or 1.0) >= cost), ordered[-1])
    return ordered[-1]


def _changes(
    chosen: Candidate, ranking: Ranking, candidates: Sequence[Candidate], question: Question
) -> list[str]:
    lines = []
    for candidate in sorted(candidates, key=lambda c: -c.gain):
        if candidate.excluded and candidate.gain > chosen.gain:
            gain = candidate.gained.gain if candidate.gained else None
            lines.append(
                f"without its limit, {candidate.label} ({candidate.excluded}) has the higher "
                f"mean gain, {show(GAIN, Entry(gain))} pp"
            )
    tested = sum(c.gained is not None and c.gained.n > 1 for c in candidates)
    for candidate in _hopeful(ranking)[:3]:
        if candidate.gained is not None and candidate.gain > chosen.gain:
            lines.append(_more_seeds(candidate, candidate.gained, tested, question.min_gain))
    for other in ranking.equals[:3]:
        if other is not chosen:
            lines.append(_seeds_to_part(chosen, other, len(ranking.allowed) - 1))
    return lines


def _more_seeds(candidate: Candidate, gained: Compared, tested: int, margin: float | None) -> str:
    shifted = [difference - (margin or 0.0) for difference in gained.differences]
    needed = seeds_needed(shifted, level=_level(tested))
    return f"more seeds: {candidate.label} would need {_seeds(needed)} to be told from the student"


def _seeds_to_part(chosen: Candidate, other: Candidate, comparisons: int) -> str:
    differences = paired_differences(chosen.accuracy, other.accuracy)
    needed = seeds_needed(differences, level=_level(comparisons)) if len(differences) > 1 else None
    return (
        f"more seeds: {chosen.label} and {other.label} would need {_seeds(needed)} to be told apart"
    )


def _seeds(needed: int | None) -> str:
    if needed is None:
        return "more than 1,000 seeds"
    return f"about {needed} seeds (80 % power, if the spread and difference seen are true)"


# --- the table -------------------------------------------------------------------------------

CANDIDATE_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="n"),
    ACCURACY,
    Column(key="gain", name="gain over student", unit="pp", digits=2, signed=True, interval=True),
    Column(key="holm_p", name="p, Holm", digits=4),
    Column(key="behind", name="best minus row", unit="pp", digits=2, signed=True, interval=True),
    COST,
    Column(key="standing", name="standing", align="left"),
)

CANDIDATE_NOTES = (
    "Gain: row - student, paired by seed, 95 % t interval of the row looked at alone; p of the "
    "paired t test after Holm's correction over all rows of the pair.",
    "Best minus row: paired by seed, intervals that hold for all allowed rows together "
    "(Bonferroni, 95 %): where one contains 0 the row cannot be told from the best.",
    "Cost: whole training over the plain student's, median and quartiles; a longer-trained "
    "student's by definition.",
)


def _candidate_row(choice: Choice, candidate: Candidate) -> tuple[Entry, ...]:
    gained, cost = candidate.gained, candidate.cost
    ratio = None if cost is None else Interval(cost.median, cost.q1, cost.q3, cost.n)
    if cost is not None and cost.n == 1:
        ratio = cost.median
    behind = (choice.behind or {}).get(candidate.label)
    return (
        Entry(candidate.label),
        Entry(candidate.category),
        Entry(len(candidate.accuracy)),
        Entry(candidate.mean),
        Entry(gained.gain if gained else None),
        Entry(gained.holm_p if gained else None),
        Entry(behind),
        Entry(ratio),
        Entry(_standing(choice, candidate)),
    )


def _standing(choice: Choice, candidate: Candidate) -> str:
    if candidate.label == choice.label:
        return "chosen"
    if candidate.excluded:
        return f"ruled out: {candidate.excluded}"
    if candidate.label in choice.ties:
        return "tied"
    if candidate.gained is None:
        return "baseline"
    return candidate.gained.verdict
