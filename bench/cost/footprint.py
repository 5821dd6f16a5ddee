"""Work and memory of a training, counted on one step of two images.

It takes milliseconds for each network, which is enough to order jobs and to keep a cohort within
memory. `bench.cost.estimate` times real steps instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.cell import Cell, DataSpec
from bench.cost.counting import AllocationMode, CountingMode, bytes_of
from bench.data.dataset import DataSet
from bench.hyperparameters import build_method
from bench.method import Stage, split_epochs
from bench.train.weights import build_network

IMAGES = 2
"""Batch of the counted step. BatchNorm needs more than one image."""

ALLOWANCE = 2.0
"""Factor on a step's activations for what is not counted: connectors, losses, teacher's taps."""

LAUNCH_FLOPS = 1e8
"""Work of a step apart from its arithmetic. Small networks spend their time launching kernels."""


class NetworkCount(NamedTuple):
    """One network, counted.

    Attributes:
        held_bytes: parameters, buffers, gradients and momentum.
        image_bytes: activations of one image in a training step.
        image_flops: operations of one image in a forward pass.
    """

    held_bytes: int
    image_bytes: float
    image_flops: float

    @classmethod
    def of(cls, network: nn.Module, images: Tensor) -> NetworkCount:
        """Counts one step on a few images, on the CPU."""
        with AllocationMode() as memory:
            with CountingMode() as counter:
                logits = network(images)
            cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)).backward()
        state, gradients = bytes_of(network.state_dict().values()), bytes_of(network.parameters())
        return cls(
            held_bytes=state + 2 * gradients,
            image_bytes=max(0, memory.peak_bytes - gradients) / len(images),
            image_flops=counter.flops / len(images),
        )


class Footprint:
    """Counts jobs. Every network is built and counted once."""

    def __init__(self, read: Callable[[DataSpec], DataSet]) -> None:
        """Nothing is counted yet; `read` returns a decoded data set."""
        self._read = read
        self._counted: dict[str, NetworkCount] = {}
        self._plans: dict[str, tuple[Stage, ...]] = {}

    def bytes(self, cells: Sequence[Cell]) -> int:
        """Peak memory of a job, on top of what an idle worker process holds."""
        images = self._read(cells[0].data).train_images
        counts = [(cell.recipe.batch_size, self._count(cell, cell)) for cell in cells]
        students = sum(n.held_bytes + ALLOWANCE * n.image_bytes * batch for batch, n in counts)
        return 2 * images.numel() + round(students)

    def work(self, cells: Sequence[Cell]) -> float:
        """FLOP of a job, a step's launch included: proportional to its time.

        A training step counts as three forward passes. The teacher's pass is paid once.
        """
        own = sum(self._steps(c) * (3 * self._batch_flops(c, c) + LAUNCH_FLOPS) for c in cells)
        taught = [cell for cell in cells if cell.teacher is not None]
        if not taught:
            return own
        longest = max(taught, key=self._steps)
        assert longest.teacher is not None
        teacher = self._batch_flops(longest.teacher, longest) + LAUNCH_FLOPS
        return own + self._steps(longest) * teacher

    def _steps(self, cell: Cell) -> float:
        key = json.dumps([cell.method, cell.hyperparameters])
        if key not in self._plans:
            self._plans[key] = build_method(cell.method, **cell.hyperparameters).plan
        plan = self._plans[key]
        epochs = sum(split_epochs(plan, cell.recipe.epochs, cell.recipe.budget))
        images = len(self._read(cell.data).train_images) * cell.data.fraction
        return epochs * images / cell.recipe.batch_size

    def _batch_flops(self, network: Cell, student: Cell) -> float:
        return self._count(network, student).image_flops * student.recipe.batch_size

    def _count(self, network: Cell, student: Cell) -> NetworkCount:
        """The network of one cell on the images of another, its student or itself."""
        data = self._read(student.data)
        channels, height, width = data.train_images.shape[1:]
        shape = (channels, height, width)
        key = json.dumps([network.model, len(data.classes), shape], sort_keys=True)
        if key not in self._counted:
            built = build_network(network, len(data.classes), shape)
            self._counted[key] = NetworkCount.of(built, torch.zeros(IMAGES, *shape))
        return self._counted[key]
