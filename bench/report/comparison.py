"""Rows held against a reference, pair by pair.

Differences are paired by seed, and the tests corrected for how many rows are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.record import Plan, Record
from bench.report.statistics import (
    ALPHA,
    Interval,
    effect_size,
    holm,
    mean_interval,
    paired_differences,
    paired_t_p,
)
from bench.report.summary import PairKey, measured_groups
from bench.report.tables import Column, Table, Value

BETTER, WORSE, UNDECIDED = "better", "worse", "not enough seeds to tell"

STUDENT, SOFT_LOGITS = "student", "soft_logits"

PAIR_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="n", name="n"),
    Column(key="gain", name="gain", unit="pp", digits=2, signed=True, interval=True),
    Column(key="effect_size", name="effect size d_z", digits=2, signed=True),
    Column(key="p", name="p, paired t", digits=4, p_value=True),
    Column(key="holm_p", name="p, Holm", digits=4, p_value=True),
    Column(key="verdict", name="verdict", align="left"),
)

PAIR_NOTES = (
    "Differences are paired by seed, over the n seeds that both rows finished.",
    "Gain: mean ± half-width of the 95 % t interval.",
    "p: paired t test, two-sided; Holm: corrected for all rows of this table. Verdict: by Holm's "
    f'p at {ALPHA:g}, else "{UNDECIDED}"; an interval that excludes 0 looks at its row alone.',
    'The claims\' "never beaten significantly" corrects over all other rows on all pairs: a row '
    "worse in this table alone may be among them.",
    "d_z: mean over standard deviation of the differences. No p where all differences are equal "
    "or n = 1: there is no spread to judge by.",
)


Series = Mapping[int, float]
"""Seed -> accuracy of the last epoch, in [0, 1]."""


def comparison_tables(plan: Plan, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """For each pair its rows against student and soft logits.

    Args:
        plan: what was asked for.
        records: by cell id.

    Returns:
        One or two tables a pair; nothing where no two rows finished at one seed.
    """
    labels = dict.fromkeys(row.label for row in plan.rows if row.method == SOFT_LOGITS)
    soft = SOFT_LOGITS if SOFT_LOGITS in labels else next(iter(labels), SOFT_LOGITS)
    tables = []
    for key, groups in measured_groups(plan, records).items():
        rows = {g.label: g.by_seed("last_accuracy") for g in groups if g.role != "teacher"}
        tables += [_pair_table(key, rows, reference) for reference in (STUDENT, soft)]
    return tuple(table for table in tables if table is not None)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row against a reference, over the seeds that both finished.

    Attributes:
        differences: row - reference, one a seed, by seed; empty without a common seed.
        gain: their mean with its 95 % t interval, of this row looked at alone.
        p: of the paired t test that the mean is the margin; None where there is no spread to
            judge it by: one seed, or differences all equal but not to the margin.
        holm_p: p corrected for all rows held against this reference; None as `p`.
        effect: Cohen's d_z; None for one seed.
        verdict: `BETTER` or `WORSE` where `holm_p` is at most `ALPHA`, else `UNDECIDED`.
    """

    differences: tuple[float, ...]
    gain: Interval | None
    p: float | None
    holm_p: float | None
    effect: float | None
    verdict: str

    @property
    def n(self) -> int:
        """Seeds in common."""
        return len(self.differences)


def compare(
    rows: Mapping[str, Series], reference: Series, margin: float = 0.0
) -> dict[str, Compared]:
    """Every row against one reference, with Holm's correction over the rows.

    Equal differences at every seed estimate no spread (accuracies are counts of a few hundred
    images, so that happens): they are no evidence, and neither is one seed. Such a row counts
    among the tests with p = 1.

    Args:
        rows: label -> accuracy by seed; without the reference itself.
        reference: accuracy by seed.
        margin: what the difference is tested against, in accuracy.

    Returns:
        By label, in the order given.

    Source:
        Student 1908 for the test, Holm 1979 for the correction; see `bench.report.statistics`.

    Example:
        >>> rows = {"a": {0: 0.75, 1: 0.76, 2: 0.77}, "b": {0: 0.9}}
        >>> found = compare(rows, {0: 0.70, 1: 0.70, 2: 0.70})
        >>> found["a"].verdict, found["b"].verdict
        ('better', 'not enough seeds to tell')
    """
    differences = {label: differences_of(row, reference) for label, row in rows.items()}
    raw = {label: paired_p(values, margin) for label, values in differences.items()}
    adjusted = holm([1.0 if p is None else p for p in raw.values()])
    return {
        label: _compared(values, raw[label], corrected, margin)
        for (label, values), corrected in zip(differences.items(), adjusted, strict=True)
    }


def differences_of(row: Series, reference: Series) -> list[float]:
    """Row - reference at every common seed, by seed; equal where the accuracies' counts are.

    Example:
        >>> differences_of({0: 0.76, 1: 0.73}, {0: 0.74, 1: 0.71})
        [0.02, 0.02]
    """
    return _rounded(paired_differences(row, reference))


def told(difference: Interval | None) -> bool:
    """Whether an interval tells a difference from 0: not without a spread to judge by."""
    return difference is not None and difference.low != difference.high and difference.excludes_zero


def _rounded(differences: Sequence[float]) -> list[float]:
    # 0.76 - 0.74 and 0.73 - 0.71 differ in the last bit: a spread that is not there.
    return [round(difference, 12) for difference in differences]


def paired_p(differences: Sequence[float], margin: float = 0.0) -> float | None:
    """p of the paired t test that the mean is the margin; None without a spread to judge it by."""
    shifted = _rounded([difference - margin for difference in differences])
    if len(shifted) < 2 or math.isinf(effect_size(shifted)):
        return None
    return paired_t_p(shifted)


def _compared(
    differences: Sequence[float], p: float | None, adjusted: float, margin: float
) -> Compared:
    gain = mean_interval(differences) if differences else None
    verdict = UNDECIDED
    if gain is not None and p is not None and adjusted <= ALPHA:
        verdict = BETTER if gain.mean > margin else WORSE
    return Compared(
        differences=tuple(differences),
        gain=gain,
        p=p,
        holm_p=None if p is None else adjusted,
        effect=effect_size(differences) if len(differences) > 1 else None,
        verdict=verdict,
    )


# --- tables ----------------------------------------------------------------------------------


def _pair_table(key: PairKey, rows: Mapping[str, Series], reference: str) -> Table | None:
    others = {x: row for x, row in rows.items() if row and x not in (STUDENT, reference)}
    found = compare(others, rows.get(reference, {}))
    if not any(compared.n for compared in found.values()):
        return None
    return Table.by_name(
        title=f"Gain over {reference}, {key.title}",
        columns=PAIR_COLUMNS,
        rows=[_pair_row(label, compared) for label, compared in found.items()],
        notes=PAIR_NOTES,
    )


def _pair_row(label: str, compared: Compared) -> dict[str, Value]:
    effect = compared.effect
    return {
        "label": label,
        "n": compared.n,
        "gain": compared.gain,
        "effect_size": None if effect is None or math.isinf(effect) else effect,
        "p": compared.p,
        "holm_p": compared.holm_p,
        "verdict": compared.verdict,
    }
