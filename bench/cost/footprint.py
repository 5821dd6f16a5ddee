"""Work and memory of a training, counted on one step of two images.

It takes milliseconds for each network, which is enough to order jobs and to keep a cohort within
memory. `bench.cost.estimate` times real steps instead.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from bench.cell import Cell, DataSpec
from bench.cost.counting import bytes_of, count, peak_bytes
from bench.data.batches import resident_bytes
from bench.data.dataset import DataSet
from bench.hyperparameters import build_method
from bench.method import split_epochs
from bench.train.weights import build_network

IMAGES = 2  # batch of the counted step: BatchNorm needs more than one image
ALLOWANCE = 2.0
"""Factor on a step's activations for what is not counted: connectors, losses, teacher's taps."""

LAUNCH_FLOPS = 1e8
"""Work of a step apart from its arithmetic. Small networks spend their time launching kernels."""


def total_epochs(cell: Cell) -> int:
    """Epochs of all stages of a cell together."""
    plan = build_method(cell.method, **cell.hyperparameters).plan
    return sum(split_epochs(plan, cell.recipe.epochs, cell.recipe.budget))


class NetworkCount(NamedTuple):
    """Bytes of weights, gradients and optimiser; an image's by tap, its step's; its FLOP."""

    held_bytes: int
    tap_bytes: dict[str, int]
    image_bytes: float
    image_flops: float


class Footprint:
    """Counts jobs. Every network is built and counted once."""

    def __init__(self, read: Callable[[DataSpec], DataSet], device: str = "cpu") -> None:
        """Nothing is counted yet; `read` returns a decoded data set."""
        self._read, self._device = read, torch.device(device)
        self._counted: dict[str, NetworkCount] = {}

    def bytes(self, cells: Sequence[Cell]) -> int:
        """Peak memory of a job, on top of what an idle worker process holds."""
        images = self._read(cells[0].data).train_images
        counts = [(cell.recipe.batch_size, self._count(cell, cell)) for cell in cells]
        students = sum(n.held_bytes + ALLOWANCE * n.image_bytes * batch for batch, n in counts)
        plans = (build_method(cell.method, **cell.hyperparameters).plan for cell in cells)
        clean = {tap for plan in plans for stage in plan if stage.clean for tap in stage.all_taps}
        shown = next((self._count(c.teacher, c).tap_bytes for c in cells if c.teacher), {})
        kept = len(images) * cells[0].data.fraction * sum(shown.get(tap, 0) for tap in clean)
        return resident_bytes(images.numel(), self._device) + round(students + kept)

    def work(self, cells: Sequence[Cell]) -> float:
        """FLOP of a job with launches; a training step counts as three forward passes."""
        own = sum(self._passes(cell, cell, 3) for cell in cells)
        taught = (self._passes(cell.teacher, cell, 1) for cell in cells if cell.teacher is not None)
        return own + max(taught, default=0.0)

    def _passes(self, network: Cell, student: Cell, each: int) -> float:
        """FLOP of a network in the student's training, with `each` forward passes a step."""
        images = len(self._read(student.data).train_images) * student.data.fraction
        batch = student.recipe.batch_size
        flops = each * self._count(network, student).image_flops * batch + LAUNCH_FLOPS
        return total_epochs(student) * images / batch * flops

    def _count(self, network: Cell, student: Cell) -> NetworkCount:
        """The network of one cell on the images of another, its student or itself."""
        data = self._read(student.data)
        channels, height, width = data.train_images.shape[1:]
        shape = (channels, height, width)
        moments = 1 if network.recipe.optimiser == "sgd" else 2
        key = json.dumps([network.model, len(data.classes), shape, moments], sort_keys=True)
        if key not in self._counted:
            built = build_network(network, len(data.classes), shape)
            images, labels = torch.zeros(IMAGES, *shape), torch.zeros(IMAGES, dtype=torch.long)

            def step() -> None:
                cross_entropy(built(images), labels).backward()

            gradients = bytes_of(built.parameters())
            self._counted[key] = NetworkCount(
                held_bytes=bytes_of(built.state_dict().values()) + (1 + moments) * gradients,
                tap_bytes={t: x[0].nbytes for t, x in built.view(images, built.tap_names).items()},
                image_bytes=max(0, peak_bytes(step, images.device) - gradients) / IMAGES,
                image_flops=count(partial(built, images)) / IMAGES,
            )
        return self._counted[key]
