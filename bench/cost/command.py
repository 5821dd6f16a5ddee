"""The command `profile`: measures what a grid's methods cost and renders it."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.arguments import names, number, path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Live

    from bench.cost.record import Costs
    from bench.cost.steps import Model, Setting
    from bench.grid import Grid

HELP = "measure what each method costs, one method by itself"
FILE = "cost.json"
PLAIN_LINE_SECONDS = 15.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--grid", default="digits", metavar="NAME|FILE",
        help="whose pairs, methods, data and recipe are measured (default: digits)")  # fmt: skip
    add("--pairs", type=names, metavar="T:S,...", help="these teacher:student pairs instead")
    add("--methods", type=names, metavar="A,B", help="these methods instead; 'all' for every one")
    add("--batch", type=int, metavar="B", help="batch size (default: the grid's)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=int, default=1, metavar="N", help="of torch on the CPU (default: 1)")
    add("--rounds", type=int, default=20, metavar="N",
        help="how often every step is measured (default: 20)")  # fmt: skip
    add("--seconds", type=number(at_least=0), default=60.0, metavar="S",
        help="no further round starts after so many, for a pair and for the losses alone, but for "
        "the first three (default: 60)")  # fmt: skip
    add("--no-scaling", action="store_true", help="leave out how each loss alone grows")
    add("--image-shape", type=_shape, metavar="CxHxW",
        help="measure on images of this shape, --classes and --train-images, without the data "
        "set")  # fmt: skip
    add("--classes", type=int, metavar="K", help="see --image-shape")
    add("--train-images", type=int, metavar="N",
        help="see --image-shape; views of all images that a stage caches need memory")  # fmt: skip
    add("--name", metavar="NAME", help="results go to DIR/NAME (default: the grid's name)")
    add("--data-root", type=path, metavar="DIR", help="where your data sets lie")
    add("--work-dir", type=path, default=Path("results"), metavar="DIR",
        help="results go to DIR/NAME (default: results)")  # fmt: skip


def _shape(text: str) -> tuple[int, int, int]:
    """ "3x32x32" -> (3, 32, 32)."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted CxHxW such as 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def run(options: argparse.Namespace) -> tuple[str, Costs]:
    """Measures what was asked for, beside what was measured before.

    Returns:
        The name of the folder in the work directory, and all costs in it.

    Raises:
        ValueError: wrong options or a damaged file, in one line.
    """
    from rich.console import Console

    from bench.cost.record import read_costs
    from bench.workdir import WorkDir

    grid, setting = _setting(options)
    name = options.name or grid.name
    file = WorkDir(options.work_dir).grid(name) / FILE
    costs = read_costs(file)
    with Display(Console(soft_wrap=True)) as display:
        costs = _measure(grid, setting, costs, file, display, not options.no_scaling)
    return name, costs


def _setting(options: argparse.Namespace) -> tuple[Grid, Setting]:
    """The grid, narrowed to what was asked for, and the conditions."""
    import torch

    from bench.code_version import provenance
    from bench.cost.steps import Setting
    from bench.grid import data_name, load_grid, narrow
    from bench.train.device import pick_device

    _check(options)
    grid = narrow(load_grid(options.grid), options.methods, options.pairs)
    batch = grid.recipe.batch_size if options.batch is None else options.batch
    sizes = _sizes(options, grid)
    torch.set_num_threads(options.threads)
    return grid, Setting(
        data=data_name(grid.data),
        classes=sizes.classes,
        image_shape=sizes.image_shape,
        train_images=sizes.train_images,
        recipe=grid.recipe.model_copy(update={"batch_size": batch}),
        device=pick_device(options.device),
        precision=grid.precision,
        deterministic=grid.deterministic,
        rounds=options.rounds,
        seconds=options.seconds,
        provenance={**provenance(), "started": _now()},
    )


def _check(options: argparse.Namespace) -> None:
    from bench.grid import RESERVED

    for name, least in (("rounds", 1), ("threads", 1), ("batch", 2)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}: got {value}, wanted at least {least}")
    name = options.name
    if name is not None and (name in RESERVED or not re.fullmatch(r"\w[\w.-]*", name)):
        taken = ", ".join(sorted(RESERVED))
        raise ValueError(f"--name: got {name!r}, wanted the name of a folder, none of {taken}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Sizes(NamedTuple):
    """K, (C, H, W) and N."""

    classes: int
    image_shape: tuple[int, int, int]
    train_images: int


def _sizes(options: argparse.Namespace, grid: Grid) -> _Sizes:
    """As given, or those of the grid's data set."""
    from bench.data.sources import load
    from bench.workdir import WorkDir

    given = (options.image_shape, options.classes, options.train_images)
    if any(given):
        if not all(given) or min(given[1:]) < 1:
            raise ValueError(
                "--image-shape, --classes and --train-images come together, each at least 1"
            )
        return _Sizes(options.classes, options.image_shape, options.train_images)
    data = load(
        grid.data.source, data_root=options.data_root, cache=WorkDir(options.work_dir).cache,
        size=grid.data.size, classes=grid.data.classes,
    )  # fmt: skip
    channels, height, width = data.train_images.shape[1:]
    largest = max(grid.axes.fraction or (grid.data.fraction,))
    train_images = round(largest * len(data.train_images))
    return _Sizes(len(data.classes), (channels, height, width), train_images)


def _measure(
    grid: Grid, setting: Setting, costs: Costs, file: Path, display: Display, scaling: bool
) -> Costs:
    """The machine, all pairs, then the losses alone; the file is written after each of them."""
    from bench.cost.machine import measure_machine
    from bench.cost.profiler import MethodRow, profile
    from bench.cost.record import Costs
    from bench.cost.scaling import measure_scaling
    from bench.record import write_atomically

    costs = costs.with_newer(Costs(machines=[measure_machine(setting, display.show)]))
    write_atomically(file, costs.to_json())
    rows = [MethodRow(m.label, m.name, grid.hyperparameters(m)) for m in grid.methods]
    for pair in grid.all_pairs:
        models: tuple[Model, Model] = (grid.model(pair.teacher), grid.model(pair.student))
        batch = {"batch_size": setting.recipe.batch_size}
        recipe = grid.recipe_of(pair.student).model_copy(update=batch)
        here = replace(setting, recipe=recipe)
        costs = costs.with_newer(profile([models], rows, here, display.show))
        write_atomically(file, costs.to_json())
    if scaling:
        names = list(dict.fromkeys(row.name for row in rows))
        costs = costs.with_newer(Costs(scaling=measure_scaling(names, setting, display.show)))
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
