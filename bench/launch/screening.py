"""From the records of screened rows to each pair's finalists, chosen once for all launchers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.cost.costs import Costs
from bench.data.sources import Library
from bench.decide.finalists import choose_finalists
from bench.decide.records import group_by_pair, pairs_of
from bench.design import (
    EXTENSION,
    SCREENING,
    Choice,
    Design,
    PairId,
    read_choices,
    write_choices_once,
)
from bench.expansion import Expansion, Fingerprint, expand
from bench.faults import UserError
from bench.grid import Grid
from bench.record import Plan, WorkDir, digest


def expand_chosen(grid: Grid, fingerprint: Fingerprint, work: WorkDir, extend: bool) -> Expansion:
    """A grid's cells: with those of the finalists, where they are chosen.

    The work directory holds the choices, and the plan of an earlier run. `extend`: the second
    look's seeds are asked for; once they are, they remain. UserError if the grid plans no second
    look, or there was no first one.
    """
    design = grid.seeds
    if extend and not (isinstance(design, Design) and design.extend):
        raise UserError(f"--extend: grid {grid.name} plans no second look (seeds: extend is 0)")
    expansion, choices = expand(grid, fingerprint), None
    if grid.screens:
        choices = read_choices(_choices_path(grid, expansion, work))
        if choices is None:
            if extend:
                raise UserError("--extend: no finalists are chosen; run the grid without it first")
            return expansion
    extended = extend or _was_extended(work.plan(grid.name))
    if choices is None and not extended:
        return expansion
    return expand(grid, fingerprint, choices or (), extended=extended)


def _choices_path(grid: Grid, expansion: Expansion, work: WorkDir) -> Path:
    """The file of the choice that follows from these screened cells under this design."""
    assert isinstance(grid.seeds, Design)
    cells = sorted(row.cell_id for row in expansion.plan.rows if row.phase == SCREENING)
    rules = [grid.seeds.screen, grid.seeds.finalists, grid.max_cost]
    return work.choices(grid.name, digest(json.dumps([cells, rules]))[:8])


def _was_extended(path: Path) -> bool:
    try:
        rows = Plan.read(path).rows
    except (OSError, ValueError):
        return False
    return any(row.phase == EXTENSION for row in rows)


def check_costs(grid: Grid, costs: Costs) -> None:
    """UserError if a grid limits the costs of its finalists, and nothing was profiled."""
    if grid.screens and grid.max_cost is not None and not costs:
        raise UserError(
            f"max_cost: {grid.max_cost:g}, but no costs of grid {grid.name} are measured; run "
            f"first: run_all.py profile --grid {grid.name}"
        )


def choose(grid: Grid, expansion: Expansion, work: WorkDir, costs: Costs) -> None:
    """Chooses the finalists of each pair by its screened rows, unless another command did."""
    assert isinstance(grid.seeds, Design)
    plan, choices = expansion.plan, []
    for pair, found in pairs_of(plan, work.store.read_all(plan.cell_ids()), costs).items():
        screened = {
            row.name: {
                "accuracy": fmean(row.screening.values()),
                "n": len(row.screening),
                "cost": row.cost,
            }
            for row in found.rows
        }
        finalists = choose_finalists(found, grid.seeds.finalists, grid.max_cost)
        choices.append(_choice(pair, finalists, screened))
    write_choices_once(_choices_path(grid, expansion, work), choices)


def _choice(pair: PairId, finalists: Sequence[str], screened: Mapping[str, Any]) -> Choice:
    fields = {**pair._asdict(), "axes": json.loads(pair.axes)}
    return Choice(**fields, finalists=tuple(finalists), screened=dict(screened))


def assume_finalists(grid: Grid, expansion: Expansion, library: Library) -> Expansion:
    """The grid with its costliest rows as finalists: the most that it can take."""
    from bench.cost.footprint import Footprint

    assert isinstance(grid.seeds, Design)
    work, choices = Footprint(library.read).work, []
    allowed = {row.label for row in grid.rows if row.finalist}
    for pair, rows in group_by_pair(expansion.plan).items():
        cells = {row.label: expansion.cells[row.cell_id] for row in rows if row.label in allowed}
        costliest = sorted(cells, key=lambda label: -work([cells[label]]))
        choices.append(_choice(pair, costliest[: grid.seeds.finalists], {}))
    return expand(grid, library.fingerprint, choices)
