"""Parts of a data set: stratified (every class keeps its share) and fixed by a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.seeds import derive


def stratified_order(labels: Tensor, seed: int) -> list[Tensor]:
    """For each class, the positions of its images in a random order.

    Each class has a stream of its own: its order does not depend on the other classes. Prefixes
    of one order are nested, which is what makes `take_fraction` nested.

    Args:
        labels: (N,) class indices.
        seed: of this split.

    Returns:
        One int64 tensor a class, 0 to the highest label; empty for a class without images.

    Raises:
        ValueError: no labels, or labels not (N,).

    Example:
        >>> [sorted(order.tolist()) for order in stratified_order(torch.tensor([1, 0, 1]), 0)]
        [[1], [0, 2]]
    """
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels of shape {tuple(labels.shape)}; wanted (N,) with N above 0")
    labels = labels.cpu()
    orders = []
    for label in range(int(labels.max()) + 1):
        positions = (labels == label).nonzero().flatten()
        generator = torch.Generator().manual_seed(derive(seed, "class", label))
        orders.append(positions[torch.randperm(len(positions), generator=generator)])
    return orders


def take_fraction(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """A fraction of the images: of each class the nearest whole number, at least one.

    Nested: with one seed, the 10 % lie inside the 25 %.

    Args:
        labels: (N,) class indices.
        fraction: in (0, 1]; 1 takes all.
        seed: of this split.

    Returns:
        Positions, ascending, int64.

    Raises:
        ValueError: fraction outside (0, 1].

    Example:
        >>> take_fraction(torch.tensor([0, 1, 0, 1]), 0.5, seed=0).shape
        torch.Size([2])
    """
    _check_share("fraction", fraction)
    orders = stratified_order(labels, derive(seed, "fraction"))
    return torch.cat([order[: _count(len(order), fraction)] for order in orders]).sort().values


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sets a fraction of the training images aside for validation.

    Of each class the nearest whole number, at least one; but at least one stays for training, so
    a class with a single image is not validated.

    Args:
        labels: (N,) class indices.
        fraction: of the images to hold out, in (0, 1).
        seed: of this split.

    Returns:
        Training and validation positions, both ascending, together all.

    Raises:
        ValueError: fraction outside (0, 1).

    Example:
        >>> train, validation = hold_out(torch.tensor([0] * 10 + [1] * 20), 0.1, seed=0)
        >>> len(train), len(validation)
        (27, 3)
    """
    _check_share("fraction", fraction)
    if fraction == 1:
        raise ValueError("fraction 1 holds out every image; wanted one below 1")
    held = torch.zeros(len(labels), dtype=torch.bool)
    for order in stratified_order(labels, derive(seed, "hold_out")):
        held[order[: min(_count(len(order), fraction), len(order) - 1)]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def labelled_mask(labels: Tensor, share: float, seed: int) -> Tensor:
    """Which images keep their label when only a share of them has one. Stratified and nested.

    Drawn apart from `take_fraction`, so that the two may be combined.

    Args:
        labels: (N,) class indices.
        share: in (0, 1]; of each class the nearest whole number, at least one.
        seed: of this split.

    Returns:
        (N,) bool.

    Raises:
        ValueError: share outside (0, 1].

    Example:
        >>> labelled_mask(torch.tensor([0, 1]), 0.1, seed=0)
        tensor([True, True])
    """
    _check_share("share", share)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for order in stratified_order(labels, derive(seed, "labelled")):
        mask[order[: _count(len(order), share)]] = True
    return mask


def class_split(
    classes: Sequence[str], share: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits the classes of one set into a source and a target domain.

    No image of a target class is in the source, so a network trained there has not seen any.

    Args:
        classes: names of all classes.
        share: of the classes that form the source, in (0, 1).
        seed: of this split.

    Returns:
        Source and target classes, each in the order of `classes`, at least two each; fit for
        `DataSet.only`.

    Raises:
        ValueError: share outside (0, 1), or either side left with fewer than two classes.

    Example:
        >>> source, target = class_split(["ant", "bee", "cat", "dog", "eel"], 0.6, seed=0)
        >>> len(source), sorted(source + target)
        (3, ['ant', 'bee', 'cat', 'dog', 'eel'])
    """
    _check_share("share", share)
    count = _count(len(classes), share)
    if not 2 <= count <= len(classes) - 2:
        raise ValueError(
            f"share {share} of {len(classes)} classes leaves {count} for the source and "
            f"{len(classes) - count} for the target; wanted at least 2 each"
        )
    generator = torch.Generator().manual_seed(derive(seed, "class_split"))
    chosen = set(torch.randperm(len(classes), generator=generator)[:count].tolist())
    source = tuple(name for position, name in enumerate(classes) if position in chosen)
    target = tuple(name for position, name in enumerate(classes) if position not in chosen)
    return source, target


def _count(total: int, fraction: float) -> int:
    """The nearest whole number, halves up, at least 1 of a class that has any."""
    return min(total, max(1, math.floor(fraction * total + 0.5)))


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} {value} is not in (0, 1]")
