"""What commands leave behind: tables and figures, as files and in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.terminal import say, width
from bench.record import Plan, Record
from bench.workdir import WorkDir

if TYPE_CHECKING:
    from bench.cost.costs import Costs


def render(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Writes tables, figures and the report, then prints the results; returns what to mirror."""
    from bench.report.results import findings
    from bench.report.terminal import result_lines, result_tables

    files = write(work, plan.name, costs, (plan, records))
    found = findings(plan, records, costs)
    print(*result_tables(found, width()), sep="\n")
    say([*result_lines(found), f"open {work.grid(plan.name) / 'report.html'}"])
    return files


def write(
    work: WorkDir, name: str, costs: Costs, trained: tuple[Plan, dict[str, Record]] | None
) -> list[Path]:
    """Writes tables, figures and the report of a grid.

    Args:
        work: the work directory.
        name: of the grid.
        costs: what the profiler measured.
        trained: the grid's plan and records; None where it was only profiled.

    Returns:
        The files to mirror.
    """
    from bench.archive import FILE as ARCHIVE
    from bench.archive import write_archive
    from bench.cost.costs import FILE as MEASURED

    folder = work.grid(name)
    if trained is None:
        from bench.report.cost import write_costs

        files = write_costs(costs, folder)
    else:
        from bench.report.build import build

        files = build(*trained, costs, work.store.root, folder)
        write_archive(*trained, folder / ARCHIVE)
    return [*files, *folder.glob(MEASURED)]


def mirror_files(work: WorkDir, name: str, files: list[Path]) -> None:
    """Puts a grid's tables and figures into MLflow."""
    from bench.launch.leases import BusyError, Leases
    from bench.launch.mirroring import sole_mirror
    from bench.tracking import TrackingError

    try:
        with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
            mirror.tables.send(work.grid(name), files)
    except (BusyError, TrackingError) as error:
        print(f"tables are not in MLflow: {error}", file=sys.stderr)
