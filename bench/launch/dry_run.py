"""What a run would do: its time, memory and cells, before anything trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.cell import Cell
from bench.cost.estimate import WORKER_SECONDS, Estimate
from bench.expansion import Expansion
from bench.launch.job import Library, WorkerConfig, total_epochs, unfinished
from bench.launch.resources import process_bytes
from bench.launch.schedule import plan_training, simulate
from bench.progress import ProgressDisplay
from bench.record import Row, Store

MIB = 2**20


@dataclass(frozen=True)
class DryRun:
    """A grid as a run would find it.

    Attributes:
        expansion: the grid, written out.
        waiting: the cells to train.
    """

    expansion: Expansion
    waiting: Sequence[Cell]

    @classmethod
    def of(cls, expansion: Expansion, store: Store, retry_failed: bool) -> DryRun:
        """What is left to train of a grid.

        Args:
            expansion: the grid, written out.
            store: the records of earlier runs.
            retry_failed: whether failed cells run again.
        """
        return cls(expansion, unfinished(expansion.cells.values(), store, retry_failed))

    def counts(self) -> str:
        """How many cells there are, how many are done, and how many train."""
        total, epochs = len(self.expansion.cells), sum(map(total_epochs, self.waiting))
        return (
            f"cells: {total}, done already: {total - len(self.waiting)}, to train: "
            f"{len(self.waiting)} ({epochs} epochs in all)"
        )

    def listing(self) -> str:
        """The totals, then the rows of each pair, without time and memory."""
        lines = [self.counts()]
        for pair, rows in self._pairs().items():
            labels = dict.fromkeys(row.label for row in rows)
            lines += [pair, f"  {', '.join(labels)}"]
        return "\n".join(lines)

    def estimate(
        self,
        config: WorkerConfig,
        devices: Sequence[str],
        library: Library,
        room_bytes: int | None,
        display: ProgressDisplay,
    ) -> str:
        """The same with time and memory, from a few real steps of every row to train.

        Args:
            config: of the workers.
            devices: one entry for each worker.
            library: reads the data.
            room_bytes: memory that the cells of one worker may fill; None if no limit is known.
            display: shows what is being timed.
        """
        if not self.waiting:
            return self.listing()
        device = torch.device(devices[0])
        estimate = Estimate(library.read, device)
        estimate.measure(self.waiting, display.show)
        jobs = plan_training(self.waiting, config, devices, library, room_bytes)
        work = sum(estimate.seconds(job.cells) for job in jobs)
        total = WORKER_SECONDS + max(simulate(jobs, len(devices), estimate.seconds))
        peak = max(estimate.bytes(job.cells) for job in jobs)
        peak += process_bytes() if device.type == "cpu" else 0
        shared = sum(estimate.shared_seconds(job.cells) for job in jobs)
        lines = [
            f"time: about {duration(total)} on {len(devices)} workers ({devices[0]}), if the "
            f"machine does nothing else; {duration(work)} of work in {len(jobs)} jobs",
            f"memory: at most {peak / MIB:.0f} MiB for a worker",
            self.counts(),
            *self._refused(estimate),
        ]
        for pair, rows in self._pairs().items():
            lines += [pair, *self._table(rows, estimate)]
        lines.append(f"shared by the rows (data, teachers' forward passes): {duration(shared)}")
        return "\n".join(lines)

    def _pairs(self) -> dict[str, list[Row]]:
        """The rows by data set, teacher, student and those axes in which the grid's rows differ."""
        rows = self.expansion.plan.rows
        varied = [name for name in rows[0].axes if len({row.axes[name] for row in rows}) > 1]
        found: dict[str, list[Row]] = {}
        for row in rows:
            axes = "".join(f", {name} {row.axes[name]:g}" for name in varied)
            found.setdefault(f"{row.data}{axes}: {row.teacher} > {row.student}", []).append(row)
        return {f"{pair}; {_seeds(rows)}": rows for pair, rows in found.items()}

    def _refused(self, estimate: Estimate) -> Iterator[str]:
        """One line for each row that cannot run, with the reason."""
        reasons: dict[tuple[str, str], int] = {}
        waiting = {cell.id: cell for cell in self.waiting}
        for row in self.expansion.plan.rows:
            if row.cell_id in waiting:
                reason = estimate.student(waiting[row.cell_id]).refused
                name = f"{row.teacher} > {row.student}, {row.label}"
                if reason:
                    reasons[name, reason] = reasons.get((name, reason), 0) + 1
        for (name, reason), cells in reasons.items():
            yield f"cannot run: {name} ({cells} cells): {reason}"

    def _table(self, rows: Sequence[Row], estimate: Estimate) -> Iterator[str]:
        """The rows of one pair; epochs and seconds are those of the cells to train."""
        waiting = {cell.id: cell for cell in self.waiting}
        width = max(len(row.label) for row in rows)
        yield f"  {'row':<{width}} {'cells':>5} {'done':>5} {'epochs':>7} {'seconds':>8} {'MiB':>7}"
        for label in dict.fromkeys(row.label for row in rows):
            ids = [row.cell_id for row in rows if row.label == label]
            cells = [waiting[cell_id] for cell_id in ids if cell_id in waiting]
            students = list(map(estimate.student, cells))
            seconds = sum(student.seconds for student in students)
            peak = max((s.held_bytes + s.step_bytes for s in students), default=0)
            epochs = sum(map(total_epochs, cells))
            yield (
                f"  {label:<{width}} {len(ids):>5} {len(ids) - len(cells):>5} {epochs:>7} "
                f"{seconds:>8.1f} {peak / MIB:>7.1f}"
            )


def duration(seconds: float) -> str:
    """A duration in the unit that reads best.

    Example:
        >>> duration(12.3), duration(600), duration(9000)
        ('12 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _seeds(rows: Sequence[Row]) -> str:
    return f"seeds {', '.join(str(seed) for seed in sorted({row.seed for row in rows}))}"
