"""A job: the unit that a launcher hands to a worker. A cohort, and all it needs to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cell import Cell, DataSpec
from bench.faults import CODE_FAULTS
from bench.plugin import Plugin, plugged
from bench.record import FINISHED, Store

if TYPE_CHECKING:
    import torch

    from bench.data.dataset import DataSet
    from bench.train.checkpoint import Checkpoints
    from bench.train.stream import Stream
    from bench.train.teacher import Teacher

Report = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True)
class WorkerConfig:
    """Where a worker finds and leaves things; nothing here changes a number.

    Attributes:
        store: folder of the records.
        cache: folder of decoded data sets.
        data_root: where the user keeps data sets; None for the work directory's own.
        device: "cpu", "cuda", "cuda:1".
        threads: of torch on the CPU. Sums are split by thread, so bits depend on it: it is one
            unless asked otherwise.
        provenance: commit and the like, for the records.
        checkpoints: folder of the checkpoints; None for none.
        checkpoint_seconds: at least so long between two of them; see `bench.train.checkpoint`.
        plugins: the user's own files, as they were when the command began; see `bench.plugin`.
        cohort: at most so many cells train side by side in one job; None for as many as a
            worker's memory holds.
    """

    store: Path
    cache: Path
    data_root: Path | None
    device: str = "cpu"
    threads: int = 1
    provenance: dict[str, object] = field(default_factory=dict)
    checkpoints: Path | None = None
    checkpoint_seconds: float = 60.0
    plugins: tuple[Plugin, ...] = ()
    cohort: int | None = None


class Library:
    """Data sets by what cells ask for, each decoded and hashed once per process."""

    def __init__(self, data_root: Path | None, cache: Path, stand_in: bool = False) -> None:
        """Nothing is read yet.

        Args:
            data_root: where the user keeps data sets; None for nowhere.
            cache: folder of decoded data sets.
            stand_in: whether random images take the place of a data set that is not here; for
                estimates, never for training.
        """
        self.data_root, self.cache, self.stand_in = data_root, cache, stand_in
        self.absent: dict[str, str] = {}
        self._sets: dict[str, DataSet] = {}
        self._fingerprints: dict[str, str] = {}

    def read(self, spec: DataSpec) -> DataSet:
        """The decoded data set; `DataError` if it is missing or at fault."""
        key = self._key(spec)
        if key not in self._sets:
            self._sets[key] = self._load(spec)
        return self._sets[key]

    def _load(self, spec: DataSpec) -> DataSet:
        from bench.data.dataset import DataError
        from bench.data.sources import load, stand_in

        try:
            return load(
                spec.source, data_root=self.data_root, cache=self.cache, size=spec.size,
                classes=spec.classes,
            )  # fmt: skip
        except DataError as error:
            if not self.stand_in:
                raise
            try:
                found = stand_in(spec.source, size=spec.size, classes=spec.classes)
            except DataError:
                raise error from None
            self.absent[self._key(spec)] = str(error)
            return found

    def fingerprint(self, spec: DataSpec) -> str:
        """The hash of its content."""
        from bench.data.dataset import fingerprint

        key = self._key(spec)
        if key not in self._fingerprints:
            data = self.read(spec)
            self._fingerprints[key] = "absent" if key in self.absent else fingerprint(data)
        return self._fingerprints[key]

    @staticmethod
    def _key(spec: DataSpec) -> str:
        return repr((spec.source, spec.size, spec.classes))


@dataclass(frozen=True)
class Job:
    """Cells that train side by side, and the finished cell that teaches them, if any."""

    cells: tuple[Cell, ...]
    teacher: Cell | None

    @property
    def needs(self) -> list[Cell]:
        """The cells that must be finished before: the teacher, sources; each once."""
        return list({need.id: need for cell in self.cells for need in cell.needs}.values())


def run_job(
    job: Job,
    setting: WorkerConfig,
    report: Report,
    *,
    store: Store | None = None,
    kept: Checkpoints | None = None,
) -> None:
    """Trains a job's cells in this process; every one of them has a record afterwards.

    Args:
        job: all that it needs is finished.
        setting: where things are.
        report: called after every epoch.
        store: where records go; None for the setting's.
        kept: where checkpoints go; None for the setting's.

    Raises:
        PluginError: a file of the user's fails here.
    """
    from bench.train.checkpoint import Checkpoints

    if kept is None and setting.checkpoints is not None:
        kept = Checkpoints(setting.checkpoints, setting.checkpoint_seconds)
    with plugged(setting.plugins):
        _run(job, setting, report, store or Store(setting.store), kept)


def _run(
    job: Job, setting: WorkerConfig, report: Report, store: Store, kept: Checkpoints | None
) -> None:
    import torch

    from bench.train.cohort import Cohort
    from bench.train.device import pick_device, set_numerics
    from bench.train.failure import fail, raise_if_shared
    from bench.train.stream import open_stream

    torch.set_num_threads(setting.threads)
    device = pick_device(setting.device)
    cell = job.cells[0]
    set_numerics(cell)
    try:
        library = Library(setting.data_root, setting.cache)
        statistics = library.read(cell.source.data) if cell.source else None
        stream = open_stream(cell, library.read(cell.data), device, statistics)
        cells, teacher = _with_teacher(job, store, stream, device, setting)
    except CODE_FAULTS as error:
        raise_if_shared(error)
        for cell in job.cells:
            store.write(fail(cell, error, setting.provenance))
        return
    if not cells:
        return
    Cohort(stream, teacher, store, device, report, dict(setting.provenance), kept).run(cells)


def _with_teacher(
    job: Job, store: Store, stream: Stream, device: torch.device, setting: WorkerConfig
) -> tuple[list[Cell], Teacher | None]:
    """The job's teacher and the cells to train; without it, those that need none."""
    from bench.train.failure import fail
    from bench.train.teacher import load_teacher

    if job.teacher is None:
        return list(job.cells), None
    try:
        return list(job.cells), load_teacher(job.teacher, store, stream, device)
    except ValueError as error:
        for cell in job.cells:
            if cell.teacher is not None:
                store.write(fail(cell, error, setting.provenance))
        return [cell for cell in job.cells if cell.teacher is None], None


def total_epochs(cell: Cell) -> int:
    """Epochs of all stages together."""
    from bench.hyperparameters import build_method
    from bench.method import split_epochs

    plan = build_method(cell.method, **cell.hyperparameters).plan
    return sum(split_epochs(plan, cell.recipe.epochs, cell.recipe.budget))


def unfinished(cells: Iterable[Cell], store: Store, retry_failed: bool) -> list[Cell]:
    """The cells that still need training.

    Args:
        cells: of a grid.
        store: the records there are.
        retry_failed: whether failed and not applicable cells run again; otherwise they keep their
            record.
    """
    waiting = []
    for cell in cells:
        found = store.read(cell.id)
        if (
            found is None
            or (found.status != FINISHED and retry_failed)
            or (found.status == FINISHED and not _opens(store.folder(cell.id)))
        ):
            waiting.append(cell)
    return waiting


def _opens(folder: Path) -> bool:
    """Whether the weights are there and whole: their header tells the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "weights.safetensors", framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
