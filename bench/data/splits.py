"""Stratified random parts of a data set, determined by the seed of the split.

Everywhere `labels` are (N,) class indices, N above 0.
"""

import math

import torch
from torch import Tensor

from bench.seeds import derive


def spread(total: int, most: int) -> Tensor:
    """Positions of at most so many images, evenly over all of them."""
    count = min(total, most)
    return torch.arange(count) * total // count


def stratified_order(labels: Tensor, seed: int) -> list[Tensor]:
    """The positions of each class's images in random order.

    Each class has its own random stream, so that its order does not depend on the other classes. A
    class without images has an empty tensor.
    """
    labels = labels.cpu()
    orders = []
    for label in range(int(labels.max()) + 1):
        positions = (labels == label).nonzero().flatten()
        generator = torch.Generator().manual_seed(derive(seed, "class", label))
        orders.append(positions[torch.randperm(len(positions), generator=generator)])
    return orders


def take_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """A fraction in (0, 1] of the images of each class: the nearest whole number, at least one.

    Fractions are nested: with the same seed, 10 % of the images are part of the 25 %. Positions
    ascend.
    """
    return _draw(labels, fraction, derive(seed, "fraction")).nonzero().flatten()


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the training and of the validation images, both ascending.

    Holds out a fraction in (0, 1): the nearest whole number of each class, at least one. Each class
    keeps at least one training image, so that a single image is never held out.
    """
    held = _draw(labels, fraction, derive(seed, "hold_out"), left=1)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def labelled_mask(labels: Tensor, share: float, seed: int) -> Tensor:
    """The images whose labels are known, (N,) bool: the nearest whole number of each class.

    A share is in (0, 1] and gives each class at least one. Shares are nested, and independent of
    `take_fraction`.
    """
    return _draw(labels, share, derive(seed, "labelled"))


def _draw(labels: Tensor, fraction: float, seed: int, left: int = 0) -> Tensor:
    """The nearest whole number of each class, halves up, at least 1; but `left` stay out of it."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for order in stratified_order(labels, seed):
        count = max(1, math.floor(fraction * len(order) + 0.5))
        mask[order[: min(count, len(order) - left)]] = True
    return mask
