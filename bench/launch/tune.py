"""Tuning: hyper-parameters are chosen on held-out training images, with equal trials for all rows.

A part of the training images is held out. Teachers and students train on the rest, and accuracy is
measured on the held-out part, never on the test set. No grid uses the seeds of the trials.
"""

from __future__ import annotations

import csv
import io
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bench.grid import BASELINE, Grid, MethodSpec
from bench.hyperparameters import default_hyperparameters, search_space
from bench.record import FINISHED, Plan, Record
from bench.seeds import derive

FIRST_SEED = 1000


@dataclass(frozen=True)
class Trial:
    """One choice of hyper-parameters for one row.

    Attributes:
        row: label of the row in the grid.
        chosen: the hyper-parameters that this trial adds to those of the row.
        spec: the method as it trains.
    """

    row: str
    chosen: dict[str, Any]
    spec: MethodSpec


@dataclass(frozen=True)
class TrialResult:
    """Mean accuracy of a trial on the held-out images, over the n of its cells that finished."""

    trial: Trial
    accuracy: float | None
    n: int
    planned: int


def trials_of(grid: Grid, count: int) -> list[Trial]:
    """At most `count` trials for each row: its defaults, then draws from its search space.

    No point is drawn twice, and every run draws the same. A space with fewer points than `count`
    is searched completely.

    Args:
        grid: gives the rows. A row without a search space has one trial.
        count: of trials, equal for all rows.
    """
    found = []
    for row in grid.methods:
        if row.name == BASELINE:
            continue  # it has no hyper-parameters
        free = search_space(row.name, row.hyperparameters)
        points = [dict(zip(free, v, strict=True)) for v in itertools.product(*free.values())]
        defaults = default_hyperparameters(row.name)
        others = [p for p in points if any(p[key] != defaults[key] for key in p)]
        random.Random(derive(0, "trials", row.label)).shuffle(others)
        for chosen in [{}, *others[: count - 1]]:
            spec = MethodSpec(name=row.name, hyperparameters={**row.hyperparameters, **chosen})
            found.append(Trial(row.label, chosen, spec))
    return found


def tuning_grid(grid: Grid, trials: Sequence[Trial], seeds: int, validation: float) -> Grid:
    """The grid whose cells are the trials.

    The fraction of the images that students see grows, so that they train on as many as in `grid`,
    or on all that are left.

    Args:
        grid: the grid to tune for.
        trials: from `trials_of`.
        seeds: number of seeds, from `FIRST_SEED` on.
        validation: part of the training images that is held out.
    """

    def grown(fraction: float) -> float:
        return min(1.0, fraction / (1 - validation))

    share = grown(grid.data.fraction)
    data = grid.data.model_copy(update={"validation": validation, "fraction": share})
    fractions = tuple(dict.fromkeys(map(grown, grid.axes.fraction or ()))) or None
    unique = {trial.spec.label: trial.spec for trial in trials}
    return grid.model_copy(
        update={
            "name": f"{grid.name}-tuning",
            "description": f"Hyper-parameters for {grid.name}, on {validation:.0%} held out.",
            "data": data,
            "axes": grid.axes.model_copy(update={"fraction": fractions}),
            "methods": tuple(unique.values()),
            "seeds": tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
            "tuned": {},
            "diagnostics": False,
        }
    )


def collect(
    trials: Sequence[Trial], plan: Plan, records: Mapping[str, Record]
) -> list[TrialResult]:
    """The mean accuracy of each trial over pairs and seeds; None if one of its cells failed."""
    results = []
    for trial in trials:
        cells = [row.cell_id for row in plan.rows if row.label == trial.spec.label]
        done = [records[i] for i in cells if i in records and records[i].status == FINISHED]
        whole = bool(cells) and len(done) == len(cells)
        mean = sum(r.final["last_accuracy"] for r in done) / len(done) if whole else None
        results.append(TrialResult(trial, mean, len(done), len(cells)))
    return results


def best(results: Sequence[TrialResult]) -> dict[str, TrialResult]:
    """Row -> its best trial. The first of equal trials wins, and so the defaults."""
    chosen: dict[str, TrialResult] = {}
    for result in results:
        held = chosen.get(result.trial.row)
        if (result.accuracy or 0.0) > (held.accuracy or 0.0 if held else 0.0):
            chosen[result.trial.row] = result
    return chosen


def to_yaml(chosen: Mapping[str, TrialResult]) -> str:
    """The grid's field `tuned`: row -> the hyper-parameters that differ from the defaults."""
    values = {row: result.trial.chosen for row, result in chosen.items() if result.trial.chosen}
    return yaml.safe_dump({"tuned": values}, sort_keys=False, allow_unicode=True)


def to_csv(results: Sequence[TrialResult]) -> str:
    """Every trial: its row, what it chose, accuracy in [0, 1], n cells."""
    winners = {id(result) for result in best(results).values()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "chosen", "validation_accuracy", "n", "planned", "best"])
    for result in results:
        chosen = "; ".join(f"{k}={v}" for k, v in result.trial.chosen.items()) or "defaults"
        mark = "yes" if id(result) in winners else "no"
        writer.writerow([result.trial.row, chosen, result.accuracy, result.n, result.planned, mark])
    return text.getvalue()
