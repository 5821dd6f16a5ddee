"""The optimiser, its schedule and its memory: one for every stage, started afresh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.cell import Recipe


def optimiser(
    parameters: Mapping[float, Iterable[nn.Parameter]], recipe: Recipe
) -> torch.optim.SGD:
    """Stochastic gradient descent without momentum history.

    Parameters that receive no gradient in a stage (None, not zero) are not moved, nor decayed.

    Args:
        parameters: factor of the learning rate -> the parameters that it holds for. The factor is
            kept in the group's "factor".
        recipe: momentum and weight decay.
    """
    groups = [{"params": list(ps), "factor": f} for f, ps in parameters.items()]
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def learning_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The learning rate of one epoch of a stage.

    Args:
        recipe: with its schedule. multistep: multiplied by `decay` at each of `milestones`, parts
            of the stage's epochs. cosine: lr (1 + cos(pi e / E)) / 2. constant: lr.
        epoch: 0-based, within the stage.
        epochs: of the stage.

    Example:
        >>> recipe = Recipe(epochs=10, batch_size=8, learning_rate=1.0, milestones=(0.5, 0.8))
        >>> [round(learning_rate(recipe, e, 10), 2) for e in (0, 4, 5, 8)]
        [1.0, 1.0, 0.1, 0.01]
    """
    rate = recipe.learning_rate
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if recipe.schedule == "multistep":
        # The same rounding as for the stages, so that 0.3 of 10 epochs is after 3 of them.
        return rate * recipe.decay ** sum(epoch >= round(m * epochs) for m in recipe.milestones)
    return rate


class Memory(NamedTuple):
    """What an optimiser keeps of earlier steps, by "<position of the parameter>.<name>".

    Attributes:
        tensors: momentum buffers.
        strides: theirs.
        numbers: whatever is no tensor.
    """

    tensors: Mapping[str, Tensor]
    strides: Mapping[str, list[int]]
    numbers: Mapping[str, float]


def memory_of(optimiser: torch.optim.Optimizer) -> Memory:
    """What `remember` needs."""
    tensors, strides, numbers = {}, {}, {}
    for position, parameter in enumerate(_optimised(optimiser)):
        for name, value in optimiser.state[parameter].items():
            key = f"{position}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
                strides[key] = list(value.stride())
            elif value is not None:
                numbers[key] = value
    return Memory(tensors, strides, numbers)


def remember(optimiser: torch.optim.Optimizer, memory: Memory, device: torch.device) -> None:
    """Gives an optimiser of the same parameters the memory of another."""
    parameters = _optimised(optimiser)
    for key, stride in memory.strides.items():
        position, _, name = key.partition(".")
        saved = memory.tensors[key]
        # In the layout it had: vectorised sums over another one may round differently.
        tensor = torch.empty_strided(saved.shape, stride, dtype=saved.dtype, device=device)
        optimiser.state[parameters[int(position)]][name] = tensor.copy_(saved)
    for key, number in memory.numbers.items():
        position, _, name = key.partition(".")
        optimiser.state[parameters[int(position)]][name] = number


def _optimised(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]
