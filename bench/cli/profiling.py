"""The command `profile`: measures what a grid's methods cost, and renders it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bench.cli.outputs import mirror_files, write, write_costs
from bench.cli.recorded import fetch_results, has_results, work_dir

if TYPE_CHECKING:
    from bench.cost.costs import Costs
    from bench.cost.profiler import Profile, Progress
    from bench.cost.steps import Workload
    from bench.grid import Grid


def profile(options: argparse.Namespace) -> int:
    """Measures what each method's loss and step cost, each method alone."""
    from rich.console import Console

    from bench.cost.costs import FILE, read_costs
    from bench.progress import ProgressDisplay
    from bench.record import write_atomically
    from bench.report.cost import costs_to_text

    work = work_dir(options)
    asked = _read(options)
    name = asked.grid.name
    file = work.grid(name) / FILE
    costs = read_costs(file)
    with ProgressDisplay(Console(soft_wrap=True)) as display:
        for newer in _measure(asked, display.show):
            costs = costs.with_newer(newer)
            write_atomically(file, costs.to_json())
    print(costs_to_text(costs))
    if has_results(work, name):
        plan, records = fetch_results(work, name, "records")
        files = write(work, plan, records, costs)
    else:
        files = write_costs(work, name, costs)
    mirror_files(work, name, files, costs)
    return 0


@dataclass(frozen=True)
class _Asked:
    grid: Grid
    workload: Workload
    how: Profile


def _read(options: argparse.Namespace) -> _Asked:
    """The grid narrowed to what was asked for, and how it is measured.

    Steps run on random images, so the data set only gives its sizes; one that cannot be downloaded
    here is not needed.
    """
    import torch

    from bench.code_version import provenance
    from bench.cost.profiler import Profile
    from bench.cost.steps import Workload
    from bench.data.library import Library
    from bench.expansion import data_name
    from bench.grid import load_grid, narrow
    from bench.train.device import pick_device
    from bench.workdir import WorkDir

    grid = narrow(load_grid(options.grid), options.methods, options.pairs)
    cache = WorkDir(options.work_dir).cache
    data = Library(options.data_root, cache, random_if_absent=True).read(grid.data)
    channels, height, width = data.train_images.shape[1:]
    largest = max(grid.axes.fraction or (grid.data.fraction,))
    batch = grid.recipe.batch_size if options.batch is None else options.batch
    torch.set_num_threads(options.threads)
    workload = Workload(
        classes=len(data.classes),
        image_shape=(channels, height, width),
        recipe=grid.recipe.model_copy(update={"batch_size": batch}),
        device=pick_device(options.device),
        precision=grid.precision,
        deterministic=grid.deterministic,
    )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    how = Profile(
        data=data_name(grid.data),
        train_images=round(largest * len(data.train_images)),
        rounds=options.rounds,
        seconds=options.seconds,
        provenance={**provenance(), "started": started},
    )
    return _Asked(grid, workload, how)


def _measure(asked: _Asked, progress: Progress) -> Iterator[Costs]:
    """One pair after another."""
    from bench.cost.profiler import MethodRow, profile

    grid, batch = asked.grid, {"batch_size": asked.workload.recipe.batch_size}
    rows = [MethodRow(m.label, m.name, grid.hyperparameters(m)) for m in grid.methods]
    for pair in grid.all_pairs:
        recipe = grid.recipe_of(pair.student).model_copy(update=batch)
        workload = replace(asked.workload, recipe=recipe)
        models = grid.model(pair.teacher), grid.model(pair.student)
        yield profile(*models, rows, workload, asked.how, progress)
