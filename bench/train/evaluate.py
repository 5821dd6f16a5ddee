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
    """The most likely class of every image, (M,), in evaluation mode; `prepare` changes images."""
    with modes_restored(network):
        network.eval()
        batches = (batch.images for batch in test.clean(EVALUATION_BATCH))
        images = map(prepare, batches) if prepare else batches
        return torch.cat([network(x).argmax(1) for x in images])


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal elements, in [0, 1]."""
    return (predicted == labels).double().mean().item()
