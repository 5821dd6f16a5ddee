"""The cells of a grid and the rows of its tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.cell import Cell, DataSpec, Recipe
from bench.grid import BASELINE, Grid, MethodSpec, PairSpec, source_data
from bench.hyperparameters import build_method, method_code, resolve_hyperparameters
from bench.models import zoo
from bench.record import Plan, Row

Fingerprint = Callable[[DataSpec], str]


@dataclass(frozen=True)
class Expansion:
    """An expanded grid.

    Attributes:
        plan: the rows of the tables.
        cells: cell id -> cell, teachers and sources first.
    """

    plan: Plan
    cells: dict[str, Cell]


def expand(grid: Grid, fingerprint: Fingerprint) -> Expansion:
    """All cells and rows of a grid.

    Args:
        grid: a checked grid.
        fingerprint: maps a data set to the hash of its decoded images, a part of cell ids.
    """
    rows: dict[tuple[str, ...], Row] = {}
    cells: dict[str, Cell] = {}
    for data, pair, seed in itertools.product(_data(grid), grid.all_pairs, grid.seeds):
        for row, cell in _rows(grid, data, pair, seed, fingerprint):
            cells.setdefault(cell.id, cell)
            key = (str(row.axes), row.teacher, row.student, row.role, row.label, str(row.seed))
            rows[key] = row
    plan = Plan(
        name=grid.name,
        description=" ".join(grid.description.split()),
        config=grid.model_dump(mode="json"),
        rows=list(rows.values()),
    )
    ordered = sorted(cells.values(), key=lambda cell: bool(cell.needs))
    return Expansion(plan, {cell.id: cell for cell in ordered})


def _data(grid: Grid) -> Iterator[DataSpec]:
    axes = {name: values for name, values in grid.axes.model_dump().items() if values}
    for values in itertools.product(*axes.values()):
        yield grid.data.model_copy(update=dict(zip(axes, values, strict=True)))


def _rows(
    grid: Grid, data: DataSpec, pair: PairSpec, seed: int, fingerprint: Fingerprint
) -> Iterator[tuple[Row, Cell]]:
    """The rows of one data set, pair and seed, each with its cell."""
    own = {"fraction": grid.teacher.fraction, "labels": 1.0, "resolution": 1}
    teacher = _plain(
        grid,
        pair.teacher,
        data.model_copy(update=own),
        grid.recipe_of(pair.teacher, grid.teacher.recipe),
        seed if grid.teacher.seed == "per_seed" else int(grid.teacher.seed),
        fingerprint,
    )
    student = _plain(grid, pair.student, data, grid.recipe_of(pair.student), seed, fingerprint)
    student = student.model_copy(update={"diagnostics": grid.diagnostics})

    def row(role: str, label: str, cell: Cell, category: str = "baseline") -> tuple[Row, Cell]:
        shown = Row(
            role=role,
            label=label,
            method=cell.method,
            category=category,
            seed=seed,
            data=data_name(data),
            axes={"fraction": data.fraction, "labels": data.labels, "resolution": data.resolution},
            teacher=pair.teacher,
            student=pair.student,
            cell_id=cell.id,
            teacher_id=teacher.id,
        )
        return shown, cell

    yield row("teacher", "teacher", teacher)
    yield row("student", "student", student)
    source = None
    if grid.source is not None:
        recipe = grid.recipe_of(pair.student, grid.source.recipe)
        other = source_data(data, grid.source)
        source = _plain(grid, pair.student, other, recipe, seed, fingerprint)
        yield row("source", "source", source)
    for spec in grid.methods:
        if spec.epochs_factor is not None:
            yield row("method", spec.label, _longer(student, spec.epochs_factor))
        elif spec.name != BASELINE:  # the baseline has its row already
            cell, category = _taught(grid, spec, student, teacher, source)
            yield row("method", spec.label, cell, category)


def _plain(
    grid: Grid, model: str, data: DataSpec, recipe: Recipe, seed: int, fingerprint: Fingerprint
) -> Cell:
    """A training on labels alone: a teacher, a baseline or a source."""
    return Cell(
        model=grid.model(model),
        network_code=zoo.model_code(grid.model(model)),
        data=data,
        fingerprint=fingerprint(data),
        method=BASELINE,
        code=method_code(BASELINE),
        hyperparameters=resolve_hyperparameters(BASELINE, {}),
        recipe=recipe,
        seed=seed,
        precision=grid.precision,
        deterministic=grid.deterministic,
    )


def _taught(
    grid: Grid, spec: MethodSpec, student: Cell, teacher: Cell, source: Cell | None
) -> tuple[Cell, str]:
    """The student's training by a method, and the method's category."""
    hyperparameters = resolve_hyperparameters(spec.name, grid.hyperparameters(spec))
    method = build_method(spec.name, **hyperparameters)
    changes = {
        "method": spec.name,
        "code": method_code(spec.name),
        "hyperparameters": hyperparameters,
        "teacher": teacher if method.needs_teacher else None,
        "source": source if method.starts_from == "source" else None,
    }
    return student.model_copy(update=changes), method.category


def _longer(student: Cell, factor: float) -> Cell:
    """The student trained for more epochs, with its schedule stretched over all of them.

    The cell id is that of a recipe with this number of epochs. Initial weights and batches are
    those of the student.
    """
    epochs = round(factor * student.recipe.epochs)
    recipe = student.recipe.model_copy(update={"epochs": epochs})
    return student.model_copy(update={"recipe": recipe})


def data_name(data: DataSpec) -> str:
    """A data set's name in tables: its source, and size and number of classes if set."""
    size = f"@{data.size}" if data.size else ""
    count = data.classes if isinstance(data.classes, int) else len(data.classes or ())
    return f"{data.source}{size}" + (f"/{count}" if count else "")
