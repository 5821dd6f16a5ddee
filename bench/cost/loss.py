"""A transfer loss by itself: forward and backward on tensors that are already there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bench.cost.record import Traffic
from bench.method import Pair, Transfer, View


class LossAlone:
    """The transfer losses of a stage with their connector, on fixed taps of both networks."""

    def __init__(self, losses: Sequence[Transfer], pair: Pair, connector: nn.Module) -> None:
        """Cuts the taps off from the networks that made them.

        Args:
            losses: of one stage, at least one.
            pair: what they read; kept alive.
            connector: the method's, in the mode that it has in the stage.
        """
        taps = {
            tap: x.detach().requires_grad_(x.requires_grad) for tap, x in pair.student.taps.items()
        }
        self._losses, self._connector = tuple(losses), connector
        self._pair = pair._replace(student=View(taps))
        weights = [p for p in connector.parameters() if p.requires_grad]
        self._leaves = [x for x in (*taps.values(), *weights) if x.requires_grad]

    def __call__(self) -> None:
        """Forward and backward."""
        self._backward(self._forward())

    def _forward(self) -> Tensor:
        losses = [loss(self._pair, self._connector).mean() for loss in self._losses]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _backward(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(loss, self._leaves, allow_unused=True)

    def traffic(self) -> Traffic:
        """The bytes that have to be moved; see `Traffic` for what counts."""
        taps = (*self._pair.student.taps.values(), *self._pair.teacher.taps.values())
        inputs = (*taps, *self._connector.parameters(), *self._connector.buffers())
        given = {x.untyped_storage().data_ptr() for x in inputs}
        saved: dict[int, Tensor] = {}  # kept alive: a freed storage's place would come again

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self._forward()
        gradients = self._backward(loss)
        return Traffic(
            inputs=_bytes(inputs),
            outputs=_bytes(x for x in gradients if x is not None),
            saved=sum((1 if place in given else 2) * x.untyped_storage().nbytes()
                      for place, x in saved.items()),
        )  # fmt: skip


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
