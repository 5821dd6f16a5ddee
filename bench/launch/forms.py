"""Whose networks are stacked in a run: settled once, before anything trains, by measurement."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench.cell import Cell, DataSpec
from bench.cost.stacks import Comparison, compare_forms
from bench.data.dataset import DataSet
from bench.record import dump_json, write_atomically
from bench.train.cohort import build_network
from bench.train.device import conditions
from bench.train.stacking import form_of
from methods import registry

MODES = ("auto", "on", "off")
MOST = 16
"""Networks that are timed side by side: from there on a step costs in proportion."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Cells that could be stacked: one of them, its images, and how many stand side by side."""

    cell: Cell
    image_shape: tuple[int, int, int]
    classes: int
    count: int


def settle(
    cells: Iterable[Cell],
    read: Callable[[DataSpec], DataSet],
    device: torch.device,
    mode: str,
    path: Path,
    say: Callable[[str], None],
) -> frozenset[str]:
    """The forms, as `bench.train.stacking.form_of` names them, that train stacked.

    What was measured once is kept: a run that goes on, or is repeated in this work directory on
    this machine, computes the same bits.

    Args:
        cells: all of the grid, finished or not: what is left of it must not decide.
        read: the data sets.
        device: where the run trains.
        mode: "on" for all that can be stacked, "off" for none, "auto" for those that gain by it.
        path: where measurements are kept.
        say: told of every measurement, a line each.
    """
    if mode == "off":
        return frozenset()
    found = candidates(cells, read)
    if mode == "on":
        return frozenset(found)
    known = _read(path)
    chosen: set[str] = set()
    machine = "{device}, {threads} threads, torch {torch}".format(**conditions(device))
    for form, candidate in found.items():
        key = f"{candidate.count} x {form}, {machine}"
        if key not in known:
            measured = measure(candidate, device)
            if measured is None:
                continue
            known[key] = measured
            kept = {name: dataclasses.asdict(one) for name, one in known.items()}
            write_atomically(path, dump_json(kept))
            say(describe(form, measured))
        if known[key].stack:
            chosen.add(form)
    return frozenset(chosen)


def candidates(cells: Iterable[Cell], read: Callable[[DataSpec], DataSet]) -> dict[str, Candidate]:
    """Form -> cells that could train stacked, where there are at least two in one stream."""
    found: dict[str, Candidate] = {}
    beside: Counter[tuple[str, str]] = Counter()
    shapes: dict[DataSpec, tuple[tuple[int, int, int], int]] = {}
    for cell in cells:
        if cell.data not in shapes:
            data = read(cell.data)
            channels, height, width = data.train_images.shape[1:]
            shapes[cell.data] = (channels, height, width), len(data.classes)
        shape, classes = shapes[cell.data]
        form = form_of(cell, shape)
        plan = registry.build(cell.method, **cell.hyperparameters).plan
        if not any(stage.task_weight > 0 and stage.merge is None for stage in plan):
            continue
        if form not in found:
            if not build_network(cell, classes, shape).channelwise:
                continue
            found[form] = Candidate(cell, shape, classes, 0)
        beside[form, cell.stream] += 1
        count = max(found[form].count, beside[form, cell.stream])
        found[form] = dataclasses.replace(found[form], count=count)
    return {form: candidate for form, candidate in found.items() if candidate.count > 1}


def measure(candidate: Candidate, device: torch.device) -> Comparison | None:
    """Times one step of as many students as will train side by side, apart and stacked."""
    cell, shape = candidate.cell, candidate.image_shape
    count = min(candidate.count, MOST)
    others = [cell.model_copy(update={"seed": cell.seed + n}) for n in range(count)]
    networks = [build_network(other, candidate.classes, shape) for other in others]
    generator = torch.Generator().manual_seed(0)
    size = cell.recipe.batch_size
    images = torch.randn(size, *shape, generator=generator).to(device)
    labels = torch.randint(candidate.classes, (size,), generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    return compare_forms(networks, images, labels, cell)


def describe(form: str, measured: Comparison) -> str:
    """One line for the user."""
    apart, stacked = measured.apart_ms.median, measured.stacked_ms.median
    times = f"{measured.count} x {form}: {stacked:.1f} ms a step stacked, {apart:.1f} ms apart"
    if not measured.exact:
        return f"{times}; not stacked: here a student's bits would depend on its neighbours"
    return f"{times}: {'stacked' if measured.stack else 'not stacked'}"


def _read(path: Path) -> dict[str, Comparison]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {key: Comparison.of(values) for key, values in kept.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # none yet, damaged, or by another version: it is measured again
