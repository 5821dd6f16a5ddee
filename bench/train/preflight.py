"""Checks that every cell of a grid can be trained on its data, before anything trains."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from bench.cell import Cell, DataSpec
from bench.data.augment import Augment, degrade
from bench.data.batches import steps_of
from bench.data.dataset import DataSet
from bench.faults import CODE_FAULTS, UserError, reason
from bench.hyperparameters import build_method
from bench.method import split_epochs
from bench.models import zoo
from bench.models.network import check_network, tap_shapes
from bench.train.stream import training_positions

Read = Callable[[DataSpec], DataSet]


def check_cells(cells: Sequence[Cell], read: Read) -> None:
    """Refuses the first cell that cannot be trained, with a UserError that names it."""
    pairs = {(cell.source.data, cell.data): cell for cell in cells if cell.source is not None}
    for (source, target), cell in pairs.items():
        if shared := len(_hashes(read(source).train_images) & _hashes(read(target).test_images)):
            raise UserError(
                f"cell {cell}: {shared} test images are among the training images of its source; "
                "choose other classes or another set for source.data"
            )
    built: set[tuple[str, DataSpec]] = set()
    counts: dict[DataSpec, int] = {}
    for cell in cells:
        key = (json.dumps(cell.model), cell.data)
        if cell.data not in counts:
            labels = read(cell.data).train_labels
            counts[cell.data] = len(training_positions(cell.data, labels)[0])
        try:
            steps_of(counts[cell.data], cell.recipe.batch_size, cell.recipe.drop_last)
            method = build_method(cell.method, **cell.hyperparameters)
            epochs = split_epochs(method.plan, cell.recipe.epochs, cell.recipe.budget)
            if cell.trains and cell.recipe.warmup >= min(epochs):
                raise ValueError(
                    f"recipe.warmup {cell.recipe.warmup} takes the whole of a stage of "
                    f"{min(epochs)} epochs; wanted fewer"
                )
            if key not in built:
                built.add(key)
                _try_network(cell, read(cell.data))
        except CODE_FAULTS as error:
            raise UserError(f"cell {cell}: {reason(error)}") from None


def _hashes(images: Tensor) -> set[bytes]:
    return {hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in images}


def _try_network(cell: Cell, data: DataSet) -> None:
    channels, height, width = data.train_images.shape[1:]
    shape, images = (channels, height, width), data.train_images[:1]
    build = partial(zoo.build, cell.model, len(data.classes), shape)  # each from other draws
    if cell.network_code:
        check_network(build, len(data.classes), shape)
    else:
        tap_shapes(build(), shape)
    degrade(images.float(), cell.data.resolution)
    Augment(pad=cell.data.pad, padding=cell.data.padding).pad_images(images)
