"""The coordinator of a run: from a grid's cells to their records and their mirror in MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import NamedTuple

from rich.console import Console

from bench.cost.footprint import total_epochs
from bench.data.sources import Library
from bench.expansion import Expansion
from bench.launch.job import Report, WorkerConfig, unfinished
from bench.launch.launcher import Launcher
from bench.launch.leases import Leases
from bench.launch.mirroring import mirroring
from bench.launch.ray_cluster import NodeCommands
from bench.launch.schedule import plan_training
from bench.progress import ProgressDisplay, TrainingProgress
from bench.record import WorkDir, write_atomically

Launch = Callable[[WorkerConfig, Report, Leases], Launcher | NodeCommands]


class Outcome(NamedTuple):
    """Cells that a run trained, and those that others did meanwhile; seconds."""

    trained: int
    elsewhere: int
    seconds: float

    def then(self, later: Outcome) -> Outcome:
        """Both phases as one."""
        trained, elsewhere, seconds = later
        return Outcome(self.trained + trained, self.elsewhere + elsewhere, self.seconds + seconds)


def run_grid(
    expansion: Expansion,
    work: WorkDir,
    config: WorkerConfig,
    devices: Sequence[str],
    *,
    retry_failed: bool,
    console: Console,
    launch: Launch,
    room_bytes: int | None = None,
    phase: str = "",
    mirrored: bool = True,
) -> Outcome:
    """Trains the cells of a grid that are unfinished, and mirrors all records unless told not to.

    There is one device for each job that can run at once; a worker may fill `room_bytes` of memory,
    None if no limit is known. With `retry_failed` failed cells run again. `launch` makes what runs
    the jobs. `phase`, such as "screening", is shown with the progress.
    """
    plan, began = expansion.plan, time.monotonic()
    write_atomically(work.plan(plan.name), plan.to_json())
    waiting = unfinished(expansion.cells.values(), work.store, retry_failed)
    library = Library(config.data_root, config.cache)
    with Leases(work.leases) as leases:
        # Jobs for the workers of all commands that share the cells.
        of_all = [*devices] * leases.commands()
        jobs = plan_training(waiting, config, of_all, library, room_bytes) if waiting else []
        for cell in waiting:  # its record is forgotten, unless another command runs it
            if work.store.read(cell.id) is not None and leases.acquire(cell.id):
                if unfinished([cell], work.store, retry_failed):  # not recorded meanwhile
                    work.store.discard(cell.id)
                leases.release(cell.id)
        mirror = mirroring(work, plan, leases, console) if mirrored else nullcontext()
        with mirror, ProgressDisplay(console, "epochs") as display:
            names = {cell.id: str(cell) for cell in waiting}
            epochs = {cell.id: total_epochs(cell) for cell in waiting}
            progress = TrainingProgress(names, sum(epochs.values()), display, phase)
            if waiting:
                progress.finished({})  # shown from the start
            trained = 0
            # Closed here, whatever happens: workers end before their leases do.
            with closing(launch(config, progress.epoch, leases).run(jobs)) as all_done:
                for done in all_done:
                    progress.finished({cell.id: epochs[cell.id] for cell in done.cells})
                    trained += len(done.cells) if done.here else 0
    return Outcome(trained, len(waiting) - trained, time.monotonic() - began)
