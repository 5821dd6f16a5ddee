"""Tuning: hyper-parameters are chosen on held-out training images, with equal trials for all rows.

Every trial trains on one seed, and the best third of each row's trials on more. No grid uses these
seeds.
"""

import csv
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from bench.expansion import Expansion
from bench.grid import Grid
from bench.grid_fields import BASELINE, MethodSpec
from bench.hyperparameters import default_hyperparameters, search_space
from bench.record import FINISHED, NOT_APPLICABLE, Plan, Record
from bench.seeds import derive

FIRST_SEED = 1000
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Learning rates that every row tries, the plain student too, as multiples of the recipe's."""

SMOOTHINGS = (0.0, 0.05, 0.1)  # values of `label_smoothing` that every row tries
KEPT = 3  # one trial of this many goes on to further seeds


@dataclass(frozen=True)
class Trial:
    """What a trial adds to the hyper-parameters and recipe of a row, and the row as it trains.

    `accuracy` is the mean on the held-out images, over the n of its cells that finished; None if
    none has, or one failed: `error` says why.
    """

    row: str
    chosen: dict[str, Any]
    spec: MethodSpec
    accuracy: float | None = None
    n: int = 0
    error: str = ""


def trials_of(grid: Grid, count: int) -> list[Trial]:
    """`count` trials for each row, the plain student included: its defaults, then random draws.

    No point is drawn twice, and every run draws the same. A space with fewer points than `count`
    is searched completely.
    """
    found = []
    for row in (MethodSpec(name=BASELINE), *grid.rows):
        space = row_space(grid, row)
        defaults = {**grid.recipe.model_dump(), **default_hyperparameters(row.name)}
        # The lists need not hold the default, which is always tried.
        default = {key: defaults[key] for key in space}
        total = math.prod(map(len, space.values()))
        draws = random.Random(derive(0, "trials", row.label))
        drawn = draws.sample(range(total), min(total, count))
        points = [point for n in drawn if (point := _point(space, n)) != default]
        for chosen in [{}, *points[: count - 1]]:
            hyperparameters = {**row.hyperparameters, **chosen}
            spec = row.model_copy(update={"hyperparameters": hyperparameters})
            found.append(Trial(row.label, chosen, spec))
    return found


def row_space(grid: Grid, row: MethodSpec) -> dict[str, list[Any]]:
    """What a row's trials draw from; learning rates only where all students share the grid's."""
    space = search_space(row.name, row.hyperparameters)
    rate = grid.recipe.learning_rate
    if all(grid.recipe_of(pair.student).learning_rate == rate for pair in grid.all_pairs):
        space.setdefault("learning_rate", [float(f"{f * rate:.6g}") for f in RATE_FACTORS])
    space.setdefault("label_smoothing", list(SMOOTHINGS))
    return {key: values for key, values in space.items() if key not in row.hyperparameters}


def _point(space: Mapping[str, Sequence[Any]], number: int) -> dict[str, Any]:
    """The point of this number in the product of the values."""
    point = {}
    for key, values in space.items():
        number, position = divmod(number, len(values))
        point[key] = values[position]
    return point


def tuning_grid(grid: Grid, trials: Sequence[Trial], seeds: int, validation: float) -> Grid:
    """The grid whose cells are the trials, over so many seeds from `FIRST_SEED` on.

    A part `validation` of the training images is held out. The fraction that students see grows, so
    that they train on as many as in `grid`, or on all that are left. No teacher is one of the
    grid's.
    """

    def grown(fraction: float) -> float:
        return min(1.0, fraction / (1 - validation))

    images = {"validation": validation, "fraction": grown(grid.data.fraction)}
    fractions = tuple(dict.fromkeys(map(grown, grid.axes.fraction or ()))) or None
    unique = {trial.spec.label: trial.spec for trial in trials}
    changes = {
        "name": f"{grid.name}-tuning",
        "description": f"Hyper-parameters for {grid.name}, on {validation:.0%} held out.",
        "data": grid.data.model_copy(update=images),
        "axes": grid.axes.model_copy(update={"fraction": fractions}),
        "methods": tuple(unique.values()),
        "seeds": tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        "teacher": grid.teacher.model_copy(update={"seeds": None}),
        "tuned": {},
        "diagnostics": False,
    }
    return grid.model_copy(update=changes)


def joined(first: Expansion, second: Expansion) -> Expansion:
    """The rows and cells of two rounds as one; a row of both counts once."""
    rows = [*second.plan.rows, *(r for r in first.plan.rows if r not in second.plan.rows)]
    return Expansion(replace(second.plan, rows=rows), {**first.cells, **second.cells})


def collect(trials: Sequence[Trial], plan: Plan, records: Mapping[str, Record]) -> list[Trial]:
    """The trials with their mean accuracy over seeds and those pairs that the row can serve."""
    results = []
    for trial in trials:
        found = [records.get(row.cell_id) for row in plan.rows if row.label == trial.spec.label]
        done = [r for r in found if r is not None and r.status == FINISHED]
        served = [r for r in found if r is None or r.status != NOT_APPLICABLE]
        whole = bool(done) and len(done) == len(served)
        mean = sum(r.final["last_accuracy"] for r in done) / len(done) if whole else None
        error = next((r.error for r in found if r is not None and r.error), "")
        results.append(replace(trial, accuracy=mean, n=len(done), error=error))
    return results


def ranked(results: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Row -> its finished trials, those of most cells first, then the best; defaults win ties."""
    rows: dict[str, list[Trial]] = {}
    for result in results:
        if result.accuracy is not None:
            rows.setdefault(result.row, []).append(result)
    for held in rows.values():
        held.sort(key=lambda result: (-result.n, -(result.accuracy or 0.0)))
    return rows


def promising(results: Sequence[Trial]) -> list[Trial]:
    """The best third of each row's trials, rounded up, which train on further seeds."""
    rows = ranked(results).values()
    return [trial for held in rows for trial in held[: math.ceil(len(held) / KEPT)]]


def best(results: Sequence[Trial]) -> dict[str, Trial]:
    """Row -> its best trial among those of most seeds."""
    return {row: held[0] for row, held in ranked(results).items()}


def to_yaml(chosen: Mapping[str, Trial]) -> str:
    """The grid's field `tuned`: row -> the values that differ from the defaults."""
    values = {row: trial.chosen for row, trial in chosen.items() if trial.chosen}
    return yaml.safe_dump({"tuned": values}, sort_keys=False, allow_unicode=True)


def to_csv(results: Sequence[Trial]) -> str:
    """Every trial, the best of a row first: what it chose, accuracy in [0, 1] over n cells."""
    finished = [result for held in ranked(results).values() for result in held]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "chosen", "validation_accuracy", "n"])
    for result in [*finished, *(result for result in results if result.accuracy is None)]:
        chosen = "; ".join(f"{k}={v}" for k, v in result.chosen.items()) or "defaults"
        writer.writerow([result.row, chosen, result.accuracy, result.n])
    return text.getvalue()
