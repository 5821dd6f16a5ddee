"""From the records of screened rows to each pair's finalists, chosen once for all launchers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.cost.costs import Costs
from bench.data.sources import Library
from bench.decide.evidence import METHOD
from bench.decide.finalists import choose_finalists
from bench.decide.records import group_by_pair, kind_of, pairs_of
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
from bench.launch.job import unfinished
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
    choices = ()
    if grid.screens:
        screened = expand(grid, fingerprint)
        choices = read_choices(_choices_path(grid, screened, work))
        if choices is None:
            if extend:
                raise UserError("--extend: no finalists are chosen; run the grid without it first")
            return screened
    extended = extend or _was_extended(work.plan(grid.name))
    return expand(grid, fingerprint, choices, extended=extended)


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


def check_costs(grid: Grid, expansion: Expansion, costs: Costs, command: str) -> None:
    """UserError if a grid limits costs, and a row's are not measured; the command does that."""
    if not grid.screens or grid.max_cost is None:
        return
    for pair, rows in group_by_pair(expansion.plan).items():
        known = {c.label: c for c in costs.of_pair(pair.data, pair.teacher, pair.student)}
        for row in rows:
            found = known.get(row.label)
            if row.role != "method" or kind_of(row) != METHOD:
                continue
            if found is None or not found.fits(expansion.cells[row.cell_id].resolved()):
                raise UserError(
                    f"max_cost: {grid.max_cost:g}, but what {row.label} costs for {pair.title} "
                    f"under its settings is not measured; run first: {command}"
                )


def choose(grid: Grid, expansion: Expansion, work: WorkDir, costs: Costs) -> bool:
    """Chooses the finalists of each pair by its screened rows, unless another command did.

    False, and nothing is written, while what ended from outside leaves a pair without finalists.
    """
    assert isinstance(grid.seeds, Design)
    plan, again = expansion.plan, unfinished(expansion.cells.values(), work.store, False)
    records = work.store.read_all(plan.cell_ids())
    pairs = pairs_of(plan, records, costs.of_plan(plan, records))
    rule, choices, lost = (grid.seeds.finalists, grid.max_cost), [], {cell.id for cell in again}
    chosen = {pair: choose_finalists(found, *rule) for pair, found in pairs.items()}
    for pair, rows in group_by_pair(plan).items():
        if not chosen.get(pair) and lost & {row.cell_id for row in rows}:
            return False
    for pair, found in pairs.items():
        screened = {
            row.name: {
                "accuracy": fmean(row.screening.values()),
                "n": len(row.screening),
                "cost": row.cost,
            }
            for row in found.rows
        }
        choices.append(_choice(pair, chosen[pair], screened))
    if choices:
        write_choices_once(_choices_path(grid, expansion, work), choices)
    return bool(choices)


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
