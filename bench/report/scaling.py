"""How a grid's time falls with the number of workers: a table and a figure.

The schedules are simulated elsewhere; here they are numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("workers", "seconds", "speedup", "ideal_seconds", "bound_seconds", "efficiency",
           "busy_seconds", "repeated_seconds", "jobs", "largest_job")  # fmt: skip
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


class ScalePoint(NamedTuple):
    """A grid on so many workers.

    Attributes:
        workers: how many.
        seconds: from the start to the end of the last job.
        ideal_seconds: of one worker over the number of workers.
        bound_seconds: what no plan beats on any number of workers: the longest chain of a
            teacher and a student.
        busy_seconds: of all workers together.
        repeated_seconds: of those, what cutting cohorts costs: teachers' forward passes again.
        jobs: into how many the grid was cut.
        largest_job: cells of the largest.
    """

    workers: int
    seconds: float
    ideal_seconds: float
    bound_seconds: float
    busy_seconds: float
    repeated_seconds: float
    jobs: int
    largest_job: int

    @property
    def efficiency(self) -> float:
        """The ideal's time over this one: what of all workers' time is work of the grid."""
        return self.ideal_seconds / self.seconds if self.seconds else 1.0


def to_csv(points: Sequence[ScalePoint]) -> str:
    """One line for each number of workers; seconds, and efficiency in [0, 1]."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    alone = points[0].ideal_seconds * points[0].workers if points else 0.0
    for p in points:
        writer.writerow([
            p.workers, f"{p.seconds:.1f}", f"{alone / p.seconds:.2f}", f"{p.ideal_seconds:.1f}",
            f"{p.bound_seconds:.1f}", f"{p.efficiency:.4f}", f"{p.busy_seconds:.1f}",
            f"{p.repeated_seconds:.1f}", p.jobs, p.largest_job,
        ])  # fmt: skip
    return text.getvalue()


def to_markdown(points: Sequence[ScalePoint], grid: str, conditions: Sequence[str]) -> str:
    """The same for a reader, with what it rests on."""
    unit, name = _unit(points)
    head = f"| workers | {name} | ideal | speed-up | efficiency | jobs | cells of the largest job |"
    lines = [
        f"# Grid {grid} on 1 to {points[-1].workers:,} workers, simulated",
        "",
        *(f"- {line}" for line in conditions),
        f"- No number of workers beats {points[0].bound_seconds / unit:.3g} {name}: the longest "
        "chain of a teacher and the student that waits for it.",
        "- Efficiency: time of one worker over the number of workers and the time.",
        "",
        head,
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    alone = points[0].ideal_seconds * points[0].workers
    for p in points:
        lines.append(
            f"| {p.workers:,} | {p.seconds / unit:.3g} | {p.ideal_seconds / unit:.3g} | "
            f"{alone / p.seconds:.1f} | {p.efficiency:.1%} | {p.jobs:,} | {p.largest_job} |"
        )
    return "\n".join(lines) + "\n"


def _unit(points: Sequence[ScalePoint]) -> tuple[float, str]:
    """The unit in which the shortest time is at least 1."""
    least = min(p.seconds for p in points)
    return next(((size, name) for size, name in UNITS if least >= size), UNITS[-1])


def draw_scaling(points: Sequence[ScalePoint], title: str, note: str) -> Figure:
    """Time and efficiency against the number of workers.

    Args:
        points: by rising number of workers.
        title: the grid's.
        note: what the numbers rest on.
    """
    unit, name = _unit(points)
    figure = new_figure(7.2, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    workers = [p.workers for p in points]
    times = [p.seconds / unit for p in points]
    above.plot(workers, [p.ideal_seconds / unit for p in points], color="#777777", linestyle="--",
               linewidth=1, label="ideal: one worker's time, shared out")  # fmt: skip
    above.axhline(points[0].bound_seconds / unit, color="#CC6677", linestyle=":", linewidth=1.5,
                  label="longest chain: a teacher, then a student")  # fmt: skip
    above.plot(workers, times, color="#332288", marker="o", markersize=4, label="simulated")
    above.set_yscale("log")
    above.set_ylabel(name)
    above.set_title(title, fontsize=10)
    above.legend(fontsize=8, frameon=False)
    below.plot(workers, [p.efficiency for p in points], color="#332288", marker="o", markersize=4)
    below.set_ylim(0, 1.05)
    below.set_ylabel("efficiency")
    below.set_xlabel(f"workers\n{note}", fontsize=8)
    for axes in (above, below):
        _decade_ticks(axes, workers)
    return figure


def _decade_ticks(axes: Axes, workers: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(workers), [f"{n:,}" for n in workers], fontsize=7)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
