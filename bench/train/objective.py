"""The losses of one batch in one stage: task loss and transfer losses, reduced and weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.method import Pair, Stage, Transfer, View

Loss = TypeVar("Loss", float, Tensor)


class Losses(NamedTuple):
    """The losses of one batch, () each; None for a loss that the stage does not have.

    Attributes:
        pair: both networks' views of the batch.
        taught: the pair as methods see it, with labels hidden.
        task: the task loss.
        joint: the transfer loss that is added to the task loss.
        transfer: the transfer loss.
        joint_skipped: samples whose joint loss is not finite.
        skipped: samples whose transfer loss is not finite.
    """

    pair: Pair
    taught: Pair
    task: Tensor | None
    joint: Tensor | None
    transfer: Tensor | None
    joint_skipped: Tensor | None
    skipped: Tensor | None


@dataclass(frozen=True, eq=False)
class Objective:
    """The losses of one stage.

    Attributes:
        stage: the stage.
        method: name of the stage's method, for messages.
        connector: the method's own trained modules.
        labelled: (N,) bool, the images whose labels the task loss may see; None for all.
        taught: (N,) bool, the images whose transfer loss counts; None for all.
        label_smoothing: weight of the uniform distribution in the targets of the task loss.
    """

    stage: Stage
    method: str
    connector: nn.Module
    labelled: Tensor | None
    taught: Tensor | None
    label_smoothing: float = 0.0

    def losses(self, pair: Pair) -> Losses:
        """Every loss of the stage, for one batch."""
        stage = self.stage
        task = self.task(pair) if stage.task_weight > 0 else None
        taught = self.hide_labels(pair)
        joint = joint_skipped = transfer = skipped = None
        if stage.joint is not None:
            joint, joint_skipped = self.reduce(stage.joint, taught)
        if stage.transfer is not None:
            transfer, skipped = self.reduce(stage.transfer, taught)
        return Losses(pair, taught, task, joint, transfer, joint_skipped, skipped)

    def task(self, pair: Pair) -> Tensor:
        """Mean cross-entropy with the labels that the task loss may see, ()."""
        logits, labels = pair.student.logits, pair.labels
        smoothing = self.label_smoothing
        if self.labelled is None:
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        seen = self.labelled[pair.index].to(logits.dtype)
        each = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (each * seen).sum() / seen.sum().clamp(min=1)

    def hide_labels(self, pair: Pair) -> Pair:
        """The pair as methods see it: hidden labels are -1."""
        if self.labelled is None:
            return pair
        return pair._replace(labels=pair.labels.where(self.labelled[pair.index], -1))

    def reduce(self, transfer: Transfer, pair: Pair) -> tuple[Tensor, Tensor]:
        """A transfer loss of one batch, and the number of samples whose loss is not finite.

        Returns:
            The mean over the samples that are taught, (), in which a loss that is not finite
            counts as 0; and how many samples had such a loss, ().

        Raises:
            TypeError: the loss is not a tensor.
            ValueError: the loss is neither (B,) nor ().
        """
        pair, pass_gradient = _with_cut_gradient(pair)
        loss = transfer(pair, self.connector)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"{self.method}, stage {self.stage.name!r}: the transfer loss is a "
                f"{type(loss).__name__}, wanted a tensor"
            )
        if loss.shape not in ((), pair.labels.shape):
            raise ValueError(
                f"{self.method}, stage {self.stage.name!r}: the transfer loss has shape "
                f"{tuple(loss.shape)}, wanted ({len(pair.labels)},) or ()"
            )
        finite = loss.detach().isfinite()
        pass_gradient(finite)
        skipped = (~finite).sum() * (len(pair.labels) if loss.dim() == 0 else 1)
        loss = torch.where(finite, loss, 0.0)
        if self.taught is not None and loss.dim() == 1:
            kept = self.taught[pair.index].to(loss.dtype)
            return (loss * kept).sum() / kept.sum().clamp(min=1), skipped
        return loss.mean(), skipped


def weigh(
    stage: Stage, progress: float, task: Loss | None, joint: Loss | None, transfer: Loss | None
) -> list[Loss]:
    """The two weighted terms that a stage minimises the sum of: from labels, from the teacher.

    Args:
        stage: has the weights.
        progress: position in the stage's epochs: 0.0 in the first, 1.0 in the last.
        task: the task loss; None if the stage has none.
        joint: the transfer loss that is added to the task loss; None if the stage has none.
        transfer: the transfer loss; None if the stage has none.

    Returns:
        One or two terms; a term without a loss is left out.
    """
    terms = []
    if task is not None:
        term = stage.task_weight * task
        terms.append(term if joint is None else term + stage.joint_weight * joint)
    if transfer is not None:
        terms.append(stage.weight_at(progress) * transfer)
    return terms


def _with_cut_gradient(pair: Pair) -> tuple[Pair, Callable[[Tensor], None]]:
    """The pair for a transfer loss, with a gradient that can be cut for single samples.

    The gradient of a loss that is not finite is not finite either, and setting that loss to 0 would
    multiply its gradient's infinity by 0. So the gradient is cut where it reaches the student.

    Returns:
        The pair with new student taps, and a function of a (B,) or () bool: true for the samples
        whose gradient may pass.
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
