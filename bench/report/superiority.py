"""Whether one row is superior everywhere, or none is: tests over all pairs at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from bench.report.measures import (
    LEAST_SEEDS,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Pairs,
)
from bench.statistics import ALPHA, holm, paired_differences, paired_p

LEAST_PAIRS = 2
"""On a single pair some row is always the best: nothing can be said about all."""


def superiority(pairs: Pairs) -> Finding:
    """Holds every method's row against every other row of its pair, by seed.

    A row is beaten if another one is significantly better on some pair: paired t tests, Holm over
    all its comparisons on all pairs. That every row is beaten is an intersection of such findings
    and needs no further correction (Berger 1982). That one row beats all others everywhere is an
    intersection as well; it is asked of every row, with Holm over them.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    rivals: dict[str, list[list[float]]] = {}  # row -> other - row, by seed, of every comparison
    total, shown = 0, 0
    for groups in pairs.values():
        rows = {g.label: g.by_seed("last_accuracy") for g in groups if g.role != "teacher"}
        rows = {label: series for label, series in rows.items() if series}
        if len(rows) < 2:
            continue
        total, shown = total + len(rows) - 1, shown + 1
        for group in groups:
            if group.role == "method" and group.category != "baseline" and group.label in rows:
                others = [row for label, row in rows.items() if label != group.label]
                found = [paired_differences(row, rows[group.label]) for row in others]
                rivals.setdefault(group.label, []).extend(filter(None, found))
    unbeaten = [label for label, found in rivals.items() if not _is_beaten(found)]
    superior = _superior(rivals, total)
    if not any(rivals.values()):
        return Finding(UNDECIDED, "no two rows with an accuracy at the same seed")
    if superior:
        verdict, said = NOT_SUPPORTED, f"superior everywhere: {', '.join(superior)}"
    elif unbeaten:
        verdict, said = UNDECIDED, f"never beaten significantly: {', '.join(unbeaten)}"
    else:
        verdict, said = SUPPORTED, f"each of {len(rivals)} rows is beaten on some pair"
    seeds = min(len(values) for found in rivals.values() for values in found)
    said = f"{said}; n={seeds} seeds at least, {shown} pairs"
    if shown < LEAST_PAIRS:
        return Finding(UNDECIDED, f"{said}, too few to tell, wanted {LEAST_PAIRS}")
    return Finding(verdict, said)


def _is_beaten(rivals: Sequence[Sequence[float]]) -> bool:
    return any(p <= ALPHA for p in holm([_p(values, 1) for values in rivals]))


def _superior(rivals: Mapping[str, Sequence[Sequence[float]]], total: int) -> tuple[str, ...]:
    """The rows that all `total` comparisons favour, each at the level, with Holm over the rows."""
    greatest = [
        max(_p(values, -1) for values in found) if len(found) == total else 1.0
        for found in rivals.values()
    ]
    return tuple(label for label, p in zip(rivals, holm(greatest), strict=True) if p <= ALPHA)


def _p(differences: Sequence[float], sign: int) -> float:
    """Two-sided p of a mean difference of that sign; 1 where there is nothing to judge by."""
    if len(differences) < LEAST_SEEDS or statistics.fmean(differences) * sign <= 0:
        return 1.0
    p = paired_p(differences)
    return 1.0 if p is None else p
