"""Records to MLflow while a grid trains: in a thread of its own, so that training never waits.

The store may be away. It is then named once, tried again from time to time, and at the end;
whatever is left is sent by `sync`. One process at a time sends the records of a grid.
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
    """The grid's mirror, which nobody else writes to meanwhile.

    Args:
        work: the work directory.
        grid: its name.
        leases: of this process, entered.
        patience: seconds to wait for another sender.

    Raises:
        BusyError: another command is sending this grid's records.
        TrackingError: the store cannot be opened.
    """
    name = f"mlflow-{grid}"
    _acquire(name, leases, patience)
    try:
        # The database is made by whoever opens it first, whatever the grid.
        _acquire("mlflow", leases, PATIENCE_SECONDS)
        try:
            mirror = Mirror(work.root, grid)
        finally:
            leases.release("mlflow")
        yield mirror
    finally:
        leases.release(name)


def _acquire(name: str, leases: Leases, patience: float) -> None:
    until = time.monotonic() + patience
    while not leases.acquire(name):
        if time.monotonic() >= until:
            who = leases.holder(name) or "another command"
            raise BusyError(f"{who} is sending records to MLflow from this work directory")
        leases.pause(POLL_SECONDS)


class Mirroring:
    """A context manager around the training: sends what is recorded before, meanwhile and after.

    Attributes:
        seconds: of a processor's time that sending took, once it is over.
    """

    def __init__(self, work: WorkDir, plan: Plan, leases: Leases, console: Console) -> None:
        """Nothing is opened before it is entered.

        Args:
            work: the work directory.
            plan: of the grid.
            leases: of this process, entered.
            console: for warnings.
        """
        self.work, self.plan, self.leases, self.console = work, plan, leases, console
        self.rows = first_rows(plan)
        self.seconds = 0.0
        self._news: queue.SimpleQueue[Sequence[Cell] | None] = queue.SimpleQueue()
        self._stopped = self._over = False
        self._named = False
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
        self._stopped = kind is not None
        self._news.put(None)
        self._thread.join()

    def send(self, cells: Sequence[Cell]) -> None:
        """These cells have a record now."""
        if cells:
            self._news.put(cells)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._session(patience=0.0):
            if not self._wait_to_retry():
                if not self._stopped:
                    self._session(patience=PATIENCE_SECONDS)
                break
        self.seconds = time.thread_time()

    def _session(self, patience: float) -> bool:
        """Sends until the training ends or the store fails; whether it came to the end."""
        try:
            with sole_mirror(self.work, self.plan.name, self.leases, patience) as mirror:
                mirror_all(mirror, self.plan, self.work.store)
                while cells := self._next():
                    self._send(mirror, cells)
                if not self._stopped:
                    mirror_all(mirror, self.plan, self.work.store)
                return True
        except (TrackingError, OSError) as error:  # OSError: the disk of the work directory
            self._warn(f"MLflow store failed: {error}")
        except BusyError as error:
            if patience:
                self._warn(str(error))
        return False

    def _next(self, timeout: float | None = None) -> Sequence[Cell] | None:
        """Cells to send; None at the training's end, again and again; queue.Empty in between."""
        cells = None if self._over else self._news.get(timeout=timeout)
        self._over = cells is None
        return cells

    def _wait_to_retry(self) -> bool:
        """Whether it is time for another try, and not the training's end."""
        until = time.monotonic() + RETRY_SECONDS
        with contextlib.suppress(queue.Empty):
            # What comes meanwhile needs no note: a new session begins with all that is there.
            while self._next(timeout=max(0.0, until - time.monotonic())):
                pass
        return not self._over

    def _send(self, mirror: Mirror, cells: Sequence[Cell]) -> None:
        for cell in cells:
            found = self.work.store.read(cell.id)
            if found is not None:
                mirror.send(found, self.rows[cell.id], self.work.store.folder(cell.id))

    def _warn(self, what: str) -> None:
        if not self._named:
            self.console.print(
                f"{what}. Training goes on; what is not sent at its end, send with: "
                "run_all.py sync",
                style="yellow", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        self._named = True
