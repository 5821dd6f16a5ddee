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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from bench.cost.costs import (
    RECIPE,
    CostRecord,
    Costs,
    Quartiles,
    StageCost,
    StageShare,
    training_cost_ratio,
)
from bench.cost.counting import bytes_of, count, peak_bytes
from bench.cost.steps import PLAIN, Model, StudentStage, TeacherBatch, Workload
from bench.faults import ANY_FAULT, UserError, name_and_reason, one_line
from bench.hyperparameters import build_method
from bench.method import NotApplicable, split_epochs
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


class MethodRow(NamedTuple):
    """A method as a table names it, with the hyper-parameters that differ from its defaults."""

    label: str
    name: str
    hyperparameters: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How methods are measured, and on which data: its name alone, the images are random.

    `train_images` is N, the number of views that a stage caches if it reads clean images;
    `provenance` is commit and the like, for the conditions.
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

    The record of a method that cannot serve the pair, or fails on it, says why. UserError if the
    plain student cannot be trained.
    """
    rows = [MethodRow(PLAIN, PLAIN), *(row for row in methods if row.name != PLAIN)]
    set_numerics(workload.cell(PLAIN), workload.device)
    with steady():
        lesson = TeacherBatch(teacher, workload)
        title = " > ".join(workload.cell(model).model_name for model in (teacher, student))
        subjects = []
        for done, row in enumerate(rows):
            progress(f"{title}: preparing {row.label}", done, len(rows))
            subjects.append(_prepare(row, student, lesson))
        turns = [turn for _, own in subjects for turn in own]
        plain, of_plain = subjects[0]
        if not of_plain:
            raise UserError(f"{title}: the plain student cannot be trained: {plain['error']}")
        _measure(turns, workload.device, how.rounds, partial(progress, f"{title}: round"))
        shared = _shared_fields(teacher, student, turns[0], lesson, how)
        records = []
        for fields, own in subjects:
            record = CostRecord(**shared, **fields)
            records.append(_measured(record, own, turns[0], how.train_images) if own else record)
        return Costs(records)


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


class _Turn:
    """One stage under measurement: what is timed of it, and milliseconds, one for each round."""

    def __init__(self, stage: StudentStage, epochs: int) -> None:
        self.stage, self.epochs = stage, epochs
        for _ in range(WARM_UP):
            stage.step()
        timed = {"step": stage.step, "loss": stage.loss_alone()}
        timed["once"] = stage.once if stage.stage.clean else None
        self.actions = {name: action for name, action in timed.items() if action is not None}
        self.ms: dict[str, list[float]] = {name: [] for name in self.actions}

    def share(self, number: int) -> StageShare:
        """What the stage adds to the time of a training, by one round."""
        once = self.ms["once"][number] if "once" in self.ms else 0.0
        return StageShare(self.epochs, self.stage.kept, self.ms["step"][number], once)


def _prepare(
    row: MethodRow, student: Model, lesson: TeacherBatch
) -> tuple[dict[str, Any], list[_Turn]]:
    """A method's own fields in its record, and its stages; none if it was refused or failed."""
    method, recipe = build_method(row.name, **row.hyperparameters), lesson.workload.recipe
    fields = {"label": row.label, "method": row.name, "category": method.category}
    try:
        epochs = split_epochs(method.plan, recipe.epochs, recipe.budget)
        build, plan = partial(StudentStage, lesson, student, row.name, method), method.plan
        return fields, [_Turn(build(stage), n) for stage, n in zip(plan, epochs, strict=True)]
    except NotApplicable as reason:
        return fields | {"status": NOT_APPLICABLE, "error": one_line(reason)}, []
    except ANY_FAULT as error:
        return fields | {"status": FAILED, "error": name_and_reason(error)}, []


def milliseconds(
    action: Callable[[], object], device: torch.device, processor: bool = False
) -> float:
    """How long an action takes on the device; on one CPU thread the processor's time, if asked."""
    alone = processor and device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else bool
    wait()
    began = clock()
    action()
    wait()
    return (clock() - began) * 1e3


def _measure(
    turns: Sequence[_Turn], device: torch.device, rounds: int, progress: Callable[[int, int], None]
) -> None:
    """Fills the samples. The first turn is the plain student's."""
    plain = turns[0]
    turns = [*turns, *[plain] * (PLAIN_TURNS - 1)]
    for number in range(rounds):
        progress(number, rounds)
        gc.collect()
        random.Random(number).shuffle(turns)
        for turn in turns:
            for name, action in turn.actions.items():
                samples = turn.ms[name]
                if not samples or samples[-1] < LONG_MS:
                    action()  # fills the caches
                samples.append(milliseconds(action, device))
        steps = plain.ms["step"]
        steps[-PLAIN_TURNS:] = [statistics.median(steps[-PLAIN_TURNS:])]


# --- records ------------------------------------------------------------------------------------


def _shared_fields(
    teacher: Model, student: Model, plain: _Turn, lesson: TeacherBatch, how: Profile
) -> dict[str, Any]:
    """The fields that all records of a pair have in common."""
    workload, step = lesson.workload, plain.stage.step
    return {
        "data": how.data,
        "teacher": workload.cell(teacher).model_name,
        "student": workload.cell(student).model_name,
        "epochs": workload.recipe.epochs,
        "plain_ms": Quartiles.of(plain.ms["step"]),
        "plain_flops": count(step),
        "plain_peak_bytes": peak_bytes(step, workload.device),
        "teacher_bytes": bytes_of(lesson.teacher.network.state_dict().values()),
        "conditions": {
            **conditions(workload.device),
            "precision": workload.precision,
            "deterministic": workload.deterministic,
            "batch": workload.recipe.batch_size,
            **workload.recipe.model_dump(include={*RECIPE}),
            "image_shape": list(workload.image_shape),
            "classes": workload.classes,
            "train_images": how.train_images,
            "warm_up": WARM_UP,
            "memory": MEMORY["cuda" if workload.device.type == "cuda" else "cpu"],
            **how.provenance,
            "rounds": how.rounds,
        },
    }


def _measured(
    record: CostRecord, turns: Sequence[_Turn], plain: _Turn, train_images: int
) -> CostRecord:
    """The record with what was measured of the method's stages."""
    stages = [_stage_cost(turn, train_images) for turn in turns]
    ratios = [
        training_cost_ratio([turn.share(n) for turn in turns], record.epochs, plain_step)
        for n, plain_step in enumerate(plain.ms["step"])
    ]
    operations = [StageShare(s.epochs, s.kept, s.step_flops, s.once_flops) for s in stages]
    first = turns[0].stage
    parameters, flops = first.deployed()
    return replace(
        record,
        stages=stages,
        deployed_parameters=parameters,
        deployed_flops=flops,
        extra_parameters=sum(p.numel() for p in first.student.connector.parameters()),
        training_cost_ratio=Quartiles.of(ratios),
        training_flop_ratio=training_cost_ratio(operations, record.epochs, record.plain_flops),
    )


def _stage_cost(turn: _Turn, train_images: int) -> StageCost:
    stage = turn.stage
    return StageCost(
        name=stage.stage.name,
        epochs=turn.epochs,
        kept=stage.kept,
        **{f"{name}_ms": Quartiles.of(ms) for name, ms in turn.ms.items()},
        step_flops=count(stage.step),
        once_flops=count(stage.once),
        peak_bytes=peak_bytes(stage.step, stage.lesson.workload.device),
        held_bytes=stage.held_bytes(train_images),
    )
