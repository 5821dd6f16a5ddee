"""What a run will do: its jobs in order, and how long they should take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.cell import Cell, DataSpec
from bench.cost.forecast import Forecast
from bench.cost.parts import Parts
from bench.cost.rough import DataSizes, Rough
from bench.launch.job import Job, Library, WorkerConfig
from bench.launch.memory import process_bytes, room
from bench.launch.schedule import Fits, Schedule, plan_jobs, simulate


@dataclass(frozen=True)
class Outlook:
    """A plan and what is expected of it.

    Attributes:
        jobs: in the order in which workers take them.
        schedule: when each should run; None where nothing was calibrated.
        forecast: what it rests on, or None.
        room_bytes: that one worker may fill; None where no limit is known or wanted.
    """

    jobs: list[Job]
    schedule: Schedule | None
    forecast: Forecast | None
    room_bytes: int | None

    @property
    def seconds(self) -> float | None:
        """From the start to the end of the last job."""
        return self.schedule and self.schedule.seconds

    @property
    def cell_seconds(self) -> dict[str, float] | None:
        """Cell id -> its own seconds; None where nothing was calibrated."""
        if self.forecast is None:
            return None
        return {
            c.id: self.forecast.own_seconds(c, job.cells) for job in self.jobs for c in job.cells
        }


def look_ahead(
    cells: Sequence[Cell],
    parts: Parts | None,
    setting: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    local: bool = True,
) -> Outlook:
    """Plans the training of cells.

    Args:
        cells: that are to be trained.
        parts: calibrated pieces of all of them; None for rough estimates.
        setting: of the run.
        devices: one entry per worker process.
        library: where their data is.
        local: whether the workers are this machine's, whose memory then limits a job.
    """
    forecast = parts and Forecast(parts, setting.checkpoint_seconds * bool(setting.checkpoints))
    rough = Rough(_sizes(library))
    limit = _room(devices) if local and setting.cohort is None else None
    base = process_bytes() if devices[0] == "cpu" else 0  # a device's memory has no process in it
    fits = _fits(forecast.bytes if forecast else rough.bytes, setting.cohort, limit, base)
    seconds = forecast.seconds if forecast else rough.work
    jobs = plan_jobs(cells, len(devices), seconds, fits)
    schedule = forecast and simulate(
        jobs, len(devices), forecast.seconds, forecast.parts.startup_seconds
    )
    return Outlook(jobs, schedule, forecast, limit)


def _sizes(library: Library) -> Callable[[DataSpec], DataSizes]:
    def sizes(spec: DataSpec) -> DataSizes:
        data = library.read(spec)
        channels, height, width = data.train_images.shape[1:]
        return DataSizes(len(data.classes), (channels, height, width), len(data.train_images))

    return sizes


def _room(devices: Sequence[str]) -> int | None:
    """What the fullest device has for one of its workers; None where nobody knows."""
    rooms = [room(device, devices.count(device)) for device in set(devices)]
    known = [size for size in rooms if size is not None]
    return min(known) if known else None


def _fits(
    held: Callable[[Sequence[Cell]], int], most: int | None, limit: int | None, base: int
) -> Fits | None:
    if most is not None:
        return lambda cells: len(cells) <= most
    if limit is None:
        return None
    return lambda cells: base + held(cells) <= limit
