"""Whether networks of one architecture take their steps faster as one; measured before a run."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.cell import Cell
from bench.cost.profiler import Clock
from bench.cost.record import Quartiles
from bench.models.network import Network
from bench.models.stacked import NotStackable, Stack
from bench.train.device import autocast, to_device

WORTH = 1.15
"""So many times faster a stack must be measured to be used: numbers change for it, by rounding."""

ROUNDS, LEAST_ROUNDS, BUDGET_SECONDS = 7, 3, 3.0


@dataclass(frozen=True)
class Comparison:
    """What one step of several students costs, in both forms.

    Attributes:
        count: students.
        apart_ms: one step of all of them, one after another; a round each, interleaved.
        stacked_ms: likewise, as one.
        exact: whether a student's bits were the same with and without its neighbours.
    """

    count: int
    apart_ms: Quartiles
    stacked_ms: Quartiles
    exact: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Comparison:
        """The comparison that `dataclasses.asdict` took apart.

        Raises:
            KeyError: other fields than those of this version.
            TypeError: likewise.
        """
        apart, stacked = Quartiles(*values["apart_ms"]), Quartiles(*values["stacked_ms"])
        return cls(values["count"], apart, stacked, values["exact"])

    @property
    def ratio(self) -> float:
        """How many times faster the stack is, by medians."""
        return self.apart_ms.median / self.stacked_ms.median

    @property
    def stack(self) -> bool:
        """Whether to stack."""
        return self.exact and self.ratio >= WORTH


def compare_forms(
    networks: Sequence[Network], images: Tensor, labels: Tensor, cell: Cell
) -> Comparison | None:
    """Times forward and backward passes of plain students, apart and stacked.

    Args:
        networks: freshly made, at least two, of different weights. Their state is spent.
        images: (B, C, H, W) on the device.
        labels: (B,).
        cell: any of theirs, for the precision.

    Returns:
        what was measured; None if they cannot be stacked.
    """
    device = images.device
    own = [to_device(copy.deepcopy(network), device).train() for network in networks]
    try:
        stack = Stack([to_device(network, device).train() for network in networks])
    except NotStackable:
        return None

    def apart() -> None:
        for network in own:
            plain_pass(network, images, labels, cell)

    def stacked() -> None:
        _pass(stack, images, labels, cell)

    clock, times = Clock(device), ([], [])
    began = time.perf_counter()
    for number in range(ROUNDS + 1):
        for action, found in zip((apart, stacked), times, strict=True):
            found.append(clock.time(action))
        if number >= LEAST_ROUNDS and time.perf_counter() - began > BUDGET_SECONDS:
            break
    one, other = (Quartiles.of(found[1:]) for found in times)  # the first ones warmed up
    return Comparison(len(own), one, other, _is_exact(own, images, labels, cell))


def plain_pass(network: Network, images: Tensor, labels: Tensor, cell: Cell) -> None:
    """Forward and backward pass of one plain student; leaves no gradient behind."""
    with autocast(cell, images.device):
        logits = network(images)
    cross_entropy(logits.float(), labels).backward()
    network.zero_grad()


def _pass(stack: Stack, images: Tensor, labels: Tensor, cell: Cell) -> None:
    with autocast(cell, images.device):
        views = stack.views(images, ("logits",))
    torch.stack([cross_entropy(v["logits"].float(), labels) for v in views]).sum().backward()
    stack.hand_out_gradients()


def _is_exact(networks: Sequence[Network], images: Tensor, labels: Tensor, cell: Cell) -> bool:
    """Whether a student's gradients are the same bits with neighbours as without; on the CPU only.

    CUDA promises no such thing, nor does the harness there.
    """
    if images.device.type != "cpu":
        return True

    def gradients(chosen: Sequence[Network]) -> list[Tensor]:
        """Of the last one."""
        copies = [copy.deepcopy(network) for network in chosen]
        _pass(Stack(copies), images, labels, cell)
        return [p.grad for p in copies[-1].parameters() if p.grad is not None]

    beside, alone = gradients(networks), gradients(networks[-1:])
    return all(torch.equal(a, b) for a, b in zip(beside, alone, strict=True))
