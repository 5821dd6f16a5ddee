"""From the records of screened rows to each pair's finalists, chosen once for all launchers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from bench.cost.costs import Costs
from bench.data.library import Library
from bench.design import (
    EXTENSION,
    SCREENING,
    Choice,
    Design,
    PairId,
    read_choices,
    screening_digest,
    write_choices_once,
)
from bench.expansion import Expansion, Fingerprint, expand
from bench.faults import UserError
from bench.grid import Grid
from bench.record import Plan
from bench.workdir import WorkDir

if TYPE_CHECKING:
    from bench.decide.evidence import Pair


def expand_chosen(grid: Grid, fingerprint: Fingerprint, work: WorkDir, extend: bool) -> Expansion:
    """A grid's cells: with those of the finalists, where they are chosen.

    Args:
        grid: a checked grid.
        fingerprint: see `bench.expansion.expand`.
        work: holds the choices, and the plan of an earlier run.
        extend: whether the second look's seeds are asked for. Once they are, they remain.

    Raises:
        UserError: the grid plans no second look, or there was no first one.
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
    assert isinstance(grid.seeds, Design)
    cells = [row.cell_id for row in expansion.plan.rows if row.phase == SCREENING]
    return work.choices(grid.name, screening_digest(cells, grid.seeds, grid.max_cost))


def _was_extended(path: Path) -> bool:
    try:
        rows = Plan.from_json(path.read_text(encoding="utf-8")).rows
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return any(row.phase == EXTENSION for row in rows)


def check_costs(grid: Grid, costs: Costs) -> None:
    """Refuses to screen under a limit on costs where nothing was profiled.

    Raises:
        UserError: with the command that measures them.
    """
    if grid.screens and grid.max_cost is not None and not costs:
        raise UserError(
            f"max_cost: {grid.max_cost:g}, but no costs of grid {grid.name} are measured; run "
            f"first: run_all.py profile --grid {grid.name}"
        )


def choose(grid: Grid, expansion: Expansion, work: WorkDir, costs: Costs) -> None:
    """Chooses the finalists of each pair by its screened rows, unless another command did.

    Every screened cell has a record in the work directory, where the choice is written, too.
    """
    from bench.evidence import pairs_of

    plan = expansion.plan
    found = pairs_of(plan, work.store.read_all(plan.cell_ids()), costs)
    choices = [_choose_pair(grid, pair, rows) for pair, rows in found.items()]
    write_choices_once(_choices_path(grid, expansion, work), choices)


def _choose_pair(grid: Grid, pair: PairId, screened: Pair) -> Choice:
    from bench.decide.finalists import choose_finalists

    assert isinstance(grid.seeds, Design)
    seen: dict[str, dict[str, float | None]] = {}
    for row in screened.rows:
        accuracies = row.screening.values()
        seen[row.name] = {"accuracy": fmean(accuracies), "n": len(accuracies), "cost": row.cost}
    return Choice(
        data=pair.data,
        axes=json.loads(pair.axes),
        teacher=pair.teacher,
        student=pair.student,
        finalists=choose_finalists(screened, grid.seeds.finalists, grid.max_cost),
        screened=seen,
    )


def assume_finalists(grid: Grid, expansion: Expansion, library: Library) -> Expansion:
    """The grid with its costliest rows as finalists: the most that it can take."""
    from bench.cost.footprint import Footprint
    from bench.decide.evidence import ABLATION, LONGER, METHOD, REFERENCE, Pair, Row
    from bench.evidence import group_by_pair

    work = Footprint(library.read).work
    kinds = {row.label: LONGER if row.epochs_factor else METHOD for row in grid.rows}
    kinds |= {row.label: ABLATION for row in grid.rows if not row.finalist}
    choices = []
    for pair, planned in group_by_pair(expansion.plan).items():
        cost = {
            row.label: work([expansion.cells[row.cell_id]])
            for row in planned
            if row.role in ("student", "method")
        }
        most = max(cost.values())
        rows = [
            Row(name=label, kind=kinds.get(label, REFERENCE), screening={0: c / most}, cost=c)
            for label, c in cost.items()
        ]
        choices.append(_choose_pair(grid, pair, Pair(name="", rows=tuple(rows), test_images=0)))
    return expand(grid, library.fingerprint, choices)
