"""A plan's rows with their records, by pair and label, and the raw evidence as a CSV file.

Every row of the plan is accounted for: finished, failed with its error, not applicable with the
reason, or not run.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.design import PairId
from bench.evidence import group_by_pair
from bench.faults import UserError
from bench.record import FAILED, FINISHED, Plan, Record, Row
from bench.report.tables import Table, Value, text_columns, to_csv

NOT_RUN = "not_run"
"""The status, in tables only, of a row of the plan whose cell has no record."""

ROW_KEYS = ("data", "teacher", "student", "label", "method", "category", "seed", "cell_id")
MEASURED_KEYS = ("last_accuracy", "best_accuracy", "agreement", "train_seconds")
COUNTED_KEYS = ("best_epoch", "epochs", "train_images", "parameters")
CELL_COLUMNS = text_columns(
    "data", "axes", "teacher", "student", "label", "method", "category", "seed", "status",
    "last_accuracy", "best_accuracy", "best_epoch", "agreement", "epochs", "train_images",
    "parameters", "train_seconds", "error", "cell_id",
)  # fmt: skip


Measure = Callable[[Record], float | None]
"""A number of a finished record; None where it was not measured."""


@dataclass
class Group:
    """The rows of one label of one pair: one cell a seed, or one for all seeds (a teacher).

    Attributes:
        role: "teacher", "student" or "method".
        label, method, category: the row's name, its method and that one's category.
        cells: seed -> cell id.
        records: by cell id, of these cells alone.
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
        statuses = {status_of(self.records.get(cell)) for cell in self.cells.values()}
        known = {FAILED: "failed", NOT_RUN: "not run", FINISHED: "not measured"}
        return next((text for s, text in known.items() if s in statuses), "not applicable")


Pairs = Mapping[PairId, list[Group]]
"""The rows of every pair that has any record, see `measured_groups`."""


def measured_groups(plan: Plan, records: Mapping[str, Record]) -> dict[PairId, list[Group]]:
    """The rows of every pair that has any record, by label: teacher, student, then methods.

    Raises:
        UserError: two cells answer for one label and seed of a pair.
    """
    return {
        key: _by_label(key, rows, records)
        for key, rows in group_by_pair(plan).items()
        if any(row.cell_id in records for row in rows)
    }


def _by_label(key: PairId, rows: Iterable[Row], records: Mapping[str, Record]) -> list[Group]:
    """One pair's groups; a transfer's source is left out."""
    groups: dict[tuple[str, str], Group] = {}
    for row in rows:
        if row.role == "source":
            continue
        group = groups.setdefault(
            (row.role, row.label), Group(row.role, row.label, row.method, row.category, {}, {})
        )
        if group.cells.setdefault(row.seed, row.cell_id) != row.cell_id:
            raise UserError(
                f"{key.title}: cells {group.cells[row.seed]} and {row.cell_id} both answer for "
                f"{row.label!r}, seed {row.seed}; give the methods different labels"
            )
        if row.cell_id in records:
            group.records[row.cell_id] = records[row.cell_id]
    order = {"teacher": 0, "student": 1}
    return sorted(groups.values(), key=lambda group: order.get(group.role, 2))


def status_of(record: Record | None) -> str:
    """What became of a cell."""
    return NOT_RUN if record is None else record.status


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
    """The raw evidence: one line for each row of the plan, with "not_run" where nothing is.

    Numbers are of finished cells alone. A cell that several rows name has several lines with one
    `cell_id`.
    """
    rows = [_cell(row, records.get(row.cell_id)) for row in plan.rows]
    return to_csv(Table(plan.name, CELL_COLUMNS, rows))


def _cell(row: Row, record: Record | None) -> dict[str, Value]:
    made: dict[str, Value] = {key: getattr(row, key) for key in ROW_KEYS}
    made["axes"] = ";".join(f"{name}={value:g}" for name, value in sorted(row.axes.items()))
    made |= {"status": status_of(record), "error": record.error if record is not None else ""}
    if record is not None and record.status == FINISHED:
        made |= {key: final(key)(record) for key in MEASURED_KEYS}
        made |= {key: whole(final(key)(record)) for key in COUNTED_KEYS}
    return made
