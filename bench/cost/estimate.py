"""How long a grid trains and what memory it takes, from a few real steps on this machine.

Each row is stepped under its teacher, stage by stage, on random images of the data's shape. The
rest is arithmetic: a job opens its data, makes batches and runs the teacher once for all of its
students; each of these has its steps, its evaluations and `CELL_SECONDS`. With one thread on the
CPU the clock is the processor's, so that other programs do not count.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from bench.cell import Cell, DataSpec
from bench.cost.counting import bytes_of, peak_bytes
from bench.cost.profiler import Progress, milliseconds, steady
from bench.cost.steps import StudentStage, TeacherBatch, Workload
from bench.data.batches import resident_bytes
from bench.data.dataset import DataSet
from bench.data.splits import labelled_mask
from bench.faults import ANY_FAULT, name_and_reason, one_line
from bench.hyperparameters import build_method
from bench.method import NotApplicable, split_epochs
from bench.train.device import set_numerics
from bench.train.stream import evaluation_batch, open_stream

STEPS = 3  # timed steps of each stage, after a first one that gives the memory
LONG_SECONDS = 0.5  # a step that takes longer is the last one, but a cold one 60 times as long
CELL_SECONDS = 0.1  # a student's admission, weights and record
WORKER_SECONDS = 3.0  # a worker's start: the import of torch


class StudentEstimate(NamedTuple):
    """One student's own part of a job.

    Attributes:
        seconds: of the whole training, without batches and the teacher's passes.
        batches: of the whole training, `taught` those that the teacher runs on, clean ones too.
        held_bytes: parameters, buffers and momentum of network and connector, and clean views.
        step_bytes: peak of a step or of an evaluation on top of that.
        refused: why the method cannot serve the pair; empty if it can.
    """

    seconds: float = 0.0
    batches: float = 0.0
    taught: float = 0.0
    held_bytes: int = 0
    step_bytes: int = 0
    refused: str = ""


class _Lesson(NamedTuple):
    """A teacher's batch, and what a job under that teacher pays once, in seconds and bytes."""

    batch: TeacherBatch
    opening: float
    making: float  # of one batch
    viewing: float  # the teacher's forward pass over one batch
    epoch_batches: int
    test_images: int
    held_bytes: int


class Estimate:
    """Seconds and memory of jobs. Each kind of cell is measured when it is first asked for."""

    def __init__(self, read: Callable[[DataSpec], DataSet], device: torch.device) -> None:
        """Nothing is measured yet; `read` returns a decoded data set, `device` runs the steps."""
        self._read, self._device = read, device
        self._students: dict[str, StudentEstimate] = {}
        self._lessons: dict[str, _Lesson] = {}

    def measure(self, cells: Sequence[Cell], progress: Progress) -> None:
        """Measures one cell of each kind; `progress` is called before each."""
        kinds = list({_kind(cell): cell for cell in cells}.values())
        with steady():
            for done, cell in enumerate(kinds):
                progress(f"timing a few steps of {cell}", done, len(kinds))
                self.student(cell)

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Time of a job of these cells on a worker that has started."""
        return self.shared_seconds(cells) + sum(self.student(cell).seconds for cell in cells)

    def shared_seconds(self, cells: Sequence[Cell]) -> float:
        """The part of `seconds` that is no single cell's: data, batches, the teacher's passes."""
        lesson, students = self._lesson_of(cells), list(map(self.student, cells))
        making = lesson.making * max(student.batches for student in students)
        return lesson.opening + making + lesson.viewing * max(s.taught for s in students)

    def bytes(self, cells: Sequence[Cell]) -> int:
        """Peak memory of a job, on top of what an idle worker holds. Students step in turns."""
        students = list(map(self.student, cells))
        held = sum(s.held_bytes for s in students) + max(s.step_bytes for s in students)
        return self._lesson_of(cells).held_bytes + held

    def student(self, cell: Cell) -> StudentEstimate:
        """One cell's own part of any job."""
        if (kind := _kind(cell)) not in self._students:
            self._students[kind] = self._measure_student(cell)
        return self._students[kind]

    def _measure_student(self, cell: Cell) -> StudentEstimate:
        method, recipe = build_method(cell.method, **cell.hyperparameters), cell.recipe
        if method.starts_from == "source" and cell.source is None:
            return StudentEstimate(refused="the grid names no source to start from")
        lesson = self._lesson(cell)
        labels, share = lesson.batch.train.labels.cpu(), cell.data.labels
        labelled = labelled_mask(labels, share, 0).to(self._device) if share < 1 else None
        epochs = split_epochs(method.plan, recipe.epochs, recipe.budget)
        testing, peak = self._test_cost(cell, lesson, sum(epochs))
        seconds, peaks = CELL_SECONDS + testing, [peak]
        build = partial(StudentStage, lesson.batch, cell.model, cell.method, method)
        clean = any(stage.clean for stage in method.plan)
        batches, taught, held = 0.0, lesson.epoch_batches if clean else 0.0, 0
        try:
            for plan_stage, stage_epochs in zip(method.plan, epochs, strict=True):
                stage = build(plan_stage, labelled)
                step, peak = self._time_step(stage)
                steps = stage_epochs * stage.kept * lesson.epoch_batches
                diagnosed = stage_epochs if cell.diagnostics and plan_stage.transfer else 0
                seconds += (steps + diagnosed) * step
                batches += steps
                taught += steps if stage.student.reads_teacher else 0.0
                held = max(held, stage.trained_bytes(lesson.batch.workload.images))
                peaks.append(peak)
        except ANY_FAULT as error:
            told = one_line if isinstance(error, NotApplicable) else name_and_reason
            return StudentEstimate(refused=told(error))
        return StudentEstimate(seconds, batches, taught, held, max(peaks))

    def _time_step(self, stage: StudentStage) -> tuple[float, int]:
        """Seconds of a step without the teacher's pass, and its peak memory."""
        step, peaks = partial(stage.step_on, stage.teacher_view()), []
        first = self._time(lambda: peaks.append(peak_bytes(step, self._device)))
        times = [first if first > 60 * LONG_SECONDS else self._time(step)]
        while len(times) < STEPS and times[-1] < LONG_SECONDS:
            times.append(self._time(step))
        return statistics.median(times), peaks[0]

    def _test_cost(self, cell: Cell, lesson: _Lesson, epochs: int) -> tuple[float, int]:
        """Seconds of all evaluations of a training and of its record, and their peak memory."""
        images, workload = lesson.batch.batch.images, lesson.batch.workload
        network = workload.build(cell.model).to(self._device).eval()
        with torch.no_grad():
            peak = peak_bytes(lambda: network(images), self._device)
            each = self._time(lambda: network(images)) / len(images)
        passes = epochs // cell.recipe.evaluate_every + (1 if cell.teacher is None else 2)
        diagnosed = workload.images if cell.diagnostics else 0
        larger = evaluation_batch((images.shape[2], images.shape[3])) / len(images)
        return each * (passes * lesson.test_images + diagnosed), round(larger * peak)

    def _lesson_of(self, cells: Sequence[Cell]) -> _Lesson:
        """That of a cell with the job's teacher, if it has one."""
        return self._lesson(next((c for c in cells if c.teacher is not None), cells[0]))

    def _lesson(self, cell: Cell) -> _Lesson:
        model = cell.teacher.model if cell.teacher else cell.model
        step = cell.recipe.model_dump(include={"batch_size", "optimiser", "mixup", "cutmix"})
        key = json.dumps([_data(cell), model, step, cell.recipe.drop_last, cell.precision])
        if key in self._lessons:
            return self._lessons[key]
        set_numerics(cell, self._device)
        data = self._read(cell.data)
        open_it = partial(open_stream, cell, data, self._device)
        opening, stream = self._time(open_it), open_it()
        batches, few = stream.train.epoch(0), range(min(STEPS, len(stream.train)))
        making = min(self._time(partial(next, batches)) for _ in few)
        workload = Workload(
            classes=stream.classes,
            image_shape=stream.image_shape,
            images=len(stream.train.labels),
            recipe=cell.recipe,
            device=self._device,
            precision=cell.precision,
            deterministic=cell.deterministic,
        )
        batch = TeacherBatch(model, workload)
        images = data.train_images.numel() + data.test_images.numel()
        held, viewing = resident_bytes(images, self._device), 0.0
        if cell.teacher is not None:
            held += bytes_of(batch.teacher.network.state_dict().values())
            held += peak_bytes(batch.view, self._device)
            viewing = statistics.median(self._time(batch.view) for _ in range(STEPS))
        sizes = len(stream.train), len(stream.test.labels)
        return self._lessons.setdefault(key, _Lesson(batch, opening, making, viewing, *sizes, held))

    def _time(self, action: Callable[[], object]) -> float:
        return milliseconds(action, self._device, processor=True) / 1e3


def _data(cell: Cell) -> dict[str, object]:
    return cell.data.model_dump(mode="json", exclude={"split_seed", "validation_seed"})


def _kind(cell: Cell) -> str:
    """Equal for cells that cost the same: those that differ in seed or in the images drawn."""
    wanted = {"model", "method", "hyperparameters", "recipe", "precision", "diagnostics"}
    own, teacher = cell.model_dump(mode="json", include=wanted), cell.teacher
    return json.dumps([own, _data(cell), teacher and teacher.model, cell.source is not None])
