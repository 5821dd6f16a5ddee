"""What one step of a student takes and gives: a batch, losses, running sums, faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.method import Pair, View


class NonFiniteError(ArithmeticError):
    """A loss or a weight is NaN or infinite; the message names where it was first seen."""


@dataclass
class Sums:
    """Running sums of one epoch, on the device: nothing waits for them before the epoch ends."""

    task: Tensor
    joint: Tensor
    transfer: Tensor
    correct: Tensor
    skipped: Tensor
    joint_skipped: Tensor
    clipped: Tensor
    steps: int = 0
    seen: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        """All zero."""
        task, joint, transfer, correct, skipped, joint_skipped, clipped = torch.zeros(
            7, dtype=torch.float64, device=device
        )
        return cls(task, joint, transfer, correct, skipped, joint_skipped, clipped)

    def add(self, losses: Losses) -> None:
        """One more step."""
        self.steps += 1
        self.seen += len(losses.pair.labels)
        if losses.task is not None:
            self.task += losses.task.detach()
            logits = losses.pair.student.logits.detach()
            self.correct += (logits.argmax(1) == losses.pair.labels).sum()
        if losses.joint is not None:
            self.joint += losses.joint.detach()
        if losses.transfer is not None:
            self.transfer += losses.transfer.detach()
        if losses.joint_skipped is not None:
            self.joint_skipped += losses.joint_skipped
        if losses.skipped is not None:
            self.skipped += losses.skipped

    def mean(self, total: Tensor) -> float:
        """Per step, of one of the sums."""
        return total.item() / max(self.steps, 1)


class Seen(NamedTuple):
    """One batch as a student's step gets it.

    Attributes:
        images: (B, C, H, W) as the student sees them.
        labels: (B,).
        index: (B,) positions in the training set.
        teacher: the teacher's view of the batch; None if no stage at hand reads one.
        last: whether it is the epoch's last batch, on which a stage's `watch` runs.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teacher: View | None
    last: bool


class Losses(NamedTuple):
    """What one step of one student computed; a part that the stage does not have is None.

    Attributes:
        pair: what both networks show.
        taught: the same as methods see it, some labels hidden.
        task: ().
        joint: ().
        transfer: ().
        joint_skipped: (), samples whose loss was not finite.
        skipped: likewise, of `transfer`.
    """

    pair: Pair
    taught: Pair
    task: Tensor | None
    joint: Tensor | None
    transfer: Tensor | None
    joint_skipped: Tensor | None
    skipped: Tensor | None


def skippable(pair: Pair) -> tuple[Pair, Callable[[Tensor], None]]:
    """The pair for a transfer loss, whose gradient can be cut off sample by sample.

    A loss that is not finite has a gradient that is not finite either, and setting the loss to 0
    leaves 0 times infinity behind it. So the gradient is cut where it reaches the student.

    Returns:
        the pair with its student's taps replaced, and a function that takes (B,) or () bool, true
        for the samples whose gradient may pass.
    """
    passes: list[Tensor] = []

    def cut(gradient: Tensor) -> Tensor:
        mask = passes[0].reshape(-1, *[1] * (gradient.dim() - 1))
        return torch.where(mask, gradient, 0.0)

    taps = {tap: x.view_as(x) for tap, x in pair.student.taps.items()}
    for x in taps.values():
        if x.requires_grad:
            x.register_hook(cut)
    return pair._replace(student=View(taps)), passes.append
