"""The optimiser of a stage, its learning-rate schedule and its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.cell import Recipe
from bench.method import Stage


def make_optimiser(
    stage: Stage, parts: Mapping[str, list[nn.Parameter]], recipe: Recipe
) -> torch.optim.SGD:
    """A new optimiser for the parameters that a stage trains: stochastic gradient descent.

    A parameter whose gradient is None, not zero, is neither moved nor decayed.

    Args:
        stage: which parts it trains, and the factors on their learning rates. A group's factor is
            in its "factor".
        parts: name of a part -> its parameters; see `parts_of`.
        recipe: learning rate, momentum and weight decay.
    """
    head_factor = stage.lr_factor if stage.head_lr_factor is None else stage.head_lr_factor
    groups: dict[float, list[nn.Parameter]] = {}
    for part in (part for part in parts if part in stage.trains):
        factor = head_factor if part == "head" else stage.lr_factor
        groups.setdefault(factor, []).extend(parts[part])
    return torch.optim.SGD(
        [{"params": parameters, "factor": factor} for factor, parameters in groups.items()],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def learning_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The learning rate of one epoch of a stage.

    Args:
        recipe: with the schedule. multistep: the rate is multiplied by `decay` at each of
            `milestones`, which are fractions of the stage's epochs. cosine:
            lr (1 + cos(pi e / E)) / 2. constant: lr.
        epoch: e, from 0, within the stage.
        epochs: E, epochs of the stage.

    Example:
        >>> recipe = Recipe(epochs=10, batch_size=8, learning_rate=1.0, milestones=(0.5, 0.8))
        >>> [round(learning_rate(recipe, e, 10), 2) for e in (0, 4, 5, 8)]
        [1.0, 1.0, 0.1, 0.01]
    """
    rate = recipe.learning_rate
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if recipe.schedule == "multistep":
        # Rounded, as stages are: 0.3 of 10 epochs is after 3 epochs.
        passed = [m for m in recipe.milestones if epoch >= round(m * epochs)]
        return rate * recipe.decay ** len(passed)
    return rate


class OptimiserState(NamedTuple):
    """What an optimiser keeps of earlier steps, by "<position of the parameter>.<name>".

    Attributes:
        tensors: the momentum buffers.
        strides: the strides of each buffer.
        numbers: everything that is not a tensor.
    """

    tensors: Mapping[str, Tensor]
    strides: Mapping[str, list[int]]
    numbers: Mapping[str, float]


def get_state(optimiser: torch.optim.Optimizer) -> OptimiserState:
    """The state of an optimiser, for `set_state`."""
    tensors, strides, numbers = {}, {}, {}
    for position, parameter in enumerate(_parameters(optimiser)):
        for name, value in optimiser.state[parameter].items():
            key = f"{position}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
                strides[key] = list(value.stride())
            elif value is not None:
                numbers[key] = value
    return OptimiserState(tensors, strides, numbers)


def set_state(
    optimiser: torch.optim.Optimizer, state: OptimiserState, device: torch.device
) -> None:
    """Gives an optimiser of the same parameters the state of another."""
    parameters = _parameters(optimiser)
    for key, stride in state.strides.items():
        position, _, name = key.partition(".")
        saved = state.tensors[key]
        # With its old strides: vectorised sums may round differently in another layout.
        tensor = torch.empty_strided(saved.shape, stride, dtype=saved.dtype, device=device)
        optimiser.state[parameters[int(position)]][name] = tensor.copy_(saved)
    for key, number in state.numbers.items():
        position, _, name = key.partition(".")
        optimiser.state[parameters[int(position)]][name] = number


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]
