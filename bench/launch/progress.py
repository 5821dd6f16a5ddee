"""What a person sees of a running grid: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 15.0


class Display:
    """Cells done, epochs done, the latest accuracy, time left."""

    def __init__(
        self,
        names: Mapping[str, str],
        epochs: Mapping[str, int],
        console: Console,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Nothing is shown before it is entered.

        Args:
            names: cell id -> name, of the cells that will train.
            epochs: cell id -> how many it trains for.
            console: where to show.
            seconds: cell id -> what it should take; None where all epochs count the same.
        """
        self.names, self.console = names, console
        self.total_epochs, self.epochs, self.cells = sum(epochs.values()), 0, 0
        self.latest = ""
        each = {cell_id: s / epochs[cell_id] for cell_id, s in (seconds or {}).items()}
        self._weights = {cell_id: each.get(cell_id, 1.0) for cell_id in epochs}
        self._work = sum(self._weights[cell_id] * count for cell_id, count in epochs.items())
        self._worked = self._resumed = 0.0
        self._done: dict[str, int] = {}
        self._began = self._last_line = time.monotonic()
        self._live: Progress | None = None

    def __enter__(self) -> Display:
        """Starts the live display, on a terminal."""
        if self.console.is_terminal and self.names:
            columns = (TextColumn("{task.description}"), BarColumn(),
                       TextColumn("{task.fields[epochs]} epochs, left"),
                       TimeRemainingColumn())  # fmt: skip
            self._live = Progress(*columns, console=self.console, transient=True)
            self._task = self._live.add_task("starting", total=self._work, epochs=0)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the live display."""
        if self._live is not None:
            self._live.stop()

    def epoch(self, cell_id: str, done: int, total: int, accuracy: float | None) -> None:
        """A cell is so far: an epoch on, at its checkpoint, or back there after a fault."""
        weight, new = self._weights.get(cell_id, 1.0), done - self._done.get(cell_id, 0)
        self.epochs += new
        self._worked += weight * new
        self._resumed += weight * (done - 1) if cell_id not in self._done else 0.0
        self._done[cell_id] = done
        shown = f" {accuracy:.1%}" if accuracy is not None else ""
        self.latest = f"{self.names.get(cell_id, cell_id)}{shown}"
        self._show()

    def finished(self, cells: int) -> None:
        """So many more cells have a record."""
        self.cells += cells
        self._show(line=not self.console.is_terminal)

    def _show(self, line: bool = False) -> None:
        text = f"cells {self.cells}/{len(self.names)}  {self.latest}"
        if self._live is not None:
            count = f"{self.epochs}/{self.total_epochs}"
            self._live.update(self._task, completed=self._worked, description=text, epochs=count)
            return
        now = time.monotonic()
        if self.names and (line or now - self._last_line > PLAIN_LINE_SECONDS):
            self._last_line = now
            trained = self._worked - self._resumed
            each = (now - self._began) / trained if trained > 0 else float("nan")
            left = each * (self._work - self._worked)
            self.console.print(
                f"{text}  epochs {self.epochs}/{self.total_epochs}  "
                f"{now - self._began:.0f} s, about {left:.0f} s left",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
