"""The command `profile`: measures what a grid's methods cost and renders it."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Live

    from bench.cost.record import Costs
    from bench.cost.steps import Model, Setting
    from bench.grid import Grid

HELP = "measure what each method costs, one method by itself"
FILE = "cost.json"
CHECKOUT = Path(__file__).resolve().parents[2]
PLAIN_LINE_SECONDS = 15.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--grid", default="digits", metavar="NAME|FILE",
        help="whose pairs, methods, data and recipe are measured (default: digits)")  # fmt: skip
    add("--pairs", type=_names, metavar="T:S,...", help="these teacher:student pairs instead")
    add("--methods", type=_names, metavar="A,B", help="these methods instead; 'all' for every one")
    add("--batch", type=int, metavar="B", help="batch size (default: the grid's)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=int, default=1, metavar="N", help="of torch on the CPU (default: 1)")
    add("--rounds", type=int, default=20, metavar="N",
        help="how often every step is measured (default: 20)")  # fmt: skip
    add("--seconds", type=float, default=60.0, metavar="S",
        help="no further round starts after so many, for a pair and for the losses alone, but for "
        "the first three (default: 60)")  # fmt: skip
    add("--no-scaling", action="store_true", help="leave out how each loss alone grows")
    add("--image-shape", type=_shape, metavar="CxHxW",
        help="measure on images of this shape and --classes, without the data set")  # fmt: skip
    add("--classes", type=int, metavar="K", help="see --image-shape")
    add("--data-root", type=Path, metavar="DIR", help="where your data sets lie")
    add("--work-dir", type=Path, default=Path("results"), metavar="DIR",
        help="results go to DIR/<grid> (default: results)")  # fmt: skip


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shape(text: str) -> tuple[int, int, int]:
    """ "3x32x32" -> (3, 32, 32)."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted CxHxW such as 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def run(options: argparse.Namespace) -> int:
    """Measures, writes cost.json and renders it; 2 for wrong options, said in one line."""
    from rich.console import Console

    from bench.cost.record import read_costs
    from bench.report.cost import costs_to_text, write_costs
    from bench.workdir import WorkDir

    try:
        grid, setting = _setting(options)
        folder = WorkDir(options.work_dir).grid(grid.name)
        costs = read_costs(folder / FILE)
        with Display(Console(soft_wrap=True)) as display:
            costs = _measure(grid, setting, costs, folder / FILE, display, not options.no_scaling)
    except ValueError as error:  # GridError and DataError are ValueErrors: all are the caller's
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_costs(costs, folder)
    print(costs_to_text(costs))
    return 0


def _setting(options: argparse.Namespace) -> tuple[Grid, Setting]:
    """The grid, narrowed to what was asked for, and the conditions."""
    import torch

    from bench.cost.steps import Setting
    from bench.grid import data_name, load_grid, narrow
    from bench.launch.job import provenance
    from bench.train.device import pick_device

    for name in ("rounds", "threads", "seconds"):
        if getattr(options, name) <= 0:
            raise ValueError(f"--{name}: got {getattr(options, name)}, wanted more than 0")
    grid = narrow(load_grid(options.grid), options.methods, options.pairs)
    batch = options.batch or grid.recipe.batch_size
    if batch < 2:
        raise ValueError(f"--batch: got {batch}, wanted at least 2")
    classes, image_shape = _sizes(options, grid)
    torch.set_num_threads(options.threads)
    return grid, Setting(
        data=data_name(grid.data),
        classes=classes,
        image_shape=image_shape,
        recipe=grid.recipe.model_copy(update={"batch_size": batch}),
        device=pick_device(options.device),
        precision=grid.precision,
        deterministic=grid.deterministic,
        rounds=options.rounds,
        seconds=options.seconds,
        provenance=provenance(CHECKOUT),
    )


def _sizes(options: argparse.Namespace, grid: Grid) -> tuple[int, tuple[int, int, int]]:
    """(K, (C, H, W)): as given, or those of the grid's data set."""
    from bench.data.sources import load
    from bench.workdir import WorkDir

    if (options.image_shape is None) != (options.classes is None):
        raise ValueError("--image-shape and --classes come together")
    if options.image_shape is not None:
        return options.classes, options.image_shape
    data = load(
        grid.data.source, data_root=options.data_root, cache=WorkDir(options.work_dir).cache,
        size=grid.data.size, classes=grid.data.classes,
    )  # fmt: skip
    channels, height, width = data.train_images.shape[1:]
    return len(data.classes), (channels, height, width)


def _measure(
    grid: Grid, setting: Setting, costs: Costs, file: Path, display: Display, scaling: bool
) -> Costs:
    """All pairs, then the losses alone; the file is written after each of them."""
    from bench.cost.profiler import MethodRow, profile
    from bench.cost.record import Costs
    from bench.cost.scaling import measure_scaling
    from bench.record import write_atomically

    rows = [MethodRow(m.label, m.name, grid.hyperparameters(m)) for m in grid.methods]
    for pair in grid.all_pairs:
        models: tuple[Model, Model] = (grid.model(pair.teacher), grid.model(pair.student))
        batch = {"batch_size": setting.recipe.batch_size}
        recipe = grid.recipe_of(pair.student).model_copy(update=batch)
        here = replace(setting, recipe=recipe)
        costs = costs.with_newer(Costs(profile([models], rows, here, display.show)))
        write_atomically(file, costs.to_json())
    if scaling:
        names = list(dict.fromkeys(row.name for row in rows))
        costs = costs.with_newer(Costs([], measure_scaling(names, setting, display.show)))
        write_atomically(file, costs.to_json())
    return costs


class Display:
    """What is being measured: one live line on a terminal, plain lines now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        """Nothing is shown before it is entered."""
        self.console = console
        self._live: Live | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Display:
        """Starts the live line, on a terminal."""
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._live = Progress(*columns, console=self.console, transient=True)
            self._task = self._live.add_task("starting", total=None)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the live line."""
        if self._live is not None:
            self._live.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """So much of it is done."""
        if self._live is not None:
            self._live.update(self._task, description=what, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = now
            self.console.print(f"{what} {done}/{total}", highlight=False, markup=False)
