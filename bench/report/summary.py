"""The summary of a grid: one table for each data set, teacher and student, and the raw evidence.

Every row of the plan is accounted for: finished, failed with its error, not applicable with the
reason, or not run. Accuracies are those of the last epoch on the test set; the best epoch's are
beside them and named as test-selected.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bench.faults import UserError
from bench.record import FAILED, FINISHED, NOT_APPLICABLE, Plan, Record, Row
from bench.report.tables import Column, Entry, Section, Table, Value, to_csv
from bench.statistics import mean_interval, paired_differences

NOT_RUN = "not_run"
"""The status, in tables only, of a row of the plan whose cell has no record."""

NO_EVIDENCE = "~"
"""The mark of a gain whose interval contains 0, or that has none."""

COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="n"),
    Column(key="last_accuracy", name="last accuracy", unit="%", digits=2, interval=True),
    Column(
        key="best_accuracy", name="best accuracy, test-selected", unit="%", digits=2, interval=True
    ),
    Column(key="gain", name="gain over student", unit="pp", digits=2, signed=True, interval=True),
    Column(key="agreement", name="agreement with teacher", unit="%", digits=2, interval=True),
    Column(key="epochs", name="epochs"),
    Column(key="status", name="status", align="left"),
)

ROW_KEYS = ("data", "teacher", "student", "label", "method", "category", "seed", "cell_id")
MEASURED_KEYS = ("last_accuracy", "best_accuracy", "agreement", "train_seconds")
COUNTED_KEYS = ("best_epoch", "epochs", "train_images", "parameters")
CELL_COLUMNS = tuple(
    Column(key=key, name=key)
    for key in (
        *("data", "axes", "teacher", "student", "label", "method", "category", "seed", "status"),
        *("last_accuracy", "best_accuracy", "best_epoch", "agreement", "epochs", "train_images"),
        *("parameters", "train_seconds", "error", "cell_id"),
    )
)

NOTES = (
    "n: finished cells with an accuracy, one a seed; a number from other than n seeds says so as "
    "(n=k).",
    "± is the half-width of the 95 % Student t interval of the mean over n seeds; (n=1) has no "
    "interval: one seed says nothing about spread.",
    "Intervals are over seeds (initialisation, order, augmentation) on one fixed subset of "
    "training images, one split and one test set: another draw of images is not covered.",
    "Last accuracy: last epoch, test set. Best accuracy: best epoch of each cell, chosen on the "
    "test set and so too high.",
    "Gain: method - student, paired by seed, over the seeds at which both finished.",
    f"{NO_EVIDENCE} the gain's interval contains 0, or there is none (n=1): not enough evidence "
    "(not enough seeds to tell).",
    "Agreement: share of the test set where student and teacher predict the same class.",
    "Recorded seconds are wall clock of cells trained side by side, not a method's cost: the "
    "profiler measures that.",
)


class PairKey(NamedTuple):
    """What one table is about.

    Attributes:
        data: the data set's name.
        axes: sorted (axis, value) pairs; 1 is the whole data set at full size.
        teacher: its model.
        student: its model.
    """

    data: str
    axes: tuple[tuple[str, float], ...]
    teacher: str
    student: str

    @property
    def title(self) -> str:
        """In one line, without the axes at their neutral 1."""
        axes = [f"{name} {value:g}" for name, value in self.axes if value != 1]
        return f"{', '.join([self.data, *axes])}: {self.teacher} -> {self.student}"


SOURCE_NOTE = (
    "Transfer starts from a network trained on a source, whose epochs and images come on top of "
    'the epochs shown; its own accuracy, on its own test set, is in cells.csv as "source".'
)


def summarise(plan: Plan, records: Mapping[str, Record]) -> Section:
    """The tables of a plan from the records there are: one for each pair that has any.

    Args:
        plan: what was asked for.
        records: by cell id; a cell without one is shown as not run.

    Raises:
        ValueError: two cells answer for one label and seed of a pair.
    """
    pairs = group_by_pair(plan)
    tables = tuple(
        pair_table(key, rows, records, notes_of(plan))
        for key, rows in pairs.items()
        if any(row.cell_id in records for row in rows)
    )
    coverage = (
        f"{len(tables)} of {len(pairs)} data sets and pairs shown; "
        f"{len(pairs) - len(tables)} without any record left out."
    )
    text = f"{plan.description} {coverage}".strip()
    return Section(name="summary", title=f"Summary of {plan.name}", tables=tables, text=text)


def group_by_pair(plan: Plan) -> dict[PairKey, list[Row]]:
    """The plan's rows by data set, axes, teacher and student, all in the plan's order."""
    pairs: dict[PairKey, list[Row]] = {}
    for row in plan.rows:
        key = PairKey(row.data, tuple(sorted(row.axes.items())), row.teacher, row.student)
        pairs.setdefault(key, []).append(row)
    return pairs


def measured_groups(plan: Plan, records: Mapping[str, Record]) -> dict[PairKey, list[Group]]:
    """The rows of every pair that has any record, by label; see `group_by_label`."""
    return {
        key: group_by_label(key, rows, records)
        for key, rows in group_by_pair(plan).items()
        if any(row.cell_id in records for row in rows)
    }


def _axes_text(axes: Iterable[tuple[str, float]]) -> str:
    return ";".join(f"{name}={value:g}" for name, value in axes)


def notes_of(plan: Plan) -> tuple[str, ...]:
    """The notes under each table: where images were held out, they are what was measured on."""
    if not plan.config.get("data", {}).get("validation"):
        return NOTES
    return tuple(note.replace("test set", "held-out training images") for note in NOTES)


def pair_table(
    key: PairKey,
    rows: Iterable[Row],
    records: Mapping[str, Record],
    notes: tuple[str, ...] = NOTES,
) -> Table:
    """The table of one pair: teacher, student, then methods in the plan's order."""
    rows = list(rows)
    groups = group_by_label(key, rows, records)
    student = baseline(groups)
    return Table.by_name(
        title=key.title,
        columns=COLUMNS,
        rows=[_row(group, student) for group in groups],
        notes=(
            *(line for group in groups for line in (*group.failures(), *group.selections())),
            *_different_code(groups),
            *([SOURCE_NOTE] if any(row.role == "source" for row in rows) else []),
            *notes,
        ),
    )


def _different_code(groups: Iterable[Group]) -> list[str]:
    """A note where the cells of a table were trained by different code."""
    finished = {
        cell: record
        for group in groups
        for cell, record in group.records.items()
        if record.status == FINISHED
    }
    counts = Counter(str(record.conditions.get("code", "")) for record in finished.values())
    if len(counts) < 2:
        return []
    cells = ", ".join(f"{code or 'unknown'} ({n} cells)" for code, n in sorted(counts.items()))
    return [f"Rows were trained by different code, by the digest of what decides numbers: {cells}."]


# --- one row ---------------------------------------------------------------------------------


@dataclass
class Group:
    """The rows of one label of one pair: one cell a seed, or one for all seeds (a teacher).

    Attributes:
        role: "teacher", "student" or "method".
        label: the row's name.
        category: the method's.
        cells: seed -> cell id.
        records: by cell id, of these cells alone.
    """

    role: str
    label: str
    category: str
    cells: dict[int, str]
    records: dict[str, Record]

    def by_seed(self, key: str) -> dict[int, float]:
        """Seed -> a number of the finished cells' `Record.final`."""
        found = ((seed, _final(self.records.get(cell), key)) for seed, cell in self.cells.items())
        return {seed: value for seed, value in found if value is not None}

    def by_cell(self, key: str) -> list[float]:
        """The same, each cell once: a teacher shared by all seeds is one observation."""
        return list({self.cells[seed]: value for seed, value in self.by_seed(key).items()}.values())

    def with_status(self, status: str) -> list[str]:
        """The cells of one status, each once."""
        cells = dict.fromkeys(self.cells.values())
        return [cell for cell in cells if _status(self.records.get(cell)) == status]

    def failures(self) -> list[str]:
        """One line for every error, with all the seeds that met it."""
        failed = self.with_status(FAILED)
        return self._with_seeds(
            "Failed: ",
            (
                (seed, self.records[cell].error or "no error text")
                for seed, cell in self.cells.items()
                if cell in failed
            ),
        )

    def selections(self) -> list[str]:
        """One line for every note on how images were selected, with all the seeds that have it."""
        stages = (
            (seed, stage)
            for seed, cell in self.cells.items()
            if cell in self.records
            for stage in self.records[cell].stages
        )
        notes = ((seed, stage["note"]) for seed, stage in stages if stage.get("note"))
        return self._with_seeds("Selection: ", notes)

    def _with_seeds(self, about: str, texts: Iterable[tuple[int, str]]) -> list[str]:
        seeds: dict[str, list[str]] = {}
        for seed, text in texts:
            seeds.setdefault(text, []).append(str(seed))
        return [
            f"{about}{self.label}, seed{'s' if len(met) > 1 else ''} {', '.join(met)}: {text}"
            for text, met in seeds.items()
        ]


def group_by_label(key: PairKey, rows: Iterable[Row], records: Mapping[str, Record]) -> list[Group]:
    """The rows of one pair by role and label, with their records: teacher, student, then methods.

    Args:
        key: the pair, named in errors.
        rows: of the plan, all of this pair; a transfer's source is left out.
        records: by cell id; those of other cells are ignored.

    Raises:
        ValueError: two cells answer for one label and seed.
    """
    groups: dict[tuple[str, str], Group] = {}
    for row in rows:
        if row.role == "source":
            continue
        group = groups.setdefault(
            (row.role, row.label), Group(row.role, row.label, row.category, {}, {})
        )
        if group.cells.setdefault(row.seed, row.cell_id) != row.cell_id:
            raise UserError(
                f"summary of {key.title}: cells {group.cells[row.seed]} and {row.cell_id} both "
                f"answer for {row.label!r}, seed {row.seed}; give the methods different labels"
            )
        if row.cell_id in records:
            group.records[row.cell_id] = records[row.cell_id]
    order = {"teacher": 0, "student": 1}
    return sorted(groups.values(), key=lambda group: order.get(group.role, 2))


def baseline(groups: Iterable[Group]) -> dict[int, float]:
    """Seed -> last accuracy of a pair's plain student."""
    found = [group for group in groups if group.role == "student"]
    return found[0].by_seed("last_accuracy") if found else {}


def _row(group: Group, student: Mapping[int, float]) -> dict[str, Entry | Value]:
    n = len(group.by_cell("last_accuracy"))
    own = {} if group.role == "student" else group.by_seed("last_accuracy")
    epochs = group.by_cell("epochs")
    return {
        "label": group.label,
        "category": group.category,
        "n": n,
        "last_accuracy": mean_entry(group.by_cell("last_accuracy"), n, instead=_why_empty(group)),
        "best_accuracy": mean_entry(group.by_cell("best_accuracy"), n),
        "gain": gain_entry(own, student, n),
        "agreement": mean_entry(group.by_cell("agreement"), n),
        "epochs": _whole(mean_interval(epochs).mean) if epochs else None,
        "status": _status_text(group),
    }


def mean_entry(values: list[float], n: int, instead: str = "-") -> Entry:
    """A mean with its interval, marked where it is of other than n seeds."""
    if not values:
        return Entry(None, instead=instead)
    return Entry(mean_interval(values), mark=_other_n(len(values), n))


def gain_entry(own: Mapping[int, float], student: Mapping[int, float], n: int) -> Entry:
    """A gain with its interval, marked where its n differs or its interval contains 0."""
    differences = paired_differences(own, student)
    if not differences:
        return Entry(None)
    gain = mean_interval(differences)
    return Entry(gain, mark=_other_n(gain.n, n) + ("" if gain.excludes_zero else f" {NO_EVIDENCE}"))


def _other_n(seeds: int, n: int) -> str:
    return "" if seeds in (1, n) else f"(n={seeds})"  # an interval shows its n=1 by itself


def _why_empty(group: Group) -> str:
    for status, text in ((FAILED, "failed"), (NOT_RUN, "not run"), (FINISHED, "not measured")):
        if group.with_status(status):
            return text
    return "not applicable"


def _status_text(group: Group) -> str:
    finished, refused = group.with_status(FINISHED), group.with_status(NOT_APPLICABLE)
    counts = {
        "failed": len(group.with_status(FAILED)),
        "not run": len(group.with_status(NOT_RUN)),
        "without an accuracy": len(finished) - len(group.by_cell("last_accuracy")),
    }
    parts = [f"{len(finished)} of {len(set(group.cells.values()))} finished"]
    parts += [f"{count} {text}" for text, count in counts.items() if count]
    if refused:
        reasons = dict.fromkeys(group.records[cell].error or "no reason given" for cell in refused)
        parts.append(f"{len(refused)} not applicable ({'; '.join(reasons)})")
    return ", ".join(parts)


def _status(record: Record | None) -> str:
    return NOT_RUN if record is None else record.status


def _final(record: Record | None, key: str) -> float | None:
    """A number of a finished cell; None where it was not measured or was not finite."""
    value = record.final.get(key) if record is not None and record.status == FINISHED else None
    return float(value) if value is not None and math.isfinite(value) else None


def _whole(value: float | None) -> float | None:
    """Counts as integers, however they were stored: 30 epochs, not 30.0."""
    return int(value) if value is not None and value == int(value) else value


# --- the raw evidence ------------------------------------------------------------------------


def cells_csv(plan: Plan, records: Mapping[str, Record]) -> str:
    """The raw evidence: one line for each row of the plan, with "not_run" where nothing is.

    Numbers are of finished cells alone. A cell that several rows name has several lines with one
    `cell_id`.
    """
    rows = [_cell(row, records.get(row.cell_id)) for row in plan.rows]
    return to_csv(Table.by_name(plan.name, CELL_COLUMNS, rows))


def _cell(row: Row, record: Record | None) -> dict[str, Value]:
    return {
        "axes": _axes_text(sorted(row.axes.items())),
        "status": _status(record),
        "error": record.error if record is not None else "",
        **{key: getattr(row, key) for key in ROW_KEYS},
        **{key: _final(record, key) for key in MEASURED_KEYS},
        **{key: _whole(_final(record, key)) for key in COUNTED_KEYS},
    }
