"""Training steps to measure: one student under one teacher on random images, by the real engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.cell import Cell, DataSpec, Recipe
from bench.cost.loss import LossAlone
from bench.cost.marks import MarkedNetwork, Marks, mark_optimiser, marked_stage
from bench.method import Method, Stage, View
from bench.models import zoo
from bench.models.network import Network, tap_shapes
from bench.seeds import derive
from bench.train.admission import make_student
from bench.train.step import Seen
from bench.train.teacher import Teacher

PLAIN = "student"
Model = str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every measurement of a profile has in common.

    Attributes:
        data: the data set's name, for the tables; the images measured on are random.
        classes: K.
        image_shape: (C, H, W).
        recipe: gives the batch size, the epochs and their split over stages.
        device: where to measure.
        precision: as of a cell.
        deterministic: as of a cell.
        rounds: how often every step is measured.
        warm_up: steps of every stage before that.
        seconds: after so many no further round of a pair starts, but for the first three; None
            for no limit.
        train_images: N, how many views a stage caches that reads them of clean images.
        provenance: commit and the like.
    """

    data: str
    classes: int
    image_shape: tuple[int, int, int]
    recipe: Recipe
    device: torch.device
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = True
    rounds: int = 20
    warm_up: int = 2
    seconds: float | None = None
    train_images: int = 0
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses a profile that measures nothing."""
        if self.rounds < 1 or self.warm_up < 1:
            raise ValueError(f"rounds {self.rounds} and warm_up {self.warm_up} must be at least 1")

    def cell(self, model: Model, method: str = PLAIN) -> Cell:
        """The cell that such a training would be, at a rate so low that its weights stay put."""
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


class Images(NamedTuple):
    """Random images, (N, C, H, W) and (N,): a training set of a few batches."""

    images: Tensor
    labels: Tensor


def random_images(setting: Setting) -> Images:
    """Normal images in the layout that training has, enough of them to select from."""
    count = 4 * max(setting.recipe.batch_size, setting.classes)
    images = torch.randn(
        count, *setting.image_shape, generator=torch.Generator().manual_seed(0)
    ).to(setting.device, memory_format=torch.channels_last)
    return Images(images, (torch.arange(count) % setting.classes).to(setting.device))


class Scene:
    """A teacher and the images: what all students under that teacher share."""

    def __init__(self, teacher: Model, setting: Setting) -> None:
        """Builds the teacher; its weights are random, its statistics those of the images."""
        self.setting = setting
        self.train = random_images(setting)
        size = setting.recipe.batch_size
        self.batch = Images(self.train.images[:size], self.train.labels[:size])
        self.index = torch.arange(size, device=setting.device)
        network = self.build(teacher).to(setting.device)
        set_statistics(network, self.batch.images)
        self.teacher = Teacher(network, setting.cell(teacher), setting.device, setting.image_shape)
        self.teacher_shapes = tap_shapes(self.teacher.network, setting.image_shape)

    def build(self, model: Model) -> Network:
        """A freshly initialised network, always the same."""
        torch.manual_seed(derive(0, "profile", str(model)))
        if isinstance(model, dict):
            model = {key: value for key, value in model.items() if key != "name"}
        return zoo.build(model, self.setting.classes, self.setting.image_shape)

    def clean_view(self, taps: Sequence[str]) -> View:
        """The teacher's view of all images."""
        batches = iter(self.train.images.split(len(self.index)))
        return self.teacher.clean_view(batches, taps)

    def teach(self) -> View:
        """The teacher's whole forward pass over a batch."""
        return self.teacher.view(self.batch.images, ("logits",))


def set_statistics(network: nn.Module, images: Tensor) -> None:
    """Gives BatchNorm the statistics of `images`: a deep random network would overflow without."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


class Bench:
    """One stage of one method, ready to be stepped again and again.

    Attributes:
        stage: as the method has it.
        marks: between the parts of its steps.
        student: the engine's, in that stage.
    """

    def __init__(self, scene: Scene, model: Model, name: str, method: Method, stage: Stage) -> None:
        """Builds a student of its own and lets it enter the stage.

        Raises:
            NotApplicable: the method cannot serve this pair.
        """
        self.scene, self.stage, self.marks = scene, stage, Marks()
        alone = replace(method, plan=(replace(marked_stage(stage, self.marks), share=1.0),))
        network = MarkedNetwork(scene.build(model), self.marks)
        setting = scene.setting
        self.student = make_student(
            setting.cell(model, name), alone, network, tap_shapes(network, setting.image_shape),
            scene.teacher_shapes, setting.device,
        )  # fmt: skip
        self._cached_bytes = 0  # of one image
        self.student.begin_epoch(self._clean_view, scene.train.labels)
        mark_optimiser(self.student.optimiser, self.marks)

    def _clean_view(self, taps: Sequence[str]) -> View:
        view = self.scene.clean_view(taps)
        self._cached_bytes = sum(x[0].numel() * x.element_size() for x in view.taps.values())
        return view

    @property
    def kept(self) -> float:
        """Share of the training images that the stage steps over."""
        subset = self.student.subset
        return 1.0 if subset is None else len(subset) / len(self.scene.train.labels)

    @property
    def extra_parameters(self) -> int:
        """Trained beside the student, by the whole method."""
        return sum(p.numel() for p in self.student.connector.parameters())

    @property
    def held_bytes(self) -> int:
        """See `bench.cost.record.StageCost`."""
        connector, state = self.student.connector, self.student.optimiser.state
        momentum = (x for p in connector.parameters() for x in state.get(p, {}).values())
        own = (*connector.parameters(), *connector.buffers(), *momentum)
        held = sum(x.numel() * x.element_size() for x in own if isinstance(x, Tensor))
        return held + self._cached_bytes * self.scene.setting.train_images

    def drop_faulty_gradients(self) -> None:
        """Sets gradients that are not finite to 0 before every update from now on.

        Textbook forms have such gradients where fast ones are masked; a training would end there,
        but what it costs can be measured.
        """

        def clean(optimiser: torch.optim.Optimizer, *_: object) -> None:
            for group in optimiser.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.nan_to_num_(0.0, 0.0, 0.0)

        self.student.optimiser.register_step_pre_hook(clean)

    def loss_alone(self) -> LossAlone | None:
        """The stage's transfer losses on what both networks show in one step; None without any."""
        losses = [loss for loss in (self.stage.beside, self.stage.transfer) if loss is not None]
        if not losses:
            return None
        with self.marks.showing() as pairs:
            self.step()
        return LossAlone(losses, pairs[0], self.student.connector)

    def step(self) -> None:
        """One training step, the teacher's forward pass included."""
        scene, view = self.scene, None
        if self.student.reads_teacher:
            view = scene.teacher.view(scene.batch.images, self.student.taps)
            self.marks.mark("teacher")
        self.student.step(Seen(*scene.batch, scene.index, view, last=False))
        self.marks.mark("optimiser")

    def once(self) -> None:
        """The teacher's pass over one batch, for a stage that reads it of clean images."""
        if self.stage.clean:
            self.scene.teacher.view(self.scene.batch.images, self.student.taps)
