"""One cell of a grid: everything that decides its numbers, and the hash of that.

A teacher is a cell too, to which its students refer. Paths, devices and machines are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NUMERICS = 3
"""Raised when the numbers of an unchanged cell change, or a default does.

It is part of every cell's id. Results of equal `NUMERICS` are comparable; others never mix.
"""

MOST_PIXELS = 1024  # the longest side of an image
Model = str | dict[str, Any]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Alpha = Annotated[float, Field(ge=0, le=1000)]
Ratio = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """A frozen model that accepts no unknown field, and no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Takes lists for tuples: YAML and JSON have no other."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


class Crop(Spec):
    """A random part of an image, scaled to the image's size.

    Attributes:
        scale: least and largest part of the image's area.
        ratio: least and largest width over height.
    """

    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[Ratio, Ratio] = (0.75, 4 / 3)

    @model_validator(mode="after")
    def _rising(self) -> Crop:
        for name in ("scale", "ratio"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name} [{least:g}, {largest:g}] must rise")
        return self


class RandAugment(Spec):
    """Operations that are drawn for each image, of one strength; see torchvision's RandAugment."""

    operations: Annotated[int, Field(ge=1, le=100)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class ImageSpec(Spec):
    """The images: their source, size, subset and augmentation, without the seed of the subset.

    Attributes:
        source: a name of `bench.data.sources`.
        size: side length in pixels that every image is scaled to once; None leaves them alone.
        resize: "squash" scales both sides to `size`, "crop" the shorter one, and keeps the middle.
        split: part of every class that is held out as the test set of a folder that has none.
        classes: the first n classes, or the named ones; None for all.
        pad: pixels added on each side before a random crop of the original size.
        padding: what those pixels hold.
        crop: a random resized crop in place of the padded one; None for none.
        flip: mirror half of the images.
        randaugment: None for none.
        fraction: part of the training images, stratified; smaller parts lie inside larger ones.
        labels: part of these images with a label for the task loss, stratified and nested.
        resolution: the student sees images reduced by this factor and scaled back.
        validation: part of the training images held out; accuracy is then measured on them
            instead of the test set. For choosing hyper-parameters.
        validation_seed: seed that draws the images held out; None for `split_seed`.
    """

    source: str
    size: Annotated[int, Field(ge=4, le=MOST_PIXELS)] | None = None
    resize: Literal["squash", "crop"] = "squash"
    split: Annotated[float, Field(gt=0, lt=1)] | None = None
    classes: Annotated[int, Field(ge=2)] | tuple[str | int, ...] | None = None
    pad: Annotated[int, Field(ge=0, le=MOST_PIXELS)] = 4
    padding: Literal["zeros", "reflect"] = "zeros"
    crop: Crop | None = None
    flip: bool = True
    randaugment: RandAugment | None = None
    fraction: Fraction = 1.0
    labels: Fraction = 1.0
    resolution: Annotated[int, Field(ge=1, le=MOST_PIXELS)] = 1
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validation_seed: Seed | None = None

    @model_validator(mode="after")
    def _one_crop(self) -> ImageSpec:
        if self.crop is not None and self.pad:
            raise ValueError(f"pad {self.pad} and crop are two crops: write pad: 0 next to crop")
        return self


class DataSpec(ImageSpec):
    """The images of one cell; `split_seed` draws `fraction`, `labels` and `validation`."""

    split_seed: int = 0


class Recipe(Spec):
    """The training recipe: an optimiser under a schedule.

    Attributes:
        epochs: the whole budget of a cell, all stages together (but see `budget`).
        optimiser: stochastic gradient descent, with `momentum` and `nesterov`, or AdamW, with
            `betas`.
        warmup: epochs at a stage's start in which the learning rate rises from a hundredth.
        milestones: parts of a stage's epochs after which the learning rate is multiplied by
            `decay`; for the multistep schedule.
        evaluate_every: epochs between two measurements of the test accuracy.
        label_smoothing: weight of the uniform distribution in the targets of the task loss.
        mixup, cutmix: alpha of the Beta distribution by which each batch's images are mixed, in
            whole or by a rectangle; 0 for neither. With both, each takes half of the batches.
        budget: see `bench.method.split_epochs`.
    """

    epochs: Epochs
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)]
    learning_rate: Annotated[float, Field(gt=0)]
    optimiser: Literal["sgd", "adamw"] = "sgd"
    momentum: Momentum = 0.9
    nesterov: bool = False
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    decay: Fraction = 0.1
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    drop_last: bool = True
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    evaluate_every: Epochs = 1
    budget: Literal["equal_epochs", "addon"] = "equal_epochs"

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        others = ("betas",) if self.optimiser == "sgd" else ("momentum", "nesterov")
        for name in others:
            default = Recipe.model_fields[name].default
            if getattr(self, name) != default:
                raise ValueError(f"{name} is not of {self.optimiser}: leave it at {default}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        return self

    @property
    def mixes(self) -> bool:
        """Whether an image that is trained on is mixed of two."""
        return self.mixup > 0 or self.cutmix > 0


UNTRAINED = Recipe.model_construct(epochs=0, batch_size=64, learning_rate=0.0, drop_last=False)
"""The recipe of a network that is used as it came from a file; no grid can name it."""


class Cell(Spec):
    """One training: a model on data under a recipe, by a method, with a seed.

    Attributes:
        model: a name of `bench.models.zoo`, or a mapping that it builds from, with a "name"; its
            "weights" are the SHA-256 of the file that the network starts from.
        fingerprint: hash of the decoded images and labels.
        code: digest of the method's code.
        network_code: digest of the code of a plugin's model; "" for models of the harness.
        hyperparameters: the method's, complete.
        teacher: None for a baseline or a teacher.
        source: the cell that the trunk's initial weights come from (transfer learning).
        diagnostics: whether `bench.train.diagnostics` measures; it changes no other number.
    """

    model: Model
    data: DataSpec
    fingerprint: str
    method: str
    code: str
    hyperparameters: dict[str, Any]
    recipe: Recipe
    seed: int
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = True
    teacher: Cell | None = None
    source: Cell | None = None
    diagnostics: bool = False
    network_code: str = ""

    def resolved(self, *, defaults: bool = True) -> dict[str, Any]:
        """The fields as JSON-able values; a teacher or source as its model and cell id.

        Without `defaults`, fields at their default are left out, at every level. Hyper-parameters
        are always complete: their defaults are covered by `code`.
        """
        others = {"teacher": self.teacher, "source": self.source}
        values = self.model_dump(mode="json", exclude={*others}, exclude_defaults=not defaults)
        for name, other in others.items():
            if other is not None or defaults:
                values[name] = other and {"cell_id": other.id, "model": other.model_name}
        return values

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the hash of `NUMERICS` and of all fields not at their default."""
        fields = self.resolved(defaults=False)
        text = json.dumps([NUMERICS, fields], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def model_name(self) -> str:
        """The model's name in tables."""
        return self.model if isinstance(self.model, str) else self.model["name"]

    @property
    def trains(self) -> bool:
        """Whether anything is trained; else the network is evaluated as its file has it."""
        return self.recipe.epochs > 0

    @property
    def stream(self) -> str:
        """A key that is equal for cells that can share one stream of batches."""
        data, recipe, source = self.data.model_dump(), self.recipe, self.source and self.source.id
        batches = (recipe.batch_size, recipe.drop_last, self.precision, self.deterministic)
        mixing = (recipe.mixup, recipe.cutmix)
        return json.dumps([data, self.fingerprint, self.seed, *batches, *mixing, source])

    @property
    def needs(self) -> list[Cell]:
        """The cells that must finish before this one trains."""
        return [cell for cell in (self.teacher, self.source) if cell is not None]

    def __str__(self) -> str:
        """Teacher>student/method/seed, as in MLflow's list of runs."""
        head = f"{self.teacher.model_name}>" if self.teacher else ""
        return f"{head}{self.model_name}/{self.method}/{self.seed}"
