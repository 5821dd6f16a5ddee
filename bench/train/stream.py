"""From a data set to the batches of a cohort and its test set, and the accuracy on that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.cell import Cell, DataSpec
from bench.data.augment import Augment, degrade, mix
from bench.data.batches import Batch, Batches, steps_of
from bench.data.dataset import DataSet
from bench.data.splits import hold_out, labelled_mask, take_fraction
from bench.method import View
from bench.models.network import Network, modes_restored
from bench.seeds import derive

EVALUATION_BATCH, EVALUATION_PIXELS = 500, 500 * 32 * 32


@dataclass(frozen=True)
class Stream:
    """The data that the cells of a cohort share.

    Attributes:
        test: the images on which accuracy is measured, without augmentation.
        image_shape: (C, H, W).
        resolution: factor by which students' images are reduced before they are scaled back.
        labelled: (N,) bool, the images whose labels the task loss may see; None for all.
        mean, std: that images are normalised by, per channel.
        mixing: alphas of mixup and cutmix.
    """

    train: Batches
    test: Batches
    classes: int
    image_shape: tuple[int, int, int]
    resolution: int
    labelled: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mixing: tuple[float, float] = (0.0, 0.0)

    @property
    def known_labels(self) -> Tensor:
        """A copy of the (N,) labels of the training images, -1 where they are hidden."""
        labels = self.train.labels
        return labels.clone() if self.labelled is None else labels.where(self.labelled, -1)

    def mixed(self, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor | None]:
        """The images of a step and, if they are mixed of two each, their labels' weights (B, K).

        A hidden label has no weight.
        """
        if not any(self.mixing):
            return batch.images, None
        targets = one_hot(batch.labels, self.classes).to(batch.images.dtype)
        if self.labelled is not None:
            targets = targets * self.labelled[batch.index, None]
        seed = derive(self.train.seed, "mix", epoch, step)
        return mix(batch.images, targets, *self.mixing, seed)

    def student_images(self, images: Tensor) -> Tensor:
        """The images as students see them."""
        return degrade(images, self.resolution)


class StudentBatch(NamedTuple):
    """One batch as a student trains on it.

    Attributes:
        index: (B,) positions in the training set.
        last: whether it is the epoch's last batch, on which a stage's `watch` runs.
        targets: (B, K), weights of the classes of mixed images; None for whole images.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teacher: View | None
    last: bool
    targets: Tensor | None = None


def training_positions(spec: DataSpec, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of all training images (M,), those to train on, and those held out to measure accuracy on."""
    kept, held = torch.arange(len(labels)), None
    if spec.validation:
        seed = spec.split_seed if spec.validation_seed is None else spec.validation_seed
        kept, held = hold_out(labels, spec.validation, seed)
    return kept[take_fraction(labels[kept], spec.fraction, spec.split_seed)], held


def open_stream(
    cell: Cell, data: DataSet, device: torch.device, statistics: DataSet | None = None
) -> Stream:
    """The stream of a cohort, by any of its cells, with the images on `device`.

    `statistics` is the set with the mean and deviation for normalisation, `data` by default: a
    network that starts from a source's weights expects the source's. ValueError if a batch is
    larger than the training set, or a fraction is impossible.
    """
    spec = cell.data
    part, held = training_positions(spec, data.train_labels)
    steps_of(len(part), cell.recipe.batch_size, cell.recipe.drop_last)
    labels = data.train_labels[part]
    mask = labelled_mask(labels, spec.labels, spec.split_seed) if spec.labels < 1 else None
    mean, std = (statistics or data).mean, (statistics or data).std
    shared = {"mean": mean, "std": std, "seed": cell.seed, "device": device}
    channels, height, width = data.train_images.shape[1:]
    return Stream(
        train=Batches(
            *data.train,
            part=part,
            augment=Augment(spec.pad, spec.padding, spec.flip, spec.crop, spec.randaugment),
            batch_size=cell.recipe.batch_size,
            drop_last=cell.recipe.drop_last,
            **shared,
        ),
        test=Batches(
            *(data.test if held is None else data.train),
            part=held,
            augment=Augment(pad=0, flip=False),
            batch_size=evaluation_batch((height, width)),
            drop_last=False,
            **shared,
        ),
        classes=len(data.classes),
        image_shape=(channels, height, width),
        resolution=spec.resolution,
        labelled=None if mask is None else mask.to(device),
        mean=mean,
        std=std,
        mixing=(cell.recipe.mixup, cell.recipe.cutmix),
    )


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
