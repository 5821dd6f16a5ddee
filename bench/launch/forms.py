"""Whose networks are stacked in a run: settled once, before anything trains.

With `on` whatever can be stacked is, so that numbers depend on the word alone. `auto` measures, and
keeps the verdict for this work directory: it depends on the architecture, its shapes and the
machine, not on which part of a grid runs or who else does, for cells are shared between them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from bench.cell import Cell, DataSpec
from bench.cost.profiler import Clock
from bench.cost.stacks import Comparison, compare_forms, plain_pass
from bench.data.dataset import DataSet
from bench.models.network import Network
from bench.models.stacked import NotStackable, Stack
from bench.record import dump_json, write_atomically
from bench.train.cohort import build_network
from bench.train.device import conditions, is_out_of_memory, to_device
from bench.train.stacking import form_of
from methods import registry

MODES = ("off", "on", "auto")
COUNT = 8
"""Networks that are timed side by side, whatever a grid's numbers of rows."""

LONG_MS = 100.0
"""A network that takes so long for a step keeps a processor busy by itself: nothing to gain."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Cells that could be stacked: one of them, and its images."""

    cell: Cell
    image_shape: tuple[int, int, int]
    classes: int


def settle(
    cells: Iterable[Cell],
    read: Callable[[DataSpec], DataSet],
    device: torch.device,
    mode: str,
    path: Path,
    say: Callable[[str], None],
) -> frozenset[str]:
    """The forms, as `bench.train.stacking.form_of` names them, that train stacked.

    Args:
        cells: of the grid.
        read: the data sets.
        device: where the run trains.
        mode: one of `MODES`; "auto" for those that gain by it.
        path: where measurements are kept.
        say: told of every measurement, a line each.
    """
    if mode == "off":
        return frozenset()
    found = candidates(cells, read)
    if mode == "on":
        return frozenset(found)
    machine = "{device}, {threads} threads, torch {torch}".format(**conditions(device))
    chosen: set[str] = set()
    for form, candidate in found.items():
        key, kept = f"{form}, {machine}", _read(path)
        if key not in kept:
            measured = measure(candidate, device)
            say(describe(form, measured))
            if measured is None:
                continue
            # Looked at again: of two commands that measured at once, the first one's word counts.
            kept = {key: measured, **_read(path)}
            values = {name: dataclasses.asdict(one) for name, one in kept.items()}
            write_atomically(path, dump_json(values))
        if kept[key].stack:
            chosen.add(form)
    return frozenset(chosen)


def candidates(cells: Iterable[Cell], read: Callable[[DataSpec], DataSet]) -> dict[str, Candidate]:
    """Form -> a cell of it, for the cells that could train stacked; see `bench.train.stacking`."""
    found: dict[str, Candidate] = {}
    refused: set[str] = set()
    shapes: dict[DataSpec, tuple[tuple[int, int, int], int]] = {}
    for cell in (cell for cell in cells if cell.teacher is not None):
        if cell.data not in shapes:
            data = read(cell.data)
            channels, height, width = data.train_images.shape[1:]
            shapes[cell.data] = (channels, height, width), len(data.classes)
        shape, classes = shapes[cell.data]
        form = form_of(cell, shape)
        plan = registry.build(cell.method, **cell.hyperparameters).plan
        jointly = any(stage.task_weight > 0 and stage.merge is None for stage in plan)
        if not jointly or form in found or form in refused:
            continue
        if _stackable([build_network(cell, classes, shape) for _ in range(2)]):
            found[form] = Candidate(cell, shape, classes)
        else:
            refused.add(form)
    return found


def _stackable(networks: list[Network]) -> bool:
    try:
        Stack(networks)
    except NotStackable:
        return False
    return True


def measure(candidate: Candidate, device: torch.device) -> Comparison | None:
    """Times one step of `COUNT` students, apart and stacked; None if it is not worth trying."""
    cell, shape = candidate.cell, candidate.image_shape
    others = [cell.model_copy(update={"seed": cell.seed + n}) for n in range(COUNT)]
    networks = [build_network(other, candidate.classes, shape) for other in others]
    generator = torch.Generator().manual_seed(0)
    size = cell.recipe.batch_size
    images = torch.randn(size, *shape, generator=generator).to(device)
    labels = torch.randint(candidate.classes, (size,), generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        if _step_ms(build_network(cell, candidate.classes, shape), images, labels, cell) > LONG_MS:
            return None
        return compare_forms(networks, images, labels, cell)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _step_ms(network: Network, images: Tensor, labels: Tensor, cell: Cell) -> float:
    """The faster of two steps of one network: the first may load libraries."""
    network, clock = to_device(network, images.device).train(), Clock(images.device)
    return min(clock.time(lambda: plain_pass(network, images, labels, cell)) for _ in range(2))


def describe(form: str, measured: Comparison | None) -> str:
    """One line for the user."""
    if measured is None:
        return (
            f"{form}: not stacked: {COUNT} at once are too large, or take too long, to gain by it"
        )
    apart, stacked = measured.apart_ms.median, measured.stacked_ms.median
    times = f"{measured.count} x {form}: {stacked:.1f} ms a step stacked, {apart:.1f} ms apart"
    if not measured.exact:
        return f"{times}; not stacked: here a student's bits would depend on its neighbours"
    return f"{times}: {'stacked' if measured.stack else 'not stacked'}"


def _read(path: Path) -> dict[str, Comparison]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {key: Comparison.of(values) for key, values in dict(kept).items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none yet, damaged, or by another version: it is measured again
