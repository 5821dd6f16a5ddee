"""What a run would do: cells, those done already, and what they should cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.cell import Cell
from bench.cost.forecast import Forecast
from bench.cost.parts import EXTRAPOLATED, kind
from bench.grid import Expansion
from bench.launch.calibrate import calibrate
from bench.launch.job import Library, WorkerConfig, total_epochs, unfinished
from bench.launch.outlook import Outlook, look_ahead
from bench.launch.schedule import group_cells
from bench.record import Row, Store
from bench.workdir import WorkDir

MIB = 2**20


def preview(expansion: Expansion, store: Store, retry_failed: bool) -> str:
    """A plain text: one line per pair and the totals.

    Args:
        expansion: the grid, written out.
        store: the records there are.
        retry_failed: whether failed cells count as still to run.
    """
    waiting = unfinished(expansion.cells.values(), store, retry_failed)
    plan = expansion.plan
    lines = [f"grid {plan.name}: {plan.description}"]
    for (data, teacher, student, _), rows in _by_pair(expansion).items():
        labels = dict.fromkeys(row.label for row in rows)
        lines.append(f"  {data}: {teacher} > {student}: {', '.join(labels)}; {_seeds(rows)}")
    lines.append(_count(expansion, waiting))
    return "\n".join(lines)


def preview_costs(
    expansion: Expansion,
    work: WorkDir,
    setting: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    seconds: float,
    *,
    retry_failed: bool,
    report: Callable[[str], None],
) -> str:
    """The same with what each row and the whole should cost; measures what is not known yet.

    Args:
        expansion: the grid, written out.
        work: the work directory; what is measured stays there.
        setting: of the run.
        devices: one entry per worker process.
        library: where the data is.
        seconds: after which no further row is measured.
        retry_failed: whether failed cells count as still to run.
        report: told what is going on.

    Raises:
        CalibrationError: nothing could be measured.
    """
    cells = list(expansion.cells.values())
    parts = calibrate(
        cells, work.calibration, setting, devices, seconds=seconds, stand_in=library.stand_in,
        report=report,
    )  # fmt: skip
    waiting = unfinished(cells, work.store, retry_failed)
    outlook = look_ahead(waiting, parts, setting, devices, library)
    return _with_costs(expansion, waiting, outlook, devices)


def _with_costs(
    expansion: Expansion, waiting: Sequence[Cell], outlook: Outlook, devices: Sequence[str]
) -> str:
    forecast, plan = outlook.forecast, expansion.plan
    assert forecast is not None
    lines = [f"grid {plan.name}: {plan.description}"]
    table = _Table(forecast, list(expansion.cells.values()), {cell.id for cell in waiting})
    for (data, teacher, student, axes), rows in _by_pair(expansion).items():
        lines.append(f"  {data}{axes}: {teacher} > {student}; {_seeds(rows)}")
        lines += table.of(rows, expansion)
    lines.append(_count(expansion, waiting))
    lines += _totals(outlook, forecast, devices)
    if any(forecast.parts.students[kind(cell)].origin == EXTRAPOLATED for cell in waiting):
        lines.append("*: seconds extrapolated from counted operations, not measured")
    return "\n".join(lines)


def _by_pair(expansion: Expansion) -> dict[tuple[str, str, str, str], list[Row]]:
    """Rows by data set, teacher, student and those axes in which the grid's rows differ."""
    rows = expansion.plan.rows
    varied = [name for name in rows[0].axes if len({row.axes[name] for row in rows}) > 1]
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        axes = "".join(f", {name} {row.axes[name]:g}" for name in varied)
        found.setdefault((row.data, row.teacher, row.student, axes), []).append(row)
    return found


def _seeds(rows: Sequence[Row]) -> str:
    return f"seeds {', '.join(str(seed) for seed in sorted({row.seed for row in rows}))}"


def _count(expansion: Expansion, waiting: Sequence[Cell]) -> str:
    total, epochs = len(expansion.cells), sum(map(total_epochs, waiting))
    return (
        f"cells: {total}, done already: {total - len(waiting)}, to train: {len(waiting)} "
        f"({epochs} epochs in all)"
    )


def _totals(outlook: Outlook, forecast: Forecast, devices: Sequence[str]) -> Iterator[str]:
    schedule = outlook.schedule
    if schedule is None or not outlook.jobs:
        return
    peak = max(forecast.bytes(job.cells) for job in outlook.jobs)
    flops = sum(forecast.flops(job.cells) for job in outlook.jobs)
    longest = max(len(job.cells) for job in outlook.jobs)
    yield (
        f"in all: {flops / 1e12:.4g} TFLOP, {schedule.busy_seconds:.0f} s of work in "
        f"{len(outlook.jobs)} jobs of at most {longest} cells side by side, "
        f"{(peak + forecast.parts.process_bytes) / MIB:.0f} MiB a worker at most"
    )
    yield (
        f"estimated: {schedule.seconds:.0f} s on {len(devices)} workers "
        f"({', '.join(dict.fromkeys(devices))}; busy {schedule.efficiency:.0%}), if the machine "
        "does nothing else; tables and figures apart"
    )


@dataclass
class _Table:
    """Costs by row; a job's shared part is a row of its own."""

    forecast: Forecast
    cells: list[Cell]
    waiting: set[str]

    def __post_init__(self) -> None:
        teachers, groups = group_cells(self.cells)
        self._groups = [*([cell] for cell in teachers), *groups]
        self._group = {cell.id: group for group in self._groups for cell in group}

    def of(self, rows: Sequence[Row], expansion: Expansion) -> Iterator[str]:
        width = max(len(row.label) for row in rows) + 2
        yield (
            f"    {'row':<{width}} {'cells':>5} {'done':>5} {'epochs':>7} {'GFLOP':>10} "
            f"{'seconds':>9} {'peak MiB':>9}"
        )
        for label in dict.fromkeys(row.label for row in rows):
            cells = [expansion.cells[row.cell_id] for row in rows if row.label == label]
            yield self._line(label, width, cells)
        pair = {row.cell_id for row in rows if row.role != "teacher"}
        groups = [g for g in self._groups if any(c.id in pair and c.teacher for c in g)]
        flops = sum(self.forecast.shared_flops(group) for group in groups)
        seconds = sum(self.forecast.shared_seconds(group) for group in groups)
        shared = "(shared)"
        yield f"    {shared:<{width}} {'':>19} {flops / 1e9:>10.4g} {seconds:>9.1f}"

    def _line(self, label: str, width: int, cells: Sequence[Cell]) -> str:
        forecast = self.forecast
        done = sum(cell.id not in self.waiting for cell in cells)
        flops = sum(forecast.lesson(cell).flops for cell in cells)
        seconds = sum(forecast.own_seconds(cell, self._group[cell.id]) for cell in cells)
        peak = max(map(forecast.student_bytes, cells))
        star = "*" * (forecast.parts.students[kind(cells[0])].origin == EXTRAPOLATED)
        return (
            f"    {label + star:<{width}} {len(cells):>5} {done:>5} "
            f"{sum(map(total_epochs, cells)):>7} {flops / 1e9:>10.4g} {seconds:>9.1f} "
            f"{peak / MIB:>9.1f}"
        )
