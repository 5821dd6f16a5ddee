"""The plan of a grid (`Plan`), the result of a cell (`Record`), as JSON files, and their paths.

Every table and MLflow run is made from records. Such a file holds a checksum of its content, and a
record those of its cell's other files; files of earlier versions have none. Without torch.
"""

import contextlib
import gzip
import hashlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, GetPydanticSchema, TypeAdapter, ValidationError

from bench.faults import DamagedError, UserError, reason

FINISHED, FAILED, NOT_APPLICABLE = "finished", "failed", "not_applicable"
STATUSES = (FINISHED, FAILED, NOT_APPLICABLE)
OUTSIDE_ERRORS = ("KilledError", "DamagedError", "LeaseLostError")  # no fault of a cell's
SCHEMA = 1
_adapter = cache(TypeAdapter)
Number = Annotated[float, GetPydanticSchema(lambda kind, schema: schema(int | float | None))]
"""A number of a file: whole ones stay whole, null stands for one that is not finite."""
ARCHIVED_CURVES = ("test_accuracy", "task_loss", "gradient_cosine")
ARCHIVE = "records.jsonl.gz"
"""A grid's plan, then its records by cell id: one JSON object a line, committed with its tables."""


@dataclass(frozen=True)
class Sealed:
    """A dataclass that is kept as a JSON file with a checksum; `SCHEMA` is that of its fields."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    SCHEMA: ClassVar[int] = SCHEMA

    def to_json(self) -> str:
        """JSON with sorted keys: equal values give equal text."""
        values = _adapter(type(self)).dump_python(self, warnings=False)
        checksum = digest(json.dumps(_finite(values), sort_keys=True))
        return dump_json({"schema": self.SCHEMA, "sha256": checksum, **values})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote; files of earlier versions have no checksum.

        DamagedError for changed content, fields of other names or types, and any other text.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.pop("schema", None) != cls.SCHEMA:
                raise ValueError(f"not a {cls.__name__} of schema {cls.SCHEMA}")
            is_sealed, checksum = "sha256" in values, values.pop("sha256", None)
            plain = json.dumps(values, sort_keys=True)
            if is_sealed and checksum != digest(plain):
                raise ValueError("checksum differs")
            return _adapter(cls).validate_json(plain, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise DamagedError(reason(ValueError(f"{where}: {first['msg']}"))) from None
        except (ValueError, RecursionError) as error:
            raise DamagedError(reason(error)) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The content of a file; DamagedError, with its path, for other text."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamagedError(f"damaged: {path} ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Record(Sealed):
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
            test set where student and teacher predict the same class), counts, and seconds: wall
            clock on a shared machine. See `bench.train.diagnostics` for more.
        conditions: device, precision, threads, versions, commit, start; "resumed", how often
            training resumed from a checkpoint; "earlier", the conditions of the processes before;
            "weights_file" and "weights_sha256", the name and hash of the file it started from.
        files: name -> path relative to the cell's folder.
        digests: that path -> SHA-256 of the file; empty in records of earlier versions.
    """

    cell_id: str
    cell: dict[str, Any]
    category: str
    source: str
    status: str
    error: str = ""
    traceback: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Number | None]] = field(default_factory=dict)
    final: dict[str, Number] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an unknown status."""
        if self.status not in STATUSES:
            raise ValueError(f"record {self.cell_id}: status {self.status!r} is not in {STATUSES}")
        check_file_names("record", [self.cell_id, *self.files.values()])

    @property
    def failed_from_outside(self) -> bool:
        """Whether it failed by what was done to its process or its files: a next try may not."""
        return self.status == FAILED and self.error.partition(":")[0] in OUTSIDE_ERRORS


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

    __pydantic_config__ = ConfigDict(extra="forbid")

    role: str
    data: str
    axes: dict[str, Number]
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
        models = f"{self.teacher}>{self.student}"
        if self.method == "student":
            models = self.teacher if self.role == "teacher" else self.student
        return f"{models}/{self.label}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan(Sealed):
    """An expanded grid: its name, its resolved fields, rows, and the fields of its `Choice`s."""

    name: str
    description: str
    config: dict[str, Any]
    rows: list[Row]
    choices: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuses names that lead out of the work directory."""
        check_file_names(f"plan {self.name!r}", [self.name, *self.cell_ids()])

    def cell_ids(self) -> list[str]:
        """The cells of the plan, in order of first mention."""
        return list(dict.fromkeys(row.cell_id for row in self.rows))


def check_file_names(what: str, names: Iterable[str]) -> None:
    """ValueError for a name that could leave its folder; names come from grids and servers."""
    for name in names:
        if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\\\0"):
            raise ValueError(f"{what}: {name!r} is no plain file name (no '/', not '.' in front)")


def digest(content: str | bytes) -> str:
    """The SHA-256 of a text or of bytes, in hex."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, computed once while the file stays the same."""
    state = path.stat()
    return _file_digest(path, state.st_mtime_ns, state.st_size)


@cache
def _file_digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """The folder of all cells: `<root>/<cell_id>/{record.json, weights.safetensors}`.

    `may_write` is called with a cell's id before anything of it is written; it raises where another
    process trains that cell by now.
    """

    def __init__(
        self, root: Path, may_write: Callable[[str], object] = lambda cell_id: None
    ) -> None:
        """Creates nothing before the first write."""
        self.root, self.may_write = root, may_write

    def folder(self, cell_id: str) -> Path:
        """The folder of one cell; it need not exist yet."""
        return self.root / cell_id

    def load(self, cell_id: str) -> Record | None:
        """The cell's record; None if there is none, DamagedError if it cannot be believed."""
        path = self.folder(cell_id) / "record.json"
        try:
            record = Record.read(path)
        except FileNotFoundError:
            return None
        if record.cell_id != cell_id:
            raise DamagedError(f"damaged: {path} (it is the record of cell {record.cell_id})")
        return record

    def read(self, cell_id: str) -> Record | None:
        """The same, but None for a damaged record: its cell trains again."""
        try:
            return self.load(cell_id)
        except DamagedError:
            return None

    def file(self, record: Record, name: str) -> Path:
        """One of a record's files; DamagedError if it is missing or changed."""
        path = self.folder(record.cell_id) / record.files[name]
        if not path.is_file():
            raise DamagedError(f"damaged: {path} (missing)")
        found = file_digest(path)
        if record.digests.get(path.name, found) != found:
            raise DamagedError(f"damaged: {path} (checksum differs)")
        return path

    def write(self, record: Record, contents: Mapping[str, bytes] | None = None) -> None:
        """Writes the contents of a cell's files, by name, and last its record with their digests.

        So a cell with a record is complete.
        """
        folder, contents = self.folder(record.cell_id), contents or {}
        self.may_write(record.cell_id)
        for name, content in contents.items():
            write_atomically(folder / record.files[name], content)
        new = {record.files[name]: digest(content) for name, content in contents.items()}
        self.may_write(record.cell_id)  # the files may have taken long
        whole = replace(record, digests=record.digests | new)
        write_atomically(folder / "record.json", whole.to_json())

    def discard(self, cell_id: str) -> None:
        """Deletes a cell's record, so that it counts as not run, and half-written files."""
        self.may_write(cell_id)
        folder = self.folder(cell_id)
        for path in (folder / "record.json", *folder.glob(".*")):
            path.unlink(missing_ok=True)

    def read_all(self, cell_ids: Iterable[str]) -> dict[str, Record]:
        """Cell id -> record, in the given order, without cells that have none; see `load`."""
        return {one: found for one in cell_ids if (found := self.load(one)) is not None}


class WorkDir:
    """Paths under one root. `store/` is shared by all grids; each grid has a folder of its own.

    Attributes:
        store: the records of all cells of all grids.
        checkpoints: those of unfinished cells.
        cache: decoded data sets and downloads.
        leases: those that commands sharing this work directory hold on cells.
    """

    def __init__(self, root: Path) -> None:
        """Creates nothing."""
        self.root, self.store = root, Store(root / "store" / "cells")
        self.checkpoints = root / "store" / "checkpoints"
        self.cache = root / "store" / "data"
        self.leases = root / "store" / "leases"

    def grid(self, name: str) -> Path:
        """The folder of a grid's plan, tables and figures."""
        return self.root / name

    def plan(self, name: str) -> Path:
        """The plan of the latest run of a grid."""
        return self.grid(name) / "plan.json"

    def origin(self, name: str) -> Path:
        """Where a grid's file is noted: weights in it are relative to its folder."""
        return self.root / "store" / "grids" / name

    def choices(self, name: str, digest: str) -> Path:
        """The finalists of a grid that these screened cells led to; see `bench.design`."""
        return self.root / "store" / "finalists" / f"{name}-{digest}.json"


# --- committed with a grid's tables ---------------------------------------------------------------


def write_archive(plan: Plan, records: Mapping[str, Record], path: Path) -> None:
    """Writes the plan and its records, unless the file holds them already.

    Tracebacks are left out, and the curves that no table and no figure reads.
    """
    kept = []
    for cell_id in sorted(records.keys() & set(plan.cell_ids())):
        curves = records[cell_id].curves
        curves = {name: curves[name] for name in ARCHIVED_CURVES if name in curves}
        kept.append(replace(records[cell_id], traceback="", curves=curves))
    # Without the checksum of a file: gzip has one of its own.
    values = [_finite({"schema": SCHEMA, **asdict(one)}) for one in (plan, *kept)]
    lines = [json.dumps(one, sort_keys=True, separators=(",", ":")) for one in values]
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
    except ValueError as error:
        raise UserError(f"damaged: {path} ({error}); run the grid again") from None
    return plan, {cell_id: records[cell_id] for cell_id in plan.cell_ids() if cell_id in records}


def _unpacked(packed: bytes) -> bytes | None:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        return None
