"""The plan of a grid (`Plan`) and the result of one cell (`Record`), as JSON files.

Every table and MLflow run is made from records. Only the standard library is needed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bench.faults import UserError

FINISHED, FAILED, NOT_APPLICABLE = "finished", "failed", "not_applicable"
STATUSES = (FINISHED, FAILED, NOT_APPLICABLE)
SCHEMA = 1
ARCHIVE = "records.jsonl.gz"
"""A grid's plan, then its records by cell id: one JSON object a line, committed with its tables."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one cell: trained, failed or not applicable.

    Attributes:
        cell: the resolved cell, see `bench.cell.Cell.resolved`.
        category: the method's, and its `source`: the paper and the deviations from it.
        error: one line that says why the cell is not finished.
        stages: per stage {"name", "epochs", "taps"}, and the sum over its epochs of each curve in
            samples, the mean of each share. "reached_samples" had the whole transfer loss,
            "skipped_samples" one that is not finite, "masked_samples" one with an undefined term.
            A stage that selects images has "kept_images" and a "note" for tables.
        curves: name -> one value per epoch, None where not measured. Accuracies are in [0, 1].
        final: "last_accuracy", "best_accuracy", "best_epoch" (1-based), "agreement" (share of the
            test set where student and teacher predict the same class), numbers of images, classes,
            epochs and parameters, and seconds: wall clock on a shared machine, not the cost of a
            method. See `bench.train.diagnostics` for more.
        conditions: device, precision, threads, versions, commit, start; "resumed", how often
            training resumed from a checkpoint; "earlier", the conditions of the processes before;
            "weights_file" and "weights_sha256", the name and hash of the file it started from.
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
            raise ValueError(f"record {self.cell_id}: status {self.status!r} is not in {STATUSES}")
        check_file_names("record", [self.cell_id, *self.files.values()])

    def to_json(self) -> str:
        """JSON with sorted keys: equal records give equal text."""
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record written by `to_json`; ValueError if it is not one."""
        return cls(**_known_fields(cls, text))


def weights_text(record: Record) -> str:
    """The file that a cell's network came from, and its accuracy; empty for a fresh network."""
    facts, accuracy = record.conditions, record.final.get("last_accuracy")
    if "weights_file" not in facts:
        return ""
    found = "" if accuracy is None else f", {accuracy:.1%}"
    return f"weights of {facts['weights_file']} (SHA-256 {facts['weights_sha256'][:12]}){found}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cell of one pair, method and seed of a grid; rows may share a cell.

    Attributes:
        role: "teacher", "student" (the baseline), "method", or "source" (of transfer learning; it
            has no row in a table).
        label: the row's name in tables: the method and what differs from its defaults.
        method: the method's name; "student" where a network trains on labels alone.
        axes: axis -> value: "fraction" of the training images, of "labels", "resolution" factor.
        phase: see `bench.design`; empty where every row trains on the same seeds.
        finalist: whether the row may be confirmed and named; false for controls and ablations.
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
    phase: str = ""
    finalist: bool = True

    @property
    def name(self) -> str:
        """Teacher>student/label/seed, as in MLflow; without the teacher where none is needed."""
        if self.role == "teacher":
            return f"{self.teacher}/teacher/{self.seed}"
        if self.role in ("student", "source"):
            return f"{self.student}/{self.role}/{self.seed}"
        if self.method == "student":  # trained longer than the baseline
            return f"{self.student}/{self.label}/{self.seed}"
        return f"{self.teacher}>{self.student}/{self.label}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An expanded grid: its name, its resolved fields, rows, and the fields of its `Choice`s."""

    name: str
    description: str
    config: dict[str, Any]
    rows: list[Row]
    choices: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuses names that lead out of the work directory."""
        check_file_names(f"plan {self.name!r}", [self.name, *self.cell_ids()])

    def to_json(self) -> str:
        """JSON with sorted keys: equal plans give equal text."""
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan written by `to_json`; ValueError if it is not one."""
        values = _known_fields(cls, text)
        values["rows"] = [Row(**row) for row in values["rows"]]
        return cls(**values)

    def cell_ids(self) -> list[str]:
        """The cells of the plan, in order of first mention."""
        return list(dict.fromkeys(row.cell_id for row in self.rows))


def check_file_names(what: str, names: Iterable[str]) -> None:
    """ValueError for a name that could leave its folder; names come from grids and servers."""
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
    """Sorted, indented JSON; null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(value), sort_keys=True, indent=1, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def write_atomically(path: Path, content: str | bytes, *, replace: bool = True) -> None:
    """Writes a file as a whole or not at all; without `replace`, only if there is none."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if replace:
            os.replace(name, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


class Store:
    """The folder of all cells: `<root>/<cell_id>/{record.json, weights.safetensors}`."""

    def __init__(self, root: Path) -> None:
        """Creates nothing before the first write."""
        self.root = root

    def folder(self, cell_id: str) -> Path:
        """The folder of one cell; it need not exist yet."""
        return self.root / cell_id

    def read(self, cell_id: str) -> Record | None:
        """The cell's record; None if it is missing or damaged, so that the cell runs again."""
        try:
            return Record.from_json((self.folder(cell_id) / "record.json").read_text())
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, record: Record) -> None:
        """Writes the record after all other files, so that a cell with a record is complete."""
        write_atomically(self.folder(record.cell_id) / "record.json", record.to_json())

    def discard(self, cell_id: str) -> None:
        """Deletes a cell's record, so that it counts as not run, and half-written files."""
        folder = self.folder(cell_id)
        for path in (folder / "record.json", *folder.glob(".*")):
            path.unlink(missing_ok=True)

    def read_all(self, cell_ids: Iterable[str]) -> dict[str, Record]:
        """Cell id -> record, in the given order, without cells that have no record."""
        found = ((cell_id, self.read(cell_id)) for cell_id in cell_ids)
        return {cell_id: record for cell_id, record in found if record is not None}


# --- committed with a grid's tables ---------------------------------------------------------------


def write_archive(plan: Plan, records: Mapping[str, Record], path: Path) -> None:
    """Writes the plan and its records without tracebacks, unless the file holds them already."""
    kept = [replace(records[i], traceback="") for i in sorted(plan.cell_ids()) if i in records]
    lines = [_in_one_line(text.to_json()) for text in (plan, *kept)]
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.is_file() and _unpacked(path.read_bytes()) == content:
        return  # another version of zlib would give other bytes
    write_atomically(path, gzip.compress(content, mtime=0))


def read_archive(path: Path) -> tuple[Plan, dict[str, Record]]:
    """The plan and the records by cell id; UserError if the file is damaged."""
    content = _unpacked(path.read_bytes())
    try:
        if content is None:
            raise ValueError("not a gzip file")
        first, *lines = content.decode().splitlines()
        plan = Plan.from_json(first)
        records = {record.cell_id: record for record in map(Record.from_json, lines)}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; run the grid again") from None
    return plan, {cell_id: records[cell_id] for cell_id in plan.cell_ids() if cell_id in records}


def _in_one_line(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def _unpacked(packed: bytes) -> bytes | None:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        return None
