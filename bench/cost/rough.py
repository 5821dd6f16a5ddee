"""What a student takes, roughly and at once: from one step of its network on few images.

Good enough to order jobs and to keep a cohort within memory. What a calibration measures is better,
see `bench.cost.probe`; this needs none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from bench.cell import Cell, DataSpec
from bench.cost.counting import AllocationMode, CountingMode
from bench.method import split_epochs
from bench.train.cohort import build_network
from methods import registry

FEW = (2, 4)
"""Batch sizes from which that of the recipe is extrapolated."""

BESIDE = 2.0
"""Allowance for connectors, losses and the teacher's taps: a step holds so many times its own."""

IDLE_FLOPS = 1e8
"""What a step costs whatever it computes, as operations: small networks wait most of the time."""


class DataSizes(NamedTuple):
    """What a network is built for, and how many images there are to train on."""

    classes: int
    shape: tuple[int, int, int]
    train_images: int


class _Network(NamedTuple):
    """One network: bytes it holds, bytes of a step, and operations of a forward pass."""

    held_bytes: int
    step_bytes: float
    image_bytes: float
    image_flops: float


class Rough:
    """Estimates for cells; every network is looked at once."""

    def __init__(self, sizes: Callable[[DataSpec], DataSizes]) -> None:
        """Nothing is built yet.

        Args:
            sizes: of a cell's data.
        """
        self._sizes = sizes
        self._known: dict[tuple[str, int, tuple[int, int, int]], _Network] = {}

    def bytes(self, cells: Sequence[Cell]) -> int:
        """The most that a job of these cells holds, beside what its process holds anyway."""
        sizes = self._sizes(cells[0].data)
        images = sizes.train_images * sizes.shape[0] * sizes.shape[1] * sizes.shape[2]
        return 2 * images + sum(map(self.student_bytes, cells))

    def student_bytes(self, cell: Cell) -> int:
        """Weights, buffers and momentum, and the most that a step holds beside them."""
        known = self._network(cell, cell)
        step = known.step_bytes + known.image_bytes * cell.recipe.batch_size
        return round(known.held_bytes + BESIDE * step)

    def work(self, cells: Sequence[Cell]) -> float:
        """Operations of a job, with `IDLE_FLOPS` for every step: what takes twice is twice as long.

        A step forward and back counts three forward passes.
        """
        own = sum(self._steps(cell) * (3 * self._batch(cell, cell) + IDLE_FLOPS) for cell in cells)
        taught = [(self._steps(c), c) for c in cells if c.teacher is not None]
        if not taught:
            return own
        steps, cell = max(taught, key=lambda pair: pair[0])
        assert cell.teacher is not None
        return own + steps * (self._batch(cell.teacher, cell) + IDLE_FLOPS)

    def _steps(self, cell: Cell) -> float:
        plan = registry.build(cell.method, **cell.hyperparameters).plan
        epochs = sum(split_epochs(plan, cell.recipe.epochs, cell.recipe.budget))
        images = self._sizes(cell.data).train_images * cell.data.fraction
        return epochs * images / cell.recipe.batch_size

    def _batch(self, network: Cell, cell: Cell) -> float:
        return self._network(network, cell).image_flops * cell.recipe.batch_size

    def _network(self, cell: Cell, beside: Cell) -> _Network:
        """The cell's network on the images of the cell beside it, which may be its student."""
        sizes = self._sizes(beside.data)
        key = json.dumps(cell.model, sort_keys=True), sizes.classes, sizes.shape
        if key not in self._known:
            self._known[key] = _look_at(cell, sizes)
        return self._known[key]


def _look_at(cell: Cell, sizes: DataSizes) -> _Network:
    network = build_network(cell, sizes.classes, sizes.shape)
    peaks, flops = [], 0
    for count in FEW:
        images = torch.zeros(count, *sizes.shape)
        with AllocationMode() as memory:
            with CountingMode() as counter:
                logits = network(images)
            cross_entropy(logits, torch.zeros(count, dtype=torch.long)).backward()
        network.zero_grad(set_to_none=True)
        peaks.append(memory.peak_bytes)
        flops = counter.count.flops
    per_image = max(0.0, (peaks[1] - peaks[0]) / (FEW[1] - FEW[0]))
    own = sum(x.numel() * x.element_size() for x in network.state_dict().values())
    momentum = sum(p.numel() * p.element_size() for p in network.parameters())
    constant = max(0.0, peaks[0] - FEW[0] * per_image)
    return _Network(own + momentum, constant, per_image, flops / FEW[1])
