"""The coordinator: takes a grid from its cells to its records, mirror and tables.

Records come first. Everything else here is made from them and may fail without losing one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench.cell import Cell
from bench.grid import Expansion
from bench.launch.job import Setting, plan_jobs, total_epochs, unfinished
from bench.launch.local import run_processes
from bench.launch.progress import Display
from bench.record import Store, write_atomically
from bench.tracking import Mirror, TrackingError, first_rows, mirror_all
from bench.workdir import WorkDir


@dataclass(frozen=True)
class Outcome:
    """What a run of a grid came to.

    Attributes:
        trained: cells that trained in this run.
        counts: status -> cells of the whole plan; "not run" among them.
        seconds: of all of it, wall clock.
        recording_seconds: that the coordinator spent on mirroring, most of them while workers
            were training.
    """

    trained: int
    counts: dict[str, int]
    seconds: float
    recording_seconds: float


def run_grid(
    expansion: Expansion,
    work: WorkDir,
    setting: Setting,
    devices: Sequence[str],
    *,
    retry_failed: bool,
    console: Console,
) -> Outcome:
    """Trains what is unfinished and mirrors what is recorded.

    Args:
        expansion: the grid, written out.
        work: the work directory.
        setting: for the workers.
        devices: one entry per worker process.
        retry_failed: whether failed cells run again.
        console: for progress and warnings.
    """
    plan = expansion.plan
    write_atomically(work.plan(plan.name), plan.to_json())
    waiting = unfinished(expansion.cells.values(), work.store, retry_failed)
    for cell in waiting:
        work.store.discard(cell.id)
    began = time.monotonic()
    mirroring = _Mirroring(work, expansion, console)
    names = {cell.id: str(cell) for cell in waiting}
    epochs = sum(map(total_epochs, waiting))
    with Display(names, epochs, console) as display:
        jobs = plan_jobs(waiting, len(devices))
        for job in run_processes(jobs, setting, devices, display.epoch):
            display.finished(len(job.cells))
            mirroring.send(job.cells)
    mirroring.finish()
    seconds = time.monotonic() - began
    return Outcome(len(waiting), count(expansion, work.store), seconds, mirroring.seconds)


def count(expansion: Expansion, store: Store) -> dict[str, int]:
    """Status -> number of cells of the plan."""
    counts: dict[str, int] = {}
    for cell_id in expansion.cells:
        found = store.read(cell_id)
        status = found.status if found else "not run"
        counts[status] = counts.get(status, 0) + 1
    return counts


class _Mirroring:
    """Sends records as they come; a store that fails is named once and left for `sync`."""

    def __init__(self, work: WorkDir, expansion: Expansion, console: Console) -> None:
        self.work, self.plan, self.console = work, expansion.plan, console
        self.rows = first_rows(expansion.plan)
        self.seconds = 0.0
        self.mirror: Mirror | None = None
        self._timed(self._open)

    def _open(self) -> None:
        self.mirror = Mirror(self.work.root, self.plan.name)
        self._send_all()

    def _send_all(self) -> None:
        if self.mirror is not None:
            mirror_all(self.mirror, self.plan, self.work.store)

    def _timed(self, action: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            action()
        except TrackingError as error:
            self.mirror = None
            self.console.print(
                f"MLflow store failed: {error}. Training goes on; send the records later with: "
                "run_all.py sync",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        self.seconds += time.monotonic() - began

    def send(self, cells: Sequence[Cell]) -> None:
        """Sends the records of these cells."""
        self._timed(lambda: self._send(cells))

    def _send(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            found = self.work.store.read(cell.id)
            if self.mirror is not None and found is not None:
                self.mirror.send(found, self.rows[cell.id], self.work.store.folder(cell.id))

    def finish(self) -> None:
        """Sends what is left: records of cells that came to one without training."""
        self._timed(self._send_all)
