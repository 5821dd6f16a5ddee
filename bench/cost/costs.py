"""What the profiler measured, as one JSON file for each grid. Without torch, for the tables."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench.faults import DamagedError, UserError
from bench.record import FINISHED, Plan, Record, Sealed, WorkDir

FILE = "cost.json"
RECIPE = ("optimiser", "budget")  # of the recipe's fields, those that the conditions tell, too
MIB = 2**20
WHERE = ("device", "threads", "precision", "batch")
"""The conditions under which costs are compared. Tables state all others."""


class Quartiles(NamedTuple):
    """The middle half of n repeated measurements: median, first and third quartile, in one unit."""

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Quartiles of at least one value, interpolated between neighbours."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))


class StageShare(NamedTuple):
    """What one stage adds to the cost of a training, in any unit.

    `kept` are steps of an epoch as a share of those over the whole training set, `step` is the cost
    of one. `once` is that of the teacher's pass over the clean images before the stage, for as many
    images as a batch holds; 0 for stages without.
    """

    epochs: int
    kept: float
    step: float
    once: float = 0.0


def training_cost_ratio(plan: Iterable[StageShare], epochs: int, plain_step: float) -> float:
    """Cost of a method's whole training over that of the plain student.

    sum over stages of (epochs_s kept_s step_s + once_s) / (E plain_step). An epoch has the same
    number of batches for all, so it cancels out. The teacher's own training is left out. E and
    `plain_step` are the plain student's; its step is in the stages' unit.

    Example:
        >>> plan = [StageShare(3, 1.0, 30.0), StageShare(7, 0.5, 20.0, once=10.0)]
        >>> training_cost_ratio(plan, 10, 10.0)       # (3 * 30 + 7 * 0.5 * 20 + 10) / (10 * 10)
        1.7
    """
    total = sum(stage.epochs * stage.kept * stage.step + stage.once for stage in plan)
    return total / (epochs * plain_step)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage of a method, measured alone.

    Attributes:
        kept: share of the training images that it trains on.
        step_ms: one training step, the teacher's forward pass included, as `step_flops`.
        loss_ms: the transfer losses alone, with their connectors, forward and backward; or None.
        once_ms: the teacher's pass over one batch of clean images, made once, as `once_flops`.
        peak_bytes: of the tensors that a step makes.
        held_bytes: held on top of plain training: the connector with its momentum, and the
            teacher's view of all training images if it is cached.
    """

    name: str
    epochs: int
    kept: float
    step_ms: Quartiles
    loss_ms: Quartiles | None = None
    once_ms: Quartiles | None = None
    step_flops: int = 0
    once_flops: int = 0
    peak_bytes: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """One method on one pair, and the plain student that it is compared with.

    Attributes:
        data: the data set's name; its image shape and classes were used.
        label: the row's name in tables.
        hyperparameters: all of the method's; None in files of earlier versions.
        status: as in `bench.record`; only "finished" has the fields after `error`, the reason.
        epochs: E, the plain student's; `plain_ms` and the like are of its step.
        extra_parameters: trained with the student and dropped afterwards, unless deployed.
        deployed_parameters: of what is deployed, over the student's own; `deployed_flops` likewise,
            of one image.
        training_cost_ratio: of measured time, paired by round; the other ratio is of counted FLOP.
        teacher_bytes: its parameters and buffers.
        conditions: device, threads, torch, precision, batch, rounds, memory method, commit, ...
    """

    data: str
    teacher: str
    student: str
    label: str
    method: str
    category: str
    hyperparameters: dict[str, Any] | None = None
    status: str = FINISHED
    error: str = ""
    epochs: int = 0
    stages: list[StageCost] = field(default_factory=list)
    extra_parameters: int = 0
    deployed_parameters: float = 1.0
    deployed_flops: float = 1.0
    training_cost_ratio: Quartiles | None = None
    training_flop_ratio: float | None = None
    plain_ms: Quartiles | None = None
    plain_flops: int = 0
    plain_peak_bytes: int = 0
    teacher_bytes: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def extra_peak_bytes(self) -> int:
        """Memory of the costliest stage above that of the plain step, at least 0.

        It is a step's peak and what is held from step to step. The teacher's weights are extra.
        """
        above = (s.peak_bytes + s.held_bytes - self.plain_peak_bytes for s in self.stages)
        return max([0, *above])

    @property
    def costliest(self) -> StageCost | None:
        """The stage with the slowest transfer losses; None if no stage has any."""
        found = {s.loss_ms.median: s for s in self.stages if s.loss_ms is not None}
        return found[max(found)] if found else None

    @property
    def place(self) -> tuple[str, ...]:
        """The pair and the conditions. Records with equal places share a table."""
        where = (str(self.conditions.get(name)) for name in WHERE)
        return (self.data, self.teacher, self.student, *where)

    def fits(self, cell: Mapping[str, Any]) -> bool:
        """Whether it was measured under a cell's settings, as far as both tell them."""
        was = {name: self.conditions.get(name) for name in ("precision", "deterministic", *RECIPE)}
        was |= {"batch_size": self.conditions.get("batch")}
        if self.method != "student":  # which is measured for one step, however long it trains
            was |= {"epochs": self.epochs or None, "hyperparameters": self.hyperparameters}
        now = {**cell, **cell.get("recipe", {})}
        return all(value in (None, now.get(name, value)) for name, value in was.items())


@dataclass(frozen=True)
class Costs(Sealed):
    """All that was profiled of a grid, one record for each pair, row and set of conditions."""

    SCHEMA = 5
    records: list[CostRecord] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return bool(self.records)

    def of_pair(self, data: str, teacher: str, student: str) -> list[CostRecord]:
        """What was profiled of a pair under one set of conditions; [] if nothing was.

        Ratios measured on another device do not compare. Where there are several sets, the one
        with most rows measured counts, then the one measured last.
        """
        of_pair = [r for r in self.records if r.place[:3] == (data, teacher, student)]
        measured = Counter({r.place: 0 for r in reversed(of_pair)})
        measured.update(r.place for r in of_pair if r.status == FINISHED)
        return [r for r in of_pair if r.place == measured.most_common(1)[0][0]]

    def of_plan(self, plan: Plan, records: Mapping[str, Record]) -> Self:
        """The costs of its rows but for those of other settings than these were trained with."""
        rows = {(row.data, row.teacher, row.student, row.label) for row in plan.rows}
        mine = [r for r in self.records if (*r.place[:3], r.label) in rows]
        done = [row for row in plan.rows if row.cell_id in records]
        cells = {(row.student, row.label): records[row.cell_id].cell for row in done}
        return type(self)([r for r in mine if r.fits(cells.get((r.student, r.label), {}))])

    def with_newer(self, newer: Self) -> Self:
        """These costs and newer ones, which replace those of the same place and row."""
        both = (*self.records, *newer.records)
        return type(self)(list({(*record.place, record.label): record for record in both}.values()))


def costs_of(work: WorkDir, grid: str, whole: str = "") -> Costs:
    """What was profiled of a grid, or else of the whole one that it is a part of."""
    found = read_costs(work.grid(grid) / FILE)
    return read_costs(work.grid(whole) / FILE) if whole and not found else found


def read_costs(path: Path) -> Costs:
    """The costs in a file, none if there is no file; UserError if it is damaged."""
    try:
        return Costs.read(path)
    except FileNotFoundError:
        return Costs()
    except DamagedError as error:
        raise UserError(f"{error}; remove it and profile again") from None
