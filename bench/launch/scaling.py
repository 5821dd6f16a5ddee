"""The command `scaling`: a grid on 1 to 1,000 workers, by the launchers' own rule, on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.cell import Cell
from bench.cost.forecast import Forecast
from bench.launch.job import Job
from bench.launch.schedule import Fits, group_cells, longest_chain, plan_jobs, simulate
from bench.record import write_atomically
from bench.report.drawing import save_figure
from bench.report.scaling import ScalePoint, draw_scaling, to_csv, to_markdown

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def scale(
    cells: Sequence[Cell],
    forecast: Forecast,
    workers: Sequence[int],
    startup: float,
    fits: Fits | None = None,
    report: Callable[[int], None] = lambda workers: None,
) -> list[ScalePoint]:
    """Plans and simulates a grid on each number of workers.

    Args:
        cells: of the grid, teachers among them.
        forecast: estimates jobs.
        workers: how many, in any order.
        startup: seconds before a worker's first job.
        fits: whether a worker can train cells side by side.
        report: told before each number of workers.
    """
    teachers, groups = group_cells(cells)
    whole = [Job((cell,), None) for cell in teachers] + [Job(tuple(g), None) for g in groups]
    least = sum(forecast.seconds(job.cells) for job in whole)
    chain = startup + longest_chain(whole, forecast.seconds)
    points = []
    for count in sorted(set(workers)):
        report(count)
        jobs = plan_jobs(cells, count, forecast.seconds, fits)
        found = simulate(jobs, count, forecast.seconds, startup)
        points.append(
            ScalePoint(
                workers=count,
                seconds=found.seconds,
                ideal_seconds=(startup + least) / count,
                bound_seconds=chain,
                busy_seconds=found.busy_seconds,
                repeated_seconds=found.busy_seconds - least,
                jobs=len(jobs),
                largest_job=max(len(job.cells) for job in jobs),
            )
        )
    return points


def write_scaling(
    points: Sequence[ScalePoint], grid: str, conditions: Sequence[str], folder: Path
) -> list[Path]:
    """Table and figure; returns their paths."""
    tables = {
        folder / "scaling.csv": to_csv(points),
        folder / "scaling.md": to_markdown(points, grid, conditions),
    }
    for path, text in tables.items():
        write_atomically(path, text)
    figure = draw_scaling(points, f"Grid {grid}, simulated", conditions[0])
    return [*tables, *save_figure(figure, folder / "figures" / "scaling")]
