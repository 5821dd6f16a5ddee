"""The cost of methods: every stage of every method stepped alone, by the engine.

All stages of all methods of a pair take turns, in a new order every round, so that a machine that
slows down does so for all of them. A step is compared with the plain student's step of the same
round.
"""

import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.cost.costs import (
    CostRecord,
    Costs,
    LossCost,
    Quartiles,
    StageCost,
    StageShare,
    training_cost_ratio,
)
from bench.cost.counting import bytes_of, count, peak_bytes
from bench.cost.steps import PLAIN, LossAlone, Model, StudentStage, TeacherBatch, Workload
from bench.faults import CODE_FAULTS, UserError, name_and_reason, one_line
from bench.hyperparameters import build_method
from bench.method import Method, NotApplicable, split_epochs
from bench.record import FAILED, NOT_APPLICABLE
from bench.train.device import conditions, set_numerics

WARM_UP = 2  # steps of every stage before the first round
LONG_MS = 50.0  # what takes longer outgrows every cache, and is not run once more to fill them
PLAIN_TURNS = 3  # every ratio divides by the plain step: its round is the median of three

MEMORY = {
    "cuda": "torch.cuda.max_memory_allocated above what the step found",
    "cpu": "tensors that operators make, by storage, without workspaces",
}
"""How peak memory is measured: on CUDA, and on any other device."""

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class MethodRow:
    """A method as a table names it, with the hyper-parameters that differ from its defaults."""

    label: str
    name: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How methods are measured, and on which data.

    Attributes:
        data: the data set's name, for the tables. The images are random.
        train_images: N, the number of views that a stage caches if it reads clean images.
        rounds: how many times every step is measured.
        provenance: commit and the like, for the conditions.
    """

    data: str
    train_images: int = 0
    rounds: int = 20
    provenance: Mapping[str, object] = field(default_factory=dict)


def profile(
    teacher: Model,
    student: Model,
    methods: Sequence[MethodRow],
    workload: Workload,
    how: Profile,
    progress: Progress = lambda what, done, total: None,
) -> Costs:
    """Measures every method on one pair, the plain student always among them.

    `progress` is called before each method's preparation and each round.

    Returns:
        One record for each method, in that order. A method that cannot serve the pair or fails on
        it has a record with the reason.

    Raises:
        UserError: the plain student cannot be trained.
    """
    rows = [MethodRow(PLAIN, PLAIN), *(row for row in methods if row.name != PLAIN)]
    set_numerics(workload.cell(PLAIN))
    with steady():
        lesson = TeacherBatch(teacher, workload)
        title = " > ".join(workload.cell(model).model_name for model in (teacher, student))
        subjects = []
        for done, row in enumerate(rows):
            progress(f"{title}: preparing {row.label}", done, len(rows))
            subjects.append(_prepare(row, student, lesson))
        plain = subjects[0]
        if plain.error:
            raise UserError(f"{title}: the plain student cannot be trained: {plain.error}")
        _measure(subjects, workload, how, lambda *at: progress(f"{title}: round", *at))
        shared = _shared_fields(teacher, student, plain, lesson, how)
        return Costs([_record(subject, plain, how, shared) for subject in subjects])


@contextmanager
def steady() -> Iterator[None]:
    """No garbage collection by chance, and no warnings about nondeterminism."""
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*determinis.*")
            yield
    finally:
        gc.enable()


# --- measuring ----------------------------------------------------------------------------------


@dataclass
class _Turn:
    """One stage under measurement; samples are milliseconds, one for each round."""

    stage: StudentStage
    epochs: int
    loss: LossAlone | None
    step_ms: list[float] = field(default_factory=list)
    teacher_ms: list[float] = field(default_factory=list)
    once_ms: list[float] = field(default_factory=list)
    loss_ms: list[float] = field(default_factory=list)

    def share(self, number: int) -> StageShare:
        """What the stage adds to the time of a training, by one round."""
        once = self.once_ms[number] if self.once_ms else 0.0
        return StageShare(self.epochs, self.stage.kept, self.step_ms[number], once)


@dataclass
class _Subject:
    """A method under measurement. One without turns was refused, for the reason in `error`."""

    row: MethodRow
    method: Method
    turns: Sequence[_Turn] = ()
    status: str = ""
    error: str = ""


def _prepare(row: MethodRow, student: Model, lesson: TeacherBatch) -> _Subject:
    method, recipe = build_method(row.name, **row.hyperparameters), lesson.workload.recipe
    turns = []
    try:
        epochs = split_epochs(method.plan, recipe.epochs, recipe.budget)
        for plan_stage, stage_epochs in zip(method.plan, epochs, strict=True):
            stage = StudentStage(lesson, student, row.name, method, plan_stage)
            for _ in range(WARM_UP):
                stage.step()
            turns.append(_Turn(stage, stage_epochs, stage.loss_alone()))
    except NotApplicable as reason:
        return _Subject(row, method, status=NOT_APPLICABLE, error=one_line(reason))
    except CODE_FAULTS as error:
        return _Subject(row, method, status=FAILED, error=name_and_reason(error))
    return _Subject(row, method, turns)


def milliseconds(
    action: Callable[[], object], device: torch.device, processor: bool = False
) -> float:
    """How long an action takes, on CUDA until the device has finished it.

    On a CPU with one thread it is the processor's time if `processor` is true.
    """
    alone = processor and device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else bool
    wait()
    began = clock()
    action()
    wait()
    return (clock() - began) * 1e3


def _measure(
    subjects: Sequence[_Subject],
    workload: Workload,
    how: Profile,
    progress: Callable[[int, int], None],
) -> None:
    """Fills the samples. The first subject is the plain student."""
    turns = [turn for subject in subjects for turn in subject.turns]
    plain, device = turns[0], workload.device
    turns += [plain] * (PLAIN_TURNS - 1)
    for number in range(how.rounds):
        progress(number, how.rounds)
        gc.collect()
        random.Random(number).shuffle(turns)
        for turn in turns:
            _time(turn.stage.step, turn.step_ms, device)
            if turn.stage.student.reads_teacher:
                _time(turn.stage.teacher_view, turn.teacher_ms, device)
            if turn.stage.stage.clean:
                _time(turn.stage.once, turn.once_ms, device)
            if turn.loss is not None:
                _time(turn.loss, turn.loss_ms, device)
        plain.step_ms[-PLAIN_TURNS:] = [statistics.median(plain.step_ms[-PLAIN_TURNS:])]


def _time(action: Callable[[], object], samples: list[float], device: torch.device) -> None:
    """Adds how long an action takes, after one run that fills the caches if that is any use."""
    if not samples or samples[-1] < LONG_MS:
        action()
    samples.append(milliseconds(action, device))


# --- records ------------------------------------------------------------------------------------


def _shared_fields(
    teacher: Model, student: Model, plain: _Subject, lesson: TeacherBatch, how: Profile
) -> dict[str, Any]:
    """The fields that all records of a pair have in common."""
    workload, step = lesson.workload, plain.turns[0].stage.step
    return {
        "data": how.data,
        "teacher": workload.cell(teacher).model_name,
        "student": workload.cell(student).model_name,
        "epochs": workload.recipe.epochs,
        "plain_ms": Quartiles.of(plain.turns[0].step_ms),
        "plain_flops": count(step),
        "plain_peak_bytes": peak_bytes(step, workload.device),
        "teacher_bytes": bytes_of(lesson.teacher.network.state_dict().values()),
        "conditions": {
            **conditions(workload.device),
            "precision": workload.precision,
            "deterministic": workload.deterministic,
            "batch": workload.recipe.batch_size,
            "image_shape": list(workload.image_shape),
            "classes": workload.classes,
            "train_images": how.train_images,
            "warm_up": WARM_UP,
            "memory": MEMORY["cuda" if workload.device.type == "cuda" else "cpu"],
            **how.provenance,
            "rounds": how.rounds,
        },
    }


def _record(
    subject: _Subject, plain: _Subject, how: Profile, shared: Mapping[str, Any]
) -> CostRecord:
    row = {
        **shared,
        "label": subject.row.label,
        "method": subject.row.name,
        "category": subject.method.category,
    }
    if subject.error:
        return CostRecord(**row, status=subject.status, error=subject.error)
    plain_steps, epochs = plain.turns[0].step_ms, shared["epochs"]
    stages = [_stage_cost(turn, plain_steps, how) for turn in subject.turns]
    ratios = [
        training_cost_ratio([turn.share(n) for turn in subject.turns], epochs, plain_step)
        for n, plain_step in enumerate(plain_steps)
    ]
    operations = [StageShare(s.epochs, s.kept, s.step_flops, s.once_flops) for s in stages]
    return CostRecord(
        **row,
        stages=stages,
        extra_parameters=subject.turns[0].stage.extra_parameters,
        training_cost_ratio=Quartiles.of(ratios),
        training_flop_ratio=training_cost_ratio(operations, epochs, shared["plain_flops"]),
    )


def _stage_cost(turn: _Turn, plain_steps: Sequence[float], how: Profile) -> StageCost:
    stage = turn.stage
    device = stage.lesson.workload.device
    ratios = [step / plain for step, plain in zip(turn.step_ms, plain_steps, strict=True)]
    loss = None
    if turn.loss is not None:
        loss = LossCost(
            ms=Quartiles.of(turn.loss_ms),
            flops=count(turn.loss),
            peak_bytes=peak_bytes(turn.loss, device),
        )
    return StageCost(
        name=stage.stage.name,
        epochs=turn.epochs,
        kept=stage.kept,
        step_ms=Quartiles.of(turn.step_ms),
        ratio=Quartiles.of(ratios),
        teacher_ms=Quartiles.of(turn.teacher_ms) if turn.teacher_ms else None,
        once_ms=Quartiles.of(turn.once_ms) if turn.once_ms else None,
        step_flops=count(stage.step),
        once_flops=count(stage.once),
        peak_bytes=peak_bytes(stage.step, device),
        held_bytes=stage.held_bytes(how.train_images),
        loss=loss,
    )
