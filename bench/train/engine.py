"""The stage engine: one student going through its method's stages, an epoch at a time.

The only place where a student's weights change. It owns train and evaluation mode, freezing, a
fresh optimiser and schedule per stage, the reduction and weighting of losses, and the curves; a
method owns none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.cell import Cell
from bench.method import (
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
from bench.models.network import Network
from bench.seeds import derive
from bench.train.checkpoint import State
from bench.train.device import autocast, seed_device, to_device
from bench.train.diagnostics import gradient_cosine, unchanged
from bench.train.optim import learning_rate, optimiser
from bench.train.step import Losses, NonFiniteError, Seen, Sums, skippable


@dataclass(eq=False)
class Student:
    """One student in training.

    Attributes:
        cell: what is trained.
        method: its plan.
        network: the student.
        connector: the method's trained parts beside it, never saved with it.
        labelled: (N,) bool, whose labels the task loss may see; None for all.
        curves: name -> one value per epoch done.
        selections: stage name -> what its `keep` chose.
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
    _transfer_mask: Tensor | None = None
    _table: View | None = None

    def __post_init__(self) -> None:
        """Splits the epochs over the stages."""
        recipe = self.cell.recipe
        self.stage_epochs = split_epochs(self.method.plan, recipe.epochs, recipe.budget)
        self.total_epochs = sum(self.stage_epochs)
        self.sums = Sums.zero(self.device)
        self.subset: Tensor | None = None

    # --- the stage at hand ----------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """The stage of the epoch under way."""
        return self.method.plan[self._position]

    @property
    def taps(self) -> tuple[str, ...]:
        """What this stage reads of both networks."""
        return (*self.stage.all_taps, *self.optional[self.stage.name])

    @property
    def reads_teacher(self) -> bool:
        """Whether this epoch needs the teacher's forward pass over the augmented batches."""
        return self.stage.needs_teacher and not self.stage.clean

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epochs_done == self.total_epochs

    @property
    def has_head(self) -> bool:
        """Whether the stage trains the classifier, so that a test accuracy means something."""
        return self.stage.task_weight > 0 or "logits" in self.taps

    # --- an epoch -------------------------------------------------------------------------------

    def begin_epoch(self, clean_view: Callable[[Sequence[str]], View], labels: Tensor) -> None:
        """Enters the next stage when one ended; sets the learning rate.

        Args:
            clean_view: gives the teacher's view of the whole training set, un-augmented.
            labels: (N,) of the training set.
        """
        if self._position < 0 or self._stage_epoch == self.stage_epochs[self._position]:
            self._position += 1
            self._stage_epoch = 0
            # What a stage's own preparation draws must not depend on what was drawn before it.
            torch.manual_seed(derive(self.cell.seed, "stage", self._position))
            self._enter(clean_view, labels, self._prepare)
        rate = learning_rate(self.cell.recipe, self._stage_epoch, self.stage_epochs[self._position])
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.sums = Sums.zero(self.device)

    def _enter(
        self,
        clean_view: Callable[[Sequence[str]], View],
        labels: Tensor,
        prepare: Callable[[View, Tensor], None] | None = None,
    ) -> None:
        stage = self.stage
        self.subset, self._transfer_mask, self._table = None, None, None
        if stage.clean:
            self._table = clean_view(self.taps)
            if prepare is not None:
                prepare(self._table, labels)
        if stage.name in self.selections:
            self._use(self.selections[stage.name].kept.to(self.device))
        if not stage.needs_teacher and self.labelled is not None:
            # As many steps as with all images: the labelled ones come round more often.
            known = self.labelled.nonzero().flatten()
            self.subset = known.repeat(-(-len(labels) // len(known)))[: len(labels)]
        self._freeze()
        parts = self._parts()
        head_factor = stage.lr_factor if stage.head_lr_factor is None else stage.head_lr_factor
        groups: dict[float, list[nn.Parameter]] = {}
        for part in (part for part in parts if part in stage.trains):
            factor = head_factor if part == "head" else stage.lr_factor
            groups.setdefault(factor, []).extend(parts[part])
        self.optimiser = optimiser(groups, self.cell.recipe)

    def _prepare(self, table: View, labels: Tensor) -> None:
        """What a stage does once, before its first epoch."""
        stage = self.stage
        if stage.prepare is not None:
            stage.prepare(self.connector, table)
        if stage.keep is not None:
            self.selections[stage.name] = stage.keep(table, labels)

    def _use(self, kept: Tensor) -> None:
        if not kept.any():
            raise ValueError(f"stage {self.stage.name!r}: no training image was kept")
        if self.stage.task_on_all:
            self._transfer_mask = kept
        else:
            self.subset = kept.nonzero().flatten()

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        head = list(self.network.head_parameters())
        own = {id(parameter) for parameter in head}
        trunk = [p for p in self.network.parameters() if id(p) not in own]
        return {"trunk": trunk, "head": head, "connector": list(self.connector.parameters())}

    def _trained(self) -> list[nn.Parameter]:
        return [p for part, ps in self._parts().items() if part in self.stage.trains for p in ps]

    def _freeze(self) -> None:
        for part, parameters in self._parts().items():
            for parameter in parameters:
                parameter.requires_grad_(part in self.stage.trains)
        # Evaluation mode freezes the running statistics of BatchNorm too.
        self.network.train("trunk" in self.stage.trains)
        self.network.head.train("head" in self.stage.trains)
        self.connector.train("connector" in self.stage.trains)

    # --- a step ---------------------------------------------------------------------------------

    def step(self, batch: Seen) -> None:
        """One batch: losses, gradient, update."""
        if self.diagnosed and self.stage.task_weight == 0:
            self._diagnose(batch)
        self._seed_step()
        losses = self._losses(self._show(batch.images, self.reads), batch)
        if self.diagnosed and losses.task is not None and losses.transfer is not None:
            trunk = self.trunk()
            self.note_cosine(gradient_cosine(losses.task, losses.transfer, trunk))
        self._backward(losses)
        self.end_step(losses, batch)

    # A step in pieces, for students whose networks are computed as one: one forward pass,
    # `losses_of` each, one backward pass over their totals, `end_step` of each.

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tap that a step asks of the student."""
        labels = ("logits",) if self.stage.task_weight > 0 else ()
        return tuple(dict.fromkeys((*self.taps, *labels)))

    @property
    def stackable(self) -> bool:
        """Whether this stage's step may be taken in pieces.

        The loss must reach every parameter: where one would have had no gradient it would get
        zeros, which decay and momentum do not treat alike. And its gradient must be one sum.
        """
        stage = self.stage
        return self.network.channelwise and stage.task_weight > 0 and stage.merge is None

    @property
    def diagnosed(self) -> bool:
        """Whether the step to come gives a point of "gradient_cosine".

        The first batch of an epoch does, which is never a short one.
        """
        wanted = self.cell.diagnostics and self.stage.transfer is not None
        return wanted and self.sums.steps == 0

    def trunk(self) -> list[nn.Parameter]:
        """What the cosine is over."""
        return self._parts()["trunk"]

    def note_cosine(self, value: float | None) -> None:
        """Adds a point of "gradient_cosine"."""
        self._note("gradient_cosine", value)

    def losses_of(self, shown: Mapping[str, Tensor], batch: Seen) -> Losses:
        """What the stage asks to minimise, of taps that were computed elsewhere.

        Args:
            shown: the student's taps of this batch, those it reads and maybe more.
            batch: what they were computed of.
        """
        self._seed_step()
        return self._losses({tap: shown[tap] for tap in self.reads}, batch)

    def _losses(self, shown: Mapping[str, Tensor], batch: Seen) -> Losses:
        stage = self.stage
        pair = self._pair(shown, batch)
        task = self._task(pair) if stage.task_weight > 0 else None
        taught = self._hide_labels(pair)
        beside = transfer = None
        if stage.beside is not None:
            beside, skipped = self._reduce(stage.beside, taught)
            self.sums.beside_skipped += skipped
        if stage.transfer is not None:
            transfer, skipped = self._reduce(stage.transfer, taught)
            self.sums.skipped += skipped
        return Losses(pair, taught, task, beside, transfer)

    def end_step(self, losses: Losses, batch: Seen) -> None:
        """The update, once all gradients are there."""
        stage = self.stage
        if stage.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._trained(), stage.clip_norm, foreach=True)
            self.sums.clipped += norm > stage.clip_norm
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._count(losses)
        if batch.last and stage.watch is not None:
            self._watch(losses.taught)

    def _seed_step(self) -> None:
        # Dropout and the like draw from torch's global generator: its own stream for every step
        # keeps a student's numbers independent of who else is in the cohort.
        seed_device(derive(self.cell.seed, "step", self.epochs_done, self.sums.steps), self.device)

    def _show(self, images: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        with autocast(self.cell, self.device):
            return self.network.view(images, taps)

    def _pair(self, shown: Mapping[str, Tensor], batch: Seen) -> Pair:
        teacher = batch.teacher
        if self._table is not None:
            teacher = View({tap: self._table[tap][batch.index] for tap in self.taps})
        elif teacher is not None:
            # Others of the cohort may have asked for more: this stage sees what it named.
            teacher = View({tap: teacher[tap] for tap in self.taps})
        return Pair(in_float32(shown), teacher or View({}), batch.labels, batch.index)

    def _diagnose(self, batch: Seen) -> None:
        """The cosine in a stage without labels, by a forward pass of its own.

        With the weights and random numbers of the step to come; it leaves no trace.
        """
        assert self.stage.transfer is not None
        with unchanged(self.network, self.connector):
            self._seed_step()
            taps = tuple(dict.fromkeys((*self.reads, "logits")))
            pair = self._pair(self._show(batch.images, taps), batch)
            transfer, _ = self._reduce(self.stage.transfer, self._hide_labels(pair))
            self.note_cosine(gradient_cosine(self._task(pair), transfer, self.trunk()))

    def _note(self, name: str, value: float | None) -> None:
        """A point of a curve that not every epoch has."""
        curve = self.curves.setdefault(name, [])
        curve.extend([None] * (self.epochs_done - len(curve)))
        curve.append(value)

    def _task(self, pair: Pair) -> Tensor:
        logits, labels = pair.student.logits, pair.labels
        if self.labelled is None:
            return cross_entropy(logits, labels)
        seen = self.labelled[pair.index].to(logits.dtype)
        each = cross_entropy(logits, labels, reduction="none")
        return (each * seen).sum() / seen.sum().clamp(min=1)

    def _hide_labels(self, pair: Pair) -> Pair:
        """The pair as methods see it: -1 for a label that only the teacher could tell."""
        if self.labelled is None:
            return pair
        return pair._replace(labels=pair.labels.where(self.labelled[pair.index], -1))

    def _reduce(self, transfer: Transfer, pair: Pair) -> tuple[Tensor, Tensor]:
        """A transfer loss of one batch as one number, and how many samples were not finite."""
        pair, skip = skippable(pair)
        loss = transfer(pair, self.connector)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"{self.cell.method}, stage {self.stage.name!r}: the transfer loss is a "
                f"{type(loss).__name__}, wanted a tensor"
            )
        if loss.shape not in ((), pair.labels.shape):
            raise ValueError(
                f"{self.cell.method}, stage {self.stage.name!r}: the transfer loss has shape "
                f"{tuple(loss.shape)}, wanted ({len(pair.labels)},) or ()"
            )
        finite = loss.detach().isfinite()
        skip(finite)
        skipped = (~finite).sum() * (len(pair.labels) if loss.dim() == 0 else 1)
        loss = torch.where(finite, loss, 0.0)
        if self._transfer_mask is not None and loss.dim() == 1:
            kept = self._transfer_mask[pair.index].to(loss.dtype)
            return (loss * kept).sum() / kept.sum().clamp(min=1), skipped
        return loss.mean(), skipped

    def _weighted(self, losses: Losses) -> list[Tensor]:
        """The task's side and the transfer's, each with its weight; either may be missing."""
        _, _, task, beside, transfer = losses
        weighted = []
        if task is not None:
            weighted.append(task if self.stage.task_weight == 1 else self.stage.task_weight * task)
        if beside is not None:
            weighted[0] = weighted[0] + self.stage.beside_weight * beside
        if transfer is not None:
            weighted.append(self.stage.weight_at(self.progress) * transfer)
        return weighted

    def total(self, losses: Losses) -> Tensor:
        """What a stage without `merge` minimises, ()."""
        weighted = self._weighted(losses)
        return sum(weighted[1:], start=weighted[0])

    def _backward(self, losses: Losses) -> None:
        if self.stage.merge is None:
            self.total(losses).backward()
            return
        weighted, trained = self._weighted(losses), self._trained()
        task_gradients = torch.autograd.grad(
            weighted[0], trained, retain_graph=True, allow_unused=True
        )
        transfer_gradients = torch.autograd.grad(weighted[1], trained, allow_unused=True)
        merged = self.stage.merge(task_gradients, transfer_gradients, self._stage_epoch)
        for parameter, gradient in zip(trained, merged, strict=True):
            parameter.grad = gradient

    @property
    def progress(self) -> float:
        """Through the stage's epochs: 0.0 in the first, 1.0 in the last."""
        return self._stage_epoch / max(self.stage_epochs[self._position] - 1, 1)

    def _count(self, losses: Losses) -> None:
        pair, _, task, beside, transfer = losses
        sums = self.sums
        sums.steps += 1
        sums.seen += len(pair.labels)
        if task is not None:
            sums.task += task.detach()
            sums.correct += (pair.student.logits.detach().argmax(1) == pair.labels).sum()
        if beside is not None:
            sums.beside += beside.detach()
        if transfer is not None:
            sums.transfer += transfer.detach()

    @torch.no_grad()
    def _watch(self, pair: Pair) -> None:
        assert self.stage.watch is not None
        student = View({tap: x.detach() for tap, x in pair.student.taps.items()})
        for name, value in self.stage.watch(pair._replace(student=student), self.connector).items():
            self._note(name, float(value))

    def end_epoch(self, test_accuracy: Callable[[], float]) -> None:
        """Adds a point to every curve.

        Args:
            test_accuracy: measures it; called only where the recipe and the stage ask for it.

        Raises:
            NonFiniteError: a loss or a weight is not finite.
        """
        task = self._mean(self.sums.task) if self.stage.task_weight > 0 else None
        beside = self._mean(self.sums.beside) if self.stage.beside is not None else None
        transfer = self._mean(self.sums.transfer) if self.stage.transfer is not None else None
        self._check_finite(task)
        last = self.epochs_done + 1 == self.total_epochs
        due = last or (self.epochs_done + 1) % self.cell.recipe.evaluate_every == 0
        total = self.stage.task_weight * (task or 0) + self.stage.beside_weight * (beside or 0)
        total += self.stage.weight_at(self.progress) * (transfer or 0)
        self._point("task_loss", task)
        self._point("transfer_loss", transfer)
        self._point("train_loss", total)
        if any(stage.beside is not None for stage in self.method.plan):
            self._point("beside_loss", beside)
        if any(stage.clip_norm is not None for stage in self.method.plan):
            clipped = self.sums.clipped.item() if self.stage.clip_norm is not None else None
            self._point("clipped_steps", clipped)
        self._point("learning_rate", self.optimiser.param_groups[0]["lr"])
        correct = self.sums.correct.item() / max(self.sums.seen, 1)
        self._point("train_accuracy", correct if task is not None else None)
        self._point("skipped_samples", self.sums.skipped.item() if transfer is not None else None)
        self._point("test_accuracy", test_accuracy() if last or (due and self.has_head) else None)
        self.epochs_done += 1
        self._stage_epoch += 1
        for curve in self.curves.values():
            curve.extend([None] * (self.epochs_done - len(curve)))

    # --- between epochs -------------------------------------------------------------------------

    def state(self) -> State:
        """All that `restore` needs, after an epoch's end.

        Nothing random is in it: order, augmentation and every step's draws are made anew from the
        seed, the epoch and the step.
        """
        tensors = {f"{part}.{name}": x for part, name, x in self._named_tensors()}
        strides: dict[str, list[int]] = {}
        numbers: dict[str, dict[str, float]] = {}
        for position, parameter in enumerate(self._optimised()):
            for name, value in self.optimiser.state[parameter].items():
                key = f"{position}.{name}"
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{key}"] = value
                    strides[key] = list(value.stride())
                elif value is not None:
                    numbers[key] = value
        tensors |= {f"kept.{name}": chosen.kept for name, chosen in self.selections.items()}
        return State(
            tensors,
            {
                "epochs_done": self.epochs_done,
                "position": self._position,
                "stage_epoch": self._stage_epoch,
                "curves": self.curves,
                "evidence": {name: chosen.evidence for name, chosen in self.selections.items()},
                "strides": strides,
                "numbers": numbers,
            },
        )

    @torch.no_grad()
    def restore(
        self, state: State, clean_view: Callable[[Sequence[str]], View], labels: Tensor
    ) -> None:
        """Brings a student that has not begun to where `state` was taken.

        Args:
            state: of this cell.
            clean_view: see `begin_epoch`.
            labels: (N,) of the training set.

        Raises:
            ValueError: it is of another network or method.
        """
        tensors, values = state
        here = {f"{part}.{name}": x for part, name, x in self._named_tensors()}
        saved = {name for name in tensors if name.startswith(("network.", "connector."))}
        if {n: x.shape for n, x in here.items()} != {n: tensors[n].shape for n in saved}:
            raise ValueError("it is of another network or connector")
        for name, tensor in here.items():
            tensor.copy_(tensors[name])
        self.epochs_done, self._position = values["epochs_done"], values["position"]
        self._stage_epoch, self.curves = values["stage_epoch"], values["curves"]
        self.selections = {
            name: Selection(tensors[f"kept.{name}"].to(self.device), evidence)
            for name, evidence in values["evidence"].items()
        }
        self._enter(clean_view, labels)
        self._restore_optimiser(state)

    def _restore_optimiser(self, state: State) -> None:
        parameters = self._optimised()
        for name, stride in state.values["strides"].items():
            position, _, key = name.partition(".")
            saved = state.tensors[f"optimiser.{name}"]
            # In the layout it had: vectorised sums over another one may round differently.
            tensor = torch.empty_strided(
                saved.shape, stride, dtype=saved.dtype, device=self.device
            ).copy_(saved)
            self.optimiser.state[parameters[int(position)]][key] = tensor
        for name, number in state.values["numbers"].items():
            position, _, key = name.partition(".")
            self.optimiser.state[parameters[int(position)]][key] = number

    def _named_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        for part, module in (("network", self.network), ("connector", self.connector)):
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                yield part, name, tensor

    def _optimised(self) -> list[nn.Parameter]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def _point(self, name: str, value: float | None) -> None:
        self.curves.setdefault(name, []).append(value)

    def _mean(self, total: Tensor) -> float:
        return total.item() / max(self.sums.steps, 1)

    def _check_finite(self, task: float | None) -> None:
        where = f"in epoch {self.epochs_done + 1} (stage {self.stage.name!r})"
        if task is not None and not torch.isfinite(torch.tensor(task)):
            raise NonFiniteError(f"the task loss is {task} {where}: lower the learning rate")
        skipped = max(self.sums.skipped.item(), self.sums.beside_skipped.item())
        if self.stage.needs_teacher and skipped >= self.sums.seen:
            raise NonFiniteError(f"the transfer loss of every sample is not finite {where}")
        weights = chain(self.network.parameters(), self.connector.parameters())
        total = nn.utils.get_total_norm([p.detach() for p in weights], foreach=True)
        if not total.isfinite():
            raise NonFiniteError(f"a weight is not finite {where}: lower the learning rate")


def make_student(
    cell: Cell,
    method: Method,
    network: Network,
    shapes: Shapes,
    teacher_shapes: Shapes | None,
    device: torch.device,
    labelled: Tensor | None = None,
) -> Student:
    """A student ready for its first epoch.

    Args:
        cell: what is trained.
        method: built from the cell's hyper-parameters.
        network: freshly initialised.
        shapes: its taps' shapes.
        teacher_shapes: the teacher's; None if the cell has none.
        device: where the training runs.
        labelled: see `Student`.

    Raises:
        NotApplicable: the method cannot serve this pair.
        ValueError: teacher and student tell different numbers of classes apart.
    """
    if method.needs_teacher and teacher_shapes is None:
        raise ValueError(f"method {cell.method!r} needs a teacher, and the cell names none")
    if labelled is not None and any(stage.keep is not None for stage in method.plan):
        raise NotApplicable("the selection reads every label, and this grid shows only a part")
    theirs: Shapes = teacher_shapes if teacher_shapes is not None else {}
    if teacher_shapes is not None and theirs["logits"] != shapes["logits"]:
        raise ValueError(
            f"the teacher tells {theirs['logits'][0]} classes apart, the student "
            f"{shapes['logits'][0]}: train both on the same classes"
        )
    for name, tap in _taps_of(method):
        for whose, available in (("student", shapes), ("teacher", theirs)):
            if tap not in available:
                raise NotApplicable(f"stage {name!r} reads tap {tap!r}, which the {whose} lacks "
                                    f"(it has {', '.join(available)})")  # fmt: skip
    optional = {
        stage.name: tuple(t for t in stage.optional_taps if t in shapes and t in theirs)
        for stage in method.plan
    }
    torch.manual_seed(derive(cell.seed, "connector", cell.method))
    connector = to_device(method.connect(shapes, theirs), device)
    network = to_device(network, device)
    return Student(cell, method, network, connector, device, optional, labelled)


def _taps_of(method: Method) -> Iterator[tuple[str, str]]:
    return ((stage.name, tap) for stage in method.plan for tap in stage.all_taps)
