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
from bench.cost.record import (
    PARTS,
    CostRecord,
    Count,
    Quartiles,
    StageCost,
    StageShare,
    training_cost_ratio,
)
from bench.cost.steps import PLAIN, Bench, Model, Scene, Setting
from bench.method import Method, NotApplicable, split_epochs
from bench.record import FAILED, NOT_APPLICABLE
from bench.train.cohort import CELL_FAULTS, one_line
from bench.train.device import conditions, set_numerics
from methods import registry

LEAST_ROUNDS = 3
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
) -> list[CostRecord]:
    """Measures every method on every pair; the plain student always among them.

    Args:
        pairs: teacher and student, as the zoo knows them.
        methods: rows, each of another label.
        setting: what all measurements have in common.
        progress: called before each method's preparation and each round.

    Returns:
        One record a pair and method, in that order; also of methods that cannot serve the pair or
        fail on it, with the reason.

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
        return [r for pair in pairs for r in _profile_pair(*pair, rows, setting, report)]


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
    parts: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Subject:
    """A method under measurement; without benches it was refused, with a reason."""

    row: MethodRow
    method: Method
    benches: list[Bench] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    status: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        self.samples = [_Samples() for _ in self.benches]


def _profile_pair(
    teacher: Model, student: Model, rows: Sequence[MethodRow], setting: Setting, report: Progress
) -> list[CostRecord]:
    scene = Scene(teacher, setting)
    names = [setting.cell(model).model_name for model in (teacher, student)]
    title = " > ".join(names)
    subjects = []
    for done, row in enumerate(rows):
        report(f"{title}: preparing {row.label}", done, len(rows))
        subjects.append(_prepare(row, student, scene))
    plain = subjects[0]
    if plain.error:
        raise ValueError(f"profile of {title}: the plain student cannot be trained: {plain.error}")
    whole = _measure(subjects, scene, lambda n: report(f"{title}: round", n, setting.rounds))
    shared = _shared(setting, names, plain, whole, scene)
    return [_record(subject, plain, setting, shared) for subject in subjects]


def _prepare(row: MethodRow, student: Model, scene: Scene) -> _Subject:
    method, recipe = registry.build(row.name, **row.hyperparameters), scene.setting.recipe
    try:
        epochs = split_epochs(method.plan, recipe.epochs, recipe.budget)
        benches = [Bench(scene, student, row.name, method, stage) for stage in method.plan]
        for bench in benches:
            for _ in range(scene.setting.warm_up):
                bench.step()
    except NotApplicable as reason:
        return _Subject(row, method, status=NOT_APPLICABLE, error=one_line(reason))
    except CELL_FAULTS as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        return _Subject(row, method, status=FAILED, error=text)
    return _Subject(row, method, benches, epochs)


class Clock:
    """A meter of milliseconds that waits for the device before every reading."""

    def __init__(self, device: torch.device) -> None:
        """Of the device that is waited for."""
        self._device = device

    def __call__(self) -> tuple[float]:
        """Now."""
        if self._device.type == "cuda":
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
    turns = [turn for s in subjects for turn in zip(s.benches, s.samples, strict=True)]
    turns += (PLAIN_TURNS - 1) * turns[:1]
    plain = turns[0][1]
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
        for bench, samples in turns:
            _measure_step(bench, samples, clock)
        plain.step[-PLAIN_TURNS:] = [statistics.median(plain.step[-PLAIN_TURNS:])]
        scene.teach()
        whole.append(clock.time(scene.teach))
    return whole


def _measure_step(bench: Bench, samples: _Samples, clock: Clock) -> None:
    """The whole step, then a step with a clock between its parts."""
    bench.step()  # brings this student back into the caches; not counted
    samples.step.append(clock.time(bench.step))
    with bench.marks.reading(clock) as parts:
        bench.step()
    samples.parts.append({part: advanced[0] for part, advanced in parts.items()})
    samples.once.append(clock.time(bench.once) if bench.stage.clean else 0.0)


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
    bench, device = plain.benches[0], setting.device
    return {
        "data": setting.data,
        "teacher": names[0],
        "student": names[1],
        "epochs": setting.recipe.epochs,
        "plain_ms": Quartiles.of(plain.samples[0].step),
        "plain_count": count(bench.step),
        "plain_peak_bytes": peak_bytes(bench.step, device),
        "teacher_ms": Quartiles.of(whole),
        "teacher_count": count(scene.teach),
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
    }
    if subject.error:
        return CostRecord(**row, status=subject.status, error=subject.error)
    plain_steps = plain.samples[0].step
    stages = [
        _stage_cost(bench, samples, epochs, plain_steps, setting)
        for bench, samples, epochs in zip(
            subject.benches, subject.samples, subject.epochs, strict=True
        )
    ]
    operations = [
        StageShare(s.epochs, s.kept, s.step_count.flops, s.once_count.flops) for s in stages
    ]
    return CostRecord(
        **row,
        stages=stages,
        extra_parameters=subject.benches[0].extra_parameters,
        training_cost_ratio=_time_ratio(subject, plain_steps, setting.recipe.epochs),
        training_flop_ratio=training_cost_ratio(
            operations, setting.recipe.epochs, shared["plain_count"].flops
        ),
    )


def _time_ratio(subject: _Subject, plain_steps: Sequence[float], epochs: int) -> Quartiles:
    """The whole training's, round by round against the plain step of the same round."""
    measured = list(zip(subject.benches, subject.samples, subject.epochs, strict=True))
    ratios = []
    for number, plain_step in enumerate(plain_steps):
        plan = [
            StageShare(stage_epochs, bench.kept, samples.step[number], samples.once[number])
            for bench, samples, stage_epochs in measured
        ]
        ratios.append(training_cost_ratio(plan, epochs, plain_step))
    return Quartiles.of(ratios)


def _stage_cost(
    bench: Bench, samples: _Samples, epochs: int, plain_steps: Sequence[float], setting: Setting
) -> StageCost:
    stage = bench.stage
    ratios = [step / plain for step, plain in zip(samples.step, plain_steps, strict=True)]
    return StageCost(
        name=stage.name,
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
        once_ms=Quartiles.of(samples.once) if stage.clean else None,
        count=count_parts(bench),
        once_count=count(bench.once),
        peak_bytes=peak_bytes(bench.step, setting.device),
        transfers=stage.needs_teacher,
    )
