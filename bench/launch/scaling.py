"""The command `scaling`: a grid on 1 to 1,000 workers, by the launchers' own rule, on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cell import Cell
from bench.cost.forecast import Forecast, at_throughput
from bench.grid import Expansion
from bench.launch.calibrate import calibrate, conditions_of
from bench.launch.job import Job, Library, WorkerConfig
from bench.launch.schedule import Fits, group_cells, longest_chain, plan_jobs, simulate
from bench.record import write_atomically
from bench.report.drawing import save_figure
from bench.report.scaling import ScalePoint, draw_scaling, to_csv, to_markdown
from bench.workdir import WorkDir

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
                repeated_seconds=max(0.0, found.busy_seconds - least),
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
    return [*tables, save_figure(figure, folder / "figures" / "scaling")]


@dataclass(frozen=True)
class Asked:
    """What the command is asked for.

    Attributes:
        workers: numbers of them.
        tflops: that a worker is assumed to sustain; None to measure on this machine.
        startup_seconds: before a worker's first job; None as measured.
        calibrate_seconds: after which no further row is measured.
    """

    workers: Sequence[int] = WORKERS
    tflops: float | None = None
    startup_seconds: float | None = None
    calibrate_seconds: float = 30.0


def command(
    expansion: Expansion,
    work: WorkDir,
    setting: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    asked: Asked,
    report: Callable[[str], None],
) -> list[Path]:
    """Measures or counts what is not known yet, simulates, writes table and figure.

    Args:
        expansion: the grid, written out; what is finished counts as if it were not.
        work: the work directory.
        setting: of a run.
        devices: on which it is measured, one entry a process.
        library: where the data is.
        asked: the command's options.
        report: told what is going on.

    Raises:
        CalibrationError: nothing could be measured.
    """
    cells, counted = list(expansion.cells.values()), asked.tflops is not None
    parts = calibrate(
        cells, work.calibration, setting, devices, seconds=asked.calibrate_seconds,
        stand_in=library.stand_in, counted=counted,
        report=lambda what: report(f"calibrating: {what}"),
    )  # fmt: skip
    if asked.tflops is not None:
        parts = at_throughput(parts, asked.tflops * 1e12)
    startup = parts.startup_seconds if asked.startup_seconds is None else asked.startup_seconds
    forecast = Forecast(parts)
    most = setting.cohort
    points = scale(
        cells, forecast, asked.workers, startup,
        None if most is None else lambda part: len(part) <= most,
        lambda count: report(f"simulating {count} workers"),
    )  # fmt: skip
    where = _conditions(cells, forecast, asked, setting, devices, startup)
    return write_scaling(points, expansion.plan.name, where, work.grid(expansion.plan.name))


def _conditions(
    cells: Sequence[Cell],
    forecast: Forecast,
    asked: Asked,
    setting: WorkerConfig,
    devices: Sequence[str],
    startup: float,
) -> list[str]:
    """What the numbers rest on; the first is the figure's note."""
    about = conditions_of(setting, devices)
    if asked.tflops is not None:
        first = f"Assumed: {asked.tflops:g} TFLOP/s sustained by each worker; operations counted"
        more = ["Not in it: reading data, recording, tables, waiting for memory or the network"]
    else:
        first = (
            f"Measured on {about['device']}, {len(devices)} side by side, torch {about['torch']}"
        )
        more = [f"{forecast.extrapolated(cells)} rows extrapolated from counted operations"]
        more.append("Workers as fast as these, each with a processor of its own; tables apart")
    return [
        f"{first}; {startup:.3g} s until a worker has its first job.",
        f"{len(cells)} cells, teachers among them; a cohort is cut where that ends the grid "
        "earlier, and each part pays the teacher's forward pass again.",
        *(f"{line}." for line in more),
    ]
