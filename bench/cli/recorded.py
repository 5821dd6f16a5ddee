"""What is recorded of a grid, read from the work directory or from MLflow alone."""

from pathlib import Path

from bench.cost.costs import FILE, Costs, read_costs
from bench.faults import UserError
from bench.record import ARCHIVE, Plan, Record, check_file_names, read_archive
from bench.tracking import Mirror
from bench.workdir import WorkDir


def grid_name(name_or_path: str) -> str:
    """The name of a grid, or of a grid's file; UserError if it can be no file's name."""
    yaml = name_or_path.endswith((".yaml", ".yml"))
    name = Path(name_or_path).stem if yaml else name_or_path
    try:
        check_file_names("--grid", [name])
    except ValueError as error:
        raise UserError(f"{error}; wanted a grid's name or a .yaml file") from None
    return name


def fetch_results(work: WorkDir, grid: str, origin: str) -> tuple[Plan, dict[str, Record]]:
    """A grid's plan and records, from the work directory or from MLflow alone.

    A work directory in which the grid was not trained may hold its archive; see `bench.record`.
    UserError if there are none, or they cannot be read.
    """
    if origin == "mlflow":
        return Mirror(work.root, grid).fetch()
    try:
        plan = Plan.from_json(work.plan(grid).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return _fetch_archived(work, grid)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{work.plan(grid)} is damaged ({error}); run the grid again") from None
    return plan, work.store.read_all(plan.cell_ids())


def _fetch_archived(work: WorkDir, grid: str) -> tuple[Plan, dict[str, Record]]:
    """What is committed next to the tables, where nothing was trained in this work directory."""
    try:
        return read_archive(work.grid(grid) / ARCHIVE)
    except OSError:
        raise UserError(
            f"no results of grid {grid!r} under {work.root}; run: run_all.py --grid {grid}"
        ) from None


def has_results(work: WorkDir, grid: str) -> bool:
    """Whether a grid was trained here, or its records are committed here."""
    return work.plan(grid).is_file() or (work.grid(grid) / ARCHIVE).is_file()


def fetch_costs(work: WorkDir, grid: str, origin: str) -> Costs:
    """What the profiler measured of a grid, empty if it did not run; UserError if damaged."""
    if origin == "records":
        return read_costs(work.grid(grid) / FILE)
    text = Mirror(work.root, grid).read_file(FILE)
    return Costs() if text is None else Costs.from_json(text)
