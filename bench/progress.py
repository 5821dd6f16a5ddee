"""Progress of a long command: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

PLAIN_LINE_SECONDS = 15.0


def duration(seconds: float) -> str:
    """A duration in the unit that reads best.

    Example:
        >>> duration(12.3), duration(600), duration(9000)
        ('12 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class ProgressDisplay(AbstractContextManager):
    """Shows the current task, how much of it is done, and the time left. A context manager."""

    def __init__(self, console: Console, unit: str = "") -> None:
        """Shows nothing before the first `show`; `unit` is of what is counted, such as "epochs"."""
        self.console, self.unit = console, f" {unit}" if unit else ""
        self._began = self._last_line = time.monotonic()
        counted = TextColumn("{task.completed:.0f}/{task.total:.0f}" + self.unit)
        wide = Column(no_wrap=True, ratio=1)  # all in one line, however narrow the terminal
        what = TextColumn("{task.description}", markup=False, table_column=wide)
        left = TimeRemainingColumn(), TextColumn("left")
        columns = what, BarColumn(bar_width=15), counted, *left
        self._live = Progress(*columns, console=console, transient=True, expand=True)
        self._task = self._live.add_task("starting", total=1)

    def __exit__(self, *error: object) -> None:
        """Stops the live bar."""
        if self._live.live.is_started:
            self._live.stop()

    def show(
        self, what: str, done: int, total: int, *, at_once: bool = False, skipped: int = 0
    ) -> None:
        """Shows the current task, and how many of its units are done.

        `at_once` prints a plain line now, not only every `PLAIN_LINE_SECONDS`. `skipped` units of
        `done` were done by an earlier command; they took no time.
        """
        if self.console.is_terminal:
            self._live.start()
            self._live.update(self._task, description=what, completed=done, total=total)
            return
        now = time.monotonic()
        if not at_once and now - self._last_line < PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        seconds, worked = now - self._began, done - skipped
        left = f", about {duration(seconds / worked * (total - done))} left" if worked > 0 else ""
        text = f"{what}  {done}/{total}{self.unit}, {duration(seconds)}{left}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class TrainingProgress:
    """Cells done, epochs done and the latest accuracy of a grid that trains."""

    def __init__(
        self, names: Mapping[str, str], epochs: int, display: ProgressDisplay, phase: str = ""
    ) -> None:
        """Shows nothing yet; `names` are those of the cells that will train, by id."""
        self.names, self.epochs, self.display = names, epochs, display
        self.cells, self.latest, self.phase = 0, "", f"{phase}, " if phase else ""
        self._done: dict[str, int] = {}
        self._resumed = 0

    def epoch(self, cell_id: str, done: int, total: int, accuracy: float | None) -> None:
        """A cell did `done` of its `total` epochs; the accuracy is None if not measured."""
        if cell_id not in self._done:
            self._resumed += done - 1
        self._done[cell_id] = done
        shown = f" {accuracy:.1%}" if accuracy is not None else ""
        self.latest = f"{self.names.get(cell_id, cell_id)}{shown}"
        self._show()

    def finished(self, epochs: Mapping[str, int]) -> None:
        """Counts cells with a record, and their epochs; other commands may have trained them."""
        self.cells += len(epochs)
        self._done |= epochs
        self._show(at_once=True)

    def _show(self, at_once: bool = False) -> None:
        what = f"{self.phase}cells {self.cells}/{len(self.names)}  {self.latest}".rstrip()
        done = sum(self._done.values())
        self.display.show(what, done, self.epochs, at_once=at_once, skipped=self._resumed)
