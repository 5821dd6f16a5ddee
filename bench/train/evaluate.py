"""Predictions and accuracy on a fixed set of images."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.data.batches import Batches
from bench.models.network import Network, modes_restored

EVALUATION_BATCH, EVALUATION_PIXELS = 500, 500 * 32 * 32


def evaluation_batch(size: tuple[int, int]) -> int:
    """Images of H x W pixels in a batch without gradients: fewer of larger ones, at least 8.

    Example:
        >>> evaluation_batch((8, 8)), evaluation_batch((32, 32)), evaluation_batch((224, 224))
        (500, 500, 10)
    """
    height, width = size
    return min(EVALUATION_BATCH, max(8, EVALUATION_PIXELS // (height * width)))


@torch.no_grad()
def predictions(
    network: Network, test: Batches, prepare: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The most likely class of every image, (M,), in evaluation mode; `prepare` changes images."""
    with modes_restored(network):
        network.eval()
        batches = (batch.images for batch in test.clean(evaluation_batch(test.size)))
        images = map(prepare, batches) if prepare else batches
        return torch.cat([network(x).argmax(1) for x in images])


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of equal elements, in [0, 1]."""
    return (predicted == labels).double().mean().item()
