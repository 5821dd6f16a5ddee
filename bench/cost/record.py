"""What the profiler measured, as one JSON file a grid. Standard library only, for the tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import FINISHED, STATUSES, dump_json

SCHEMA = 2

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
FAST, REFERENCE = "fast", "reference"
FORMS = {FAST: "as shipped", REFERENCE: "textbook"}
"""The forms of a loss, equal to rounding; a loss that has but one has it as "fast"."""
WHERE = ("device", "threads", "precision", "batch")
"""The conditions under which costs are compared; others are said beside them."""
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


class Traffic(NamedTuple):
    """Bytes that a loss has to move, forward and backward, however its operations are arranged.

    Attributes:
        inputs: the stage's taps of both networks, and the connector's parameters and buffers, each
            read once.
        outputs: gradients at the student's taps and the connector's parameters, each written once.
        saved: what the forward pass keeps for the backward pass: an input counts once (it is read
            again), anything else twice (written, then read).
    """

    inputs: int
    outputs: int
    saved: int

    @property
    def total(self) -> int:
        """All three together."""
        return sum(self)


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
class LossCost:
    """A stage's transfer losses alone, with their connectors, on tensors that are already there.

    Attributes:
        ms: forward and backward.
        over_fast: for a textbook form, that over the fast form's of the same round.
        count: operations.
        traffic: the bytes that have to be moved.
        peak_bytes: largest sum of tensors alive at a time that it made, its gradients included.
    """

    ms: Quartiles
    over_fast: Quartiles | None = None
    count: Count
    traffic: Traffic
    peak_bytes: int

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> LossCost:
        """From the mapping that JSON gives back."""
        over = values["over_fast"]
        return cls(**{
            **values,
            "ms": Quartiles(*values["ms"]),
            "over_fast": over and Quartiles(*over),
            "count": Count(*values["count"]),
            "traffic": Traffic(*values["traffic"]),
        })  # fmt: skip


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
        held_bytes: held from step to step beside what plain training holds: the connector's
            parameters, buffers and momentum, and the teacher's view of all training images where
            the stage caches it.
        loss: the transfer losses alone; None without any.
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
    held_bytes: int = 0
    loss: LossCost | None = None

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
            "loss": values["loss"] and LossCost.read(values["loss"]),
        })  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """One method on one pair, with what it is compared to.

    Attributes:
        data: the data set's name, whose image shape and classes were used.
        label: the row's name in tables.
        method: the method's name.
        form: of its losses, one of `FORMS`.
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
        teacher_bytes: its parameters and buffers.
        conditions: device, threads, torch, precision, batch, rounds, memory method, commit...
    """

    data: str
    teacher: str
    student: str
    label: str
    method: str
    category: str
    form: str = FAST
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
    teacher_bytes: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an unknown status or form."""
        for what, known in (("status", STATUSES), ("form", tuple(FORMS))):
            if (value := getattr(self, what)) not in known:
                raise ValueError(f"cost of {self.label}: {what} {value!r} is none of {known}")

    @property
    def extra_peak_bytes(self) -> int:
        """Memory of the costliest stage above that of the plain step; never below 0.

        A step's peak, and what is held from step to step; the teacher's weights come on top.
        """
        above = (s.peak_bytes + s.held_bytes - self.plain_peak_bytes for s in self.stages)
        return max([0, *above])

    @property
    def loss(self) -> LossCost | None:
        """The costliest stage's transfer losses; None if no stage has any."""
        found = [stage.loss for stage in self.stages if stage.loss is not None]
        return max(found, key=lambda loss: loss.ms.median, default=None)

    @property
    def place(self) -> tuple[str, ...]:
        """The pair and the conditions: records of one place may stand in one table."""
        where = (str(self.conditions.get(name)) for name in WHERE)
        return (self.data, self.teacher, self.student, *where)

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for measurements of which only the newest is kept."""
        return (*self.place, self.label, self.form)

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
        where = (str(self.conditions.get(name)) for name in ("device", "threads", "precision"))
        return (self.method, self.axis, *where)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Scaling:
        """From the mapping that JSON gives back."""
        milliseconds = [Quartiles(*x) for x in values["milliseconds"]]
        count = [Count(*x) for x in values["count"]]
        return cls(**{**values, "milliseconds": milliseconds, "count": count})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a device reaches at best, for the roofline: both figures are the fastest repeat's.

    Attributes:
        matmul_gflops: GFLOP/s of a product of two square float32 matrices.
        matmul_size: how wide they were: of all sizes tried, that of the fastest.
        matmul_repeats: GFLOP/s of all repeats at that size.
        triad_gbs: GB/s (1e9 bytes) of a = b + s c on float32 vectors, three transfers an element.
        triad_bytes: of one vector; beyond every cache.
        triad_repeats: GB/s of all repeats.
        conditions: as of `CostRecord`.
    """

    matmul_gflops: float
    matmul_size: int
    matmul_repeats: Quartiles
    triad_gbs: float
    triad_bytes: int
    triad_repeats: Quartiles
    conditions: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for measurements of which only the newest is kept."""
        return tuple(str(self.conditions.get(name)) for name in ("device", "threads"))

    def least_ms(self, flops: float, moved_bytes: float) -> tuple[float, str]:
        """The time below which no code can be, and whether "compute" or "memory" sets it.

        Example:
            >>> spread = Quartiles(100.0, 90.0, 100.0, 3)
            >>> machine = Machine(
            ...     matmul_gflops=100.0, matmul_size=512, matmul_repeats=spread,
            ...     triad_gbs=10.0, triad_bytes=2**28, triad_repeats=spread, conditions={},
            ... )
            >>> machine.least_ms(2e8, 1e7), machine.least_ms(2e8, 4e7)
            ((2.0, 'compute'), (4.0, 'memory'))
        """
        compute = flops / self.matmul_gflops / 1e6
        memory = moved_bytes / self.triad_gbs / 1e6
        return (compute, "compute") if compute >= memory else (memory, "memory")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Machine:
        """From the mapping that JSON gives back."""
        names = ("matmul_repeats", "triad_repeats")
        return cls(**{**values, **{name: Quartiles(*values[name]) for name in names}})


@dataclass(frozen=True)
class Costs:
    """All that was profiled of a grid.

    Attributes:
        records: every method as shipped.
        references: methods with losses of two forms, with the textbook ones.
        scaling: losses alone while one size grows.
        machines: what the devices reach.
    """

    records: list[CostRecord] = field(default_factory=list)
    scaling: list[Scaling] = field(default_factory=list)
    references: list[CostRecord] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return any(getattr(self, kind) for kind in _KINDS)

    def with_newer(self, newer: Costs) -> Costs:
        """These costs, those measured again replaced, new ones last."""

        def merged(kind: str) -> list[Any]:
            both = (*getattr(self, kind), *getattr(newer, kind))
            return list({one.key: one for one in both}.values())

        return Costs(**{kind: merged(kind) for kind in _KINDS})

    def machine_of(self, record: CostRecord) -> Machine | None:
        """The device that a record was measured on; None if its limits were not."""
        where = tuple(str(record.conditions.get(name)) for name in ("device", "threads"))
        return next((m for m in self.machines if m.key == where), None)

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
            return cls(**{kind: [read(v) for v in values[kind]] for kind, read in _KINDS.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"costs with missing or unknown fields: {error}") from None


_KINDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "records": CostRecord.read,
    "references": CostRecord.read,
    "scaling": Scaling.read,
    "machines": Machine.read,
}


def read_costs(path: Path) -> Costs:
    """The costs in a file, none if there is no file; ValueError for a damaged one."""
    try:
        return Costs.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Costs()
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and profile again") from None
