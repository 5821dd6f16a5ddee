"""A data set in memory: training and test images as uint8 tensors, with labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.faults import UserError

Classes = int | Sequence[str | int]
"""Which classes to keep: the first n, or some by name or position."""

Part = tuple[Tensor, Tensor]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""


class DataError(UserError):
    """The data is missing, unreadable or unusable; the message is one line and says what to do."""


class MissingDataError(DataError):
    """The data is not on this machine and cannot be downloaded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """A decoded data set. `DataSet.of` builds it and computes the statistics.

    Images are (N, C, H, W) uint8, labels (N,) int64, positions in `classes`. `mean` and `std`
    (divided by N, not N - 1) are of each channel of the training images, scaled to [0, 1].
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, name: str, train: Part, test: Part, classes: Sequence[str]) -> DataSet:
        """The data set of these images, with the statistics of its training part."""
        mean, std = channel_statistics(train[0])
        images = {"train_images": train[0], "test_images": test[0]}
        labels = {"train_labels": train[1], "test_labels": test[1]}
        return cls(name=name, classes=tuple(classes), mean=mean, std=std, **images, **labels)

    def only(self, classes: Classes) -> DataSet:
        """The images of some classes, relabelled from 0 in order; see `choose_classes`."""
        kept = choose_classes(self.classes, classes)
        relabel = torch.full((len(self.classes),), -1)
        relabel[kept] = torch.arange(len(kept))

        def part(images: Tensor, labels: Tensor) -> Part:
            labels = relabel[labels]
            return images[labels >= 0], labels[labels >= 0]

        train = part(self.train_images, self.train_labels)
        test = part(self.test_images, self.test_labels)
        return DataSet.of(self.name, train, test, [self.classes[position] for position in kept])

    def resized(self, size: int) -> DataSet:
        """The same images at size x size; see `resize`."""
        train = _resized(self.train_images, size), self.train_labels
        test = _resized(self.test_images, size), self.test_labels
        return DataSet.of(self.name, train, test, self.classes)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, of values scaled to [0, 1].

    Counting the 256 levels of (N, C, H, W) uint8 images makes both exact to float64 and needs no
    float copy. A constant channel gets the deviation 1.0, so that normalisation maps it to 0.

    Example:
        >>> half = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> channel_statistics(half)
        ((0.5,), (0.5,))
    """
    counts = torch.stack([torch.bincount(c.reshape(-1), minlength=256) for c in images.unbind(1)])
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())


def choose_classes(names: Sequence[str], classes: Classes) -> list[int]:
    """Positions in `names` of the classes to keep, in ascending order.

    Raises:
        DataError: a name is unknown, a position or count is out of range, a class is repeated, or
            there are fewer than two.

    Example:
        >>> choose_classes(("ant", "bee", "cat"), ["cat", 0]), choose_classes(("ant", "bee"), 2)
        ([0, 2], [0, 1])
    """
    if isinstance(classes, int):
        if not 2 <= classes <= len(names):
            raise DataError(f"classes: {classes} asked for, wanted 2 to {len(names)} of them")
        return list(range(classes))
    if isinstance(classes, str):
        raise DataError(f"classes: {classes!r} is one name; wanted a list of names or a count")
    kept = {_position(names, chosen) for chosen in classes}
    if len(kept) < 2 or len(kept) != len(classes):
        raise DataError(f"classes: {list(classes)} asked for, wanted at least two different ones")
    return sorted(kept)


def _position(names: Sequence[str], chosen: str | int) -> int:
    if isinstance(chosen, int) and 0 <= chosen < len(names):
        return chosen
    if isinstance(chosen, str) and chosen in names:
        return names.index(chosen)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(f"classes: no class {chosen!r} among the {len(names)} classes ({shown})")


def resize(plane: Image.Image, size: int) -> np.ndarray:
    """One grey plane at size x size, uint8: area average along an axis that shrinks, else bilinear.

    The aspect ratio is not kept. Bilinear interpolation alone would alias when an image shrinks.

    Example:
        >>> resize(Image.fromarray(np.array([[0, 4], [8, 5]], dtype=np.uint8)), 1)
        array([[4]], dtype=uint8)
    """
    width, height = plane.size
    # In float, so that values are rounded only once.
    smaller = plane.convert("F").resize((min(width, size), min(height, size)), Image.Resampling.BOX)
    exact = np.asarray(smaller.resize((size, size), Image.Resampling.BILINEAR))
    return np.rint(exact).astype(np.uint8)


def _resized(images: Tensor, size: int) -> Tensor:
    planes = images.flatten(0, 1).numpy()
    out = np.stack([resize(Image.fromarray(plane), size) for plane in planes])
    return torch.from_numpy(out).view(*images.shape[:2], size, size)


def fingerprint(data: DataSet) -> str:
    """Hash of the decoded images, labels and class names: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for part in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(json.dumps([str(part.dtype), *part.shape]).encode())
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()[:16]
