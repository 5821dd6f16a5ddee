"""The command `profile`: measures what a grid's methods cost, and renders it."""

import argparse
from dataclasses import replace
from datetime import UTC, datetime

import torch
from rich.console import Console

from bench.cli.options import command_of
from bench.cli.recorded import asked_grid, fetch_results, has_results, try_to_send, write
from bench.code_version import provenance
from bench.cost.costs import FILE, Costs, read_costs
from bench.cost.profiler import MethodRow, Profile
from bench.cost.profiler import profile as measure
from bench.cost.steps import Workload
from bench.data.sources import Library
from bench.expansion import data_name
from bench.hyperparameters import resolve_hyperparameters
from bench.progress import ProgressDisplay
from bench.record import WorkDir, write_atomically
from bench.report.cost import cost_section, write_costs
from bench.report.results import findings
from bench.report.tables import to_text
from bench.train.device import pick_device


def profile(options: argparse.Namespace) -> int:
    """Measures each method alone, on random images: the data set only gives its sizes."""
    work = WorkDir(options.work_dir)
    grid = asked_grid(options)
    data = Library(options.data_root, work.cache, random_if_absent=True).read(grid.data)
    channels, height, width = data.train_images.shape[1:]
    largest = max(grid.axes.fraction or (grid.data.fraction,)) * (1 - grid.data.validation)
    torch.set_num_threads(options.threads)
    how = Profile(
        data=data_name(grid.data),
        train_images=round(largest * len(data.train_images)),
        rounds=options.rounds,
        provenance={**provenance(), "started": datetime.now(UTC).isoformat(timespec="seconds")},
    )
    # What a row costs does not depend on other rows: without overrides it is the whole grid's too.
    names = [grid.name] if options.overrides else [grid.part_of or grid.name, grid.name]
    files = {name: work.grid(name) / FILE for name in names}
    rows = [MethodRow(m.label, m.name, grid.hyperparameters(m)) for m in grid.methods]
    resolved = {row.label: resolve_hyperparameters(*row[1:]) for row in rows}
    with ProgressDisplay(Console(soft_wrap=True)) as display:
        for pair in grid.all_pairs:
            workload = Workload(
                classes=len(data.classes),
                image_shape=(channels, height, width),
                images=how.train_images,
                recipe=grid.recipe_of(pair.student),
                device=pick_device(options.device),
                precision=grid.precision,
                deterministic=grid.deterministic,
            )
            models = grid.model(pair.teacher, teaches=True), grid.model(pair.student)
            costs = measure(*models, rows, workload, how, display.show).records
            found = Costs([replace(r, hyperparameters=resolved.get(r.label)) for r in costs])
            for file in files.values():
                write_atomically(file, read_costs(file).with_newer(found).to_json())
    section = cost_section(read_costs(files[grid.name]))
    print(*map(to_text, section.tables), sep="\n")
    for name, file in files.items():
        if has_results(work, name):
            results = fetch_results(work, name, "records", command_of(options))
            written = write(work, findings(*results))
        else:
            results, written = None, [*write_costs(read_costs(file), work.grid(name)), file]
        print(f"tables and figures: {work.grid(name)}")
        try_to_send(work, name, written, results)
    return 0
