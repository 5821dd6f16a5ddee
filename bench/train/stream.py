"""From a data set to what a cohort trains and is tested on: splits, batches, resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cell import Cell, DataSpec
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.data.dataset import DataSet
from bench.data.resolution import degrade
from bench.data.splits import hold_out, labelled_mask, take_fraction
from bench.train.evaluate import TestSet

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Stream:
    """What the cells of a cohort share.

    Attributes:
        train: the training batches.
        train_images: N, how many images they are made of.
        test: what accuracy is measured on.
        classes: K.
        image_shape: (C, H, W).
        resolution: students see images reduced by this factor and scaled back.
        labelled: (N,) bool, whose labels the task loss may see; None for all.
    """

    train: Batches
    train_images: int
    test: TestSet
    classes: int
    image_shape: tuple[int, int, int]
    resolution: int
    labelled: Tensor | None

    def student_images(self, images: Tensor) -> Tensor:
        """The images as a student sees them."""
        return degrade(images, self.resolution) if self.resolution > 1 else images


def training_positions(spec: DataSpec, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Which training images a cell trains on, and which are held out for its accuracy.

    Args:
        spec: fraction and validation share.
        labels: (M,) of all training images.

    Returns:
        positions (N,), and positions of the held-out images, None if accuracy is the test set's.
    """
    kept, held = torch.arange(len(labels)), None
    if spec.validation:
        kept, held = hold_out(labels, spec.validation, spec.split_seed)
    return kept[take_fraction(labels[kept], spec.fraction, spec.split_seed)], held


def open_stream(
    cell: Cell, data: DataSet, device: torch.device, statistics: DataSet | None = None
) -> Stream:
    """The batches and the test set of a cell and of all that share its stream.

    Args:
        cell: any of them.
        data: its data set, decoded.
        device: where the images are kept.
        statistics: the set whose mean and deviation normalise the images; None for `data`. A
            network that starts from a source's weights expects the source's.

    Raises:
        ValueError: a batch larger than the training set, or impossible fractions.
    """
    spec = cell.data
    part, held = training_positions(spec, data.train_labels)
    images, labels = data.train_images[part], data.train_labels[part]
    test = (data.test_images, data.test_labels) if held is None else (
        data.train_images[held], data.train_labels[held])  # fmt: skip
    mask = labelled_mask(labels, spec.labels, spec.split_seed) if spec.labels < 1 else None
    plain = Augment(pad=0, padding="zeros", flip=False)
    # Channels last: 1.1 to 1.4 times faster steps of the small nets on a CPU core.
    shared = {
        "mean": (statistics or data).mean,
        "std": (statistics or data).std,
        "seed": cell.seed,
        "device": device,
        "channels_last": True,
    }
    testing = Batches(*test, augment=plain, batch_size=EVALUATION_BATCH, drop_last=False, **shared)
    channels, height, width = images.shape[1:]
    return Stream(
        train=Batches(
            images, labels, augment=Augment(pad=spec.pad, padding=spec.padding, flip=spec.flip),
            batch_size=cell.recipe.batch_size, drop_last=cell.recipe.drop_last, **shared,
        ),
        train_images=len(images),
        test=TestSet(lambda: testing.clean(EVALUATION_BATCH), test[1].to(device)),
        classes=len(data.classes),
        image_shape=(channels, height, width),
        resolution=spec.resolution,
        labelled=None if mask is None else mask.to(device),
    )  # fmt: skip
