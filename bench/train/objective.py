"""What a stage asks to minimise of one batch: the task loss and the transfer losses, weighted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.method import Pair, Stage, Transfer
from bench.train.step import Losses, skippable


@dataclass(frozen=True, eq=False)
class Objective:
    """A stage's losses, each as one number.

    Attributes:
        stage: whose.
        method: name of the method that the stage is of.
        connector: the method's trained parts beside the student.
        labelled: (N,) bool, whose labels the task loss may see; None for all.
        taught: (N,) bool, for whom the transfer loss counts; None for all.
    """

    stage: Stage
    method: str
    connector: nn.Module
    labelled: Tensor | None
    taught: Tensor | None

    def losses(self, pair: Pair) -> Losses:
        """All that the stage has, of one batch."""
        stage = self.stage
        task = self.task(pair) if stage.task_weight > 0 else None
        taught = self.hide_labels(pair)
        beside = beside_skipped = transfer = skipped = None
        if stage.beside is not None:
            beside, beside_skipped = self.reduce(stage.beside, taught)
        if stage.transfer is not None:
            transfer, skipped = self.reduce(stage.transfer, taught)
        return Losses(pair, taught, task, beside, transfer, beside_skipped, skipped)

    def task(self, pair: Pair) -> Tensor:
        """The mean cross-entropy with the labels that may be seen, ()."""
        logits, labels = pair.student.logits, pair.labels
        if self.labelled is None:
            return cross_entropy(logits, labels)
        seen = self.labelled[pair.index].to(logits.dtype)
        each = cross_entropy(logits, labels, reduction="none")
        return (each * seen).sum() / seen.sum().clamp(min=1)

    def hide_labels(self, pair: Pair) -> Pair:
        """The pair as methods see it: -1 for a label that only the teacher could tell."""
        if self.labelled is None:
            return pair
        return pair._replace(labels=pair.labels.where(self.labelled[pair.index], -1))

    def reduce(self, transfer: Transfer, pair: Pair) -> tuple[Tensor, Tensor]:
        """A transfer loss of one batch as one number, and how many samples were not finite.

        Raises:
            TypeError: the loss is no tensor.
            ValueError: it is neither (B,) nor ().
        """
        pair, skip = skippable(pair)
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
        skip(finite)
        skipped = (~finite).sum() * (len(pair.labels) if loss.dim() == 0 else 1)
        loss = torch.where(finite, loss, 0.0)
        if self.taught is not None and loss.dim() == 1:
            kept = self.taught[pair.index].to(loss.dtype)
            return (loss * kept).sum() / kept.sum().clamp(min=1), skipped
        return loss.mean(), skipped

    def weighted(self, losses: Losses, progress: float) -> list[Tensor]:
        """The task's side and the transfer's, each with its weight; either may be missing.

        Args:
            losses: of one batch.
            progress: through the stage's epochs: 0.0 in the first, 1.0 in the last.
        """
        stage, weighted = self.stage, []
        if losses.task is not None:
            weighted.append(
                losses.task if stage.task_weight == 1 else stage.task_weight * losses.task
            )
        if losses.beside is not None:
            weighted[0] = weighted[0] + stage.beside_weight * losses.beside
        if losses.transfer is not None:
            weighted.append(stage.weight_at(progress) * losses.transfer)
        return weighted
