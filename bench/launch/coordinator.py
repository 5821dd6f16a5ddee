"""The coordinator: takes a grid from its cells to its records, mirror and tables.

Records come first. Everything else here is made from them and may fail without losing one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console

from bench.cell import Cell
from bench.grid import Expansion
from bench.launch.job import Job, Library, Report, WorkerConfig, total_epochs, unfinished
from bench.launch.launcher import Done
from bench.launch.leases import Leases
from bench.launch.mirroring import Mirroring
from bench.launch.progress import Display
from bench.launch.schedule import plan_training
from bench.launch.workers import run_processes
from bench.record import FINISHED, Plan, Store, write_atomically
from bench.train.checkpoint import Checkpoints
from bench.workdir import WorkDir

Launch = Callable[[Sequence[Job], WorkerConfig, Sequence[str], Report, Leases], Generator[Done]]


@dataclass(frozen=True)
class Outcome:
    """What a run of a grid came to.

    Attributes:
        trained: cells that this run trained.
        elsewhere: cells that another command trained meanwhile.
        counts: status -> cells of the whole plan; "not run" among them.
        seconds: of all of it, wall clock.
        recording_seconds: of a processor's time that mirroring took, most of it while workers
            were training; none of them waited for it.
    """

    trained: int
    elsewhere: int
    counts: dict[str, int]
    seconds: float
    recording_seconds: float


def run_grid(
    expansion: Expansion,
    work: WorkDir,
    setting: WorkerConfig,
    devices: Sequence[str],
    *,
    retry_failed: bool,
    console: Console,
    launch: Launch = run_processes,
    room_bytes: int | None = None,
) -> Outcome:
    """Trains what is unfinished and mirrors what is recorded.

    Args:
        expansion: the grid, written out.
        work: the work directory.
        setting: for the workers.
        devices: one entry for each job that can run at once.
        retry_failed: whether failed cells run again.
        console: for progress and warnings.
        launch: runs jobs, see `bench.launch.workers.run_processes`.
        room_bytes: memory that one worker may fill; None if no limit is known.
    """
    plan = expansion.plan
    write_atomically(work.plan(plan.name), plan.to_json())
    for plugin in setting.plugins:
        plugin.keep(work.plugins)
    waiting = unfinished(expansion.cells.values(), work.store, retry_failed)
    began, here = time.monotonic(), 0
    library = Library(setting.data_root, setting.cache)
    jobs = plan_training(waiting, setting, devices, library, room_bytes) if waiting else []
    names = {cell.id: str(cell) for cell in waiting}
    epochs = {cell.id: total_epochs(cell) for cell in waiting}
    with Leases(work.leases) as leases:
        sweep(work, leases)
        discard_records(waiting, work.store, leases)
        with (
            Mirroring(work, plan, leases, console) as mirroring,
            Display(names, epochs, console) as display,
            # Closed here, whatever happens: workers end before their leases do.
            closing(launch(jobs, setting, devices, display.epoch, leases)) as news,
        ):
            for done in news:
                display.finished(len(done.cells))
                mirroring.send(done.cells)
                here += len(done.cells) if done.here else 0
    seconds = time.monotonic() - began
    counts = count(expansion, work.store)
    elsewhere = len(waiting) - here
    return Outcome(here, elsewhere, counts, seconds, mirroring.seconds)


def discard_records(cells: Sequence[Cell], store: Store, leases: Leases) -> None:
    """Forgets the records of cells that are to run again, unless another command runs them."""
    for cell in cells:
        if store.read(cell.id) is not None and leases.acquire(cell.id):
            store.discard(cell.id)
            leases.release(cell.id)


def sweep(work: WorkDir, leases: Leases) -> None:
    """Removes checkpoints that nobody will go on from.

    They are of cells that are finished, or that no plan in the work directory names any more (the
    code of their method changed, say), and that nobody is training.
    """
    named: set[str] = set()
    for path in work.root.glob("*/plan.json"):
        try:
            named |= set(Plan.from_json(path.read_text(encoding="utf-8")).cell_ids())
        except (ValueError, TypeError, KeyError):  # damaged: it may have named any
            return
    kept = Checkpoints(work.checkpoints)
    for cell_id in kept.cell_ids():
        found = work.store.read(cell_id)
        over = cell_id not in named or (found is not None and found.status == FINISHED)
        if over and leases.holder(cell_id) is None:
            kept.discard(cell_id)


def count(expansion: Expansion, store: Store) -> dict[str, int]:
    """Status -> number of cells of the plan."""
    counts: dict[str, int] = {}
    for cell_id in expansion.cells:
        found = store.read(cell_id)
        status = found.status if found else "not run"
        counts[status] = counts.get(status, 0) + 1
    return counts
