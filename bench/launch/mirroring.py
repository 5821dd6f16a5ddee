"""Records go to MLflow while a grid trains, in a thread, so that training never waits.

A store that is away is named once, tried again from time to time, and at the end. What is left
then, `sync` sends. One process at a time sends the records of a grid.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console

from bench.cell import Cell
from bench.launch.leases import BusyError, Leases
from bench.record import Plan
from bench.tracking import Mirror, TrackingError, first_rows, mirror_all
from bench.workdir import WorkDir

RETRY_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.2


@contextlib.contextmanager
def sole_mirror(
    work: WorkDir, grid: str, leases: Leases, patience: float = PATIENCE_SECONDS
) -> Iterator[Mirror]:
    """The mirror of a grid, to which no other command writes meanwhile.

    Args:
        work: the work directory.
        grid: name of the grid.
        leases: of this process, entered.
        patience: seconds to wait for another command that sends.

    Raises:
        BusyError: another command is sending this grid's records.
        TrackingError: the store cannot be opened.
    """
    with _lease(f"mlflow-{grid}", leases, patience):
        # The first to open the store makes the database, whatever the grid.
        with _lease("mlflow", leases, PATIENCE_SECONDS):
            mirror = Mirror(work.root, grid)
        yield mirror


@contextlib.contextmanager
def _lease(name: str, leases: Leases, patience: float) -> Iterator[None]:
    until = time.monotonic() + patience
    while not leases.acquire(name):
        if time.monotonic() >= until:
            who = leases.holder(name) or "another command"
            raise BusyError(f"{who} is sending records to MLflow from this work directory")
        leases.pause(POLL_SECONDS)
    try:
        yield
    finally:
        leases.release(name)


class Mirroring:
    """Sends the records of a grid before, while and after it trains. A context manager."""

    def __init__(self, work: WorkDir, plan: Plan, leases: Leases, console: Console) -> None:
        """Opens nothing before it is entered.

        Args:
            work: the work directory.
            plan: of the grid.
            leases: of this process, entered.
            console: for warnings.
        """
        self.work, self.plan, self.leases, self.console = work, plan, leases, console
        self.rows = first_rows(plan)
        self._recorded: queue.SimpleQueue[Sequence[Cell]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._interrupted = self._warned = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirroring")

    def __enter__(self) -> Mirroring:
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Sends what is left and ends the thread; after an error only ends it."""
        self._interrupted = kind is not None
        self._ended.set()
        self._recorded.put(())  # wakes the thread
        self._thread.join()

    def send(self, cells: Sequence[Cell]) -> None:
        """Queues the records of these cells."""
        self._recorded.put(cells)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        sent = self._send_all(patience=0.0)
        while not sent and not self._ended.wait(RETRY_SECONDS):
            sent = self._send_all(patience=0.0)
        if not sent and not self._interrupted:
            self._send_all(patience=PATIENCE_SECONDS)

    def _send_all(self, patience: float) -> bool:
        """Sends records until the training ends; returns False if the store failed before."""
        try:
            with sole_mirror(self.work, self.plan.name, self.leases, patience) as mirror:
                mirror_all(mirror, self.plan, self.work.store)
                while not self._ended.is_set():
                    self._send(mirror, self._recorded.get())
                if not self._interrupted:
                    mirror_all(mirror, self.plan, self.work.store)
                return True
        except (TrackingError, OSError) as error:  # OSError: the disk of the work directory
            self._warn(f"MLflow store failed: {error}")
        except BusyError as error:
            if patience:
                self._warn(str(error))
        return False

    def _send(self, mirror: Mirror, cells: Sequence[Cell]) -> None:
        for cell in cells:
            found = self.work.store.read(cell.id)
            if found is not None:
                mirror.send(found, self.rows[cell.id], self.work.store.folder(cell.id))

    def _warn(self, what: str) -> None:
        if not self._warned:
            self.console.print(
                f"{what}. Training goes on; what is not sent at its end, send with: "
                "run_all.py sync",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        self._warned = True
