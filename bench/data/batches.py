"""Batches of a data set that lies on the training device as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data.augment import Augment, Draws, crop_flip
from bench.seeds import derive


class Batch(NamedTuple):
    """Images, their labels and which images they are.

    Attributes:
        images: (B, C, H, W), normalised.
        labels: (B,) int64.
        index: (B,) int64, positions in the set.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class Batches:
    """A set of images, served as normalised batches.

    Order and augmentation of an epoch come from `derive(seed, "order", epoch)` and
    `derive(seed, "augment", epoch)`: any epoch can be served alone, and everyone with this seed is
    served the same. Nothing inside an epoch waits for the device.

    A last batch shorter than the others is served unless `drop_last`; but one of a single image
    never is, because BatchNorm has no variance of one. (Which image that is changes every epoch.)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: Augment,
        batch_size: int,
        drop_last: bool,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Pads the images once and moves everything to the device.

        Args:
            images: (N, C, H, W) uint8.
            labels: (N,) int64.
            mean: C values, of images scaled to [0, 1].
            std: C values, likewise.
            augment: of training batches; `clean` and `images_at` have none.
            batch_size: B, at least 2.
            drop_last: whether a short last batch is left out.
            seed: master seed of order and augmentation.
            device: where images lie and batches are made.
            channels_last: memory format of the batches.
            dtype: of the batches; normalised in float32 before.

        Raises:
            TypeError: images that are not uint8.
            ValueError: shapes that do not fit together, or no batch to be had.
        """
        _check(images, labels, mean, std)
        if batch_size < 2:
            raise ValueError(f"batch {batch_size} is too small; BatchNorm needs at least 2 images")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.augment, self.device, self.dtype = augment, torch.device(device), dtype
        self.labels = labels.to(self.device)
        # In planes, whatever the source's strides: crops are cut out of rows.
        self._padded = augment.pad_images(images.to(self.device).contiguous())
        self._size = (images.shape[2], images.shape[3])
        inside = [slice(augment.pad, augment.pad + side) for side in self._size]
        self._images = self._padded[:, :, inside[0], inside[1]]
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (mean, std)
        )
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.steps(len(labels))

    def __len__(self) -> int:
        """Batches in an epoch of the whole set."""
        return self.steps(len(self.labels))

    def steps(self, count: int) -> int:
        """Batches in an epoch of `count` images.

        Raises:
            ValueError: none at all.
        """
        if self.drop_last and self.batch_size > count:
            raise ValueError(
                f"batch {self.batch_size} is larger than the {count} training images; "
                "choose a smaller batch, or serve the last short batch (drop_last off)"
            )
        if count < 2:
            raise ValueError(f"{count} training images make no batch; BatchNorm needs at least 2")
        full, rest = divmod(count, self.batch_size)
        return full + (rest > 1 and not self.drop_last)

    def epoch(self, epoch: int, subset: Tensor | None = None) -> Iterator[Batch]:
        """The augmented batches of one epoch, in random order.

        Args:
            epoch: which one; decides order and draws.
            subset: (M,) positions, or (N,) bool, of the only images to serve. An image's crop is
                the same as in the epoch of the whole set.

        Raises:
            ValueError: a subset that makes no batch.
        """
        positions = torch.arange(len(self.labels)) if subset is None else subset.cpu()
        if positions.dtype == torch.bool:
            positions = positions.nonzero().flatten()
        steps = self.steps(len(positions))
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        order = positions[torch.randperm(len(positions), generator=generator)].to(self.device)
        draws = self.augment.draw(len(self.labels), derive(self.seed, "augment", epoch))
        return self._serve(order, draws.to(self.device), steps)

    def _serve(self, order: Tensor, draws: Draws, steps: int) -> Iterator[Batch]:
        for index in order.split(self.batch_size)[:steps]:
            images = crop_flip(self._padded, index, draws, self._size)
            yield Batch(self._normalised(images), self.labels[index], index)

    def clean(self, batch_size: int) -> Iterator[Batch]:
        """All images in order without augmentation; the last batch is as short as it is."""
        for index in torch.arange(len(self.labels), device=self.device).split(batch_size):
            yield Batch(self.images_at(index), self.labels[index], index)

    def images_at(self, index: Tensor) -> Tensor:
        """Images without augmentation, normalised, (B, C, H, W), for positions (B,)."""
        return self._normalised(self._images[index])

    def _normalised(self, images: Tensor) -> Tensor:
        # One pass converts and lays out; in place after that. Two roundings, the same everywhere.
        values = images.to(torch.float32, memory_format=self._format)
        return values.sub_(self._mean).div_(self._std).to(self.dtype)


def _check(images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; wanted uint8, not yet normalised")
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            "wanted (N, C, H, W) and (N,)"
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(
            f"{len(mean)} means and {len(std)} deviations for {images.shape[1]} channels"
        )
