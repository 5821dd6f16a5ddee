"""Training steps outside of a training: one stage of one student on random images, by the engine.

The learning rate is next to nothing, so that each step is the same work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.cell import Cell, DataSpec, Recipe
from bench.cost.counting import bytes_of, count
from bench.data.batches import Batch
from bench.method import MaskedLoss, Method, Pair, Stage, Transfer, View
from bench.models import zoo
from bench.models.network import Network, modes_restored
from bench.seeds import derive
from bench.train.engine import make_student
from bench.train.stream import StudentBatch
from bench.train.teacher import Teacher

PLAIN = "student"
Model = str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What decides the cost of a step apart from networks and method; most is as of a cell.

    `classes` is K, `image_shape` (C, H, W). The recipe gives batch size, epochs and their split.
    `images` is N, the size of a memory with an entry for each training image; 0 for the images that
    are drawn.
    """

    classes: int
    image_shape: tuple[int, int, int]
    recipe: Recipe
    device: torch.device
    images: int = 0
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = True

    def cell(self, model: Model, method: str = PLAIN) -> Cell:
        """The cell of such a training, with a learning rate that leaves the weights in place."""
        return Cell(
            model=model,
            data=DataSpec(source="random"),
            fingerprint="random",
            method=method,
            code="",
            hyperparameters={},
            recipe=self.recipe.model_copy(update={"learning_rate": 1e-12}),
            seed=0,
            precision=self.precision,
            deterministic=self.deterministic,
        )

    def build(self, model: Model) -> Network:
        """A freshly initialised network, the same in every call."""
        torch.manual_seed(derive(0, "profile", str(model)))
        return zoo.build(model, self.classes, self.image_shape)

    def draw(self) -> Batch:
        """Normal images, channels last as in training: a few batches, and 4 for each class."""
        count = 4 * max(self.recipe.batch_size, self.classes)
        draws = torch.Generator().manual_seed(0)
        images = torch.randn(count, *self.image_shape, generator=draws)
        images = images.to(self.device, memory_format=torch.channels_last)
        index = torch.arange(count, device=self.device)
        return Batch(images, index % self.classes, index)


class TeacherBatch:
    """A teacher with random weights and one batch of images: what the students under it share.

    `train` are all images, a few batches; `batch` is the first one.
    """

    def __init__(self, teacher: Model, workload: Workload) -> None:
        """Builds the teacher. Its BatchNorm statistics are those of the images."""
        self.workload, self.train = workload, workload.draw()
        self.batch = Batch(*(x[: workload.recipe.batch_size] for x in self.train))
        network = workload.build(teacher).to(workload.device)
        # A deep random network overflows with the statistics that it was built with.
        update_bn([self.batch.images], network.train())
        cell = workload.cell(teacher)
        self.teacher = Teacher(network, cell, workload.device, workload.image_shape)

    def clean_view(self, taps: Sequence[str]) -> View:
        """The teacher's view of all images."""
        batches = iter(self.train.images.split(len(self.batch.index)))
        return self.teacher.clean_view(batches, taps)

    def view(self, taps: Sequence[str] = ("logits",)) -> View:
        """The teacher's view of the batch."""
        return self.teacher.view(self.batch.images, taps)


class LossAlone:
    """Transfer losses with their connector, on fixed taps of both networks."""

    def __init__(self, losses: Sequence[Transfer], pair: Pair, connector: nn.Module) -> None:
        """Detaches the student's taps, which the losses of one stage read, from the network."""
        shown = pair.student.taps.items()
        taps = {tap: x.detach().requires_grad_(x.requires_grad) for tap, x in shown}
        self._losses, self._connector = tuple(losses), connector
        self.pair = pair._replace(student=View(taps))
        weights = [p for p in connector.parameters() if p.requires_grad]
        self.leaves = [x for x in (*taps.values(), *weights) if x.requires_grad]

    def __call__(self) -> None:
        """Forward and backward."""
        found = (MaskedLoss.of(loss(self.pair, self._connector)) for loss in self._losses)
        losses = [loss.mean() for loss, _ in found]
        torch.autograd.grad(torch.stack(losses).sum(), self.leaves, allow_unused=True)


class StudentStage:
    """One stage of one student under a teacher's lesson, to be stepped again and again."""

    def __init__(
        self,
        lesson: TeacherBatch,
        model: Model,
        name: str,
        method: Method,
        stage: Stage,
        labelled: Tensor | None = None,
    ) -> None:
        """Builds a student and lets it enter one stage of the method called `name`.

        `labelled`: (N,) bool, whose labels the task loss may see; None for all. NotApplicable if
        the method cannot serve this pair.
        """
        self.lesson, self.stage, self._pair = lesson, stage, None
        losses = {"joint": stage.joint, "transfer": stage.transfer}
        self._losses = {name: loss for name, loss in losses.items() if loss is not None}
        watched = {name: partial(self._watched, loss) for name, loss in self._losses.items()}
        alone = replace(method, plan=(replace(stage, share=1.0, **watched),))
        workload, labels = lesson.workload, lesson.train.labels
        shape, device = workload.image_shape, workload.device
        if labelled is not None:
            labels = labels.where(labelled, -1)
        # A connector may hold an entry for each training image, more than are drawn.
        places = torch.arange(max(len(labels), workload.images), device=device)
        labels = labels[places % len(labels)]
        cell, network = workload.cell(model, name), workload.build(model)
        self.student = make_student(cell, alone, network, shape, lesson.teacher, device, labels)
        self.student.begin_epoch(lesson.clean_view, lesson.train.labels)

    def _watched(self, loss: Transfer, pair: Pair, connector: nn.Module) -> Tensor | MaskedLoss:
        """The loss, whose pair is kept until the step ends."""
        self._pair = pair
        return loss(pair, connector)

    @property
    def kept(self) -> float:
        """Share of the training images that the stage steps over."""
        subset = self.student.subset
        return 1.0 if subset is None else len(subset) / len(self.lesson.train.labels)

    def deployed(self) -> tuple[float, float]:
        """Parameters, and FLOP of one image, of what the method deploys over the student's own."""
        images, own, counts = self.lesson.batch.images[:2], self.student.network, []
        for network in (self.student.deployed, own):
            with modes_restored(network), torch.no_grad():
                flops = count(partial(network.eval(), images))
            counts.append((sum(p.numel() for p in network.parameters()), flops))
        (parameters, flops), (own_parameters, own_flops) = counts
        return parameters / own_parameters, flops / own_flops

    def trained_bytes(self, train_images: int) -> int:
        """Parameters, buffers and momentum of network and connector, and clean views."""
        return self._bytes_of(self.student.network) + self.held_bytes(train_images)

    def held_bytes(self, train_images: int) -> int:
        """See `bench.cost.costs.StageCost`; `train_images` is N."""
        cached = self.lesson.clean_view(self.student.taps).taps if self.stage.clean else {}
        of_image = bytes_of(x[0] for x in cached.values())
        return self._bytes_of(self.student.connector) + of_image * train_images

    def _bytes_of(self, module: nn.Module) -> int:
        state = self.student.optimiser.state
        momentum = [x for p in module.parameters() for x in state.get(p, {}).values()]
        own = (*module.parameters(), *module.buffers(), *momentum)
        return bytes_of(x for x in own if isinstance(x, Tensor))

    def teacher_view(self) -> View | None:
        """The teacher's view of the batch that a step reads; None if it reads none."""
        return self.lesson.view(self.student.taps) if self.student.reads_teacher else None

    def step(self) -> Pair | None:
        """One training step, the teacher's forward pass included; see `step_on`."""
        return self.step_on(self.teacher_view())

    def step_on(self, view: View | None) -> Pair | None:
        """One training step on a view of the teacher's; returns what its transfer losses read."""
        self.student.step(StudentBatch(*self.lesson.batch, view, last=False))
        pair, self._pair = self._pair, None
        return pair

    def once(self) -> None:
        """The teacher's pass over one batch of clean images, if the stage reads them."""
        if self.stage.clean:
            self.lesson.view(self.student.taps)

    def loss_alone(self) -> LossAlone | None:
        """The stage's transfer losses on what both networks show in one step; None for none."""
        if not self._losses:
            return None
        pair = self.step()
        assert pair is not None
        return LossAlone([*self._losses.values()], pair, self.student.connector)
