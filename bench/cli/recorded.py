"""What is recorded of a grid, read from the work directory or from MLflow alone, and rendered.

Grids are imported where the words of a command change one: tables of others need no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.options import command_of
from bench.cli.terminal import say, width
from bench.cost.costs import FILE, Costs, costs_of, read_costs
from bench.faults import DamagedError, UserError
from bench.launch.leases import BusyError, Leases
from bench.launch.mirroring import how_to_send, send_records, sole_mirror
from bench.record import (
    ARCHIVE,
    Plan,
    Record,
    WorkDir,
    check_file_names,
    digest,
    read_archive,
    write_archive,
    write_atomically,
)
from bench.tracking import Mirror, TrackingError

if TYPE_CHECKING:
    from bench.grid import Grid
    from bench.report.results import Findings

Results = tuple[Plan, dict[str, Record], Costs]

YAML = (".yaml", ".yml")


def asked_grid(options: argparse.Namespace, *, checked: bool = True) -> Grid:
    """The grid that a command's words name, narrowed; a changed one has a name of its own."""
    from bench.grid import grid_names, grid_of, load_grid, name_part, narrow

    name, work = options.grid, WorkDir(options.work_dir)
    if name.endswith(YAML) or name in grid_names() or not work.plan(grid_name(name)).is_file():
        load = partial(load_grid, name, checked=checked)
    else:
        config, (folder, _) = Plan.read(work.plan(name)).config, read_origin(work.origin(name))
        load = partial(grid_of, config, title=name, folder=folder, checked=checked)
    whole, grid = load(overrides=()), load(overrides=options.overrides)
    grid = narrow(grid, options.methods, options.pairs, options.seeds, checked=checked)
    grid = name_part(grid, whole)
    folder = work.grid(grid.name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file is where the results of {grid.name} go; rename one")
    return grid


def note_origin(work: WorkDir, grid: Grid, name_or_path: str) -> None:
    """Writes down where a grid's file is, and what it held as the grid was trained."""
    path, (_, held) = work.origin(grid.name), read_origin(work.origin(grid.name))
    held = digest(Path(name_or_path).read_bytes()) if name_or_path.endswith(YAML) else held
    write_atomically(path, os.fsencode(grid.folder.resolve()) + b"\0" + held.encode())


def read_origin(path: Path) -> tuple[Path, str]:
    """The folder of a grid's file, and the digest of what it held; "" if that is not known."""
    folder, _, held = path.read_bytes().partition(b"\0") if path.is_file() else (b"", b"", b"")
    return Path(os.fsdecode(folder)), held.decode()


def results_name(options: argparse.Namespace) -> str:
    """The folder of the results that a command's words name."""
    if options.overrides or options.methods or options.pairs or options.seeds:
        return asked_grid(options, checked=False).name
    name, work = grid_name(options.grid), WorkDir(options.work_dir)
    if options.grid.endswith(YAML):
        if not (path := Path(options.grid)).is_file():
            raise UserError(f"grid: no file {path}")
        if read_origin(work.origin(name))[1] not in ("", digest(path.read_bytes())):
            text = "but of another file or an older version of it; run the grid to renew them"
            print(f"note: these results are not of {path} as it is now, {text}", file=sys.stderr)
        return name
    if has_results(work, name):
        return name
    from bench.grid import grid_names

    if name not in grid_names() and getattr(options, "origin", "records") == "records":
        folders = sorted(p.name for p in work.root.glob("*") if has_results(work, p.name))
        has = ", ".join(folders) or "none"
        raise UserError(f"no results of grid {name!r} under {work.root}; it has: {has}")
    return name


def grid_name(name_or_path: str) -> str:
    """The name of a grid, or of a grid's file; UserError if it can be no file's name."""
    name = Path(name_or_path).stem if name_or_path.endswith(YAML) else name_or_path
    try:
        check_file_names("--grid", [name])
    except ValueError as error:
        wanted = "wanted a grid's name or a .yaml file"
        if (folder := Path(name)).is_dir():
            wanted = f"write --grid {folder.name} --work-dir {folder.parent}"
        raise UserError(f"{error}; {wanted}") from None
    return name


def fetch_results(work: WorkDir, grid: str, origin: str, command: str) -> Results:
    """A grid's plan, records and costs, from the work directory or from MLflow alone.

    A work directory in which the grid was not trained may hold its archive; see `bench.record`.
    UserError if there are none, or they cannot be read; the command is one that makes them.
    """
    plan, records, costs = _fetch(work, grid, origin, command)
    return plan, records, costs.of_plan(plan, records)


def _fetch(work: WorkDir, grid: str, origin: str, command: str) -> Results:
    if origin == "mlflow":
        mirror = Mirror(work.root, grid)
        text = mirror.read_file(FILE)
        return *mirror.fetch(), Costs() if text is None else Costs.from_json(text)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), mended_by(command):
        plan = Plan.read(work.plan(grid))
        costs = costs_of(work, grid, plan.config.get("part_of", ""))
        return plan, work.store.read_all(plan.cell_ids()), costs
    try:
        return *read_archive(work.grid(grid) / ARCHIVE), costs_of(work, grid)
    except OSError:
        raise UserError(f"no results of grid {grid!r} under {work.root}; run: {command}") from None


def asked_results(options: argparse.Namespace, origin: str = "records") -> tuple[WorkDir, Results]:
    """The work directory and the results that a command's words name; see `fetch_results`."""
    work, name = WorkDir(options.work_dir), results_name(options)
    return work, fetch_results(work, name, origin, command_of(options))


@contextlib.contextmanager
def mended_by(command: str) -> Iterator[None]:
    """Says with what is damaged which command makes it anew."""
    try:
        yield
    except DamagedError as error:
        raise UserError(f"{error}; make it anew: {command}") from None


def has_results(work: WorkDir, grid: str) -> bool:
    """Whether a grid was trained here, or its records are committed here."""
    return work.plan(grid).is_file() or (work.grid(grid) / ARCHIVE).is_file()


def render(work: WorkDir, results: Results) -> list[Path]:
    """Writes tables, figures and the report, then prints the results; returns what to mirror."""
    from bench.report.card import result_lines, result_tables
    from bench.report.results import findings

    found = findings(*results)
    files = write(work, found)
    print(*result_tables(found, width()), sep="\n")
    say([*result_lines(found), f"open {work.grid(found.plan.name) / 'report.html'}"])
    return files


def write(work: WorkDir, found: Findings) -> list[Path]:
    """Writes tables, figures and the report of a grid; returns the files to mirror."""
    from bench.report.build import build

    folder = work.grid(found.plan.name)
    files = build(found, work.store.root, folder)
    write_archive(found.plan, found.records, folder / ARCHIVE)
    kept = read_costs(folder / FILE)
    if (costs := kept.with_newer(found.costs)) != kept:  # those that MLflow had
        write_atomically(folder / FILE, costs.to_json())
    return [*files, *folder.glob(FILE)]


def send(work: WorkDir, name: str, files: list[Path], results: Results | None) -> int:
    """Puts files of a grid into MLflow, and what it lacks of the results; returns records sent."""
    with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
        mirror.send_files(work.grid(name), files)
        return send_records(mirror, work, *results[:2]) if results else 0


def try_to_send(work: WorkDir, name: str, files: list[Path], results: Results | None) -> None:
    """The same; a store that is away is named."""
    try:
        send(work, name, files, results)
    except (BusyError, TrackingError) as error:
        cure = how_to_send(work, name)
        print(f"MLflow lacks tables: {error}; send them with: {cure}", file=sys.stderr)
