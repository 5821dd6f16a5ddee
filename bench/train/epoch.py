"""One epoch of a student: running sums, a point for each curve, and a check for finite numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.method import Stage
from bench.train.objective import Losses, weigh


class NonFiniteError(ArithmeticError):
    """A loss or a weight is NaN or infinite; the message names the epoch and stage."""


class Sums:
    """Running sums of one epoch, on the device, so that no step waits for them.

    The mean over the steps of a sum in `watched` is a curve of that name.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts at 0."""
        self.steps = self.samples = 0
        self._zero = torch.zeros((), dtype=torch.float64, device=device)
        self.watched: set[str] = set()
        self._totals: dict[str, Tensor] = {}
        self._fetched: dict[str, float] = {}

    def add_step(self, losses: Losses, targets: Tensor | None = None) -> None:
        """Adds the losses, skipped samples and correct predictions of one step.

        With targets, (B, K), a prediction is as correct as the weight of its class.
        """
        self.steps += 1
        self.samples += len(losses.pair.labels)
        for name, value in {**losses.terms, **losses.counts}.items():
            self.add(name, value)
        if "task" in losses.terms:
            predicted = losses.pair.student.logits.argmax(1)
            right = predicted == losses.pair.labels
            if targets is not None:
                right = targets.gather(1, predicted[:, None])
            self.add("correct", right.sum())

    def watch(self, values: Mapping[str, Tensor]) -> None:
        """Adds what a merge of gradients gave to record in one step."""
        for name, value in values.items():
            self.watched.add(name)
            self.add(f"watched {name}", value)

    def add(self, name: str, value: Tensor) -> None:
        """Adds a number, (), to one of the sums."""
        self._totals[name] = self._totals.get(name, self._zero) + value.detach()
        self._fetched = {}

    def total(self, name: str) -> float:
        """One of the sums, or 0. All are fetched from the device at once."""
        if self._totals and not self._fetched:
            values = torch.stack([*self._totals.values()]).tolist()
            self._fetched = dict(zip(self._totals, values, strict=True))
        return self._fetched.get(name, 0.0)

    @property
    def taught(self) -> float:
        """Samples whose transfer loss counts: all but those that the stage did not select."""
        return self.samples - self.total("untaught")

    def mean(self, name: str) -> float:
        """One of the sums divided by the number of steps."""
        return self.total(name) / max(self.steps, 1)


def points(
    sums: Sums, plan: Sequence[Stage], stage: Stage, progress: float, rate: float
) -> dict[str, float | None]:
    """A point of each curve except the test accuracy; None where the stage has no such number.

    A curve that one stage of the plan has gets a point in all of them. `rate` is the learning rate.
    """
    task = sums.mean("task") if stage.task_weight > 0 else None
    joint = sums.mean("joint") if stage.joint is not None else None
    transfer = sums.mean("transfer") if stage.transfer is not None else None
    correct = sums.total("correct") / max(sums.samples, 1)
    found = {
        "task_loss": task,
        "transfer_loss": transfer,
        "train_loss": sum(weigh(stage, progress, task, joint, transfer)),
        "learning_rate": rate,
        "train_accuracy": correct if task is not None else None,
    }
    if any(one.joint is not None for one in plan):
        found["joint_loss"] = joint
        found["joint_skipped_samples"] = None if joint is None else sums.total("joint_skipped")
    if any(one.clip_norm is not None for one in plan):
        found["clipped_steps"] = None if stage.clip_norm is None else sums.total("clipped")
    skipped, masked = sums.total("skipped"), sums.total("masked")
    reach = {
        "reached_samples": sums.taught - skipped - masked,
        "skipped_samples": skipped,
        "masked_samples": masked,
    }
    return found | (reach if transfer is not None else dict.fromkeys(reach))


def check_finite(sums: Sums, stage: Stage, weights: Iterable[Tensor], epoch: int) -> None:
    """Refuses an epoch, counted from 1, that ended with numbers from which there is no recovery.

    NonFiniteError if the task loss, the transfer loss of every sample or a weight is not finite.
    """
    where = f"in epoch {epoch} (stage {stage.name!r})"
    cure = f"lower the learning rate{', or mend the transfer loss' if stage.needs_teacher else ''}"
    task = sums.mean("task")
    if not math.isfinite(task):
        raise NonFiniteError(f"the task loss is {task} {where}: {cure}")
    skipped = max(sums.total("skipped"), sums.total("joint_skipped"))
    if stage.needs_teacher and skipped >= max(sums.taught, 1):
        raise NonFiniteError(f"the transfer loss of every sample is not finite {where}")
    total = nn.utils.get_total_norm([p.detach() for p in weights], foreach=True)
    if not total.isfinite():
        raise NonFiniteError(f"a weight is not finite {where}: {cure}")
