"""One epoch of a student: running sums, a point for each curve, and a check for finite numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.method import Stage
from bench.train.objective import Losses, weigh


class NonFiniteError(ArithmeticError):
    """A loss or a weight is NaN or infinite; the message names the epoch and stage."""


@dataclass
class Sums:
    """Running sums of one epoch, on the device, so that no step waits for them.

    Attributes:
        task: sum of the task losses.
        joint: sum of the joint losses.
        transfer: sum of the transfer losses.
        correct: samples whose predicted class is the label.
        skipped: samples whose transfer loss was not finite.
        joint_skipped: samples whose joint loss was not finite.
        clipped: steps whose gradient was clipped.
        steps: training steps.
        seen: samples.
    """

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
        """Adds the losses of one step."""
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
        """One of the sums divided by the number of steps."""
        return total.item() / max(self.steps, 1)


def points(
    sums: Sums, plan: Sequence[Stage], stage: Stage, progress: float, rate: float
) -> dict[str, float | None]:
    """A point of each curve except the test accuracy; None where the stage has no such number.

    Args:
        sums: the epoch's sums.
        plan: the method's stages; a curve that one of them has gets a point in all of them.
        stage: the epoch's stage.
        progress: position in the stage's epochs: 0.0 in the first, 1.0 in the last.
        rate: the learning rate.
    """
    task = sums.mean(sums.task) if stage.task_weight > 0 else None
    joint = sums.mean(sums.joint) if stage.joint is not None else None
    transfer = sums.mean(sums.transfer) if stage.transfer is not None else None
    total = sum(weigh(stage, progress, task=task, joint=joint, transfer=transfer))
    found = {"task_loss": task, "transfer_loss": transfer, "train_loss": total}
    if any(one.joint is not None for one in plan):
        found["joint_loss"] = joint
    if any(one.clip_norm is not None for one in plan):
        found["clipped_steps"] = sums.clipped.item() if stage.clip_norm is not None else None
    correct = sums.correct.item() / max(sums.seen, 1)
    return {
        **found,
        "learning_rate": rate,
        "train_accuracy": correct if task is not None else None,
        "skipped_samples": sums.skipped.item() if transfer is not None else None,
    }


def check_finite(sums: Sums, stage: Stage, weights: Iterable[Tensor], epoch: int) -> None:
    """Refuses an epoch that ended with numbers from which training cannot recover.

    Args:
        sums: the epoch's sums.
        stage: the epoch's stage.
        weights: the student's and its connector's parameters.
        epoch: number of the epoch, from 1, for the message.

    Raises:
        NonFiniteError: the task loss, the transfer loss of every sample or a weight is not finite.
    """
    where = f"in epoch {epoch} (stage {stage.name!r})"
    task = sums.mean(sums.task) if stage.task_weight > 0 else None
    if task is not None and not torch.isfinite(torch.tensor(task)):
        raise NonFiniteError(f"the task loss is {task} {where}: lower the learning rate")
    skipped = max(sums.skipped.item(), sums.joint_skipped.item())
    if stage.needs_teacher and skipped >= sums.seen:
        raise NonFiniteError(f"the transfer loss of every sample is not finite {where}")
    total = nn.utils.get_total_norm([p.detach() for p in weights], foreach=True)
    if not total.isfinite():
        raise NonFiniteError(f"a weight is not finite {where}: lower the learning rate")
