"""Grid files: what to train, as data, checked before anything starts.

A grid names a data set, teacher-student pairs, methods and seeds. `bench.expansion.expand` turns
it into cells and table rows.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from bench import record
from bench.cell import DataSpec, Fraction, Recipe, Spec
from bench.faults import UserError
from bench.hyperparameters import JOINT, METHODS, build_method
from bench.models import zoo
from bench.registry import unknown

GRIDS = Path(__file__).parent / "grids"
RESERVED = {"store", "mlartifacts"}
BASELINE = "student"
EPOCHS_FACTOR = "epochs_factor"
"""A key in a row of the plain student: the factor by which it trains longer than other rows."""


class GridError(UserError):
    """A grid that cannot be run; one line with the field, what it holds and what was wanted."""


class TeacherSpec(Spec):
    """The share of the data, the recipe and the seeds of teachers, where they differ."""

    fraction: Fraction = 1.0
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: Literal["per_seed"] | int = "per_seed"


class SourceSpec(Spec):
    """What transfer learning starts from: the student's own architecture, trained on other data.

    Attributes:
        data: fields of the grid's data that differ, such as other classes.
        recipe: fields of the student's recipe that differ.
    """

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
    """A method with the hyper-parameters that differ from its defaults.

    The plain student takes `epochs_factor` instead. Such a row shows what the cost of a method
    would gain without the method. It is never the baseline of gains.
    """

    name: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def epochs_factor(self) -> float | None:
        """The epochs of a longer-trained student over those of other rows; None for other rows.

        Raises:
            ValueError: it is not a number of at least 1.
        """
        if self.name != BASELINE or EPOCHS_FACTOR not in self.hyperparameters:
            return None
        factor = self.hyperparameters[EPOCHS_FACTOR]
        if type(factor) not in (int, float) or not 1 <= factor < math.inf:
            raise ValueError(f"{EPOCHS_FACTOR}: got {factor!r}, wanted a number of at least 1")
        return float(factor)

    @property
    def label(self) -> str:
        """The row's name: the method and what differs from its defaults."""
        own = {k: v for k, v in self.hyperparameters.items() if k != JOINT}
        changed = ", ".join(f"{k}={_short(v)}" for k, v in own.items())
        joint = " + soft_logits" if self.hyperparameters.get(JOINT) else ""
        return self.name + joint + (f" ({changed})" if changed else "")


SECTIONS = {
    "data": DataSpec,
    "axes": Axes,
    "pairs": PairSpec,
    "methods": MethodSpec,
    "recipe": Recipe,
    "teacher": TeacherSpec,
    "source": SourceSpec,
}
"""The fields of a grid that have fields of their own."""


class Grid(Spec):
    """A grid file.

    Attributes:
        models: own names for models that need more than a name (torchvision with taps by path).
        recipe_for: model name -> the fields of its recipe that differ.
        tuned: row label -> hyper-parameters, as `tune` chose them. A row's own hyper-parameters
            replace them, and its label does not change.
        diagnostics: whether `bench.train.diagnostics` measures students while they train, for
            the table of claims. Their accuracies are the same bits either way.
    """

    name: str = ""
    description: str
    data: DataSpec
    axes: Axes = Axes()
    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pairs: tuple[PairSpec, ...] = ()
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    methods: tuple[MethodSpec, ...]
    seeds: tuple[int, ...]
    recipe: Recipe
    recipe_for: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)
    teacher: TeacherSpec = TeacherSpec()
    source: SourceSpec | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = True
    diagnostics: bool = False

    @field_validator("pairs", mode="before")
    @classmethod
    def _read_pairs(cls, value: Any) -> Any:
        return [_pair(v) if isinstance(v, str) else v for v in _listed(value)]

    @field_validator("methods", mode="before")
    @classmethod
    def _read_methods(cls, value: Any) -> Any:
        return [_method(v) for v in _listed(value)]

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError(f"got {value}, wanted at least 1 seed")
            return tuple(range(value))
        return value

    @model_validator(mode="after")
    def _whole(self) -> Grid:
        if bool(self.pairs) == bool(self.teachers or self.students):
            raise ValueError("give either pairs, or teachers and students")
        if not self.pairs and not (self.teachers and self.students):
            raise ValueError("teachers and students come together: one of the two is empty")
        for what, values in (("seeds", self.seeds), ("methods", [m.label for m in self.methods])):
            if not values:
                raise ValueError(f"{what} is empty, wanted at least one")
            if repeated := [v for v in dict.fromkeys(values) if list(values).count(v) > 1]:
                raise ValueError(f"{what} names {repeated[0]} twice")
        labels = [method.label for method in self.methods]
        for label in self.tuned:
            if label not in labels:
                raise ValueError(f"tuned: {unknown('row', label, labels)}")
        return self

    def hyperparameters(self, method: MethodSpec) -> dict[str, Any]:
        """A row's own hyper-parameters over those tuned for it, as the method takes them.

        `EPOCHS_FACTOR` is left out: it changes the recipe of the cell.
        """
        own = {**self.tuned.get(method.label, {}), **method.hyperparameters}
        if method.epochs_factor is not None:
            del own[EPOCHS_FACTOR]
        return own

    @property
    def all_pairs(self) -> tuple[PairSpec, ...]:
        """The pairs, written out."""
        product = itertools.product(self.teachers, self.students)
        return self.pairs or tuple(PairSpec(teacher=t, student=s) for t, s in product)

    def model(self, name: str) -> str | dict[str, Any]:
        """The model that this grid calls `name`."""
        return {**self.models[name], "name": name} if name in self.models else name

    def recipe_of(self, model: str, more: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe for one model: `more` over its `recipe_for` over the recipe of the grid."""
        changed = {**self.recipe_for.get(model, {}), **(more or {})}
        return Recipe(**{**self.recipe.model_dump(), **changed})


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _pair(text: str) -> dict[str, str]:
    teacher, colon, student = text.partition(":")
    if not (teacher and colon and student):
        raise ValueError(f"got {text!r}, wanted teacher:student")
    return {"teacher": teacher, "student": student}


def _method(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, hyperparameters),) = value.items()
        return {"name": name, "hyperparameters": hyperparameters or {}}
    return value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


# --- reading -------------------------------------------------------------------------------------


def grid_names() -> list[str]:
    """The grids that come with the harness."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def find_grid(name_or_path: str) -> Path:
    """The file of a grid given by name or path; GridError with near names if it is missing."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise GridError(f"grid: no file {name_or_path}")
        return path
    if name_or_path not in grid_names():
        raise GridError(
            unknown("grid", name_or_path, grid_names()) + " (or a path to a .yaml file)"
        )
    return GRIDS / f"{name_or_path}.yaml"


def load_grid(name_or_path: str, overrides: Sequence[str] = ()) -> Grid:
    """Reads and checks a grid.

    Args:
        name_or_path: a name of `grid_names()`, or a path to a YAML file.
        overrides: `dotted.field=value` texts that replace fields of the file; values are YAML.

    Raises:
        GridError: one line with the field, what it holds, what was wanted and near names.
    """
    path = find_grid(name_or_path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise GridError(f"{path.name}: got {type(values).__name__}, wanted a mapping of fields")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise GridError(f"{path.name}: field {odd[0]!r} is not a name")
    for text in overrides:
        _override(values, text)
    try:
        grid = Grid(**{**values, "name": path.stem})
    except ValidationError as error:
        raise GridError(f"{path.name}: {_first_fault(error, Grid)}") from None
    try:
        check_names(grid)
    except ValueError as error:
        raise GridError(f"{path.name}: {error}") from None
    return grid


def _override(values: dict[str, Any], text: str) -> None:
    field, equals, value = text.partition("=")
    *parents, last = field.split(".")
    if not (equals and last):
        raise GridError(f"override {text!r}: wanted field=value, such as recipe.epochs=10")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise GridError(f"override {text!r}: {parent} is not a mapping")
        values = inner
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise GridError(f"override {text!r}: {value!r} is not YAML") from None


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    fault, more = error.errors()[0], error.error_count() - 1
    path = ".".join(str(part) for part in fault["loc"])
    came = f"got {fault['input']!r}" if fault["type"] != "missing" else "missing"
    if fault["type"] == "extra_forbidden":
        *sections, field = map(str, fault["loc"])
        section = SECTIONS[sections[0]] if sections else model
        text = unknown("field", field, section.model_fields)
    elif fault["type"] == "value_error":
        text = str(fault.get("ctx", {}).get("error"))
    else:
        text = f"{came}; {fault['msg'][0].lower()}{fault['msg'][1:]}"
    text = f"{text[:300]}..." if len(text) > 300 else text
    return (f"{path}: " if path else "") + text + (f" (and {more} more)" if more else "")


def check_names(grid: Grid) -> None:
    """Refuses unknown models, methods and hyper-parameters, and recipes that do not validate.

    Raises:
        ValueError: one line with the field and near names.
    """
    if grid.name in RESERVED:
        raise GridError(f"name: {grid.name!r} is reserved in the work directory; rename the file")
    record.check_file_names("name", [grid.name])
    record.check_file_names("data.source", [grid.data.source])
    for position, pair in enumerate(grid.all_pairs):
        for role in ("teacher", "student"):
            try:
                zoo.check(grid.model(getattr(pair, role)))
            except ValueError as error:
                raise GridError(f"pairs.{position}.{role}: {error}") from None
    _check_methods(grid)
    if grid.source is not None:
        try:
            source_data(grid.data, grid.source)
        except ValidationError as error:
            raise GridError(f"source.data.{_first_fault(error, DataSpec)}") from None
    for field, model, more in _recipes(grid):
        try:
            grid.recipe_of(model, more)
        except ValidationError as error:
            raise GridError(f"{field}.{_first_fault(error, Recipe)}") from None


def _check_methods(grid: Grid) -> None:
    for position, method in enumerate(grid.methods):
        try:
            if EPOCHS_FACTOR in method.hyperparameters and method.name != BASELINE:
                raise ValueError(
                    f"{EPOCHS_FACTOR} is for {BASELINE} alone; methods share the recipe's epochs"
                )
            build_method(method.name, **grid.hyperparameters(method))
        except (ValueError, TypeError) as error:
            raise GridError(f"methods.{position}: {error}") from None


def source_data(data: DataSpec, source: SourceSpec) -> DataSpec:
    """The data of a source: all images and labels of the target, then `source.data` over that."""
    return DataSpec(**{**data.model_dump(), "fraction": 1.0, "labels": 1.0, **source.data})


def _recipes(grid: Grid) -> Iterable[tuple[str, str, dict[str, Any]]]:
    used = sorted({m for p in grid.all_pairs for m in (p.teacher, p.student)})
    for model in grid.recipe_for:
        if model not in used:
            raise GridError(f"recipe_for: {unknown('model', model, used)}")
        yield f"recipe_for.{model}", model, {}
    for pair in grid.all_pairs:
        yield "teacher.recipe", pair.teacher, grid.teacher.recipe
        if grid.source is not None:
            yield "source.recipe", pair.student, grid.source.recipe


# --- narrowing -----------------------------------------------------------------------------------


def narrow(
    grid: Grid,
    methods: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Grid:
    """The grid with methods, pairs or seeds replaced by those asked for.

    Args:
        grid: any grid.
        methods: names. A method of the grid keeps its rows with their hyper-parameters; another
            one has its defaults; "all" means every method.
        pairs: `teacher:student` texts.
        seeds: numbers.

    Raises:
        GridError: an unknown name, with near names.
    """
    changed: dict[str, Any] = {}
    if methods:
        names = [n for name in methods for n in (METHODS.names() if name == "all" else [name])]
        rows = {n: [m for m in grid.methods if m.name == n] or [MethodSpec(name=n)] for n in names}
        changed["methods"] = tuple(m for same in rows.values() for m in same)
    if pairs:
        try:
            changed["pairs"] = tuple(PairSpec(**_pair(text)) for text in pairs)
        except ValueError as error:
            raise GridError(f"--pairs: {error}") from None
        changed |= {"teachers": (), "students": ()}
        # The recipes of other pairs were checked with the whole grid, and go with their pairs.
        used = {model for pair in changed["pairs"] for model in (pair.teacher, pair.student)}
        changed["recipe_for"] = {m: fields for m, fields in grid.recipe_for.items() if m in used}
    if seeds:
        changed["seeds"] = tuple(dict.fromkeys(seeds))
    narrowed = grid.model_copy(update=changed)
    check_names(narrowed)
    return narrowed


def name_part(grid: Grid, whole: Grid) -> Grid:
    """The grid, renamed if it is a part of the whole grid.

    A part shares its cells with the whole grid, but does not overwrite the tables of it.
    """
    if grid.model_dump() == whole.model_dump():
        return grid
    digest = hashlib.sha256(grid.model_dump_json().encode()).hexdigest()[:6]
    return grid.model_copy(update={"name": f"{grid.name}-{digest}"})
