"""Predictions and accuracy on a fixed set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.batches import Batch
from bench.models.network import Network


@dataclass(frozen=True)
class TestSet:
    """The images on which accuracy is measured.

    Attributes:
        batches: iterates over all images in a fixed order, in batches on the device.
        labels: (M,), of all images.
    """

    batches: Callable[[], Iterator[Batch]]
    labels: Tensor


@torch.no_grad()
def predictions(
    network: Network,
    test: TestSet,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The most likely class of every test image.

    Args:
        network: is in evaluation mode meanwhile.
        test: images and labels.
        prepare: applied to the images first, such as a lower resolution.

    Returns:
        (M,) class indices, on the device.
    """
    training = {module: module.training for module in network.modules()}
    network.eval()
    found = [
        network(prepare(batch.images) if prepare else batch.images).argmax(1)
        for batch in test.batches()
    ]
    for module, mode in training.items():
        module.training = mode
    return torch.cat(found)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal entries, in [0, 1]."""
    return (predicted == labels).double().mean().item()
