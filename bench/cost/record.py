"""What the profiler measured, as one JSON file a grid. Standard library only, for the tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import FINISHED, STATUSES, dump_json

SCHEMA = 1

PARTS = {
    "teacher": "the teacher's forward pass to the deepest tap needed",
    "student_forward": "the student's forward pass to the deepest tap needed",
    "student_backward": "task loss, and the backward pass through the student",
    "loss_forward": "transfer losses, with their connectors",
    "loss_backward": "their gradient at the student's taps and in the connectors",
    "second_backward": "a second backward pass through the student, and merging the gradients",
    "optimiser": "update, zeroing of gradients, running sums",
}
"""The parts that a training step falls into, in the order in which they run."""

LOSS_PARTS = ("loss_forward", "loss_backward")
AXES = {"batch": "images", "channels": "channels", "positions": "positions"}
"""What a loss alone is scaled along: the axis and its unit."""


class Quartiles(NamedTuple):
    """The middle half of repeated measurements.

    Attributes:
        median: in the unit of the field that holds it, as `q1` and `q3`.
        q1: a quarter of the measurements lie at or below.
        q3: a quarter lie at or above.
        n: how many measurements.
    """

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of at least one value; quartiles interpolate between neighbours.

        Example:
            >>> Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0])
            Quartiles(median=3.0, q1=2.0, q3=4.0, n=5)
        """
        if not values:
            raise ValueError("Quartiles.of: no values")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))


class Count(NamedTuple):
    """Operations counted while they ran; see `bench.cost.counting` for the rules.

    Attributes:
        matmul: FLOP of matrix products and convolutions (1 multiply-add = 2).
        elementwise: FLOP of everything else but decompositions.
        decomposition: FLOP of eigenvalue and singular value decompositions, by formula.
        moved_bytes: bytes of every operation's inputs and outputs.
    """

    matmul: int = 0
    elementwise: int = 0
    decomposition: int = 0
    moved_bytes: int = 0

    @property
    def flops(self) -> int:
        """All three kinds together."""
        return self.matmul + self.elementwise + self.decomposition

    @classmethod
    def total(cls, counts: Iterable[Count]) -> Count:
        """The sum, field by field."""
        return cls(*map(sum, zip(cls(), *counts, strict=True)))


class StageShare(NamedTuple):
    """What one stage adds to a training's cost, in any unit.

    Attributes:
        epochs: of this stage.
        kept: steps of an epoch as a share of those over the whole training set.
        step: cost of one step.
        once: cost of work done once for every image before the stage (a teacher pass over the
            clean images), for as many images as a batch holds; 0 for none.
    """

    epochs: int
    kept: float
    step: float
    once: float = 0.0


def training_cost_ratio(plan: Iterable[StageShare], epochs: int, plain_step: float) -> float:
    """Cost of a method's whole training over that of the plain student.

    sum over stages of (epochs_s kept_s step_s + once_s) / (E plain_step): an epoch has the same
    number of batches for all, so it cancels out. The teacher's own training is not part of it.

    Args:
        plan: the method's stages.
        epochs: E, the plain student's.
        plain_step: cost of its step, in the stages' unit, above 0.

    Example:
        >>> plan = [StageShare(3, 1.0, 30.0), StageShare(7, 0.5, 20.0, once=10.0)]
        >>> training_cost_ratio(plan, 10, 10.0)       # (3 * 30 + 7 * 0.5 * 20 + 10) / (10 * 10)
        1.7
    """
    if epochs < 1 or plain_step <= 0:
        raise ValueError(
            f"training_cost_ratio: epochs {epochs} must be at least 1, plain_step {plain_step} "
            "above 0"
        )
    total = sum(stage.epochs * stage.kept * stage.step + stage.once for stage in plan)
    return total / (epochs * plain_step)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage of a method, measured by itself.

    Attributes:
        name: the stage's.
        epochs: of this stage, under the recipe.
        kept: share of the training images that it trains on.
        taps: what it reads of both networks.
        step_ms: one whole training step, the teacher's forward pass included.
        ratio: that over the plain student's step of the same round.
        parts_ms: part -> milliseconds, from steps of their own with a clock between the parts.
        once_ms: the teacher's pass over one batch of clean images, made once a training; None for
            stages without.
        count: part -> operations of one step.
        once_count: the same for `once_ms`.
        peak_bytes: largest sum of tensors alive at a time that the step made.
        transfers: whether a transfer loss is part of it.
    """

    name: str
    epochs: int
    kept: float
    taps: list[str]
    step_ms: Quartiles
    ratio: Quartiles
    parts_ms: dict[str, Quartiles]
    once_ms: Quartiles | None
    count: dict[str, Count]
    once_count: Count
    peak_bytes: int
    transfers: bool

    @property
    def step_count(self) -> Count:
        """Operations of the whole step."""
        return Count.total(self.count.values())

    @property
    def loss_count(self) -> Count:
        """Operations of the transfer losses, forward and backward."""
        return Count.total(self.count.get(part, Count()) for part in LOSS_PARTS)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> StageCost:
        """From the mapping that JSON gives back."""
        once = values["once_ms"]
        return cls(**{
            **values,
            "step_ms": Quartiles(*values["step_ms"]),
            "ratio": Quartiles(*values["ratio"]),
            "parts_ms": {k: Quartiles(*v) for k, v in values["parts_ms"].items()},
            "once_ms": once and Quartiles(*once),
            "count": {k: Count(*v) for k, v in values["count"].items()},
            "once_count": Count(*values["once_count"]),
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """One method on one pair, with what it is compared to.

    Attributes:
        data: the data set's name, whose image shape and classes were used.
        label: the row's name in tables.
        method: the method's name.
        status: one of `bench.record.STATUSES`; all that follows `error` needs "finished".
        error: why there is no measurement, one line.
        epochs: E, the plain student's.
        stages: in the plan's order.
        extra_parameters: trained beside the student and dropped afterwards.
        training_cost_ratio: measured time, see `training_cost_ratio`; paired by round.
        training_flop_ratio: the same of counted FLOPs.
        plain_ms: the plain student's step.
        plain_count: its operations.
        plain_peak_bytes: see `StageCost.peak_bytes`.
        teacher_ms: the teacher's whole forward pass over a batch.
        teacher_count: its operations.
        conditions: device, threads, torch, precision, batch, rounds, memory method, commit...
    """

    data: str
    teacher: str
    student: str
    label: str
    method: str
    category: str
    status: str = FINISHED
    error: str = ""
    epochs: int = 0
    stages: list[StageCost] = field(default_factory=list)
    extra_parameters: int = 0
    training_cost_ratio: Quartiles | None = None
    training_flop_ratio: float | None = None
    plain_ms: Quartiles | None = None
    plain_count: Count = field(default_factory=Count)
    plain_peak_bytes: int = 0
    teacher_ms: Quartiles | None = None
    teacher_count: Count = field(default_factory=Count)
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an unknown status."""
        if self.status not in STATUSES:
            raise ValueError(f"cost of {self.label}: status {self.status!r} is none of {STATUSES}")

    @property
    def extra_peak_bytes(self) -> int:
        """Peak memory of the costliest stage above that of the plain step; never below 0."""
        return max([0, *(stage.peak_bytes - self.plain_peak_bytes for stage in self.stages)])

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for measurements of which only the newest is kept."""
        where = (str(self.conditions.get(name)) for name in ("device", "precision", "batch"))
        return (self.data, self.teacher, self.student, self.label, *where)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> CostRecord:
        """From the mapping that JSON gives back."""
        quartiles = {
            name: values[name] and Quartiles(*values[name])
            for name in ("training_cost_ratio", "plain_ms", "teacher_ms")
        }
        counts = {name: Count(*values[name]) for name in ("plain_count", "teacher_count")}
        stages = [StageCost.read(stage) for stage in values["stages"]]
        return cls(**{**values, **quartiles, **counts, "stages": stages})


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """One loss alone, forward and backward, while one of its sizes grows.

    Attributes:
        method: the method's name.
        category: the method's.
        stage: whose transfer loss it is: the method's first.
        axis: one of `AXES`.
        sizes: rising.
        milliseconds: one for each size.
        count: operations, one for each size.
        conditions: as of `CostRecord`, and the sizes that stay.
    """

    method: str
    category: str
    stage: str
    axis: str
    sizes: list[int]
    milliseconds: list[Quartiles]
    count: list[Count]
    conditions: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for measurements of which only the newest is kept."""
        where = (str(self.conditions.get(name)) for name in ("device", "precision"))
        return (self.method, self.axis, *where)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Scaling:
        """From the mapping that JSON gives back."""
        milliseconds = [Quartiles(*x) for x in values["milliseconds"]]
        count = [Count(*x) for x in values["count"]]
        return cls(**{**values, "milliseconds": milliseconds, "count": count})


@dataclass(frozen=True)
class Costs:
    """All that was profiled of a grid."""

    records: list[CostRecord] = field(default_factory=list)
    scaling: list[Scaling] = field(default_factory=list)

    def with_newer(self, newer: Costs) -> Costs:
        """These costs, those measured again replaced, new ones last."""
        records = {r.key: r for r in (*self.records, *newer.records)}
        scaling = {s.key: s for s in (*self.scaling, *newer.scaling)}
        return Costs(list(records.values()), list(scaling.values()))

    def to_json(self) -> str:
        """One stable text for equal costs."""
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Costs:
        """The costs written by `to_json`; ValueError if it is not that."""
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"no costs of schema {SCHEMA}")
        try:
            return cls(
                [CostRecord.read(record) for record in values["records"]],
                [Scaling.read(scaling) for scaling in values["scaling"]],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"costs with missing or unknown fields: {error}") from None


def read_costs(path: Path) -> Costs:
    """The costs in a file, none if there is no file; ValueError for a damaged one."""
    try:
        return Costs.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Costs()
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); profile again") from None
