"""The end of an epoch: a point for each curve, and the check that losses and weights are finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from bench.method import Stage
from bench.train.objective import weigh
from bench.train.step import NonFiniteError, Sums


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
