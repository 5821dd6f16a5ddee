"""The optimiser of a stage, its learning-rate schedule and its state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.cell import Recipe
from bench.method import Gradients, Stage

MOMENTUM = "momentum_buffer"  # torch's name


class SplitMomentum(torch.optim.Optimizer):
    """Stochastic gradient descent with a momentum buffer for each of two losses.

    With g the task gradient plus weight decay and h the transfer gradient,
    v = (m - D) v + g, w = (m + D) w + h, theta = theta - lr (v + w); v = g and w = h at first. A
    parameter that one loss alone reaches has momentum m, and weight decay in that loss's gradient.

    Source:
        Zhao, Cui, Song, Liang: DOT: A Distillation-Oriented Trainer, ICCV 2023.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, object]],
        rate: float,
        momentum: float,
        split: float,
        decay: float,
    ) -> None:
        """`momentum` is m, `split` is D."""
        super().__init__(groups, {"lr": rate})
        self.momentum, self.apart, self.decay = momentum, split, decay
        self.gradients: dict[Tensor, tuple[Tensor | None, Tensor | None]] = {}

    def set_gradients(
        self, parameters: Sequence[Tensor], task: Gradients, transfer: Gradients
    ) -> None:
        """The gradients of the next step, one of each loss for each parameter."""
        self.gradients = dict(zip(parameters, zip(task, transfer, strict=True), strict=True))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; parameters that neither loss reaches stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                task, transfer = self.gradients[parameter]
                apart = 0.0 if task is None or transfer is None else self.apart
                if task is not None:
                    task = task.add(parameter, alpha=self.decay)
                elif transfer is not None:
                    transfer = transfer.add(parameter, alpha=self.decay)
                state = self.state[parameter]
                for name, gradient, momentum in (
                    ("task", task, self.momentum - apart),
                    ("transfer", transfer, self.momentum + apart),
                ):
                    if gradient is None:
                        continue
                    if name in state:
                        gradient = gradient.add(state[name], alpha=momentum)
                    state[name] = gradient
                    parameter.sub_(gradient, alpha=group["lr"])
        self.gradients = {}


def make_optimiser(
    stage: Stage, parts: Mapping[str, list[nn.Parameter]], recipe: Recipe
) -> torch.optim.Optimizer:
    """A new optimiser of the recipe's kind for the parameters that a stage trains.

    A parameter without a gradient is neither moved nor decayed. A group's "factor" multiplies the
    recipe's learning rate. `parts` are those of `parts_of`.
    """
    head_factor = stage.lr_factor if stage.head_lr_factor is None else stage.head_lr_factor
    groups: dict[float, list[nn.Parameter]] = {}
    for part in (part for part in parts if part in stage.trains):
        factor = head_factor if part == "head" else stage.lr_factor
        groups.setdefault(factor, []).extend(parts[part])
    trained = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if stage.momentum_split:
        return SplitMomentum(trained, rate, recipe.momentum, stage.momentum_split, decay)
    shared: dict[str, Any] = {"lr": rate, "weight_decay": decay, "foreach": True}
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(trained, betas=recipe.betas, **shared)
    return torch.optim.SGD(trained, momentum=recipe.momentum, nesterov=recipe.nesterov, **shared)


def learning_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The learning rate in epoch e, from 0, of the E epochs of a stage, by the recipe's schedule.

    multistep: the rate is multiplied by `decay` at each of `milestones`, which are fractions of E.
    cosine: lr (1 + cos(pi e / E)) / 2. constant: lr. In the first W epochs of warm-up the rate is
    lr (1 + 99 e / W) / 100 instead, and a cosine falls over the E - W that follow.
    """
    rate, warmup = recipe.learning_rate, recipe.warmup
    if epoch < warmup:
        return rate * (0.01 + 0.99 * epoch / warmup)
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2
    if recipe.schedule == "multistep":
        # Rounded, and halves to even: 0.3 of 10 epochs is after 3 epochs, 0.5 of 5 after 2.
        passed = [m for m in recipe.milestones if epoch >= round(m * epochs)]
        return rate * recipe.decay ** len(passed)
    return rate


def get_momenta(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter that has one by now, under "<position>.<name>".

    The momentum of stochastic gradient descent is under "<position>" alone.
    """
    states = optimiser.state_dict()["state"].items()
    return {
        f"{position}.{name}".removesuffix(f".{MOMENTUM}"): x
        for position, state in states
        for name, x in state.items()
        if x is not None
    }


def set_momenta(
    optimiser: torch.optim.Optimizer,
    momenta: Mapping[str, Tensor],
    strides: Mapping[str, Sequence[int]],
) -> None:
    """Gives a new optimiser the buffers of `get_momenta`, with the strides that they had.

    Vectorised sums may round differently in another layout.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, saved in momenta.items():
        position, _, name = key.partition(".")
        buffer = torch.empty_strided(saved.shape, strides[key], dtype=saved.dtype)
        state.setdefault(int(position), {})[name or MOMENTUM] = buffer.copy_(saved)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
