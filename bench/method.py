"""The interface of a distillation method: pure loss functions and a declarative plan of stages.

A method never sees a data set, a device, an optimiser or a network. Its losses take the tensors
that both networks give for one batch (a `Pair`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, SupportsFloat

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bench.models.network import Network

PARTS = frozenset({"trunk", "head", "connector"})
CATEGORIES = ("baseline", "response", "multi-connection", "shared-representation")

Shapes = Mapping[str, tuple[int, ...]]
"""Tap name -> shape of one sample's tensor there: (C, H, W), (D,) or (K,)."""


@dataclass(frozen=True)
class Facts:
    """What a connector may hold of a cell apart from the shapes of both networks' taps.

    Attributes:
        images: N, the number of training images.
        labels: (N,) class indices of the training images, -1 where hidden.
        classes: K.
        head: the teacher's classifier, weight (K, D) and bias (K,); None unless it is linear.
        norms: "stageK.pre" -> weight and bias, (C,) each, of the teacher's BatchNorm that gives
            this tap or, if the tap is a sum, its main branch; without taps that have none.
    """

    images: int
    labels: Tensor
    classes: int
    head: tuple[Tensor, Tensor] | None = None
    norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class NotApplicable(Exception):
    """The method cannot be used for this pair of networks; the message is the reason for tables."""


@dataclass(frozen=True)
class View:
    """The tensors of one network for one batch. A teacher's view has no gradient.

    `taps`: tap name -> (B, C, H, W) or (B, D); "logits" -> (B, K). Only the taps of the stage, in
    float32 whatever the precision of the network.
    """

    taps: Mapping[str, Tensor]

    def __getitem__(self, tap: str) -> Tensor:
        """The tensor at `tap`; KeyError with the known taps if the stage does not name it."""
        if tap in self.taps:
            return self.taps[tap]
        shown = ", ".join(self.taps) or "nothing"
        raise KeyError(
            f"tap {tap!r} is not shown in this stage (shown: {shown}); name it in Stage.taps"
        )

    def __contains__(self, tap: str) -> bool:
        """Whether `tap` is shown."""
        return tap in self.taps

    @property
    def logits(self) -> Tensor:
        """(B, K), before the softmax."""
        return self["logits"]


class Pair(NamedTuple):
    """Student, with gradient, and teacher, without, on the same batch.

    `labels` are (B,) class indices, -1 where hidden, `index` (B,) positions in the cell's training
    set, the same image every epoch. Images that are mixed of two have neither: a method that reads
    one of them is then not applicable.
    """

    student: View
    teacher: View
    labels: Tensor
    index: Tensor


class Selection(NamedTuple):
    """The training images that a stage uses, and why.

    Attributes:
        kept: (N,) bool.
        details: JSON-able values written next to the record (energies, thresholds, counts).
        note: what tables have to say about it, in one line; empty if it is what was asked for.
    """

    kept: Tensor
    details: Mapping[str, object]
    note: str = ""


class MaskedLoss(NamedTuple):
    """A transfer loss that is undefined for some samples, and which they are.

    A `transfer` may return it, so that the record can say how many samples the loss reached.

    Attributes:
        loss: (B,) or (). Undefined terms, such as the direction of a zero map, count as 0 and have
            no gradient.
        masked: (B,) bool, the samples with such a term; None for no sample.
    """

    loss: Tensor
    masked: Tensor | None = None

    @classmethod
    def of(cls, found: Tensor | MaskedLoss) -> MaskedLoss:
        """What a `transfer` returned, in the form with a mask."""
        return found if isinstance(found, MaskedLoss) else cls(found)


Gradients = Sequence[Tensor | None]
"""One per parameter: a tensor, or None where a loss does not reach it."""


class Merged(NamedTuple):
    """Merged gradients, and numbers of this step, (), whose means over an epoch are curves."""

    gradients: Gradients
    watched: Mapping[str, Tensor]


Transfer = Callable[[Pair, nn.Module], Tensor | MaskedLoss]
Merge = Callable[[Gradients, Gradients, int], Gradients | Merged]
Keep = Callable[[View, Tensor], Selection]
Prepare = Callable[[nn.Module, View], None]
Watch = Callable[[Pair, nn.Module], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of a method's training.

    Attributes:
        name: "hint", "init", "distil", "finetune"...: a column of the records.
        share: part of the cell's epochs, in (0, 1]; a plan's shares sum to 1.
        transfer: the transfer loss, (B,) if samples are independent, () if it couples the batch,
            with a `MaskedLoss` if some samples may be left out; None for a stage without a teacher.
        taps: the taps of both networks that `transfer` reads; "logits" is the deepest one.
        optional_taps: further taps, shown if both networks have them.
        task_weight: weight on the mean cross-entropy with the labels. 0 drops the term: labels
            and head leave the graph, and the student runs only to its deepest tap.
        transfer_weight: weight on the transfer loss, or a function of the progress through this
            stage: 0.0 in its first epoch, 1.0 in its last.
        reduction: of a transfer loss (B,) over the batch.
        trains: the parts that move, of "trunk", "head", "connector".
        joint: a second transfer loss, part of the task loss: `merge` sees the two as one.
            Reads "logits" of both networks.
        joint_weight: its weight.
        lr_factor: multiplies the recipe's learning rate.
        head_lr_factor: the same for the head; None for `lr_factor`.
        clip_norm: bound on the global norm of the gradient; None for no bound.
        clean: the teacher's view is of the image without augmentation, computed once for the
            whole training set and looked up by index.
        keep: chooses the training images of this stage, once before it, from the teacher's clean
            view of all of them and their labels. Needs `clean`.
        prepare: sets the connector up (statistics it holds as buffers, say), once before the
            stage, from the teacher's clean view of the whole training set. Needs `clean`.
        task_on_all: images that `keep` drops lose only their transfer loss, not their task loss.
        merge: (task gradients, transfer gradients, epoch of the stage, from 0) -> gradients, each
            with one entry per parameter: a tensor, or None where the loss does not reach it.
            Takes the place of their sum. `Merged` adds numbers to record.
        watch: named scalars to record as curves, such as activation agreement, by other names than
            the engine's; run on the last batch of every epoch, outside the graph.
        student: False if the stage trains the connector from the teacher alone: the student does
            not run, and its view is empty.
        momentum_split: D of two momentum buffers: m - D on the task gradient, m + D on the transfer
            gradient, with the recipe's momentum m. 0 for one buffer of their sum.
    """

    name: str
    share: float
    transfer: Transfer | None = None
    taps: tuple[str, ...] = ()
    optional_taps: tuple[str, ...] = ()
    task_weight: float = 1.0
    transfer_weight: float | Callable[[float], float] = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    trains: frozenset[str] = PARTS
    joint: Transfer | None = None
    joint_weight: float = 1.0
    lr_factor: float = 1.0
    head_lr_factor: float | None = None
    clip_norm: float | None = None
    clean: bool = False
    keep: Keep | None = None
    prepare: Prepare | None = None
    task_on_all: bool = False
    merge: Merge | None = None
    watch: Watch | None = None
    student: bool = True
    momentum_split: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a stage that cannot be run as written."""
        for message, wrong in self._faults().items():
            if wrong:
                raise ValueError(f"stage {self.name!r}: {message}")

    def _faults(self) -> dict[str, bool]:
        """Message -> whether it applies."""
        teaches, labelled = self.transfer is not None, self.task_weight > 0
        both, neither = teaches and labelled, not (teaches or labelled)
        reads = bool(self.taps or self.optional_taps)
        faults = {
            f"reduction {self.reduction!r}, not mean or sum": self.reduction not in ("mean", "sum"),
            f"share {self.share} is not in (0, 1]": not 0 < self.share <= 1,
            f"trains {sorted(self.trains)} must be some of {sorted(PARTS)}": (
                not self.trains or not self.trains <= PARTS
            ),
            f"task_weight {self.task_weight} is negative": self.task_weight < 0,
            "has neither a transfer loss nor a task loss: nothing would train": neither,
            "names taps but has no transfer loss to read them": reads and not teaches,
            "has a transfer loss but names no taps for it to read": teaches and not self.taps,
            "merge needs both a task loss and a transfer loss": self.merge is not None and not both,
            "joint is part of the task loss: it needs one": self.joint is not None and not labelled,
            "the student does not run: it can train the connector alone, without labels": (
                not self.student and (labelled or self.trains != {"connector"})
            ),
            f"momentum_split {self.momentum_split} is negative": self.momentum_split < 0,
            "momentum_split needs a task loss and a transfer loss that nothing merges": (
                self.momentum_split > 0
                and not (both and self.merge is None and self.clip_norm is None)
            ),
        }
        for name in ("taps", "optional_taps"):
            value = getattr(self, name)
            faults[f"{name} {value!r} is no tuple: write ({value!r},)"] = isinstance(value, str)
        for name in ("keep", "prepare"):
            unread = getattr(self, name) is not None and not self.clean
            faults[f"{name} reads the teacher's clean view: set clean=True"] = unread
        for name in ("lr_factor", "head_lr_factor", "clip_norm"):
            value = getattr(self, name)
            faults[f"{name} {value} must be above 0"] = value is not None and value <= 0
        return faults

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's forward pass (or its cached view) is read in this stage."""
        return self.transfer is not None or self.joint is not None

    @property
    def all_taps(self) -> tuple[str, ...]:
        """The taps that this stage requires of both networks."""
        more = () if self.joint is None or "logits" in self.taps else ("logits",)
        return (*self.taps, *more)

    def weight_at(self, progress: float) -> float:
        """The transfer loss's weight at `progress` in [0, 1] through the stage."""
        weight = self.transfer_weight
        found = weight(progress) if callable(weight) else weight
        if not isinstance(found, SupportsFloat) or not math.isfinite(found):
            raise ValueError(f"stage {self.name!r}: transfer_weight is {found!r}, wanted a number")
        return float(found)


class NoConnector(nn.Module):
    """The connector of a method without trained parts of its own."""


def no_connector(student: Shapes, teacher: Shapes) -> nn.Module:
    """The default `Method.connect`: only the student is trained."""
    return NoConnector()


@dataclass(frozen=True, kw_only=True)
class Method:
    """A distillation method.

    Attributes:
        category: one of `CATEGORIES`.
        source: authors, title, venue, year; then each deviation from it.
        plan: the stages, in order.
        connect: builds the trained parts and buffers that are not the student's (regressors,
            connectors) from the shapes of the taps of both networks and, if it has a parameter of
            that name, `facts`; raises `NotApplicable` with the reason if the method cannot be used
            for the pair.
        deploy: builds what is evaluated, counted and exported from the trained student and the
            connector; None for the student alone. It may share their modules, not change them.
        starts_from: "fresh" weights, or those of the cell's "source" except the head.
        needs_teacher: whether any stage reads a teacher; derived from the plan.
    """

    category: str
    source: str
    plan: tuple[Stage, ...]
    connect: Callable[..., nn.Module] = no_connector
    deploy: Callable[[Network, nn.Module], Network] | None = None
    starts_from: str = "fresh"
    needs_teacher: bool = field(init=False)

    def __post_init__(self) -> None:
        """Refuses an impossible plan."""
        if self.category not in CATEGORIES:
            raise ValueError(f"category {self.category!r} is not in {', '.join(CATEGORIES)}")
        if not self.source.strip():
            raise ValueError("source is empty: name authors, title, venue and year")
        total = sum(stage.share for stage in self.plan)
        if not self.plan or not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"the plan's shares sum to {total:g}, wanted 1")
        names = [stage.name for stage in self.plan]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names repeat: {', '.join(names)}")
        if self.starts_from not in ("fresh", "source"):
            raise ValueError(f"starts_from {self.starts_from!r} is neither 'fresh' nor 'source'")
        object.__setattr__(self, "needs_teacher", any(s.needs_teacher for s in self.plan))

    def connector(self, student: Shapes, teacher: Shapes, facts: Facts) -> nn.Module:
        """The connector for a pair of networks; see `connect`."""
        reads = "facts" in inspect.signature(self.connect).parameters
        return self.connect(student, teacher, **({"facts": facts} if reads else {}))


def split_epochs(plan: Sequence[Stage], epochs: int, budget: str = "equal_epochs") -> list[int]:
    """Whole epochs for each stage of `plan`; ValueError if there are fewer epochs than stages.

    "equal_epochs": all stages together take `epochs`. "addon": the last stage takes them, and the
    earlier ones take their share on top, as in most published code.

    Example:
        >>> halves = [Stage(name="a", share=0.3), Stage(name="b", share=0.7)]
        >>> split_epochs(halves, 15), split_epochs(halves, 15, "addon")
        ([5, 10], [5, 15])
    """
    if epochs == 0:  # of a network that does not train
        return [0] * len(plan)
    if epochs < len(plan):
        raise ValueError(
            f"epochs: got {epochs}, wanted at least one for each of {len(plan)} stages"
        )
    # Cumulative rounding keeps the sum exact; the guards give every stage its one epoch.
    parts, done, share = [], 0, 0.0
    for position, stage in enumerate(plan):
        share += stage.share
        after = len(plan) - 1 - position
        upto = min(max(math.floor(share * epochs + 0.5), done + 1), epochs - after)
        parts.append(upto - done)
        done = upto
    if budget == "addon":
        parts[-1] = epochs
    return parts


def in_float32(view: Mapping[str, Tensor]) -> View:
    """A view in float32: half precision would lose the small differences of relational losses."""
    taps = {
        tap: x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
        for tap, x in view.items()
    }
    return View(taps)
