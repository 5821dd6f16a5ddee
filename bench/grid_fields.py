"""The sections of a grid file: data, axes, pairs, rows, teachers and sources."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bench.cell import MOST_PIXELS, DataSpec, Fraction, ImageSpec, Seed, Spec
from bench.design import SCREENING, TeacherPools
from bench.hyperparameters import JOINT
from bench.models.files import IMAGENET

BASELINE = "student"
EPOCHS_FACTOR = "epochs_factor"  # in a row of the plain student: how much longer it trains
LONGEST = 1000
FINALIST = "finalist"  # in a row: false for a control or an ablation


class GridData(ImageSpec):
    """The images of a grid; `split_seed` draws them anew for every seed, or a number once."""

    split_seed: Literal["per_seed"] | Seed = "per_seed"

    def of(self, seed: int, /, **changes: Any) -> DataSpec:
        """The images of a cell with this seed and these changes.

        Where none are drawn, no seed draws them. Where seeds draw other images, the images held out
        are the same for all of them.
        """
        fields = {**self.model_dump(), **changes}
        if fields["split_seed"] == "per_seed":
            drawn = fields["fraction"] < 1 or fields["labels"] < 1
            fields["split_seed"] = seed if drawn else 0
            if drawn and fields["validation"] and fields["validation_seed"] is None:
                fields["validation_seed"] = 0
        return DataSpec(**fields)


class Normalise(Spec):
    """A network's own preprocessing: mean and deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations")
        return self


IMAGENET_IMAGES = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class FileSpec(Spec):
    """Weights from a file, see `bench.models.files`.

    Attributes:
        weights: a path relative to the grid's file, or torchvision's name for weights.
        normalise: the preprocessing that they were trained with; None for the data's.
        classes: what the file's classes are, where they are not the data's.
    """

    weights: str | None = None
    normalise: Normalise | None = None
    classes: Literal["imagenet"] | tuple[int, ...] | tuple[str, ...] | None = None

    @field_validator("normalise", mode="before")
    @classmethod
    def _read_normalise(cls, value: Any) -> Any:
        if isinstance(value, str) and value != IMAGENET:
            raise ValueError(f"got {value!r}, wanted imagenet or {{mean: [..], std: [..]}}")
        return IMAGENET_IMAGES if value == IMAGENET else value

    @model_validator(mode="after")
    def _classes_of_weights(self) -> Self:
        if self.classes is not None and self.weights is None:
            raise ValueError("classes are those of a file: give its weights")
        return self


class ModelSpec(FileSpec):
    """A model under a name of its own: which network it is, its taps, and where it starts."""

    model: str | None = None
    torchvision: str | None = None
    timm: str | None = None
    taps: dict[str, str] | None = None
    head: str | None = None

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if [self.model, self.torchvision, self.timm].count(None) != 2:
            raise ValueError("give one of model, torchvision and timm")
        return self


class TeacherSpec(FileSpec):
    """The share of the data, the recipe and the seeds of teachers, where they differ.

    Weights are those of all teachers. A teacher with weights trains only to `fine_tune` them, by
    the recipe with these fields.

    `seed`: "per_seed" for one teacher a seed, or the number of the one teacher's seed. `seeds`:
    pools of teachers that the seeds of a phase share, in its place.
    """

    fraction: Fraction = 1.0
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: Literal["per_seed"] | Seed = "per_seed"
    seeds: TeacherPools | None = None
    fine_tune: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.seeds is not None and self.seed != "per_seed":
            raise ValueError("give either seed or seeds")
        return self

    @property
    def tuned_recipe(self) -> dict[str, Any]:
        """The fields of the recipe that differ for a teacher that trains."""
        return {**self.recipe, **(self.fine_tune or {})}

    def seed_for(self, phase: str, seed: int) -> int:
        """The seed of the teacher that teaches in a phase under a seed of the grid."""
        if (pools := self.seeds) is not None:
            screens = phase == SCREENING
            return seed % pools.screen if screens else pools.screen + seed % pools.confirm
        return seed if self.seed == "per_seed" else int(self.seed)


class SourceSpec(Spec):
    """What transfer learning starts from: fields of the student's data and recipe that differ."""

    data: dict[str, Any]
    recipe: dict[str, Any] = Field(default_factory=dict)


Fractions = Annotated[tuple[Fraction, ...], Field(min_length=1)]
Factors = Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_PIXELS)], ...], Field(min_length=1)]


class Axes(Spec):
    """Values of the data axes; the grid is their product."""

    fraction: Fractions | None = None
    labels: Fractions | None = None
    resolution: Factors | None = None


class PairSpec(Spec):
    """A teacher and the student it teaches; in a grid file also written `teacher:student`."""

    teacher: str
    student: str


class MethodSpec(Spec):
    """A method with the hyper-parameters that differ from its defaults, or fields of `ROW_RECIPE`.

    The plain student takes `epochs_factor`: such a row shows what the cost of a method would gain
    without the method. A row that is no `finalist` is never confirmed nor named.
    """

    name: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    finalist: bool = True

    @property
    def epochs_factor(self) -> float | None:
        """The epochs of a longer-trained student over those of other rows; None for other rows."""
        if self.name != BASELINE or EPOCHS_FACTOR not in self.hyperparameters:
            return None
        factor = self.hyperparameters[EPOCHS_FACTOR]
        if type(factor) not in (int, float) or not 1 <= factor <= LONGEST:
            raise ValueError(
                f"{EPOCHS_FACTOR}: got {factor!r}, wanted a number of at least 1, {LONGEST} at most"
            )
        return float(factor)

    @property
    def label(self) -> str:
        """The row's name: the method and what differs from its defaults."""
        own = {k: v for k, v in self.hyperparameters.items() if k != JOINT}
        changed = ", ".join(f"{k}={_short(v)}" for k, v in own.items())
        joint = " + soft_logits" if self.hyperparameters.get(JOINT) else ""
        return self.name + joint + (f" ({changed})" if changed else "")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
