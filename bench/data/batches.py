"""Batches of a data set: kept on a GPU that has room for it, else read as they are needed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data.augment import Augment, crop_flip
from bench.seeds import derive


class Batch(NamedTuple):
    """Normalised images (B, C, H, W), and their labels and positions in the set, (B,) each."""

    images: Tensor
    labels: Tensor
    index: Tensor


DEVICE_SHARE = 0.3
"""Part of a GPU's free memory that images may take; what trains on them needs the rest."""
BLOCK = 1024  # images that are sent to a GPU at once, where all of them are to stay


def resident_bytes(size: int, device: torch.device) -> int:
    """Bytes that images of this size take of a GPU for as long as they are used; 0 if none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return size if size <= DEVICE_SHARE * free else 0


def steps_of(count: int, batch_size: int, drop_last: bool) -> int:
    """Number of batches in an epoch of `count` images; ValueError if there is none."""
    if drop_last and batch_size > count:
        raise ValueError(
            f"batch {batch_size} is larger than the {count} training images; choose a smaller "
            "recipe.batch_size, or recipe.drop_last=false"
        )
    if count < 2:
        raise ValueError(f"{count} training images make no batch; BatchNorm needs at least 2")
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 and not drop_last)


class Batches:
    """A set of images that is served as normalised batches in the channels-last memory format.

    Order and augmentation follow from the seed and the epoch. Nothing within an epoch waits for the
    device, but torchvision's `randaugment`, for every image. On the CPU images stay where they are,
    in a mapped file as a rule; a GPU holds them all if `DEVICE_SHARE` of its free memory suffices,
    else it is sent one batch after another.

    A short last batch is served unless `drop_last` is set. A last batch of one image is never
    served, because BatchNorm needs two; which image is left out changes every epoch.
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
        part: Tensor | None = None,
    ) -> None:
        """Serves the images at the positions `part`, (N,), or all of them.

        `images` are (M, C, H, W) uint8, `labels` (M,) int64, `mean` and `std` C numbers each, of
        images scaled to [0, 1]. `augment` is for `epoch`; `clean` has none. `seed` is the master
        seed of order and augmentation. ValueError if the images are too small for `augment`.
        """
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.augment, self.device = augment, torch.device(device)
        self.dtype = torch.float32  # of the images in batches
        self._part = torch.arange(len(labels)) if part is None else part
        self.labels = labels[self._part].to(self.device)
        self._images = images.contiguous()  # crops are cut out of rows
        self.size = (images.shape[2], images.shape[3])
        self._is_there = bool(resident_bytes(len(self._part) * images[0].numel(), self.device))
        if self._is_there:
            shape = len(self._part), *images.shape[1:]
            self._images = torch.empty(shape, dtype=torch.uint8, device=self.device)
            for to, block in zip(self._images.split(BLOCK), self._part.split(BLOCK), strict=True):
                to.copy_(images[block])
            self._part = torch.arange(len(self._part))
        augment.pad_images(images[:1])
        self._mean, self._std = (
            255 * torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (mean, std)
        )

    def __len__(self) -> int:
        """Number of batches in an epoch of the whole set."""
        return self.steps(len(self.labels))

    def steps(self, count: int) -> int:
        """See `steps_of`."""
        return steps_of(count, self.batch_size, self.drop_last)

    def epoch(self, epoch: int, subset: Tensor | None = None) -> Iterator[Batch]:
        """The augmented batches of one epoch, in random order.

        A subset, (M,) positions, serves some of the images, with the crops that they have in the
        epoch of the whole set; ValueError if it is too small for a batch.
        """
        positions = torch.arange(len(self.labels)) if subset is None else subset.cpu()
        steps = self.steps(len(positions))
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        order = positions[torch.randperm(len(positions), generator=generator)]
        seed = derive(self.seed, "augment", epoch)
        draws = self.augment.draw(len(self.labels), seed)[:, order].to(self.device)
        for batch, images, index in self._take(order[: steps * self.batch_size], self.batch_size):
            padded = self.augment.pad_images(images)
            images = crop_flip(padded, draws[:, batch], self.size)
            images = self.augment.distort(images, order[batch], seed)
            yield Batch(self._normalised(images), self.labels[index], index)

    def clean(self, batch_size: int) -> Iterator[Batch]:
        """All images in order and without augmentation, a short last batch included."""
        for _, images, index in self._take(torch.arange(len(self.labels)), batch_size):
            yield Batch(self._normalised(images), self.labels[index], index)

    def _take(self, order: Tensor, batch_size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Each batch: its place in the order, and on the device its images and positions."""
        there = order.to(self.device)
        for first in range(0, len(order), batch_size):
            batch = slice(first, first + batch_size)
            if self._is_there:
                images = self._images[there[batch]]
            else:
                images = self._images[self._part[order[batch]]]
                if self.device.type != "cpu":
                    images = images.pin_memory().to(self.device, non_blocking=True)
            yield batch, images, there[batch]

    def _normalised(self, images: Tensor) -> Tensor:
        # One pass converts the type and the layout; the rest is in place. Channels last makes
        # steps of small networks 1.1 to 1.4 times as fast on a CPU core.
        values = images.to(torch.float32, memory_format=torch.channels_last)
        return values.sub_(self._mean).div_(self._std).to(self.dtype)
