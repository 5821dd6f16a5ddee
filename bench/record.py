"""What was asked for (`Plan`) and what one cell produced (`Record`), as JSON files.

Records are the one source of every table: a cell writes its own, wherever it ran; the tables and
MLflow only read them. Standard library only, so that tables need no torch.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FINISHED, FAILED, NOT_APPLICABLE = "finished", "failed", "not_applicable"
STATUSES = (FINISHED, FAILED, NOT_APPLICABLE)
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trained (or failed, or refused) cell.

    Attributes:
        cell_id: hash of everything that changes the cell's numbers.
        cell: the resolved cell: model, data, method with hyper-parameters, recipe, seed, teacher.
        category: the method's, see `bench.method.CATEGORIES`.
        source: the method's paper and the deviations from it.
        status: one of `STATUSES`.
        error: why not finished, one line; empty if finished.
        traceback: the full one of a failure; empty otherwise.
        stages: per stage {"name", "epochs", "taps"}.
        curves: name -> one value per epoch, None where not measured. "train_loss", "task_loss",
            "transfer_loss", "learning_rate", "test_accuracy" (in [0, 1]), and what a stage watches.
        final: "last_accuracy", "best_accuracy", "best_epoch" (1-based),
            "agreement" (share of the test set where student and teacher predict the same class),
            "epochs", "train_images", "parameters", "train_seconds", "evaluation_seconds",
            "checkpoint_seconds".
            Seconds are shared-machine wall clock and never a method's cost. A cell with
            diagnostics has more curves and numbers, see `bench.train.diagnostics`.
        conditions: device, precision, threads, torch, python, commit, dirty, started; "resumed":
            how often the training went on from a checkpoint, and "earlier": what each of those
            processes had as conditions.
        files: name -> path relative to the cell's folder.
    """

    cell_id: str
    cell: dict[str, Any]
    category: str
    source: str
    status: str
    error: str = ""
    traceback: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an unknown status."""
        if self.status not in STATUSES:
            raise ValueError(f"record {self.cell_id}: status {self.status!r} is none of {STATUSES}")
        check_file_names("record", [self.cell_id, *self.files.values()])

    def to_json(self) -> str:
        """One stable text for equal records: sorted keys, non-finite numbers as null."""
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record written by `to_json`; ValueError if it is not one."""
        return cls(**_known_fields(cls, text))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of a grid: which cell answers for this pair, method and seed.

    Several rows may name one cell: the plain student is the same whoever the teacher would be.

    Attributes:
        role: "teacher", "student" (the baseline), "method", or "source" (what transfer learning
            starts from; it has no row in a table).
        label: the row's name in tables: the method, with hyper-parameters that differ from its
            defaults.
        method: the method's name; "student" for baselines and teachers, and for the plain student
            trained longer, whose role is that of a method.
        axes: fraction of the training images, resolution factor, share of labels...
    """

    role: str
    data: str
    axes: dict[str, float]
    teacher: str
    student: str
    label: str
    method: str
    category: str
    seed: int
    cell_id: str
    teacher_id: str = ""

    @property
    def name(self) -> str:
        """Teacher>student/label/seed, as in MLflow; a plain training is named without a teacher.

        A baseline is one cell whoever the teacher beside it: naming one would mislead.
        """
        if self.role == "teacher":
            return f"{self.teacher}/teacher/{self.seed}"
        if self.role in ("student", "source"):
            return f"{self.student}/{self.role}/{self.seed}"
        if self.method == "student":  # trained longer than the baseline
            return f"{self.student}/{self.label}/{self.seed}"
        return f"{self.teacher}>{self.student}/{self.label}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid, expanded: its name, its resolved text and its rows."""

    name: str
    description: str
    config: dict[str, Any]
    rows: list[Row]

    def __post_init__(self) -> None:
        """Refuses names that would lead out of the work directory."""
        check_file_names(f"plan {self.name!r}", [self.name, *self.cell_ids()])

    def to_json(self) -> str:
        """One stable text for equal plans."""
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan written by `to_json`; ValueError if it is not one."""
        values = _known_fields(cls, text)
        values["rows"] = [Row(**row) for row in values["rows"]]
        return cls(**values)

    def cell_ids(self) -> list[str]:
        """Every cell of the plan once, in order of first mention."""
        return list(dict.fromkeys(row.cell_id for row in self.rows))


def check_file_names(what: str, names: Iterable[str]) -> None:
    """Raises ValueError for a name that is not one of a file: it would lead to another folder.

    Names come from grids, from files and from tracking servers that others can write to.

    Example:
        >>> check_file_names("grid", ["birds-96"])
        >>> check_file_names("grid", ["../birds"])
        Traceback (most recent call last):
        ValueError: grid: '../birds' is no plain file name (no '/', not '.' in front)
    """
    for name in names:
        if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\\\0"):
            raise ValueError(f"{what}: {name!r} is no plain file name (no '/', not '.' in front)")


def _known_fields(kind: type, text: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
        raise ValueError(f"not a {kind.__name__} of schema {SCHEMA}")
    wanted = {f.name for f in fields(kind)}
    if unknown := set(values) - wanted:
        raise ValueError(f"{kind.__name__} with unknown fields {sorted(unknown)}")
    return values


def dump_json(value: object) -> str:
    """Sorted, indented JSON without NaN or Infinity, which JSON does not have."""
    return json.dumps(_finite(value), sort_keys=True, indent=1, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is either whole or not there: a temporary file, flushed, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Store:
    """The folder of all cells: `<root>/<cell_id>/record.json` and the files beside it.

    Beside it lie config.json (the resolved cell), weights.safetensors, and traceback.txt of a
    failure.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is created before the first write."""
        self.root = root

    def folder(self, cell_id: str) -> Path:
        """The folder of one cell, which need not exist yet."""
        return self.root / cell_id

    def read(self, cell_id: str) -> Record | None:
        """The cell's record, None if it has none (or only a damaged one: it then runs again)."""
        try:
            return Record.from_json((self.folder(cell_id) / "record.json").read_text())
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, record: Record) -> None:
        """Writes the record last, after its files: a record that is there is complete."""
        folder = self.folder(record.cell_id)
        write_atomically(folder / "config.json", dump_json(record.cell))
        if record.traceback:
            write_atomically(folder / "traceback.txt", record.traceback)
        write_atomically(folder / "record.json", record.to_json())

    def discard(self, cell_id: str) -> None:
        """Forgets a cell's record, so that it counts as not run, and files left half-written."""
        folder = self.folder(cell_id)
        for path in (folder / "record.json", folder / "traceback.txt", *folder.glob(".*")):
            path.unlink(missing_ok=True)

    def read_all(self, cell_ids: Iterable[str]) -> dict[str, Record]:
        """The records there are, by cell id, in the order asked."""
        found = ((cell_id, self.read(cell_id)) for cell_id in cell_ids)
        return {cell_id: record for cell_id, record in found if record is not None}
