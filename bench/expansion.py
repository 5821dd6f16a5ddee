"""A grid written out: its cells, and the rows of its tables."""

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
    """A grid written out.

    Attributes:
        plan: the rows of the tables.
        cells: every cell by id, teachers and sources first.
    """

    plan: Plan
    cells: dict[str, Cell]


def expand(grid: Grid, fingerprint: Fingerprint) -> Expansion:
    """All cells of a grid.

    Args:
        grid: a checked grid.
        fingerprint: gives the hash of a cell's decoded data set, a part of its id.
    """
    rows: dict[tuple[str, ...], Row] = {}
    cells: dict[str, Cell] = {}
    for data, pair, seed in itertools.product(_data(grid), grid.all_pairs, grid.seeds):
        for row, cell in _Block.of(grid, data, pair, seed, fingerprint).rows(grid.methods):
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


@dataclass(frozen=True)
class _Block:
    """What the rows of one pair, data set and seed share."""

    grid: Grid
    pair: PairSpec
    teacher: Cell
    student: Cell
    source: Cell | None

    @classmethod
    def of(
        cls, grid: Grid, data: DataSpec, pair: PairSpec, seed: int, fingerprint: Fingerprint
    ) -> _Block:
        """The plain trainings: the teacher, the baseline, and the source of transfer learning."""

        def plain(model: str, data: DataSpec, seed: int, recipe: Recipe) -> Cell:
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

        own = {"fraction": grid.teacher.fraction, "labels": 1.0, "resolution": 1}
        teacher_seed = seed if grid.teacher.seed == "per_seed" else int(grid.teacher.seed)
        recipe = grid.recipe_of(pair.teacher, grid.teacher.recipe)
        teacher = plain(pair.teacher, data.model_copy(update=own), teacher_seed, recipe)
        student = plain(pair.student, data, seed, grid.recipe_of(pair.student))
        source = None
        if grid.source is not None:
            recipe = grid.recipe_of(pair.student, grid.source.recipe)
            source = plain(pair.student, source_data(data, grid.source), seed, recipe)
        student = student.model_copy(update={"diagnostics": grid.diagnostics})
        return cls(grid, pair, teacher, student, source)

    def rows(self, methods: tuple[MethodSpec, ...]) -> Iterator[tuple[Row, Cell]]:
        """Every row with the cell that answers for it."""
        yield self._row("teacher", "teacher", self.teacher), self.teacher
        yield self._row("student", "student", self.student), self.student
        if self.source is not None:
            yield self._row("source", "source", self.source), self.source
        for spec in methods:
            if spec.epochs_factor is not None:
                cell, category = self._longer(spec.epochs_factor), "baseline"
            elif spec.name != BASELINE:
                cell, category = self._taught(spec)
            else:
                continue  # it is in every block
            yield self._row("method", spec.label, cell, category), cell

    def _row(self, role: str, label: str, cell: Cell, category: str = "baseline") -> Row:
        data = self.student.data
        return Row(
            role=role,
            label=label,
            method=cell.method,
            category=category,
            seed=self.student.seed,
            data=data_name(data),
            axes={"fraction": data.fraction, "labels": data.labels, "resolution": data.resolution},
            teacher=self.pair.teacher,
            student=self.pair.student,
            cell_id=cell.id,
            teacher_id=self.teacher.id,
        )

    def _taught(self, spec: MethodSpec) -> tuple[Cell, str]:
        """The student's training by a method, and the method's category."""
        hyperparameters = resolve_hyperparameters(spec.name, self.grid.hyperparameters(spec))
        method = build_method(spec.name, **hyperparameters)
        changes = {
            "method": spec.name,
            "code": method_code(spec.name),
            "hyperparameters": hyperparameters,
            "teacher": self.teacher if method.needs_teacher else None,
            "source": self.source if method.starts_from == "source" else None,
        }
        return self.student.model_copy(update=changes), method.category

    def _longer(self, factor: float) -> Cell:
        """The student's training over more epochs, its schedule stretched over all of them.

        It has the cell id of a recipe with that number of epochs. Its initial weights, images and
        order are the student's, epoch by epoch.
        """
        epochs = round(factor * self.student.recipe.epochs)
        recipe = self.student.recipe.model_copy(update={"epochs": epochs})
        return self.student.model_copy(update={"recipe": recipe})


def data_name(data: DataSpec) -> str:
    """The data set's name in tables: source, size and number of classes where they are set."""
    size = f"@{data.size}" if data.size else ""
    count = data.classes if isinstance(data.classes, int) else len(data.classes or ())
    return f"{data.source}{size}" + (f"/{count}" if count else "")
