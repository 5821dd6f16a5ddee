"""The stage engine: trains one student through its method's stages, epoch by epoch.

Only here a student's weights change. The engine owns train and evaluation mode, freezing, one fresh
optimiser and schedule per stage, the reduction and weighting of losses, and the curves.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from bench.cell import Cell
from bench.method import (
    Facts,
    Merged,
    Method,
    NotApplicable,
    Pair,
    Selection,
    Shapes,
    Stage,
    Transfer,
    View,
    in_float32,
    split_epochs,
)
from bench.models.network import Network, tap_shapes
from bench.seeds import derive
from bench.train.checkpoint import State
from bench.train.device import autocast, seed_device, to_device
from bench.train.diagnostics import gradient_cosine, unchanged
from bench.train.epoch import Sums, check_finite, points
from bench.train.objective import Losses, Objective, weigh
from bench.train.optim import SplitMomentum, get_momenta, learning_rate, make_optimiser, set_momenta
from bench.train.stream import StudentBatch
from bench.train.teacher import Teacher

CURVE = re.compile(r"\w[\w .-]*(/\w[\w .-]*)*")  # a name that MLflow takes

CleanView = Callable[[Sequence[str]], View]
"""Taps -> the teacher's view of the whole training set without augmentation."""


@dataclass(eq=False)
class Student:
    """One student in training.

    Attributes:
        connector: the method's own trained modules; they are not saved with the student.
        optional: stage name -> the stage's optional taps that both networks have.
        labelled: (N,) bool, the images whose labels the task loss may see; None for all.
        epochs_done: finished epochs, of all stages together.
        curves: name -> one value for each finished epoch.
        selections: stage name -> the training images that its `keep` chose.
        subset: positions of the images that the epoch goes through; None for all.
    """

    cell: Cell
    method: Method
    network: Network
    connector: nn.Module
    device: torch.device
    optional: Mapping[str, tuple[str, ...]]
    labelled: Tensor | None = None
    epochs_done: int = 0
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    selections: dict[str, Selection] = field(default_factory=dict)
    _stage_epoch: int = 0
    _position: int = -1
    _clean: View | None = None

    def __post_init__(self) -> None:
        """Divides the epochs among the stages."""
        recipe = self.cell.recipe
        self.stage_epochs = split_epochs(self.method.plan, recipe.epochs, recipe.budget)
        self.total_epochs = sum(self.stage_epochs)

    @property
    def stage(self) -> Stage:
        """The current epoch's stage."""
        return self.method.plan[self._position]

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps that this stage reads of both networks."""
        return (*self.stage.all_taps, *self.optional[self.stage.name])

    @property
    def deployed(self) -> Network:
        """What is evaluated and saved: the network, or what the method makes of it."""
        deploy = self.method.deploy
        return self.network if deploy is None else deploy(self.network, self.connector)

    @property
    def reads_teacher(self) -> bool:
        """Whether this epoch needs a forward pass of the teacher for every augmented batch."""
        return self.stage.needs_teacher and not self.stage.clean

    @property
    def progress(self) -> float:
        """Position in the stage's epochs: 0.0 in the first, 1.0 in the last."""
        return self._stage_epoch / max(self.stage_epochs[self._position] - 1, 1)

    @property
    def finished(self) -> bool:
        """Whether all epochs are finished."""
        return self.epochs_done == self.total_epochs

    def begin_epoch(self, clean_view: CleanView, labels: Tensor) -> None:
        """Enters the next stage if the last one has ended, and sets the learning rate.

        `labels`, (N,), are those of the training set.
        """
        if self._position < 0 or self._stage_epoch == self.stage_epochs[self._position]:
            self._position += 1
            self._stage_epoch = 0
            # The random numbers of a stage's preparation do not depend on earlier draws.
            torch.manual_seed(derive(self.cell.seed, "stage", self._position))
            self._enter(clean_view, labels)
        rate = learning_rate(self.cell.recipe, self._stage_epoch, self.stage_epochs[self._position])
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.sums = Sums(self.device)
        self._noted, self._watched = dict[str, float | None](), dict[str, float]()

    def end_epoch(self, test_accuracy: Callable[[], float]) -> None:
        """Adds a point to every curve; NonFiniteError if a loss or a weight is not finite."""
        weights = chain(self.network.parameters(), self.connector.parameters())
        check_finite(self.sums, self.stage, weights, self.epochs_done + 1)
        rate = self.optimiser.param_groups[0]["lr"]
        found = points(self.sums, self.method.plan, self.stage, self.progress, rate)
        last = self.epochs_done + 1 == self.total_epochs
        # Without the logits in the loss, the classifier is untrained.
        due = (self.epochs_done + 1) % self.cell.recipe.evaluate_every == 0
        due = due and ("logits" in self._reads() or self.method.deploy is not None)
        found["test_accuracy"] = test_accuracy() if last or due else None
        found |= self._noted
        own = self._watched | {w: self.sums.mean(f"watched {w}") for w in self.sums.watched}
        taken = {*found, "gradient_cosine"}
        if odd := [name for name in own if name in taken or not CURVE.fullmatch(name)]:
            text = f"{odd[0]!r} is a curve of the engine's, or no name for one; rename it in watch"
            raise ValueError(text)
        found |= own
        for name in self.curves | found:
            # Epochs without a point get None.
            curve = self.curves.setdefault(name, [None] * self.epochs_done)
            curve.append(found.get(name))
        self.epochs_done += 1
        self._stage_epoch += 1

    def _enter(self, clean_view: CleanView, labels: Tensor, *, again: bool = False) -> None:
        """Sets the stage up; `again`, without what it does once, before its first epoch."""
        stage = self.stage
        self._clean = None  # frees the last stage's view before the next one is computed
        if stage.clean:
            self._clean = clean_view(self.taps)
            if stage.prepare is not None and not again:
                stage.prepare(self.connector, self._clean)
            if stage.keep is not None and not again:
                self.selections[stage.name] = chosen = stage.keep(self._clean, labels)
                try:
                    json.dumps(chosen.details)
                except TypeError as error:
                    raise TypeError(f"Selection.details of {stage.name!r}: {error}") from None
        self.subset, taught = self._images(len(labels))
        cell, smoothing = self.cell, self.cell.recipe.label_smoothing
        self._objective = Objective(
            stage, cell.method, self.connector, self.labelled, taught, smoothing, cell.recipe.mixes
        )
        freeze(stage, self.network, self.connector)
        parts = parts_of(self.network, self.connector)
        self._trunk = parts["trunk"]
        self._trained = [p for part, ps in parts.items() if part in stage.trains for p in ps]
        self.optimiser = make_optimiser(stage, parts, cell.recipe)

    def _images(self, train_images: int) -> tuple[Tensor | None, Tensor | None]:
        """Positions of the images that an epoch goes through, and those whose transfer loss counts.

        The second is (N,) bool; None for all. ValueError if no image was kept.
        """
        stage, subset, taught = self.stage, None, None
        if (chosen := self.selections.get(stage.name)) is not None:
            kept = chosen.kept.to(self.device)
            if not kept.any():
                raise ValueError(f"stage {stage.name!r}: no training image was kept")
            if stage.task_on_all:
                taught = kept
            else:
                subset = kept.nonzero().flatten()
        if not stage.needs_teacher and self.labelled is not None:
            # As many steps as with all images, on labelled images that are repeated.
            known = self.labelled.nonzero().flatten()
            subset = known.repeat(-(-train_images // len(known)))[:train_images]
        return subset, taught

    def step(self, batch: StudentBatch) -> None:
        """One training step: losses, gradients, update."""
        stage = self.stage
        # The first batch of an epoch is never a short one.
        if self.cell.diagnostics and stage.transfer is not None and self.sums.steps == 0:
            self._diagnose(batch, stage.transfer)
        pair = self._forward(batch, self._reads())
        losses = self._objective.losses(pair, batch.targets)
        self._backward(losses)
        if stage.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._trained, stage.clip_norm, foreach=True)
            self.sums.add("clipped", norm > stage.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sums.add_step(losses, batch.targets)
        if batch.last and stage.watch is not None:
            seen = {tap: x.detach() for tap, x in losses.taught.student.taps.items()}
            with torch.no_grad():
                found = stage.watch(losses.taught._replace(student=View(seen)), self.connector)
            self._watched |= {name: float(value) for name, value in found.items()}

    def _reads(self) -> tuple[str, ...]:
        """Every tap of the student that a step needs."""
        labels = ("logits",) if self.stage.task_weight > 0 else ()
        return tuple(dict.fromkeys((*self.taps, *labels))) if self.stage.student else ()

    def _forward(self, batch: StudentBatch, taps: tuple[str, ...]) -> Pair:
        """The student's view of a batch at these taps, and the teacher's at those of the stage."""
        # Dropout draws from torch's global generator. A stream of its own for every step keeps a
        # student's numbers independent of the other students of the cohort.
        seed_device(derive(self.cell.seed, "step", self.epochs_done, self.sums.steps), self.device)
        with autocast(self.cell, self.device):
            shown = self.network.view(batch.images, taps)
        teacher = batch.teacher
        if self._clean is not None:
            teacher = View({tap: self._clean[tap][batch.index] for tap in self.taps})
        elif teacher is not None:
            # Other students of the cohort may read more taps: this stage sees those it names.
            teacher = View({tap: teacher[tap] for tap in self.taps})
        return Pair(in_float32(shown), teacher or View({}), batch.labels, batch.index)

    def _diagnose(self, batch: StudentBatch, transfer: Transfer) -> None:
        """Notes the cosine of the task's and the transfer loss's gradients.

        Its forward pass has the weights and random numbers of the next step, and changes no state.
        """
        with unchanged(self.network, self.connector):
            pair = self._forward(batch, tuple(dict.fromkeys((*self._reads(), "logits"))))
            objective = self._objective
            loss, _ = objective.reduce(transfer, objective.hide_labels(pair))
            cosine = gradient_cosine(objective.task(pair, batch.targets), loss, self._trunk)
        self._noted["gradient_cosine"] = cosine

    def _backward(self, losses: Losses) -> None:
        found = map(losses.terms.get, ("task", "joint", "transfer"))
        terms = weigh(self.stage, self.progress, *found)
        if self.stage.merge is None and not self.stage.momentum_split:
            sum(terms[1:], start=terms[0]).backward()
            return
        task, _ = terms
        task_gradients, transfer_gradients = (
            torch.autograd.grad(loss, self._trained, retain_graph=loss is task, allow_unused=True)
            for loss in terms
        )
        if isinstance(self.optimiser, SplitMomentum):
            self.optimiser.set_gradients(self._trained, task_gradients, transfer_gradients)
            return
        assert self.stage.merge is not None
        merged = self.stage.merge(task_gradients, transfer_gradients, self._stage_epoch)
        if isinstance(merged, Merged):
            self.sums.watch(merged.watched)
            merged = merged.gradients
        for parameter, gradient in zip(self._trained, merged, strict=True):
            parameter.grad = gradient

    def state(self) -> State:
        """What `restore` needs, between two epochs; all draws follow from seed, epoch and step."""
        tensors = self._tensors()
        momenta = get_momenta(self.optimiser)
        tensors |= {f"momentum.{position}": x for position, x in momenta.items()}
        tensors |= {f"kept.{name}": chosen.kept for name, chosen in self.selections.items()}
        return State(
            tensors,
            {
                "epochs_done": self.epochs_done,
                "position": self._position,
                "stage_epoch": self._stage_epoch,
                "curves": self.curves,
                "selections": {name: chosen[1:] for name, chosen in self.selections.items()},
                "strides": {position: x.stride() for position, x in momenta.items()},
            },
        )

    @torch.no_grad()
    def restore(self, state: State, clean_view: CleanView, labels: Tensor) -> None:
        """Brings a new student to `state`; ValueError if that is of another network or method."""
        tensors, values = state
        here = self._tensors()
        saved = {name for name in tensors if name.startswith(("network.", "connector."))}
        if {n: x.shape for n, x in here.items()} != {n: tensors[n].shape for n in saved}:
            raise ValueError("it belongs to another network or connector")
        for name, tensor in here.items():
            tensor.copy_(tensors[name])
        self.epochs_done, self._position = values["epochs_done"], values["position"]
        self._stage_epoch, self.curves = values["stage_epoch"], values["curves"]
        self.selections = {
            name: Selection(tensors[f"kept.{name}"].to(self.device), *rest)
            for name, rest in values["selections"].items()
        }
        self._enter(clean_view, labels, again=True)
        strides = values["strides"]
        momenta = {position: tensors[f"momentum.{position}"] for position in strides}
        set_momenta(self.optimiser, momenta, strides)

    def _tensors(self) -> dict[str, Tensor]:
        both = nn.ModuleDict({"network": self.network, "connector": self.connector})
        return dict(chain(both.named_parameters(), both.named_buffers()))


def make_student(
    cell: Cell,
    method: Method,
    network: Network,
    image_shape: tuple[int, int, int],
    teacher: Teacher | None,
    device: torch.device,
    labels: Tensor,
) -> Student:
    """A student ready for its first epoch; `labels` are (N,), -1 where hidden.

    Raises:
        NotApplicable: the method cannot be used for this pair.
        ValueError: teacher and student have different numbers of classes.
    """
    known = labels >= 0
    labelled = None if known.all() else known
    if labelled is not None and any(stage.keep is not None for stage in method.plan):
        raise NotApplicable("the selection reads every label, but this grid hides some labels")
    _check_momentum(cell, method)
    if cell.recipe.mixes and any(stage.clean for stage in method.plan):
        raise NotApplicable(
            "it reads images without augmentation, and mixup or cutmix changes them"
        )
    shapes = tap_shapes(network, image_shape)
    theirs: Shapes = teacher.shapes if teacher else {}
    if teacher and theirs["logits"] != shapes["logits"]:
        raise ValueError(
            f"the teacher has {theirs['logits'][0]} classes, the student "
            f"{shapes['logits'][0]}: train both on the same classes"
        )
    for stage in method.plan:
        for whose, available in (("student", shapes), ("teacher", theirs)):
            for tap in stage.all_taps:
                if tap not in available:
                    raise NotApplicable(
                        f"stage {stage.name!r} reads tap {tap!r}, which the {whose} lacks "
                        f"(it has {', '.join(available)})"
                    )
    optional = {
        stage.name: tuple(t for t in stage.optional_taps if t in shapes and t in theirs)
        for stage in method.plan
    }
    facts = teacher.facts(labels) if teacher else Facts(len(labels), labels, shapes["logits"][0])
    torch.manual_seed(derive(cell.seed, "connector", cell.method))
    connector = to_device(method.connector(shapes, theirs, facts), device)
    network = to_device(network, device)
    return Student(cell, method, network, connector, device, optional, labelled)


def _check_momentum(cell: Cell, method: Method) -> None:
    """NotApplicable if a stage splits a momentum that the recipe lacks."""
    split, recipe = max(stage.momentum_split for stage in method.plan), cell.recipe
    if split == 0:
        return
    if recipe.optimiser != "sgd" or recipe.nesterov:
        raise NotApplicable(
            "momentum_split is for SGD without Nesterov's form; set optimiser: sgd, nesterov: false"
        )
    if split >= recipe.momentum:
        raise NotApplicable(
            f"momentum_split {split:g} is not below the recipe's momentum {recipe.momentum:g}"
        )


def parts_of(network: Network, connector: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters by the names of `Stage.trains`: trunk, head and connector."""
    head = list(network.head.parameters())
    own = {id(parameter) for parameter in head}
    trunk = [p for p in network.parameters() if id(p) not in own]
    return {"trunk": trunk, "head": head, "connector": list(connector.parameters())}


def freeze(stage: Stage, network: Network, connector: nn.Module) -> None:
    """Freezes the parts that the stage does not train, and unfreezes the others."""
    for part, parameters in parts_of(network, connector).items():
        for parameter in parameters:
            parameter.requires_grad_(part in stage.trains)
    # Evaluation mode also freezes the running statistics of BatchNorm.
    network.train("trunk" in stage.trains)
    network.head.train("head" in stage.trains)
    connector.train("connector" in stage.trains)
