"""A plan's rows with their records, by pair and label, and the raw evidence as tables."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from bench.decide.evidence import row_title
from bench.decide.records import group_by_pair
from bench.design import PairId
from bench.faults import UserError
from bench.record import FAILED, FINISHED, Plan, Record, Row
from bench.report.tables import Column, Table, Value, text_columns, to_csv
from bench.report.wording import seeds_text

ROLES = ("teacher", "student", "method")
NOT_RUN = "not_run"  # the status, in tables only, of a row of the plan whose cell has no record
ROW_KEYS = ("data", "axes", "teacher", "student", "label", "method", "category", "seed")
FINAL_KEYS = (
    "last_accuracy", "best_accuracy", "best_epoch", "agreement", "epochs", "train_images",
    "parameters", "train_seconds",
)  # fmt: skip
CELL_COLUMNS = text_columns(*ROW_KEYS, "status", *FINAL_KEYS, "error", "cell_id")

Measure = Callable[[Record], float | None]
"""A number of a finished record; None where it was not measured."""


class Group(NamedTuple):
    """The rows of one label of one pair: one cell a seed, or one for all seeds (a teacher).

    `role` is one of `ROLES`; `cells` maps seeds to cell ids, which `records` are by.
    """

    role: str
    label: str
    method: str
    category: str
    cells: dict[int, str]
    records: dict[str, Record]

    def by_seed(self, measure: Measure) -> dict[int, float]:
        """Seed -> a number of its cell, where it finished and has one."""
        found = {record.cell_id: measure(record) for record in self.finished()}
        numbers = ((seed, found.get(cell)) for seed, cell in self.cells.items())
        return {seed: number for seed, number in numbers if number is not None}

    def by_cell(self, key: str) -> list[float]:
        """A final number, each cell once: a teacher shared by all seeds is one observation."""
        found = self.by_seed(final(key)).items()
        return list({self.cells[seed]: value for seed, value in found}.values())

    def finished(self) -> list[Record]:
        """The records of finished cells, each once."""
        return [record for record in self.records.values() if record.status == FINISHED]

    def why_empty(self) -> str:
        """Why there is no accuracy, in a word or two."""
        records = map(self.records.get, self.cells.values())
        statuses = {record.status if record else NOT_RUN for record in records}
        known = {FAILED: "failed", NOT_RUN: "not run", FINISHED: "not measured"}
        return next((text for s, text in known.items() if s in statuses), "not applicable")


Pairs = Mapping[PairId, list[Group]]
"""The rows of every pair that has any record, see `measured_groups`."""


def measured_groups(plan: Plan, records: Mapping[str, Record]) -> dict[PairId, list[Group]]:
    """The rows of every pair with a record; UserError if two cells answer for one row and seed."""
    pairs = group_by_pair(plan).items()
    met = {key: rows for key, rows in pairs if any(row.cell_id in records for row in rows)}
    return {key: _by_label(key, rows, records) for key, rows in met.items()}


def _by_label(key: PairId, rows: Iterable[Row], records: Mapping[str, Record]) -> list[Group]:
    """One pair's groups; a transfer's source is left out."""
    groups: dict[tuple[str, str], Group] = {}
    for row in rows:
        if row.role == "source":
            continue
        new = Group(row.role, row.label, row.method, row.category, {}, {})
        group = groups.setdefault((row.role, row.label), new)
        if group.cells.setdefault(row.seed, row.cell_id) != row.cell_id:
            raise UserError(
                f"{key.title}: cells {group.cells[row.seed]} and {row.cell_id} both answer for "
                f"{row.label!r}, seed {row.seed}; give the methods different labels"
            )
        if row.cell_id in records:
            group.records[row.cell_id] = records[row.cell_id]
    return sorted(groups.values(), key=lambda group: ROLES.index(group.role))


def final(key: str) -> Measure:
    """The number called `key` among a record's final ones, None where it is not finite."""

    def measure(record: Record) -> float | None:
        value = record.final.get(key)
        return float(value) if value is not None and math.isfinite(value) else None

    return measure


def whole(value: float | None) -> float | None:
    """Counts as integers, however they were stored: 30 epochs, not 30.0."""
    return int(value) if value is not None and value == int(value) else value


def cells_csv(plan: Plan, records: Mapping[str, Record]) -> str:
    """One line for each row of the plan, "not_run" where nothing is; numbers of finished cells."""
    rows = []
    for row in plan.rows:
        record = records.get(row.cell_id)
        made: dict[str, Value] = {key: getattr(row, key) for key in (*ROW_KEYS, "cell_id")}
        made["axes"] = ";".join(f"{name}={value:g}" for name, value in sorted(row.axes.items()))
        made["status"], made["error"] = (record.status, record.error) if record else (NOT_RUN, "")
        if record is not None and record.status == FINISHED:
            made |= {key: whole(final(key)(record)) for key in FINAL_KEYS}
        rows.append(made)
    return to_csv(Table(plan.name, CELL_COLUMNS, rows))


PASSING = {"started", "cohort"}  # differ from cell to cell by their nature
CONDITION_COLUMNS = (*text_columns("what", "value"), Column("cells", "cells"))
FAULT_COLUMNS = text_columns("pair", "label", "seeds", "status", "reason")


def conditions_table(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """Device, versions, commit, dates, seeds, data and recipe, each value with its cells."""
    cells = [records[i] for i in plan.cell_ids() if i in records]
    cells = [record for record in cells if record.status == FINISHED]
    if not cells:
        return []
    rows = _counted("seeds", [seeds_text(row.seed for row in plan.rows)] * len(cells))
    times = sorted(str(r.conditions["started"]) for r in cells if r.conditions.get("started"))
    rows += _counted("first cell started", times[:1]) + _counted("last cell started", times[-1:])
    for name in sorted({key for record in cells for key in record.conditions} - PASSING):
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
    """Rows without a result, with their seeds and reasons; no table if every cell finished."""
    seeds = defaultdict[tuple[str, ...], list[int]](list)
    for key, rows in group_by_pair(plan).items():
        for row in rows:
            record = records.get(row.cell_id)
            status = record.status if record else NOT_RUN
            if status != FINISHED:
                reason = (record.error if record else "") or "-"
                fault = key.title, row_title(row.label), status.replace("_", " "), reason
                seeds[fault].append(row.seed)
    rows = [
        {"pair": pair, "label": row, "seeds": seeds_text(met), "status": status, "reason": reason}
        for (pair, row, status, reason), met in seeds.items()
    ]
    return [Table("Cells without a result", FAULT_COLUMNS, rows)] if rows else []
