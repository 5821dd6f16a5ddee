"""Entering a stage: which parts of a student it trains, by which optimiser, on which images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.cell import Recipe
from bench.method import Stage
from bench.models.network import Network
from bench.train.optim import optimiser


class Images(NamedTuple):
    """Which training images a stage sees.

    Attributes:
        subset: positions of those that an epoch goes through; None for all.
        taught: (N,) bool, for whom the transfer loss counts; None for all.
    """

    subset: Tensor | None
    taught: Tensor | None


def images_of(
    stage: Stage, kept: Tensor | None, labelled: Tensor | None, train_images: int
) -> Images:
    """The images of a stage's epochs.

    Args:
        stage: at hand.
        kept: (N,) bool, what its `keep` chose; None if it chooses nothing.
        labelled: (N,) bool, whose labels the task loss may see; None for all.
        train_images: N.

    Raises:
        ValueError: nothing was kept.
    """
    subset = taught = None
    if kept is not None:
        if not kept.any():
            raise ValueError(f"stage {stage.name!r}: no training image was kept")
        if stage.task_on_all:
            taught = kept
        else:
            subset = kept.nonzero().flatten()
    if not stage.needs_teacher and labelled is not None:
        # As many steps as with all images: the labelled ones come round more often.
        known = labelled.nonzero().flatten()
        subset = known.repeat(-(-train_images // len(known)))[:train_images]
    return Images(subset, taught)


def parts_of(network: Network, connector: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters, under the names by which `Stage.trains` calls them."""
    head = list(network.head_parameters())
    own = {id(parameter) for parameter in head}
    trunk = [p for p in network.parameters() if id(p) not in own]
    return {"trunk": trunk, "head": head, "connector": list(connector.parameters())}


def freeze(stage: Stage, network: Network, connector: nn.Module) -> None:
    """Lets those parts move that the stage trains, and holds the others."""
    for part, parameters in parts_of(network, connector).items():
        for parameter in parameters:
            parameter.requires_grad_(part in stage.trains)
    # Evaluation mode freezes the running statistics of BatchNorm too.
    network.train("trunk" in stage.trains)
    network.head.train("head" in stage.trains)
    connector.train("connector" in stage.trains)


def optimiser_of(
    stage: Stage, parts: Mapping[str, list[nn.Parameter]], recipe: Recipe
) -> torch.optim.SGD:
    """A fresh optimiser of what the stage trains."""
    head_factor = stage.lr_factor if stage.head_lr_factor is None else stage.head_lr_factor
    groups: dict[float, list[nn.Parameter]] = {}
    for part in (part for part in parts if part in stage.trains):
        factor = head_factor if part == "head" else stage.lr_factor
        groups.setdefault(factor, []).extend(parts[part])
    return optimiser(groups, recipe)
