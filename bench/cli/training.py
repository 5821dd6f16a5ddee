"""The commands that compute: run and tune."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench.cli.outputs import mirror_files, render
from bench.cli.preparation import (
    Prepared,
    expand_grid,
    list_devices,
    open_launcher,
    prepare,
)
from bench.cli.recorded import fetch_costs
from bench.cli.terminal import say
from bench.record import write_atomically

if TYPE_CHECKING:
    from bench.expansion import Expansion
    from bench.grid import Grid
    from bench.launch.coordinator import Outcome


def run(options: argparse.Namespace) -> int:
    """Trains a grid and prints its table."""
    prepared = prepare(options)
    work = prepared.work
    if options.dry_run:
        return _dry_run(options, prepared, prepared.grid)
    outcome, expansion = _train(options, prepared, prepared.grid)
    plan = expansion.plan
    records = work.store.read_all(plan.cell_ids())
    costs = fetch_costs(work, plan.name, "records")
    _say_outcome(outcome)
    mirror_files(work, plan.name, render(work, plan, records, costs))
    return exit_code(outcome.counts)


def tune(options: argparse.Namespace) -> int:
    """Searches hyper-parameters with an equal budget per row, on held-out training images."""
    from bench.archive import write_archive
    from bench.launch import tune as tuning

    prepared = prepare(options)
    grid, store = prepared.grid, prepared.work.store
    trials = tuning.trials_of(grid, options.trials)
    first = tuning.tuning_grid(grid, trials, 1, options.validation)
    if options.dry_run:
        return _dry_run(options, prepared, first)
    outcome, expansion = _train(options, prepared, first)
    plan = expansion.plan
    records = store.read_all(plan.cell_ids())
    results = tuning.collect(trials, plan, records)
    kept = tuning.promising(results)
    if kept and options.tuning_seeds > 1:
        second = tuning.tuning_grid(grid, kept, options.tuning_seeds, options.validation)
        more, expansion = _train(options, prepared, second)
        outcome, plan = outcome.then(more), tuning.joined(plan, expansion.plan)
        records = store.read_all(plan.cell_ids())
        results = tuning.collect(trials, plan, records)
    chosen, folder = tuning.best(results), prepared.work.grid(grid.name)
    write_atomically(folder / "tuning.csv", tuning.to_csv(results))
    write_archive(plan, records, folder / "tuning.jsonl.gz")
    print(f"every trial: {folder / 'tuning.csv'}; the best ones, for the grid file:\n")
    print(tuning.to_yaml(chosen))
    for row in dict.fromkeys(trial.row for trial in trials if trial.row not in chosen):
        print(f"no trial of {row} finished")
    return exit_code(outcome.counts)


def _dry_run(options: argparse.Namespace, prepared: Prepared, grid: Grid) -> int:
    """Says what would run, and what it would take: the total first."""
    import torch

    from bench.launch.dry_run import estimate_rows, list_rows
    from bench.launch.job import unfinished
    from bench.launch.resources import worker_room
    from bench.launch.screening import assume_finalists
    from bench.progress import ProgressDisplay

    work, library = prepared.work, prepared.library
    expansion = expand_grid(prepared, grid, options.retry_failed, options.extend)
    notes = [
        f"random images take the place of the data, and nothing counts as done: {reason}"
        for reason in library.absent.values()
    ]
    if grid.screens and not expansion.plan.choices:
        expansion = assume_finalists(grid, expansion, library)
        notes.append("finalists: not chosen yet; the costliest rows take their place here")
    waiting = unfinished(expansion.cells.values(), work.store, options.retry_failed)
    if prepared.cluster is not None:
        notes.append("time and memory: not estimated, a cluster's nodes differ from this machine")
        text = list_rows(expansion, waiting)
    else:
        torch.set_num_threads(options.threads)
        devices = list_devices(prepared.device, options.workers)
        room_bytes = worker_room(devices)
        with ProgressDisplay(prepared.console) as display:
            how = prepared.config, devices, library, room_bytes, display
            text = estimate_rows(expansion, waiting, *how)
    say([*text.splitlines(), *notes])
    return 0


def _train(
    options: argparse.Namespace, prepared: Prepared, grid: Grid
) -> tuple[Outcome, Expansion]:
    from bench.launch.coordinator import run_grid
    from bench.launch.screening import check_costs, choose

    costs = fetch_costs(prepared.work, grid.name, "records")
    check_costs(grid, costs)

    def expanded() -> Expansion:
        return expand_grid(prepared, grid, options.retry_failed, options.extend)

    with open_launcher(options, prepared) as (devices, launch, room_bytes):

        def train(expansion: Expansion, phase: str) -> Outcome:
            return run_grid(
                expansion,
                prepared.work,
                prepared.config,
                devices,
                retry_failed=options.retry_failed,
                console=prepared.console,
                launch=launch,
                room_bytes=room_bytes,
                phase=phase,
            )

        expansion = expanded()
        if not grid.screens:
            return train(expansion, ""), expansion
        if expansion.plan.choices:
            return train(expansion, "confirming"), expansion
        screened = train(expansion, "screening")
        choose(grid, expansion, prepared.work, costs)
        expansion = expanded()
        return screened.then(train(expansion, "confirming")), expansion


def _say_outcome(outcome: Outcome) -> None:
    counts = outcome.counts.items()
    states = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts)
    if not outcome.trained and not outcome.elsewhere:
        print(f"nothing to train, every cell has a result; in all: {states}")
        return
    others = f" and {outcome.elsewhere} by other commands" if outcome.elsewhere else ""
    print(f"{outcome.trained} cells trained{others} in {outcome.seconds:.0f} s; in all: {states}")


def exit_code(counts: dict[str, int]) -> int:
    """0 if no cell failed and none is missing, else 1."""
    return 1 if counts.get("failed", 0) or counts.get("not run", 0) else 0
