"""Predictions and accuracy on a fixed set of images."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.data.batches import Batches
from bench.models.network import Network, modes_restored

EVALUATION_BATCH = 500


@torch.no_grad()
def predictions(
    network: Network, test: Batches, prepare: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The most likely class of every image, (M,), by the network in evaluation mode.

    `prepare` is applied to the images first, such as a lower resolution.
    """
    with modes_restored(network):
        network.eval()
        found = [
            network(prepare(batch.images) if prepare else batch.images).argmax(1)
            for batch in test.clean(EVALUATION_BATCH)
        ]
    return torch.cat(found)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal elements, in [0, 1]."""
    return (predicted == labels).double().mean().item()
