"""What commands leave behind: tables and figures, as files and in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.cost.costs import Costs
    from bench.record import Plan, Record
    from bench.workdir import WorkDir


def render(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Prints the summary, writes tables, figures and the report; returns what to mirror."""
    from bench.report.summary import summarise
    from bench.report.tables import notes_once, to_text

    summary = summarise(plan, records)
    print(*map(to_text, notes_once(summary.tables)), summary.text, sep="\n")
    return write(work, plan, records, costs)


def write(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Writes tables, figures and the report of a grid; returns what to mirror."""
    from bench.archive import FILE, write_archive
    from bench.report.build import build

    folder = work.grid(plan.name)
    files = build(plan, records, costs, work.store.root, folder)
    write_archive(plan, records, folder / FILE)
    print(f"tables and figures: {folder}")
    return [*files, *_measured(folder)]


def write_costs(work: WorkDir, name: str, costs: Costs) -> list[Path]:
    """The same of a grid that was profiled and not trained."""
    from bench.report import cost

    folder = work.grid(name)
    files = cost.write_costs(costs, folder)
    print(f"tables and figures: {folder}")
    return [*files, *_measured(folder)]


def _measured(folder: Path) -> list[Path]:
    """What the profiler wrote, if it ran."""
    from bench.cost.costs import FILE

    return [folder / FILE] if (folder / FILE).is_file() else []


def mirror_files(work: WorkDir, name: str, files: list[Path], costs: Costs) -> None:
    """Puts a grid's tables and figures into MLflow."""
    from bench.launch.leases import BusyError, Leases
    from bench.launch.mirroring import sole_mirror
    from bench.report.cost import cost_metrics
    from bench.tracking import TrackingError

    try:
        with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
            mirror.tables.send(work.grid(name), files, cost_metrics(costs))
    except (BusyError, TrackingError) as error:
        print(f"tables are not in MLflow: {error}", file=sys.stderr)
