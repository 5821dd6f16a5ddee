"""Under what conditions a grid's cells ran, and what became of those that have no result."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bench.evidence import group_by_pair
from bench.record import FINISHED, Plan, Record
from bench.report.groups import status_of
from bench.report.tables import Column, Table, Value, text_columns
from bench.report.wording import row_title, seeds_text

PASSING = ("started", "cohort")
"""What differs from cell to cell by its nature."""

CONDITION_COLUMNS = (*text_columns("what", "value"), Column(key="cells", name="cells"))

FAULT_COLUMNS = text_columns("pair", "label", "seeds", "status", "reason")


def conditions_table(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """Device, precision, versions, commit, dates, seeds, data and recipe, with cells of each.

    A row for every value that any finished cell had; no table without finished cells.
    """
    cells = [records[i] for i in plan.cell_ids() if i in records]
    cells = [record for record in cells if record.status == FINISHED]
    if not cells:
        return []
    rows = _counted("seeds", [seeds_text(row.seed for row in plan.rows)] * len(cells))
    times = sorted(str(r.conditions["started"]) for r in cells if r.conditions.get("started"))
    rows += _counted("first cell started", times[:1]) + _counted("last cell started", times[-1:])
    for name in sorted({key for record in cells for key in record.conditions} - {*PASSING}):
        rows += _counted(name, [r.conditions[name] for r in cells if name in r.conditions])
    for part in ("recipe", "data"):
        fields = [r.cell.get(part, {}) for r in cells]
        for key in dict.fromkeys(key for each in fields for key in each):
            rows += _counted(f"{part}: {key}", [each.get(key) for each in fields])
    notes = (
        "Teachers and students may differ in recipe and data: each value has its cells.",
        "Code: digest of what decides numbers. Results of equal NUMERICS (bench/cell.py) are "
        "comparable; it is part of every cell's id.",
    )
    return [Table("Conditions of the finished cells", CONDITION_COLUMNS, rows, notes)]


def _counted(what: str, values: Iterable[Any]) -> list[dict[str, Value]]:
    """A row a value, in the order of first mention; empty ones say nothing."""
    counts, what = Counter(map(_plain, values)), what.replace("_", " ")
    return [
        {"what": what, "value": text, "cells": n}
        for text, n in counts.items()
        if text or len(counts) > 1
    ]


def _plain(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def faults_table(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """Every row of the plan without a result: failed, not applicable or not run, and why.

    Rows of equal pair, method, status and reason are one, with their seeds; no table if
    every cell finished.
    """
    seeds: dict[tuple[str, ...], list[int]] = {}
    for key, rows in group_by_pair(plan).items():
        for row in rows:
            record = records.get(row.cell_id)
            if (status := status_of(record)) != FINISHED:
                reason = (record.error if record is not None else "") or "-"
                fault = (key.title, row_title(row.label), status.replace("_", " "), reason)
                seeds.setdefault(fault, []).append(row.seed)
    rows = [
        {"pair": pair, "label": row, "seeds": seeds_text(met), "status": status, "reason": reason}
        for (pair, row, status, reason), met in seeds.items()
    ]
    return [Table("Cells without a result", FAULT_COLUMNS, rows)] if rows else []
