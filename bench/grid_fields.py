"""The sections of a grid file: data, axes, pairs, rows, teachers and sources."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bench.cell import DataSpec, Fraction, ImageSpec, Spec
from bench.design import TeacherPools
from bench.hyperparameters import JOINT

BASELINE = "student"
EPOCHS_FACTOR = "epochs_factor"  # in a row of the plain student: how much longer it trains
ROW_RECIPE = ("learning_rate", "label_smoothing")  # of the recipe, as a row may have for itself
FINALIST = "finalist"  # in a row: false for a control or an ablation


class GridData(ImageSpec):
    """The images of a grid; `split_seed` draws them anew for every seed, or a number once."""

    split_seed: Literal["per_seed"] | int = "per_seed"

    def of(self, seed: int, **changes: Any) -> DataSpec:
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


class TeacherSpec(Spec):
    """The share of the data, the recipe and the seeds of teachers, where they differ.

    `seed`: "per_seed" for one teacher a seed, or the number of the one teacher's seed. `seeds`:
    pools of teachers that the seeds of a phase share, in its place.
    """

    fraction: Fraction = 1.0
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: Literal["per_seed"] | int = "per_seed"
    seeds: TeacherPools | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> TeacherSpec:
        if self.seeds is not None and self.seed != "per_seed":
            raise ValueError("give either seed or seeds")
        return self

    def seed_for(self, phase: str, seed: int) -> int:
        """The seed of the teacher that teaches in a phase under a seed of the grid."""
        if self.seeds is not None:
            return self.seeds.seed(phase, seed)
        return seed if self.seed == "per_seed" else int(self.seed)


class SourceSpec(Spec):
    """What transfer learning starts from: fields of the student's data and recipe that differ."""

    data: dict[str, Any]
    recipe: dict[str, Any] = Field(default_factory=dict)


Fractions = Annotated[tuple[Fraction, ...], Field(min_length=1)]
Factors = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


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
        if type(factor) not in (int, float) or not 1 <= factor < math.inf:
            raise ValueError(f"{EPOCHS_FACTOR}: got {factor!r}, wanted a number of at least 1")
        return float(factor)

    @property
    def is_baseline(self) -> bool:
        """Whether it is the plain student under the grid's own recipe."""
        return self.name == BASELINE and not self.hyperparameters

    @property
    def label(self) -> str:
        """The row's name: the method and what differs from its defaults."""
        own = {k: v for k, v in self.hyperparameters.items() if k != JOINT}
        changed = ", ".join(f"{k}={_short(v)}" for k, v in own.items())
        joint = " + soft_logits" if self.hyperparameters.get(JOINT) else ""
        return self.name + joint + (f" ({changed})" if changed else "")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
