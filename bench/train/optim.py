"""The optimiser of a stage, its learning-rate schedule and its state."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.cell import Recipe
from bench.method import Stage


def make_optimiser(
    stage: Stage, parts: Mapping[str, list[nn.Parameter]], recipe: Recipe
) -> torch.optim.SGD:
    """A new optimiser for the parameters that a stage trains: stochastic gradient descent.

    A parameter without a gradient is neither moved nor decayed. A group's "factor" multiplies the
    recipe's learning rate. `parts` are those of `parts_of`.
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
    """The learning rate in epoch e, from 0, of the E epochs of a stage, by the recipe's schedule.

    multistep: the rate is multiplied by `decay` at each of `milestones`, which are fractions of E.
    cosine: lr (1 + cos(pi e / E)) / 2. constant: lr.
    """
    rate = recipe.learning_rate
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if recipe.schedule == "multistep":
        # Rounded, as stages are: 0.3 of 10 epochs is after 3 epochs.
        passed = [m for m in recipe.milestones if epoch >= round(m * epochs)]
        return rate * recipe.decay ** len(passed)
    return rate


def get_momenta(optimiser: torch.optim.SGD) -> dict[str, Tensor]:
    """The momentum buffers by the parameter's position; a parameter may have none yet."""
    states = optimiser.state_dict()["state"].items()
    buffers = {str(position): state.get("momentum_buffer") for position, state in states}
    return {position: buffer for position, buffer in buffers.items() if buffer is not None}


def set_momenta(
    optimiser: torch.optim.SGD, momenta: Mapping[str, Tensor], strides: Mapping[str, Sequence[int]]
) -> None:
    """Gives a new optimiser the buffers of `get_momenta`, with the strides that they had.

    Vectorised sums may round differently in another layout.
    """
    state = {}
    for position, saved in momenta.items():
        buffer = torch.empty_strided(saved.shape, strides[position], dtype=saved.dtype)
        state[int(position)] = {"momentum_buffer": buffer.copy_(saved)}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
