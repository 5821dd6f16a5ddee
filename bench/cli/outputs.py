"""What commands leave behind: tables and figures, as files and in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.terminal import say, width
from bench.cost.costs import FILE as MEASURED
from bench.cost.costs import Costs
from bench.launch.leases import BusyError, Leases
from bench.launch.mirroring import how_to_send, sole_mirror
from bench.record import ARCHIVE, Plan, Record, write_archive
from bench.tracking import TrackingError
from bench.workdir import WorkDir

if TYPE_CHECKING:
    from bench.report.results import Findings


def render(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Writes tables, figures and the report, then prints the results; returns what to mirror."""
    from bench.report.card import result_lines, result_tables
    from bench.report.results import findings

    found = findings(plan, records, costs)
    files = write(work, found)
    print(*result_tables(found, width()), sep="\n")
    say([*result_lines(found), f"open {work.grid(plan.name) / 'report.html'}"])
    return files


def write(work: WorkDir, found: Findings) -> list[Path]:
    """Writes tables, figures and the report of a grid; returns the files to mirror."""
    from bench.report.build import build

    folder = work.grid(found.plan.name)
    files = build(found, work.store.root, folder)
    write_archive(found.plan, found.records, folder / ARCHIVE)
    return [*files, *folder.glob(MEASURED)]


def mirror_files(work: WorkDir, name: str, files: list[Path]) -> None:
    """Puts a grid's tables and figures into MLflow."""
    try:
        with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
            mirror.send_files(work.grid(name), files)
    except (BusyError, TrackingError) as error:
        cure = how_to_send(work, name)
        print(f"MLflow lacks tables: {error}; send them with: {cure}", file=sys.stderr)
