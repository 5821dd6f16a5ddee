"""What a run will do: its jobs in order, and how long they should take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.cell import Cell, DataSpec
from bench.cost.forecast import Forecast
from bench.cost.parts import Parts
from bench.cost.rough import DataSizes, Rough
from bench.launch.job import Job, Library, Setting
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


def look_ahead(
    cells: Sequence[Cell],
    parts: Parts | None,
    setting: Setting,
    devices: Sequence[str],
    library: Library,
) -> Outlook:
    """Plans the training of cells.

    Args:
        cells: that are to be trained.
        parts: calibrated pieces of all of them; None for rough estimates.
        setting: of the run.
        devices: one entry per worker process.
        library: where their data is.
    """
    forecast = parts and Forecast(parts, setting.checkpoint_seconds * bool(setting.checkpoints))
    rough = Rough(_sizes(library))
    limit = _room(setting, devices)
    fits = _fits(forecast, rough, setting, limit)
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


def _room(setting: Setting, devices: Sequence[str]) -> int | None:
    """What the fullest device has for one of its workers; None if the size is given."""
    if setting.cohort is not None:
        return None
    rooms = [room(device, devices.count(device)) for device in set(devices)]
    known = [size for size in rooms if size is not None]
    return min(known) if known else None


def _fits(
    forecast: Forecast | None, rough: Rough, setting: Setting, limit: int | None
) -> Fits | None:
    if setting.cohort is not None:
        most = setting.cohort
        return lambda cells: len(cells) <= most
    if limit is None:
        return None
    # A process on a device keeps its libraries in the host's memory.
    base = process_bytes() if setting.device == "cpu" else 0
    held = forecast.bytes if forecast else rough.bytes
    return lambda cells: base + held(cells) <= limit
