"""Which cells are this launcher's, where several share the work of one grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.cell import Cell
from bench.launch.job import Job
from bench.launch.lease import Leases
from bench.record import Store

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Done:
    """Cells that have a record now.

    Attributes:
        cells: those.
        here: whether this launcher trained them (or failed them), not another.
    """

    cells: tuple[Cell, ...]
    here: bool = True


class Share:
    """Takes cells under a lease, and follows those that others hold."""

    def __init__(self, store: Store, leases: Leases) -> None:
        """Nothing is taken yet.

        Args:
            store: where records appear, whoever writes them.
            leases: this process's, entered.
        """
        self.store, self.leases = store, leases
        self.elsewhere: list[Job] = []
        self._looked = 0.0

    def discard(self, cells: Sequence[Cell]) -> None:
        """Forgets the records of cells that are to run again, unless another runs them already."""
        for cell in cells:
            if self.store.read(cell.id) is not None and self.leases.acquire(cell.id):
                self.store.discard(cell.id)
                self.leases.release(cell.id)

    def take(self, job: Job) -> tuple[Job, Done]:
        """What of a job is this launcher's to train, and what came to a record meanwhile.

        The rest is held by others and followed from here on.
        """
        mine, done, others = [], [], []
        for cell in job.cells:
            if not self.leases.acquire(cell.id):
                others.append(cell)
            elif self.store.read(cell.id) is not None:
                self.leases.release(cell.id, forget=True)
                done.append(cell)
            else:
                # Files that a killed process left half-written.
                self.store.discard(cell.id)
                mine.append(cell)
        if others:
            self.elsewhere.append(Job(tuple(others), job.teacher))
        return Job(tuple(mine), job.teacher), Done(tuple(done), here=False)

    def give_back(self, cells: Sequence[Cell]) -> Done:
        """Releases cells that have their record."""
        for cell in cells:
            self.leases.release(cell.id, forget=True)
        return Done(tuple(cells))

    def look(self) -> Iterator[Job | Done]:
        """News of what others hold, from time to time: done, or free to be taken again."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        followed, self.elsewhere = self.elsewhere, []
        for job in followed:
            done = [cell for cell in job.cells if self.store.read(cell.id) is not None]
            left = [cell for cell in job.cells if cell not in done]
            free = [cell for cell in left if self.leases.holder(cell.id) is None]
            held = [cell for cell in left if cell not in free]
            if done:
                yield Done(tuple(done), here=False)
            if free:
                yield Job(tuple(free), job.teacher)
            if held:
                self.elsewhere.append(Job(tuple(held), job.teacher))
