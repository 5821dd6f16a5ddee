"""Grid files: what to train, as data, checked before anything starts; see `grids/README.md`."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bench.cell import DataSpec, Model, Recipe, Seed, Spec
from bench.design import Design
from bench.faults import UserError, one_line, shortened
from bench.grid_fields import (
    BASELINE,
    EPOCHS_FACTOR,
    FINALIST,
    Axes,
    FileSpec,
    GridData,
    MethodSpec,
    ModelSpec,
    PairSpec,
    SourceSpec,
    TeacherSpec,
)
from bench.hyperparameters import METHODS, ROW_RECIPE, build_method, default_hyperparameters
from bench.models import zoo
from bench.models.files import find_weights
from bench.record import check_file_names, digest, file_digest
from bench.registry import unknown
from bench.seeds import MOST_SEEDS
from bench.strict_yaml import read_yaml

GRIDS = Path(__file__).parent / "grids"
RESERVED = {"store", "mlartifacts", "mlflow.db"}
NOT_WRITTEN = {"name", "part_of", "narrowed"}


class GridError(UserError):
    """A grid that cannot be run; one line with the field, what it holds and what was wanted."""


class Grid(Spec):
    """A grid file.

    Attributes:
        models: own names for models that need more than a name: weights, or taps by path.
        recipe_for: model name -> the fields of its recipe that differ.
        tuned: row label -> hyper-parameters and fields of `ROW_RECIPE`, as `tune` chose them. A
            row's own replace them, and its label does not change.
        seeds: numbers, a count, or a `bench.design.Design`.
        max_cost: the most that a finalist may cost, as a multiple of the plain student's training.
        part_of: name of the grid that this one is a part or a variant of; set by the harness.
        narrowed: whether the command line left rows out; set by the harness.
    """

    name: str = ""
    description: str
    data: GridData
    axes: Axes = Axes()
    models: dict[str, ModelSpec] = Field(default_factory=dict)
    pairs: tuple[PairSpec, ...] = ()
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    methods: tuple[MethodSpec, ...]
    seeds: Design | tuple[Seed, ...]
    max_cost: Annotated[float, Field(gt=0)] | None = None
    recipe: Recipe
    recipe_for: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)
    teacher: TeacherSpec = TeacherSpec()
    source: SourceSpec | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    deterministic: bool = True
    diagnostics: bool = False
    part_of: str = ""
    narrowed: bool = False
    _folder: Path = PrivateAttr(Path())

    @field_validator("pairs", "methods", mode="before")
    @classmethod
    def _read_short_forms(cls, value: Any, info: ValidationInfo) -> Any:
        read = _pair if info.field_name == "pairs" else _method
        return tuple(map(read, value if isinstance(value, (list, tuple)) else [value]))

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MOST_SEEDS:
                raise ValueError(f"got {value}, wanted at least 1 and at most {MOST_SEEDS} seeds")
            return tuple(range(value))
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.pairs) == bool(self.teachers or self.students):
            raise ValueError("give either pairs, or teachers and students")
        if not self.pairs and not (self.teachers and self.students):
            raise ValueError("teachers and students come together: one of the two is empty")
        listed: dict[str, Sequence[Any]] = {"methods": [method.label for method in self.methods]}
        listed |= {"pairs": [f"{pair.teacher}:{pair.student}" for pair in self.all_pairs]}
        if not isinstance(self.seeds, Design):
            listed["seeds"] = self.seeds
        for what, values in listed.items():
            if not values:
                raise ValueError(f"{what} is empty, wanted at least one")
            if repeated := [v for v in dict.fromkeys(values) if list(values).count(v) > 1]:
                raise ValueError(f"{what} names {repeated[0]} twice")
        labels = [BASELINE, *listed["methods"]]
        if idle := [label for label in self.tuned if label not in labels]:
            raise ValueError(f"tuned: {unknown('row', idle[0], labels)}")
        return self

    def _own(self, method: MethodSpec) -> dict[str, Any]:
        return {**self.tuned.get(method.label, {}), **method.hyperparameters}

    def hyperparameters(self, method: MethodSpec) -> dict[str, Any]:
        """A row's own hyper-parameters over those tuned for it, without what is the recipe's."""
        left_out = {EPOCHS_FACTOR} if method.epochs_factor is not None else set()
        left_out |= self.row_recipe(method).keys()
        return {key: value for key, value in self._own(method).items() if key not in left_out}

    def row_recipe(self, method: MethodSpec) -> dict[str, Any]:
        """The fields of the recipe that a row has for itself; a hyper-parameter is none of them."""
        known = default_hyperparameters(method.name)
        own = self._own(method)
        return {key: own[key] for key in ROW_RECIPE if key in own and key not in known}

    @property
    def screens(self) -> bool:
        """Whether rows are screened: there are more of them than finalists."""
        return isinstance(self.seeds, Design) and len(self.rows) > self.seeds.finalists

    @property
    def rows(self) -> tuple[MethodSpec, ...]:
        """The rows but the plain student under the grid's own recipe, which every grid has."""
        return tuple(row for row in self.methods if row.name != BASELINE or row.hyperparameters)

    @property
    def all_pairs(self) -> tuple[PairSpec, ...]:
        """The pairs, written out."""
        product = itertools.product(self.teachers, self.students)
        return self.pairs or tuple(PairSpec(teacher=t, student=s) for t, s in product)

    def model(self, name: str, *, teaches: bool = False) -> Model:
        """The model that this grid calls `name`; a file of weights as its SHA-256.

        `teaches`: as a teacher, which may have weights in `teacher`. UserError if there is no such
        file.
        """
        described = self._described(name, teaches)
        if isinstance(described, dict) and "weights" in described:
            return {**described, "weights": file_digest(self._weights(described))}
        return described

    @property
    def folder(self) -> Path:
        """The folder that the grid's weights are relative to."""
        return self._folder

    def _described(self, name: str, teaches: bool) -> Model:
        own, of_file = {}, set(FileSpec.model_fields)
        if teaches:
            own = self.teacher.model_dump(mode="json", exclude_none=True, include=of_file)
        if name in self.models:
            described = self.models[name].model_dump(mode="json", exclude_none=True)
            return {**described, **own, "name": name}
        return {"model": name, **own, "name": name} if own else name

    def _weights(self, described: dict[str, Any]) -> Path:
        library, _, name = zoo.base(described).rpartition("/")
        theirs = name if library == "torchvision" else None
        return find_weights(described["weights"], self._folder, theirs)

    def weights_files(self) -> dict[str, Path]:
        """SHA-256 -> path, of all weights that this grid's models start from."""
        roles = [r for p in self.all_pairs for r in ((p.teacher, True), (p.student, False))]
        used = [self._described(*role) for role in roles]
        paths = [self._weights(m) for m in used if isinstance(m, dict) and "weights" in m]
        return {file_digest(path): path for path in paths}

    def recipe_of(self, model: str, more: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe for one model: `more` over its `recipe_for` over the recipe of the grid."""
        changed = self.recipe_for.get(model, {}) | dict(more or {})
        return Recipe(**self.recipe.model_dump() | changed)


def _pair(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    teacher, colon, student = value.partition(":")
    if not (teacher and colon and student):
        raise ValueError(f"got {value!r}, wanted teacher:student")
    return {"teacher": teacher, "student": student}


def _method(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, own),) = value.items()
        if isinstance(own, Mapping) and FINALIST in own:
            others = {key: item for key, item in own.items() if key != FINALIST}
            return {"name": name, "hyperparameters": others, FINALIST: own[FINALIST]}
        return {"name": name, "hyperparameters": {} if own is None else own}
    return value


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
        near = unknown("grid", name_or_path, grid_names())
        raise GridError(f"{near} (or a path to a .yaml file)")
    return GRIDS / f"{name_or_path}.yaml"


def load_grid(name_or_path: str, overrides: Sequence[str] = (), *, checked: bool = True) -> Grid:
    """Reads a grid; `dotted.field=value` texts, in YAML, replace fields of the file.

    Unless it is `checked`, it may name models and methods that are not known here.
    """
    path = find_grid(name_or_path)
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GridError(f"{path.name}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise GridError(f"{path.name}: got {type(values).__name__}, wanted a mapping of fields")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise GridError(f"{path.name}: field {odd[0]!r} is not a name")
    if own := sorted(NOT_WRITTEN & values.keys()):
        raise GridError(f"{path.name}: {own[0]}: set by the harness; leave it out")
    values = {**values, "name": path.stem}
    return grid_of(values, overrides, path.name, folder=path.parent, checked=checked)


def grid_of(
    values: dict[str, Any], overrides: Sequence[str], title: str, *, folder: Path, checked: bool
) -> Grid:
    """The grid of these fields, see `load_grid`; `title` begins errors, weights are in `folder`."""
    for text in overrides:
        _override(values, text)
    try:
        grid = Grid(**values)
        grid._folder = folder.absolute()
        if checked:
            check_names(grid)
            _check_teacher(grid)
        return grid
    except ValidationError as error:
        raise GridError(f"{title}: {_first_fault(error, Grid)}") from None
    except ValueError as error:
        raise GridError(f"{title}: {error}") from None


def _override(values: dict[str, Any], text: str) -> None:
    field, equals, value = text.partition("=")
    *parents, last = field.split(".")
    if not equals or "" in (*parents, last) or field in NOT_WRITTEN:
        raise GridError(f"override {text!r}: wanted field=value, such as recipe.epochs=10")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise GridError(f"override {text!r}: {parent} is not a mapping")
        values = inner
    try:
        values[last] = read_yaml(value)
    except ValueError as error:
        raise GridError(f"override {text!r}: {value!r} is not YAML: {error}") from None


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    found = [(*_place(fault["loc"], model), fault) for fault in error.errors()]
    paths = {path for path, _, _ in found}
    # Where a field has several forms, the one that was meant is faulty further in.
    paths = {path for path in paths if all(p[: len(path)] != path for p in paths - {path})}
    found = [one for one in found if one[0] in paths]
    # A mistyped field comes before the one that it leaves missing.
    path, section, fault = min(found, key=lambda one: one[2]["type"] != "extra_forbidden")
    given = f"got {shortened(repr(fault['input']), 100)}"
    if fault["type"] == "extra_forbidden":
        text = unknown("field", path[-1], section.model_fields)
    elif fault["type"] == "missing":
        text = "missing"
    elif fault["type"] == "value_error":
        text = str(fault.get("ctx", {}).get("error"))
    else:
        lead, forms = "Input should be ", [_wanted(f, own) for p, own, f in found if p == path]
        said = lead + " or ".join(dict.fromkeys(form.removeprefix(lead) for form in forms))
        text = f"{given}; {said[0].lower()}{said[1:]}"
    text = shortened(text) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")
    return one_line(f"{'.'.join(path)}: {text}" if path else text)


def _wanted(fault: Any, section: type[BaseModel]) -> str:
    if fault["type"] == "model_type":
        return f"a mapping with {', '.join(section.model_fields)}"
    return fault["msg"].replace("tuple", "list").replace("dictionary", "mapping")


def _place(loc: Iterable[int | str], model: type[BaseModel]) -> tuple[tuple[str, ...], Any]:
    """The path of a faulty field, without the names of its forms, and the model that it is in."""
    path: tuple[str, ...] = ()
    for piece in map(str, loc):
        if piece != model.__name__ and not re.match(
            r"(tuple|literal)\[|constrained-|(str|int)$", piece
        ):
            field = model.model_fields.get(piece)
            model = (field and _fields_in(field.annotation)) or model
            path += (piece,)
    return path, model


def _fields_in(annotation: Any) -> type[BaseModel] | None:
    """The fields that a value of this type has, or each of its items; None if it has none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_fields_in, get_args(annotation))), None)


@contextmanager
def _at(field: str, model: type[BaseModel]) -> Iterator[None]:
    """Refuses a wrong value in one line that begins with its field."""
    try:
        yield
    except ValidationError as error:
        raise GridError(f"{field}.{_first_fault(error, model)}") from None
    except (ValueError, TypeError) as error:
        raise GridError(f"{field}: {error}") from None


def check_names(grid: Grid) -> None:
    """Refuses unknown models, methods and hyper-parameters, and recipes that do not validate."""
    if grid.name in RESERVED:
        raise GridError(f"name: {grid.name!r} is reserved in the work directory; rename the file")
    check_file_names("name", [grid.name, *filter(None, [grid.part_of])])
    check_file_names("data.source", [grid.data.source])
    for position, pair in enumerate(grid.all_pairs):
        for role in ("teacher", "student"):
            with _at(f"pairs.{position}.{role}", PairSpec):
                zoo.check(grid.model(getattr(pair, role), teaches=role == "teacher"))
    names = {method.label: method.name for method in grid.methods}
    rows = {
        f"tuned.{label}": MethodSpec(name=names.get(label, BASELINE), hyperparameters=own)
        for label, own in grid.tuned.items()
    }
    rows |= {f"tuned.{BASELINE}": MethodSpec(name=BASELINE)}
    rows |= {f"methods.{position}": method for position, method in enumerate(grid.methods)}
    for field, method in rows.items():
        with _at(field, MethodSpec):
            if EPOCHS_FACTOR in method.hyperparameters and method.name != BASELINE:
                raise ValueError(
                    f"{EPOCHS_FACTOR} is for {BASELINE} alone; methods share the recipe's epochs"
                )
            build_method(method.name, **grid.hyperparameters(method))
    used = sorted({model for pair in grid.all_pairs for model in (pair.teacher, pair.student)})
    for field, models in (("models", grid.models), ("recipe_for", grid.recipe_for)):
        if idle := [model for model in models if model not in used]:
            raise GridError(f"{field}: {unknown('model', idle[0], used)}, those of the pairs")
    if grid.source is not None:
        with _at("source.data", DataSpec):
            source_data(grid.data, grid.source)
    for field, model, more in _recipes(grid):
        with _at(field, Recipe):
            grid.recipe_of(model, more)


def _check_teacher(grid: Grid) -> None:
    """Refuses fields that no teacher uses; a part has those of the whole grid."""
    models = [] if grid.part_of else [grid._described(p.teacher, True) for p in grid.all_pairs]
    from_file = {isinstance(model, dict) and "weights" in model for model in models}
    if grid.teacher.fine_tune is not None and from_file == {False}:
        raise ValueError("teacher.fine_tune: no teacher has weights; give them, or name it recipe")
    if grid.teacher.recipe and grid.teacher.fine_tune is None and from_file == {True}:
        raise ValueError("teacher.recipe: teachers with weights do not train; name it fine_tune")


def source_data(data: GridData, source: SourceSpec, seed: int = 0) -> DataSpec:
    """The data of a source: all images and labels of the target, then `source.data` over that."""
    return data.of(seed, **{"fraction": 1.0, "labels": 1.0, **source.data})


def _recipes(grid: Grid) -> Iterable[tuple[str, str, dict[str, Any]]]:
    for model in grid.recipe_for:
        yield f"recipe_for.{model}", model, {}
    for pair, row in itertools.product(grid.all_pairs, (MethodSpec(name=BASELINE), *grid.methods)):
        where = "methods" if row.hyperparameters.keys() & set(ROW_RECIPE) else "tuned"
        yield f"{where}.{row.label}", pair.student, grid.row_recipe(row)
    for pair in grid.all_pairs:
        yield "teacher.recipe", pair.teacher, grid.teacher.recipe
        if grid.teacher.fine_tune is not None:
            yield "teacher.fine_tune", pair.teacher, grid.teacher.tuned_recipe
        if grid.source is not None:
            yield "source.recipe", pair.student, grid.source.recipe


def narrow(
    grid: Grid,
    methods: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    checked: bool = True,
) -> Grid:
    """The grid with methods, pairs (`teacher:student`) or seeds replaced by those asked for.

    A method of the grid keeps its rows with their hyper-parameters; another one has its defaults;
    "all" means every method.
    """
    changed: dict[str, Any] = {}
    if methods:
        names = [n for name in methods for n in (METHODS.names() if name == "all" else [name])]
        rows = [[m for m in grid.methods if m.name == n] or [MethodSpec(name=n)] for n in names]
        changed["methods"] = tuple(itertools.chain(*rows))
        labels = [m.label for m in changed["methods"]]
        changed["narrowed"] = any(m.label not in labels for m in grid.rows)
        kept = {BASELINE, *labels}
        changed["tuned"] = {row: own for row, own in grid.tuned.items() if row in kept}
    if pairs:
        with _at("--pairs", PairSpec):
            changed["pairs"] = tuple(PairSpec(**_pair(text)) for text in dict.fromkeys(pairs))
        changed |= {"teachers": (), "students": ()}
        # The rest was checked with the whole grid, and goes with its pairs.
        used = {model for pair in changed["pairs"] for model in (pair.teacher, pair.student)}
        for field, named in (("models", grid.models), ("recipe_for", grid.recipe_for)):
            changed[field] = {model: own for model, own in named.items() if model in used}
    if seeds:
        changed["seeds"] = tuple(dict.fromkeys(seeds))
    narrowed = grid.model_copy(update=changed)
    if checked:
        check_names(narrowed)
    return narrowed


def name_part(grid: Grid, whole: Grid) -> Grid:
    """The grid, renamed if it is a part of the whole one, so that it keeps tables of its own."""
    if grid.model_dump() == whole.model_dump():
        return grid
    fields = grid.model_dump_json(exclude_defaults=True)  # so that a new field renames nothing
    changes = {"name": f"{grid.name}-{digest(fields)[:6]}", "part_of": whole.name}
    return grid.model_copy(update=changes)
