"""A data set: training and test images as uint8 tensors, in memory or mapped, with labels."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.data.decode import scaled
from bench.faults import UserError

Classes = int | Sequence[str | int]
"""Which classes to keep: the first n, or some by name or position."""

Part = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 and labels (N,) int64
BLOCK_BYTES = 1 << 22


class DataError(UserError):
    """The data is missing, unreadable or unusable; the message is one line and says what to do."""


class MissingDataError(DataError):
    """The data is not on this machine and cannot be downloaded."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """A decoded data set. `DataSet.of` builds it and computes the statistics.

    Images are (N, C, H, W) uint8, labels (N,) int64, positions in `classes`. `mean` and `std`
    (divided by N, not N - 1) are of each channel of the training images, scaled to [0, 1]. `notes`
    say what of a folder was passed over.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, train: Part, test: Part, classes: Sequence[str]) -> Self:
        """The data set of these images, with the statistics of its training part."""
        mean, std = channel_statistics(train[0])
        return cls(name, *train, *test, tuple(classes), mean, std)

    @property
    def train(self) -> Part:
        """The images to train on, with their labels."""
        return self.train_images, self.train_labels

    @property
    def test(self) -> Part:
        """The images to test on, with their labels."""
        return self.test_images, self.test_labels

    def with_notes(self, notes: Sequence[str]) -> Self:
        """The same images with notes."""
        noted = replace(self, notes=tuple(notes))
        vars(noted)["fingerprint"] = self.fingerprint
        return noted

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the decoded images, labels and class names: 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for part in (*self.train, *self.test):
            digest.update(json.dumps([str(part.dtype), *part.shape]).encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """How many classes and images there are, and how many of a class.

        Example:
            >>> images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1])
            >>> DataSet.of("pets", (images, labels), (images, labels), ("cat", "dog")).describe()
            '2 classes, 3 training images (1 to 2 a class), 3 test images (1 to 2 a class)'
        """
        parts = [f"{len(self.classes)} classes"]
        for name, labels in (("training", self.train_labels), ("test", self.test_labels)):
            counts = labels.bincount(minlength=len(self.classes))
            least, most = int(counts.min()), int(counts.max())
            each = f"{least:,} to {most:,}" if least < most else f"{most:,}"
            parts.append(f"{len(labels):,} {name} images ({each} a class)")
        return ", ".join(parts)

    def only(self, classes: Classes) -> Self:
        """The images of some classes, relabelled from 0 in order; see `choose_classes`."""
        kept = choose_classes(self.classes, classes)
        relabel = torch.full((len(self.classes),), -1)
        relabel[kept] = torch.arange(len(kept))

        def part(images: Tensor, labels: Tensor) -> Part:
            labels = relabel[labels]
            return images[labels >= 0], labels[labels >= 0]

        names = [self.classes[position] for position in kept]
        return self.of(self.name, part(*self.train), part(*self.test), names)

    def resized(self, size: int) -> Self:
        """The same images at size x size; see `bench.data.decode.scaled`."""

        def part(images: Tensor, labels: Tensor) -> Part:
            planes = images.flatten(0, 1).numpy()
            out = np.stack([scaled(Image.fromarray(plane), size, size) for plane in planes])
            return torch.from_numpy(out).view(*images.shape[:2], size, size), labels

        return self.of(self.name, part(*self.train), part(*self.test), self.classes)


def blocks(images: Tensor) -> tuple[Tensor, ...]:
    """The images, some megabytes at a time."""
    return images.split(max(1, BLOCK_BYTES // images[0].numel()))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, of values scaled to [0, 1].

    Counting the 256 levels of (N, C, H, W) uint8 images makes both exact to float64 and needs no
    float copy. A constant channel gets the deviation 1.0, so that normalisation maps it to 0.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for block in blocks(images):
        for own, channel in zip(counts, block.unbind(1), strict=True):
            own += torch.bincount(channel.reshape(-1), minlength=256)
    share = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())


def choose_classes(names: Sequence[str], classes: Classes) -> list[int]:
    """Positions in `names` of the classes to keep, in ascending order.

    DataError if one is unknown, out of range or repeated, or there are fewer than two.
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
        if str(chosen) in names and names[chosen] != str(chosen):
            raise DataError(
                f"classes: {chosen} is the name of one class and the position of another, "
                f'{names[chosen]}; write "{chosen}" in quotes for the name'
            )
        return chosen
    if isinstance(chosen, str) and chosen in names:
        return names.index(chosen)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    raise DataError(f"classes: no class {chosen!r} among the {len(names)} classes ({shown})")
