"""A job: the cells that one worker trains side by side, and what it needs to train them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bench.cell import Cell
from bench.data.sources import Library
from bench.plugin import Plugin, plugged
from bench.record import FINISHED, Store
from bench.train.checkpoint import Checkpoints
from bench.train.device import pick_device, set_numerics
from bench.train.stream import open_stream

Report = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True)
class WorkerConfig:
    """Where a worker reads and writes, and with what it trains. No cell's id depends on it.

    Attributes:
        store: folder of the records.
        cache: folder of decoded data sets.
        data_root: where the user keeps data sets; None for the work directory's own.
        device: "cpu", "cuda", "cuda:1".
        threads: of torch on the CPU. Sums are split by thread, so that the last bits of a result
            depend on it.
        provenance: commit and code, for the records.
        checkpoints: folder of the checkpoints; None for none.
        checkpoint_seconds: least time between two of them; see `bench.train.checkpoint`.
        plugins: the user's own files, as they were when the command began; see `bench.plugin`.
        cohort: the most cells that train side by side in one job; None for as many as a worker's
            memory holds.
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


@dataclass(frozen=True)
class Job:
    """Cells that train side by side. Those that have a teacher share it."""

    cells: tuple[Cell, ...]

    @property
    def teacher(self) -> Cell | None:
        """The finished cell that teaches them, if any."""
        return next((cell.teacher for cell in self.cells if cell.teacher is not None), None)

    @property
    def needs(self) -> list[Cell]:
        """The cells that must be finished first: the teacher and sources, each once."""
        return list({need.id: need for cell in self.cells for need in cell.needs}.values())


def run_job(job: Job, config: WorkerConfig, report: Report) -> None:
    """Trains the cells of a job in this process; each of them has a record afterwards.

    What the job needs is finished. `report` is called after every epoch. Raises what concerns all
    cells: the data or the teacher cannot be read, memory runs out, a file of the user's fails.
    Cells without a record may be tried again.
    """
    # A command that has nothing to train does not wait for these.
    from bench.train.cohort import Cohort
    from bench.train.teacher import load_teacher

    with plugged(config.plugins):
        torch.set_num_threads(config.threads)
        device, store, cell = pick_device(config.device), Store(config.store), job.cells[0]
        set_numerics(cell)
        library = Library(config.data_root, config.cache)
        statistics = library.read(cell.source.data) if cell.source else None
        stream = open_stream(cell, library.read(cell.data), device, statistics)
        teacher = job.teacher and load_teacher(job.teacher, store, stream, device)
        folder, provenance = config.checkpoints, dict(config.provenance)
        checkpoints = Checkpoints(folder, config.checkpoint_seconds) if folder else None
        cohort = Cohort(stream, teacher, store, device, report, provenance, checkpoints)
        cohort.run(job.cells)


def unfinished(cells: Iterable[Cell], store: Store, retry_failed: bool) -> list[Cell]:
    """The cells without a result; those that failed or were refused only with `retry_failed`."""

    def is_done(cell: Cell) -> bool:
        found = store.read(cell.id)
        if found is None or found.status == FINISHED:
            return found is not None and _opens(store.folder(cell.id))
        return not retry_failed

    return [cell for cell in cells if not is_done(cell)]


def _opens(folder: Path) -> bool:
    """Whether the weights exist and are complete: the file's header says how long it is."""
    try:
        with safe_open(folder / "weights.safetensors", framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
