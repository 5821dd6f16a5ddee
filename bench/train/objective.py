"""The losses of one batch in one stage: task loss and transfer losses, reduced and weighted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.method import MaskedLoss, NotApplicable, Pair, Stage, Transfer, View

Loss = TypeVar("Loss", float, Tensor)


class MixedPair(Pair):
    """What methods see of images that are mixed of two: neither a label nor a place in the set."""

    @property
    def labels(self) -> Tensor:
        """None: NotApplicable."""
        raise NotApplicable("its loss reads labels, and an image of mixup or cutmix has two")

    @property
    def index(self) -> Tensor:
        """None: NotApplicable."""
        raise NotApplicable("its loss reads the images' places, and mixup or cutmix makes new ones")


class Losses(NamedTuple):
    """The losses of one batch.

    Attributes:
        pair: both networks' views of the batch.
        taught: the pair as methods see it, with labels hidden.
        terms: those that the stage has, () each: "task", "joint", a transfer loss that is added to
            it, and "transfer".
        counts: numbers of samples, () each; those of the joint loss as "joint_skipped" and so on.
            "skipped": the loss is not finite. "masked": a term of it is undefined. "untaught": the
            stage selected other samples. The loss reached all others.
    """

    pair: Pair
    taught: Pair
    terms: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """The losses of one stage.

    Attributes:
        method: name of the stage's method, for messages.
        labelled: (N,) bool, the images whose labels the task loss may see; None for all.
        taught: (N,) bool, the images whose transfer loss counts; None for all.
        mixed: whether images are mixed of two, so that methods see no label and no position.
    """

    stage: Stage
    method: str
    connector: nn.Module
    labelled: Tensor | None
    taught: Tensor | None
    label_smoothing: float = 0.0
    mixed: bool = False

    def losses(self, pair: Pair, targets: Tensor | None = None) -> Losses:
        """Every loss of the stage, for one batch; `targets` are those of mixed images."""
        stage, taught = self.stage, self.hide_labels(pair)
        terms = {"task": self.task(pair, targets)} if stage.task_weight > 0 else {}
        counts = {}
        if stage.joint is not None:
            terms["joint"], found = self.reduce(stage.joint, taught)
            counts = {f"joint_{name}": count for name, count in found.items()}
        if stage.transfer is not None:
            terms["transfer"], found = self.reduce(stage.transfer, taught, stage.reduction)
            counts |= found
        return Losses(pair, taught, terms, counts)

    def task(self, pair: Pair, targets: Tensor | None = None) -> Tensor:
        """Mean cross-entropy with the labels that the task loss may see, ().

        With targets (B, K): sum_k -t_k log p_k over all images, divided by the sum of t.
        """
        logits, labels = pair.student.logits, pair.labels
        smoothing = self.label_smoothing
        if targets is not None:
            whole = targets.sum(1, keepdim=True)
            smooth = targets.lerp(whole / targets.shape[1], smoothing)
            return cross_entropy(logits, smooth, reduction="sum") / whole.sum().clamp(min=1)
        if self.labelled is None:
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        seen = self.labelled[pair.index].to(logits.dtype)
        each = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (each * seen).sum() / seen.sum().clamp(min=1)

    def hide_labels(self, pair: Pair) -> Pair:
        """The pair as methods see it: hidden labels are -1; see `MixedPair`."""
        if self.mixed:
            return MixedPair(*pair)
        if self.labelled is None:
            return pair
        return pair._replace(labels=pair.labels.where(self.labelled[pair.index], -1))

    def reduce(
        self, transfer: Transfer, pair: Pair, reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A transfer loss of one batch, (), and its `Losses.counts`.

        "mean" or "sum" over the samples that are taught; a loss that is not finite counts as 0.
        TypeError if the loss is no tensor, ValueError if it is neither (B,) nor (), or the mask is
        not (B,) bool.
        """
        pair, pass_gradient = _with_cut_gradient(pair)
        batch, places = len(pair[2]), pair[3]  # by position: a mixed pair hides their names
        loss, masked = MaskedLoss.of(transfer(pair, self.connector))
        where = f"{self.method}, stage {self.stage.name!r}: the transfer loss"
        if not isinstance(loss, Tensor):
            raise TypeError(f"{where} is a {type(loss).__name__}, wanted a tensor")
        if loss.shape not in ((), (batch,)):
            raise ValueError(f"{where} has shape {tuple(loss.shape)}, wanted ({batch},) or ()")
        if masked is not None and (masked.shape != (batch,) or masked.dtype != torch.bool):
            raise ValueError(
                f"{where} has a mask {tuple(masked.shape)} of {masked.dtype}, wanted ({batch},) "
                "of torch.bool"
            )
        if not loss.requires_grad and loss.any():  # 0 is a batch without a term
            raise ValueError(f"{where} does not depend on what trains: it is constant or detached")
        finite = loss.detach().isfinite()
        pass_gradient(finite)
        loss = torch.where(finite, loss, 0.0)
        # A loss that couples its batch also reaches the images that the stage did not select.
        taught = None if self.taught is None or loss.dim() == 0 else self.taught[places]
        lost = ~finite if taught is None else ~finite & taught
        counts = {"skipped": lost.sum() * (batch if loss.dim() == 0 else 1)}
        if masked is not None:
            masked = masked & finite
            counts["masked"] = (masked if taught is None else masked & taught).sum()
        if taught is None:
            return loss.sum() if reduction == "sum" else loss.mean(), counts
        counts["untaught"] = (~taught).sum()
        kept = taught.to(loss.dtype)
        total = (loss * kept).sum()
        return total if reduction == "sum" else total / kept.sum().clamp(min=1), counts


def weigh(
    stage: Stage, progress: float, task: Loss | None, joint: Loss | None, transfer: Loss | None
) -> list[Loss]:
    """The weighted terms that a stage minimises the sum of: from labels, from the teacher.

    `progress` is the position in the stage's epochs: 0.0 in the first, 1.0 in the last.
    """
    terms = []
    if task is not None:
        term = stage.task_weight * task
        terms.append(term if joint is None else term + stage.joint_weight * joint)
    if transfer is not None:
        terms.append(stage.weight_at(progress) * transfer)
    return terms


def _with_cut_gradient(pair: Pair) -> tuple[Pair, Callable[[Tensor], None]]:
    """The pair for a transfer loss, and a function of the samples, bool, whose gradient may pass.

    The gradient of a loss that is not finite is not finite either, and setting that loss to 0 would
    multiply its gradient's infinity by 0. So the gradient is cut where it reaches the student.
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
