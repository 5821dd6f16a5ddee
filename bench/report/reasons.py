"""A choice in words: why this row, how sure, and what would change it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from bench.cost.costs import Quartiles
from bench.report.candidates import Candidate, Question
from bench.report.comparison import STUDENT, told
from bench.report.standing import Standing, joint_level
from bench.report.tables import Column, Entry, show
from bench.statistics import (
    ALPHA,
    effect_size,
    mean_interval,
    paired_differences,
    seeds_needed,
)

SHOWN = 3  # of what is listed in a line
GAIN = Column(key="gain", name="gain", unit="pp", digits=2, signed=True, interval=True)
ACCURACY = Column(key="accuracy", name="accuracy", unit="%", digits=2, interval=True)
COST = Column(key="cost", name="cost", unit="x plain", digits=2, interval=True)


def reasons(
    chosen: Candidate,
    standing: Standing,
    candidates: Sequence[Candidate],
    conditions: str,
    limits: Question,
) -> list[str]:
    """Why this row: its numbers, ties, how optimistic they are, and training longer instead.

    Args:
        chosen: the row.
        standing: where all allowed rows stand.
        candidates: all rows of the pair.
        conditions: under which costs were measured; empty where they were not.
        limits: what was asked of the rows.

    Returns:
        One line each.
    """
    tested = _tested(candidates)
    if chosen.label == STUDENT:
        lines = _student_stands(standing, tested, limits)
    else:
        lines = [_evidence(chosen, limits), _why_this(chosen, standing)]
        lines.append(_winners_curse(chosen, tested))
    lines += _equal_compute(chosen, standing, candidates)
    lines.append(
        f"costs: whole training, measured {conditions}; the teacher's own training is not counted"
        if conditions
        else "costs of methods are not measured: run_all.py profile"
    )
    return [line for line in lines if line]


def _tested(candidates: Sequence[Candidate]) -> int:
    """How many rows were held against the student, allowed or not."""
    return sum(c.gained is not None and c.gained.n > 0 for c in candidates)


def _student_stands(standing: Standing, tested: int, limits: Question) -> list[str]:
    wanted = f" by more than {points(limits.min_gain)}" if limits.min_gain else ""
    return [
        f"no allowed row is better than the plain student{wanted} beyond doubt (paired t test, "
        f"Holm's correction over the pair's {tested} rows, p <= {ALPHA:g}): the plain student "
        "stands",
        *(f"nearest: {_evidence(c, limits)}" for c in _hopeful(standing)[:1]),
    ]


def _evidence(candidate: Candidate, limits: Question) -> str:
    mean = candidate.mean
    parts = [f"{show(ACCURACY, Entry(mean))} %" if mean else "no accuracy"]
    gained = candidate.gained
    if gained is not None and gained.gain is not None:
        p = "p undefined" if gained.holm_p is None else f"p = {gained.holm_p:.2g}"
        than = f" of more than {points(limits.min_gain)}" if limits.min_gain else ""
        gain = show(GAIN, Entry(gained.gain))
        parts.append(f"gain over the student {gain} pp (n = {gained.n}; {p} after Holm{than})")
    parts.append(f"cost {_cost(candidate.cost)}")
    return f"{candidate.label}: {', '.join(parts)}"


def _cost(cost: Quartiles | None) -> str:
    if cost is None:
        return "not measured"
    if cost.n == 1:
        return f"x{cost.median:.2f}"
    return f"x{cost.median:.2f} [{cost.q1:.2f}, {cost.q3:.2f}]"


def points(value: float) -> str:
    """An accuracy as percentage points.

    Example:
        >>> points(0.015)
        '1.50 pp'
    """
    return f"{show(Column(key='', name='', unit='pp', digits=2), Entry(value))} pp"


def _why_this(chosen: Candidate, standing: Standing) -> str:
    others = [c.label for c in standing.equals if c is not chosen]
    if len(standing.proven) == 1:
        return "no other allowed row is better than the student beyond doubt"
    if not others:
        return "every other row that is better than the student lies behind it beyond doubt"
    names = ", ".join(others)
    best = f"the best proven row ({standing.reference.label})"
    tie = f"tied, not to be told from {best}: {chosen.label}, {names}"
    if any(c.cost is None for c in standing.equals):
        return f"{tie}; not all their costs are measured: the highest mean is chosen"
    return f"{tie}; the cheapest of them is chosen, of equal costs the highest mean"


def _winners_curse(chosen: Candidate, tested: int) -> str:
    if chosen.gained is None:
        return ""
    interval = mean_interval(chosen.gained.differences, joint_level(tested))
    column = Column(key="", name="", unit="pp", digits=2, signed=True)
    low, high = (show(column, Entry(end)) for end in (interval.low, interval.high))
    return (
        f"picked among {tested} rows, so its gain is likely too high (winner's curse): an interval "
        f"that holds for all {tested} together is {low} to {high} pp; only seeds that were not "
        "used here would tell"
    )


def _hopeful(standing: Standing) -> list[Candidate]:
    """Allowed rows above the student on average and not proven, the highest first."""
    unproven = [c for c in standing.allowed if c.gain > 0 and c not in standing.proven]
    return sorted(unproven, key=lambda c: -c.gain)


def _equal_compute(
    chosen: Candidate, standing: Standing, candidates: Sequence[Candidate]
) -> list[str]:
    """The choice against every plain student that was trained longer."""
    longer = [c for c in standing.allowed if c.factor is not None]
    if not longer:
        there = any(c.factor is not None for c in candidates)
        why = "no such row is allowed" if there else "the grid has no such row"
        return [
            f"against the plain student trained longer: {why} "
            "(student: {epochs_factor: 1.5}), so this is not known"
        ]
    if chosen.factor is not None:
        return ["it is itself the plain student, trained longer: no method is needed"]
    if chosen.label == STUDENT:
        return []
    return [_against(chosen, row, standing) for row in longer]


def _against(chosen: Candidate, longer: Candidate, standing: Standing) -> str:
    """By the interval that holds for all allowed rows: any of them might have been the choice."""
    head = f"against {longer.label}, plain training at cost {_cost(longer.cost)}:"
    differences = paired_differences(chosen.accuracy, longer.accuracy)
    if len(differences) < 2:
        return f"{head} fewer than 2 seeds in common"
    gain = mean_interval(differences, standing.level)
    verdict = "told apart" if told(gain) else "not told apart"
    others = len(standing.allowed) - 1
    family = f", for all {others} other allowed rows together" if others > 1 else ""
    return f"{head} {show(GAIN, Entry(gain))} pp, {verdict} (95 %{family})"


def changes(
    chosen: Candidate, standing: Standing, candidates: Sequence[Candidate], limits: Question
) -> list[str]:
    """What would change the choice: a limit that rules a better row out, or more seeds.

    Args:
        chosen: the row.
        standing: where all allowed rows stand.
        candidates: all rows of the pair.
        limits: what was asked of the rows.

    Returns:
        One line each.
    """
    better = [c for c in candidates if c.excluded and c.gained and c.gain > chosen.gain]
    lines = [
        f"{c.label} is ruled out ({c.excluded}) and has the higher mean gain: "
        f"{show(GAIN, Entry(c.gained.gain))} pp, {c.gained.verdict}"
        for c in sorted(better, key=lambda c: -c.gain)[:SHOWN]
        if c.gained is not None
    ]
    tested, margin = joint_level(_tested(candidates)), limits.min_gain or 0.0
    unproven = {
        c.label: [difference - margin for difference in c.gained.differences]
        for c in _hopeful(standing)[:SHOWN]
        if c.gained is not None and c.gain > max(chosen.gain, margin)
    }
    lines += _seeds("the student", unproven, tested)
    if chosen.label != STUDENT:
        ties = {
            c.label: paired_differences(chosen.accuracy, c.accuracy)
            for c in [c for c in standing.tied if c is not chosen][:SHOWN]
        }
        lines += _seeds(chosen.label, ties, standing.level)
    return lines


def _seeds(whom: str, differences: Mapping[str, Sequence[float]], level: float) -> list[str]:
    """How many seeds would tell each row from `whom`, if what is seen is true."""
    effects = {
        label: abs(effect_size(values))
        for label, values in differences.items()
        if len(set(values)) > 1  # without a spread no number follows
    }
    needed = [
        f"{label} {seeds_needed(effect, alpha=(1 - level) / 2) or 'more than 1,000'}"
        for label, effect in effects.items()
    ]
    if not needed:
        return []
    return [
        f"more seeds; about so many would tell a row from {whom} (80 % power, if the differences "
        f"and spread seen are true): {', '.join(needed)}"
    ]


def wrapped(text: str, indent: int) -> str:
    """A text in lines of at most 100 letters, those after the first indented by two more."""
    first, rest = " " * indent, " " * (indent + 2)
    return textwrap.fill(
        text, 100, initial_indent=first, subsequent_indent=rest, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
