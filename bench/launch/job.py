"""A job: the cells that one worker trains side by side, and what it needs to train them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from bench.cell import Cell
from bench.data.sources import Library
from bench.faults import DamagedError
from bench.launch.leases import check_held
from bench.plugin import Plugin, plugged
from bench.record import FINISHED, Store
from bench.train.checkpoint import Checkpoints
from bench.train.device import pick_device, set_numerics
from bench.train.stream import open_stream

logger = logging.getLogger(__name__)
NEED_FAILED = "NeedFailed"
Held = Mapping[str, Path]
"""Cell id -> the file that stands for its lease; see `bench.launch.leases`."""

Report = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True)
class WorkerConfig:
    """Absolute paths where a worker reads and writes, and with what it trains. No id depends on it.

    Attributes:
        data_root: where the user keeps data sets; None for the work directory's own.
        threads: of torch on the CPU; the last bits of sums depend on it.
        provenance: commit and code, for the records.
        checkpoints: their folder; None for none.
        checkpoint_seconds: least time between two of them.
        cohort: the most cells of one job; None for no limit but a worker's memory.
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


class Job(NamedTuple):
    """Cells that train side by side. Those that have a teacher share it.

    `retried`: they have failed once. `alone`: memory ran out, so nothing else may run meanwhile.
    """

    cells: tuple[Cell, ...]
    retried: bool = False
    alone: bool = False

    @property
    def teacher(self) -> Cell | None:
        """The finished cell that teaches them, if any."""
        return next((cell.teacher for cell in self.cells if cell.teacher is not None), None)

    @property
    def needs(self) -> list[Cell]:
        """The cells that must be finished first: the teacher and sources, each once."""
        return list({need.id: need for cell in self.cells for need in cell.needs}.values())


def run_job(
    job: Job,
    config: WorkerConfig,
    report: Report,
    held: Held,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the cells of a job in this process; each of them has a record afterwards.

    What the job needs is finished. `report` is called after every epoch. Nothing is written of
    cells whose leases, `held`, were taken over: LeaseLostError. Once `stopping` is true, the epoch
    that runs is the last one: KilledError. Raises what concerns all cells, too, such as unreadable
    data; cells without a record may be tried again.
    """
    # A command that has nothing to train does not wait for these.
    from bench.train.cohort import Cohort
    from bench.train.teacher import load_teacher

    with plugged(config.plugins), torch.enable_grad():
        torch.set_num_threads(config.threads)
        # Whatever the method of an earlier job has set.
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.backends.mkldnn.enabled = True
        device, cell = pick_device(config.device), job.cells[0]
        store = Store(config.store, lambda cell_id: cell_id in held and check_held(held[cell_id]))
        set_numerics(cell, device)
        library = Library(config.data_root, config.cache)
        statistics = library.read(cell.source.data) if cell.source else None
        data = library.read(cell.data)
        stream = open_stream(cell, data, device, statistics)
        teacher = job.teacher and load_teacher(job.teacher, store, stream, device)
        folder, provenance = config.checkpoints, {**config.provenance, "images": data.describe()}
        checkpoints = Checkpoints(folder, config.checkpoint_seconds) if folder else None
        cohort = Cohort(stream, teacher, store, device, report, provenance, checkpoints, stopping)
        cohort.run(job.cells)


def unfinished(cells: Iterable[Cell], store: Store, retry_failed: bool) -> list[Cell]:
    """The cells without a result; those that failed or were refused only with `retry_failed`.

    What failed from outside is tried again, and so is what failed with the teacher that it needs.
    """

    def is_done(cell: Cell) -> bool:
        try:
            found = store.load(cell.id)
            if found is not None:
                for name in found.files:
                    store.file(found, name)
        except DamagedError as error:
            _name(f"{error}; its cell is trained again: {cell}")
            return False
        if found is None or found.status == FINISHED:
            return found is not None
        lost = found.error.startswith(NEED_FAILED) and not all(map(is_done, cell.needs))
        return not (retry_failed or lost or found.failed_from_outside)

    return [cell for cell in cells if not is_done(cell)]


@cache
def _name(damage: str) -> None:
    """Warns of each damage once, however often the same is found."""
    logger.warning(damage)
