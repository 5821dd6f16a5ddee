"""The cost of methods: every stage of every method, stepped by the engine, one by itself.

All stages of all methods of a pair take turns, in a new order every round, so that a machine that
slows down or heats up does so for all alike; and a step is compared with the plain student's step
of the same round.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.cost.counting import AllocationMode, CountingMode
from bench.cost.loss import LossAlone
from bench.cost.record import (
    FAST,
    PARTS,
    REFERENCE,
    CostRecord,
    Costs,
    Count,
    LossCost,
    Quartiles,
    StageCost,
    StageShare,
    training_cost_ratio,
)
from bench.cost.steps import PLAIN, Bench, Model, Scene, Setting
from bench.faults import CODE_FAULTS, name_and_reason, one_line
from bench.hyperparameters import build_method
from bench.method import Method, NotApplicable, split_epochs
from bench.record import FAILED, NOT_APPLICABLE
from bench.train.device import conditions, set_numerics

LEAST_ROUNDS = 3
LONG_MS = 50.0  # whatever takes longer finds its data in no cache and needs none brought back
PLAIN_TURNS = 3  # the plain step is under every ratio: its round counts by the median of three

MEMORY = {
    "cuda": "torch.cuda.max_memory_allocated above what the step found",
    "cpu": "tensors that operators make, by storage, without workspaces",
}
"""How peak memory is measured: on CUDA, and on any other device."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, and how much of how much is done."""


@dataclass(frozen=True)
class MethodRow:
    """A method as a table names it, with the hyper-parameters that differ from its defaults."""

    label: str
    name: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def profile(
    pairs: Sequence[tuple[Model, Model]],
    methods: Sequence[MethodRow],
    setting: Setting,
    progress: Progress | None = None,
) -> Costs:
    """Measures every method on every pair; the plain student always among them.

    Methods with losses of two forms are measured in both, in turns like all others.

    Args:
        pairs: teacher and student, as the zoo knows them.
        methods: rows, each of another label.
        setting: what all measurements have in common.
        progress: called before each method's preparation and each round.

    Returns:
        One record a pair and method, in that order; also of methods that cannot serve the pair or
        fail on it, with the reason. Those of textbook forms are among the references.

    Raises:
        ValueError: a label twice, or a pair whose plain student cannot be trained.
    """
    labels = [row.label for row in methods]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"profile: two methods are called {repeated[0]!r}")
    rows = [MethodRow(PLAIN, PLAIN), *(row for row in methods if row.name != PLAIN)]
    report = progress or (lambda what, done, total: None)
    set_numerics(setting.cell(PLAIN))
    with steady():
        records = [r for pair in pairs for r in _profile_pair(*pair, rows, setting, report)]
    return Costs(
        [record for record in records if record.form == FAST],
        references=[record for record in records if record.form == REFERENCE],
    )


@contextmanager
def steady() -> Iterator[None]:
    """No garbage collection by chance, and no warning about what is not deterministic."""
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*determinis.*")
            yield
    finally:
        gc.enable()


# --- one pair --------------------------------------------------------------------------------


@dataclass
class _Samples:
    """What the rounds gave for one stage, in milliseconds, one entry a round."""

    step: list[float] = field(default_factory=list)
    once: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Turn:
    """One stage under measurement."""

    bench: Bench
    loss: LossAlone | None
    samples: _Samples = field(default_factory=_Samples)


@dataclass
class _Subject:
    """A method under measurement; without turns it was refused, with a reason.

    In its textbook form it is beside `shipped`, and has that one's turns where there is one form.
    """

    row: MethodRow
    method: Method
    shipped: _Subject | None = None
    turns: list[_Turn] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    status: str = ""
    error: str = ""


def _profile_pair(
    teacher: Model, student: Model, rows: Sequence[MethodRow], setting: Setting, report: Progress
) -> list[CostRecord]:
    scene = Scene(teacher, setting)
    names = [setting.cell(model).model_name for model in (teacher, student)]
    title = " > ".join(names)
    subjects: list[_Subject] = []
    for done, row in enumerate(rows):
        report(f"{title}: preparing {row.label}", done, len(rows))
        shipped = _prepare(row, student, scene)
        subjects.append(shipped)
    plain = subjects[0]
    if plain.error:
        raise ValueError(f"profile of {title}: the plain student cannot be trained: {plain.error}")
    whole = _measure(subjects, scene, lambda n: report(f"{title}: round", n, setting.rounds))
    shared = _shared(setting, names, plain, whole, scene)
    return [_record(subject, plain, setting, shared) for subject in subjects]


def _prepare(
    row: MethodRow, student: Model, scene: Scene, shipped: _Subject | None = None
) -> _Subject:
    """A row with its losses as shipped, or in their textbook form beside `shipped`."""
    method, recipe = build_method(row.name, **row.hyperparameters), scene.setting.recipe
    turns = []
    try:
        epochs = split_epochs(method.plan, recipe.epochs, recipe.budget)
        for position, stage in enumerate(method.plan):
            bench = Bench(scene, student, row.name, method, stage)
            if shipped is not None:
                bench.drop_faulty_gradients()
            turn = _turn(bench, scene.setting.warm_up)
            if shipped is not None and _same_work(turn, shipped.turns[position]):
                turn = shipped.turns[position]
            turns.append(turn)
    except NotApplicable as reason:
        return _Subject(row, method, shipped, status=NOT_APPLICABLE, error=one_line(reason))
    except CODE_FAULTS as error:
        text = name_and_reason(error)
        return _Subject(row, method, shipped, status=FAILED, error=text)
    return _Subject(row, method, shipped, turns, epochs)


def _turn(bench: Bench, warm_up: int) -> _Turn:
    for _ in range(warm_up):
        bench.step()
    return _Turn(bench, bench.loss_alone())


def _same_work(one: _Turn, other: _Turn) -> bool:
    """Whether two forms of a stage are one: then it is measured once."""
    return one.loss is None or other.loss is None or count(one.loss) == count(other.loss)


class Clock:
    """A meter of milliseconds that waits for the device before every reading."""

    def __init__(self, device: torch.device) -> None:
        """Of the device that is waited for."""
        self._device = device

    @property
    def waits(self) -> bool:
        """Whether a reading has to wait for the device."""
        return self._device.type == "cuda"

    def __call__(self) -> tuple[float]:
        """Now."""
        if self.waits:
            torch.cuda.synchronize(self._device)
        return (time.perf_counter() * 1e3,)

    def time(self, action: Callable[[], object]) -> float:
        """How long `action` takes."""
        began = self()[0]
        action()
        return self()[0] - began


def _measure(
    subjects: Sequence[_Subject], scene: Scene, report: Callable[[int], None]
) -> list[float]:
    """Fills the samples; returns the teacher's whole forward pass, milliseconds a round.

    The first subject is the plain student.
    """
    turns = list({id(turn): turn for s in subjects for turn in s.turns}.values())
    plain = turns[0].samples
    turns += (PLAIN_TURNS - 1) * turns[:1]
    clock, setting = Clock(scene.setting.device), scene.setting
    whole: list[float] = []
    began = time.monotonic()
    for number in range(setting.rounds):
        spent = time.monotonic() - began
        if setting.seconds is not None and spent > setting.seconds and number >= LEAST_ROUNDS:
            break
        report(number)
        gc.collect()
        random.Random(number).shuffle(turns)
        for turn in turns:
            _measure_turn(turn, clock)
        plain.step[-PLAIN_TURNS:] = [statistics.median(plain.step[-PLAIN_TURNS:])]
        _time(scene.teach, whole, clock)
    return whole


def _measure_turn(turn: _Turn, clock: Clock) -> None:
    """The step and its parts, work done once, and the loss alone."""
    bench, samples = turn.bench, turn.samples
    if not samples.step or samples.step[-1] < LONG_MS:
        bench.step()  # brings this student back into the caches; not counted
    if clock.waits:  # waiting at every mark makes the whole longer than it is: a step of its own
        samples.step.append(clock.time(bench.step))
    with bench.marks.reading(clock) as parts:
        bench.step()
    samples.parts.append({part: advanced[0] for part, advanced in parts.items()})
    if not clock.waits:
        samples.step.append(sum(samples.parts[-1].values()))
    samples.once.append(clock.time(bench.once) if bench.stage.clean else 0.0)
    if turn.loss is not None:
        _time(turn.loss, samples.loss, clock)


def _time(action: Callable[[], object], samples: list[float], clock: Clock) -> None:
    """Adds how long `action` takes, its data in the caches if they are of any use to it."""
    if not samples or samples[-1] < LONG_MS:
        action()
    samples.append(clock.time(action))


# --- what is not time ------------------------------------------------------------------------


def count(action: Callable[[], object]) -> Count:
    """Operations of a function."""
    with CountingMode() as counter:
        action()
    return counter.count


def count_parts(bench: Bench) -> dict[str, Count]:
    """Operations of one step, by its parts."""
    with CountingMode() as counter, bench.marks.reading(lambda: counter.count) as parts:
        bench.step()
    return {part: Count(*map(int, parts[part])) for part in PARTS if part in parts}


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most memory that a function holds at a time beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with AllocationMode() as memory:
        action()
    return memory.peak_bytes


# --- records ---------------------------------------------------------------------------------


def _shared(
    setting: Setting, names: Sequence[str], plain: _Subject, whole: Sequence[float], scene: Scene
) -> dict[str, Any]:
    """The fields that all records of a pair have in common."""
    bench, device, teacher = plain.turns[0].bench, setting.device, scene.teacher.network
    return {
        "data": setting.data,
        "teacher": names[0],
        "student": names[1],
        "epochs": setting.recipe.epochs,
        "plain_ms": Quartiles.of(plain.turns[0].samples.step),
        "plain_count": count(bench.step),
        "plain_peak_bytes": peak_bytes(bench.step, device),
        "teacher_ms": Quartiles.of(whole),
        "teacher_count": count(scene.teach),
        "teacher_bytes": sum(x.numel() * x.element_size() for x in teacher.state_dict().values()),
        "conditions": {**measured_with(setting), "rounds": len(whole)},
    }


def measured_with(setting: Setting) -> dict[str, Any]:
    """The conditions of a measurement."""
    return {
        **conditions(setting.device),
        "precision": setting.precision,
        "deterministic": setting.deterministic,
        "batch": setting.recipe.batch_size,
        "image_shape": list(setting.image_shape),
        "classes": setting.classes,
        "train_images": setting.train_images,
        "warm_up": setting.warm_up,
        "memory": MEMORY["cuda" if setting.device.type == "cuda" else "cpu"],
        **setting.provenance,
    }


def _record(
    subject: _Subject, plain: _Subject, setting: Setting, shared: Mapping[str, Any]
) -> CostRecord:
    row = {
        **shared,
        "label": subject.row.label,
        "method": subject.row.name,
        "category": subject.method.category,
        "form": FAST if subject.shipped is None else REFERENCE,
    }
    if subject.error:
        return CostRecord(**row, status=subject.status, error=subject.error)
    plain_steps = plain.turns[0].samples.step
    shipped = subject.shipped or subject
    stages = [
        _stage_cost(turn, fast, epochs, plain_steps, setting)
        for turn, fast, epochs in zip(subject.turns, shipped.turns, subject.epochs, strict=True)
    ]
    operations = [
        StageShare(s.epochs, s.kept, s.step_count.flops, s.once_count.flops) for s in stages
    ]
    return CostRecord(
        **row,
        stages=stages,
        extra_parameters=subject.turns[0].bench.extra_parameters,
        training_cost_ratio=_time_ratio(subject, plain_steps, setting.recipe.epochs),
        training_flop_ratio=training_cost_ratio(
            operations, setting.recipe.epochs, shared["plain_count"].flops
        ),
    )


def _time_ratio(subject: _Subject, plain_steps: Sequence[float], epochs: int) -> Quartiles:
    """The whole training's, round by round against the plain step of the same round."""
    measured = list(zip(subject.turns, subject.epochs, strict=True))
    ratios = []
    for number, plain_step in enumerate(plain_steps):
        plan = [
            StageShare(
                stage_epochs, turn.bench.kept, turn.samples.step[number], turn.samples.once[number]
            )
            for turn, stage_epochs in measured
        ]
        ratios.append(training_cost_ratio(plan, epochs, plain_step))
    return Quartiles.of(ratios)


def _stage_cost(
    turn: _Turn, fast: _Turn, epochs: int, plain_steps: Sequence[float], setting: Setting
) -> StageCost:
    """A stage's cost; `fast` is the same stage as shipped."""
    bench, samples = turn.bench, turn.samples
    ratios = [step / plain for step, plain in zip(samples.step, plain_steps, strict=True)]
    return StageCost(
        name=bench.stage.name,
        epochs=epochs,
        kept=bench.kept,
        taps=list(bench.student.taps),
        step_ms=Quartiles.of(samples.step),
        ratio=Quartiles.of(ratios),
        parts_ms={
            part: Quartiles.of([parts[part] for parts in samples.parts])
            for part in PARTS
            if part in samples.parts[0]
        },
        once_ms=Quartiles.of(samples.once) if bench.stage.clean else None,
        count=count_parts(bench),
        once_count=count(bench.once),
        peak_bytes=peak_bytes(bench.step, setting.device),
        held_bytes=bench.held_bytes,
        loss=None if turn.loss is None else _loss_cost(turn, turn.loss, fast, setting),
    )


def _loss_cost(turn: _Turn, loss: LossAlone, fast: _Turn, setting: Setting) -> LossCost:
    both = zip(turn.samples.loss, fast.samples.loss, strict=True)
    return LossCost(
        ms=Quartiles.of(turn.samples.loss),
        over_fast=None if turn is fast else Quartiles.of([mine / other for mine, other in both]),
        count=count(loss),
        traffic=loss.traffic(),
        peak_bytes=peak_bytes(loss, setting.device),
    )
