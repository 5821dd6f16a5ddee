"""The cells of a grid and the rows of its tables."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.cell import UNTRAINED, Cell, DataSpec, ImageSpec, Model, Recipe
from bench.design import CONFIRMATION, EQUAL, EXTENSION, SCREENING, Choice, Design, pair_id
from bench.grid import Grid, source_data
from bench.grid_fields import BASELINE, GridData, MethodSpec, PairSpec
from bench.hyperparameters import build_method, method_code, resolve_hyperparameters
from bench.models import zoo
from bench.record import Plan, Row

Fingerprint = Callable[[DataSpec], str]


@dataclass(frozen=True)
class Expansion:
    """The rows of a grid's tables, and cell id -> cell, teachers and sources first."""

    plan: Plan
    cells: dict[str, Cell]


def expand(
    grid: Grid, fingerprint: Fingerprint, choices: Sequence[Choice] = (), *, extended: bool = False
) -> Expansion:
    """All cells and rows of a checked grid, as far as its finalists are chosen.

    `fingerprint` maps a data set to the hash of its decoded images, `choices` are the finalists of
    the pairs that were screened; `extended`: they train on the seeds of the second look, too.
    """
    rows, cells = list[Row](), dict[str, Cell]()
    chosen = {pair_id(c.data, c.axes, c.teacher, c.student): c for c in choices}
    for data, pair in itertools.product(_data(grid), grid.all_pairs):
        choice = chosen.get(pair_id(data_name(data), _axes(data), pair.teacher, pair.student))
        for phase, seeds, methods in phases(grid, choice, extended):
            for seed in seeds:
                for row, cell in _Cells(grid, fingerprint, data).rows(pair, phase, methods, seed):
                    cells.setdefault(cell.id, cell)
                    rows.append(row)
    plan = Plan(
        name=grid.name,
        description=" ".join(grid.description.split()),
        config=grid.model_dump(mode="json"),
        rows=rows,
        choices=[choice.model_dump(mode="json") for choice in choices],
    )
    ordered = sorted(cells.values(), key=lambda cell: bool(cell.needs))
    return Expansion(plan, {cell.id: cell for cell in ordered})


def phases(
    grid: Grid, choice: Choice | None, extended: bool
) -> Iterator[tuple[str, Sequence[int], Sequence[MethodSpec]]]:
    """The phases of one pair that can train: name, seeds, and rows next to the plain student."""
    design = grid.seeds
    if not isinstance(design, Design):
        yield EQUAL, design, grid.rows
        return
    finalists: Sequence[MethodSpec] = grid.rows
    if grid.screens:
        yield SCREENING, design.seeds(SCREENING), grid.rows
        if choice is None:
            return
        finalists = [row for row in grid.rows if row.label in choice.finalists]
    yield CONFIRMATION, design.seeds(CONFIRMATION), finalists
    if extended:
        yield EXTENSION, design.seeds(EXTENSION), finalists


def _data(grid: Grid) -> Iterator[GridData]:
    axes = grid.axes.model_dump(exclude_none=True)
    for values in itertools.product(*map(dict.fromkeys, axes.values())):
        yield grid.data.model_copy(update=dict(zip(axes, values, strict=True)))


def _axes(data: GridData) -> dict[str, float]:
    return {"fraction": data.fraction, "labels": data.labels, "resolution": data.resolution}


class _Cells(NamedTuple):
    """The cells of a grid on one of its data sets."""

    grid: Grid
    fingerprint: Fingerprint
    data: GridData

    def rows(
        self, pair: PairSpec, phase: str, methods: Sequence[MethodSpec], seed: int
    ) -> Iterator[tuple[Row, Cell]]:
        """The rows of one pair and seed, each with its cell."""
        grid, data = self.grid, self.data
        teacher = self._teacher(pair.teacher, grid.teacher.seed_for(phase, seed))
        shared = {"data": data_name(data), "axes": _axes(data), **pair.model_dump()}
        shared |= {"teacher_id": teacher.id, "phase": phase, "seed": seed}

        def row(role: str, label: str, cell: Cell, **more: Any) -> tuple[Row, Cell]:
            values = {"category": "baseline", "method": cell.method, "cell_id": cell.id, **more}
            return Row(role=role, label=label, **shared, **values), cell

        yield row("teacher", "teacher", teacher)
        plain = self._student(pair.student, MethodSpec(name=BASELINE), seed)
        yield row("student", "student", plain)
        source = None
        if grid.source is not None:
            recipe = grid.recipe_of(pair.student, grid.source.recipe)
            images = source_data(data, grid.source, seed)
            source = self._plain(grid.model(pair.student), images, recipe, seed)
            yield row("source", "source", source)
        for spec in methods:
            cell, category = self._student(pair.student, spec, seed), "baseline"
            if spec.name != BASELINE:
                hyperparameters = resolve_hyperparameters(spec.name, grid.hyperparameters(spec))
                method = build_method(spec.name, **hyperparameters)
                changes = {
                    "method": spec.name,
                    "code": method_code(spec.name),
                    "hyperparameters": hyperparameters,
                    "teacher": teacher if method.needs_teacher else None,
                    "source": source if method.starts_from == "source" else None,
                }
                cell, category = cell.model_copy(update=changes), method.category
            yield row("method", spec.label, cell, category=category, finalist=spec.finalist)

    def _student(self, name: str, spec: MethodSpec, seed: int) -> Cell:
        """The plain student under the recipe of a row."""
        recipe = self.grid.recipe_of(name, self.grid.row_recipe(spec))
        # A longer schedule is stretched over all epochs.
        epochs = round((spec.epochs_factor or 1) * recipe.epochs)
        recipe = recipe.model_copy(update={"epochs": epochs})
        cell = self._plain(self.grid.model(name), self.data.of(seed), recipe, seed)
        return cell.model_copy(update={"diagnostics": self.grid.diagnostics})

    def _teacher(self, name: str, seed: int) -> Cell:
        """A trained teacher, or one of a file as it is: one for all seeds, whatever the recipe."""
        model, spec = self.grid.model(name, teaches=True), self.grid.teacher
        from_file = isinstance(model, dict) and "weights" in model
        if from_file and spec.fine_tune is None:
            images = self.data.of(0, fraction=1.0, labels=1.0, resolution=1)
            return self._plain(model, images, UNTRAINED, 0)
        recipe = self.grid.recipe_of(name, spec.tuned_recipe if from_file else spec.recipe)
        images = self.data.of(seed, fraction=spec.fraction, labels=1.0, resolution=1)
        return self._plain(model, images, recipe, seed)

    def _plain(self, model: Model, data: DataSpec, recipe: Recipe, seed: int) -> Cell:
        """A training on labels alone: a teacher, a baseline or a source."""
        return Cell(
            model=model,
            network_code=zoo.model_code(model),
            data=data,
            fingerprint=self.fingerprint(data),
            method=BASELINE,
            code=method_code(BASELINE),
            hyperparameters=resolve_hyperparameters(BASELINE, {}),
            recipe=recipe,
            seed=seed,
            precision=self.grid.precision,
            deterministic=self.grid.deterministic,
        )


def data_name(data: ImageSpec) -> str:
    """A data set's name in tables: its source, and size and number of classes if set."""
    size = f"@{data.size}" if data.size else ""
    count = data.classes if isinstance(data.classes, int) else len(data.classes or ())
    return f"{data.source}{size}" + (f"/{count}" if count else "")
