"""Measures the pieces of a cohort by training a little of it: the engine, stream and teacher run.

Weights are random and the learning rate is next to nothing, so that nothing diverges and whatever
is measured again is the same work. A cut of the data serves where the whole would only repeat it;
what grows with the number of images is scaled up from the cut.

On the CPU, with one thread, the processor's time is read and not the clock on the wall: what else
the machine is doing for the moment is no property of the training.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.cell import Cell, DataSpec
from bench.cost.counting import CountingMode
from bench.cost.parts import (
    EXTRAPOLATED,
    MEASURED,
    StageParts,
    StreamParts,
    StudentParts,
    TeacherParts,
)
from bench.cost.profiler import Clock, peak_bytes
from bench.cost.steps import set_statistics
from bench.data.batches import Batch
from bench.data.dataset import DataSet
from bench.method import Method, View
from bench.models.network import Network, tap_shapes
from bench.train.admission import make_student
from bench.train.checkpoint import Checkpoints, History
from bench.train.cohort import build_network
from bench.train.device import set_numerics
from bench.train.engine import Student
from bench.train.evaluate import accuracy, predictions
from bench.train.step import Seen
from bench.train.stream import EVALUATION_BATCH, Stream, open_stream
from bench.train.teacher import Teacher
from methods import registry

Read = Callable[[DataSpec], DataSet]

STEPS = 4
"""Steps of an epoch on the cut, at most."""

EPOCHS = 3
"""Epochs that are measured of a stage, after one that is not; fewer where steps are long."""

LONG_SECONDS = 0.05
"""A step that takes longer is measured less often: it varies less."""

SKETCH = (4, 8)
"""Batch sizes from whose operations those of the real batch are extrapolated."""

LASTING = 10**6
"""Epochs of a rehearsed stage: it never comes to its end."""


@dataclass(frozen=True)
class _Look:
    """One batch as a student's step takes it."""

    images: Tensor
    labels: Tensor
    index: Tensor
    view: View | None

    def first(self, count: int) -> _Look:
        """So many of its images."""
        view = self.view and View({tap: x[:count] for tap, x in self.view.taps.items()})
        return _Look(self.images[:count], self.labels[:count], self.index[:count], view)

    def step(self, student: Student, last: bool = False) -> None:
        """The student takes it."""
        student.step(Seen(self.images, self.labels, self.index, self.view, last))


class Rehearsal:
    """A stream and its teacher, on which students can be measured one by one.

    Attributes:
        stream: on a cut of the data.
        opened: pieces of the whole stream.
        scale: the whole training set over the cut.
        test_scale: likewise of the test set.
    """

    def __init__(self, cell: Cell, read: Read, device: torch.device, waiting: float = 1.0) -> None:
        """Opens the data as a job does.

        Args:
            cell: one of the cohort, with the cohort's teacher if it has one.
            read: gives a data set, decoded, as slowly as a job gets it.
            device: where to measure.
            waiting: seconds that go by for one of the processor's, where workers outnumber
                processors.
        """
        self.cell, self.device, self._waiting = cell, device, waiting
        self._looked: dict[tuple[int | None, tuple[str, ...]], list[_Look]] = {}
        self._alone = device.type == "cpu" and torch.get_num_threads() == 1
        set_numerics(cell)
        whole: list[Stream] = []
        data: list[DataSet] = []

        def open_all() -> None:
            data.append(read(cell.data))
            source = read(cell.source.data) if cell.source else None
            whole.append(open_stream(cell, data[0], device, source))

        opening = self.seconds(open_all)
        self.train_images, self.test_images = whole[0].train_images, len(whole[0].test.labels)
        self.opened = self._opened(whole.pop(), opening)
        self.stream = self._cut(data[0], EVALUATION_BATCH)
        self.teacher = self._make_teacher()
        if self._long_tests():
            self.stream = self._cut(data[0], cell.recipe.batch_size)
        self.scale = self.train_images / self.stream.train_images
        self.test_scale = self.test_images / len(self.stream.test.labels)
        shape = self.stream.image_shape
        self.teacher_shapes = tap_shapes(self.teacher.network, shape) if self.teacher else None

    def seconds(self, action: Callable[[], object]) -> float:
        """How long an action takes; on the CPU, as its processor counts."""
        if not self._alone:
            return Clock(self.device).time(action) / 1e3
        began = time.process_time()
        action()
        return (time.process_time() - began) * self._waiting

    def _opened(self, stream: Stream, seconds: float) -> StreamParts:
        batch, train = self.cell.recipe.batch_size, stream.train
        steps = len(train) if self.cell.recipe.drop_last else stream.train_images / batch
        times = []
        batches = train.epoch(0)
        for _ in range(min(len(train), 2 * STEPS)):
            times.append(self.seconds(lambda: next(batches)))
        channels, height, width = stream.image_shape
        pad = 2 * self.cell.data.pad
        padded = channels * (height + pad) * (width + pad) * stream.train_images
        return StreamParts(
            train_images=stream.train_images,
            test_images=len(stream.test.labels),
            steps=steps,
            open_seconds=seconds,
            batch_seconds=statistics.median(times),
            held_bytes=padded + channels * height * width * len(stream.test.labels),
        )

    def _cut(self, data: DataSet, test_images: int) -> Stream:
        wanted = STEPS * self.cell.recipe.batch_size
        share = wanted / self.train_images
        cell = self.cell if share >= 0.5 else _of_a_part(self.cell, share)
        tested = slice(0, test_images)
        cut = replace(
            data, test_images=data.test_images[tested], test_labels=data.test_labels[tested]
        )
        return open_stream(cell, cut, self.device)

    def _make_teacher(self) -> Teacher | None:
        if self.cell.teacher is None:
            return None
        network = build_network(self.cell.teacher, self.stream.classes, self.stream.image_shape)
        batch = next(self.stream.train.epoch(0)).images
        set_statistics(network.to(self.device), batch)
        return Teacher(network, self.cell.teacher, self.device, self.stream.image_shape)

    def _long_tests(self) -> bool:
        """Whether a test on as many images as usual would take longer than it is worth."""
        networks = [build_network(self.cell, self.stream.classes, self.stream.image_shape)]
        networks += [self.teacher.network] if self.teacher else []
        images = next(self.stream.train.epoch(0)).images[: SKETCH[0]]
        with torch.no_grad():
            for network in networks:
                network.to(self.device).eval()(images)
            seconds = self.seconds(lambda: [network(images) for network in networks])
        return seconds / len(images) * EVALUATION_BATCH > 20 * LONG_SECONDS

    # --- the teacher ----------------------------------------------------------------------------

    def teach(self) -> TeacherParts:
        """The teacher's pieces; of a cohort without one, zeros."""
        teacher = self.teacher
        if teacher is None:
            return TeacherParts()
        images = next(self.stream.train.epoch(0)).images
        looks = [lambda: teacher.view(images, ("logits",))]
        times = self._repeat(looks[0])
        flops = _count(looks[0])
        per_image = flops / len(images)
        tests = self.seconds(lambda: predictions(teacher.network, self.stream.test))
        begun = self.seconds(lambda: (self._make_teacher(), teacher.digest()))
        view = statistics.median(times)
        return TeacherParts(
            view_seconds=view,
            view_flops=flops,
            clean_seconds=view / len(images) * self.train_images,
            clean_flops=round(per_image * self.train_images),
            look_seconds=begun + tests * self.test_scale,
            test_flops=round(per_image * self.test_images),
            held_bytes=_bytes_of(teacher.network),
            view_bytes=peak_bytes(looks[0], self.device),
        )

    def count_teacher(self) -> TeacherParts:
        """The teacher's operations and bytes from a few images; its seconds are 0."""
        teacher = self.teacher
        if teacher is None:
            return TeacherParts()
        whole = next(self.stream.train.epoch(0)).images
        sizes = [min(size, len(whole)) for size in SKETCH]
        looks = [partial(teacher.view, whole[:size], ("logits",)) for size in sizes]
        flops = _line(sizes, [_count(look) for look in looks], len(whole))
        peaks = [peak_bytes(look, self.device) for look in looks]
        per_image = flops / len(whole)
        return TeacherParts(
            view_flops=flops,
            clean_flops=round(per_image * self.train_images),
            test_flops=round(per_image * self.test_images),
            held_bytes=_bytes_of(teacher.network),
            view_bytes=_line(sizes, peaks, len(whole)),
        )

    def _repeat(self, action: Callable[[], object]) -> list[float]:
        """Seconds of an action, after one that does not count."""
        first = self.seconds(action)
        count = EPOCHS * STEPS if first < LONG_SECONDS else EPOCHS
        return [self.seconds(action) for _ in range(count)]

    # --- a student ------------------------------------------------------------------------------

    def measure(self, cell: Cell) -> StudentParts:
        """A student's pieces, from real steps of every stage.

        Args:
            cell: of this stream and teacher.

        Raises:
            NotApplicable: the method cannot serve this pair.
        """
        method = registry.build(cell.method, **cell.hyperparameters)
        stages, held, peaks, save = [], 0, [], 0.0
        for position in range(len(method.plan)):
            student, enter = self._enter(cell, method, position)
            times = self._epochs(student)
            look = self._looks(student)[0]
            flops = _count(partial(look.step, student, last=True))
            peaks.append(self._peak(student, look))
            held = max(held, self._held_bytes(student))
            stages.append(self._stage(student, flops, enter, *times))
            save = _save_seconds(student)
        network = build_network(cell, self.stream.classes, self.stream.image_shape)
        network = network.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        test = lambda: accuracy(self._predict(network), self.stream.test.labels)  # noqa: E731
        test()
        return StudentParts(
            stages=tuple(stages),
            test_seconds=self.seconds(test) * self.test_scale,
            test_flops=round(_count(test) * self.test_scale),
            held_bytes=held,
            step_bytes=max(peaks),
            checkpoint_seconds=save,
            origin=MEASURED,
        )

    def sketch(self, cell: Cell) -> StudentParts:
        """A student's operations and bytes from steps on a few images; its seconds are 0.

        Raises:
            NotApplicable: the method cannot serve this pair.
        """
        method = registry.build(cell.method, **cell.hyperparameters)
        stages, held, peaks = [], 0, []
        for position in range(len(method.plan)):
            student, _ = self._enter(cell, method, position)
            batch = cell.recipe.batch_size
            sizes = [min(size, batch) for size in SKETCH]
            whole = self._looks(student, sizes[-1])[0]
            counts, bytes_held = [], []
            for size in sizes:
                look = whole.first(size)
                look.step(student)
                counts.append(_count(partial(look.step, student, last=True)))
                bytes_held.append(self._peak(student, look))
            peaks.append(_line(sizes, bytes_held, batch))
            held = max(held, self._held_bytes(student))
            stages.append(self._stage(student, _line(sizes, counts, batch), 0.0, 0.0, 0.0))
        network = build_network(cell, self.stream.classes, self.stream.image_shape)
        few = next(self.stream.train.epoch(0)).images[: SKETCH[0]]
        with torch.no_grad():
            flops = _count(lambda: network.to(self.device).eval()(few)) / len(few)
        return StudentParts(
            stages=tuple(stages),
            test_seconds=0.0,
            test_flops=round(flops * self.test_images),
            held_bytes=held,
            step_bytes=max(peaks),
            origin=EXTRAPOLATED,
        )

    def go_on(self, cell: Cell, enough: Callable[[], bool]) -> None:
        """Trains a student of the cell's kind until it is enough; nothing is measured."""
        method = registry.build(cell.method, **cell.hyperparameters)
        student, _ = self._enter(cell, method, 0)
        looks = self._looks(student)
        while not enough():
            for look in looks:
                look.step(student)

    def _enter(self, cell: Cell, method: Method, position: int) -> tuple[Student, float]:
        """A student in one of its method's stages, and the seconds that the stage's begin took."""
        stage = method.plan[position]
        alone = replace(method, plan=(replace(stage, share=1.0),))
        cell = lasting(cell, LASTING)
        network = build_network(cell, self.stream.classes, self.stream.image_shape)
        shapes = tap_shapes(network, self.stream.image_shape)
        student = make_student(
            cell, alone, network, shapes, self.teacher_shapes, self.device, self.stream.labelled
        )
        if stage.clean:
            taps = (*stage.all_taps, *student.optional[stage.name])
            self._clean_view(taps)  # a cohort has it once
        begun = self.seconds(
            lambda: student.begin_epoch(self._clean_view, self.stream.train.labels)
        )
        return student, begun * self.scale if stage.clean else begun

    def _clean_view(self, taps: Sequence[str]) -> View:
        assert self.teacher is not None
        images = (batch.images for batch in self.stream.train.clean(EVALUATION_BATCH))
        return self.teacher.clean_view(images, taps)

    def _looks(self, student: Student, images: int | None = None) -> list[_Look]:
        """Batches of an epoch as the student's steps take them; the teacher looks once for all.

        Args:
            student: in its stage.
            images: of a single batch, for a few of them; None for `STEPS` whole ones.
        """
        teacher = self.teacher if student.reads_teacher else None
        key = (images, student.taps if teacher else ())
        if student.subset is None and key in self._looked:
            return self._looked[key]
        found = []
        for batch in islice(self.stream.train.epoch(0, student.subset), STEPS if not images else 1):
            batch = Batch(*(x[:images] for x in batch))
            view = teacher.view(batch.images, student.taps) if teacher is not None else None
            shown = self.stream.student_images(batch.images)
            found.append(_Look(shown, batch.labels, batch.index, view))
        if student.subset is None:
            if len(self._looked) > 1:  # maps of large networks take much memory
                del self._looked[next(iter(self._looked))]
            self._looked[key] = found
        return found

    def _epochs(self, student: Student) -> tuple[float, float]:
        """Median seconds of a step, and of what an epoch takes beside its steps."""
        steps, around = [], []
        epochs, number = EPOCHS, 0
        while number <= epochs:
            begin = 0.0
            if number:
                begin = self.seconds(
                    lambda: student.begin_epoch(self._clean_view, self.stream.train.labels)
                )
            looks = self._looks(student)
            times = [
                self.seconds(partial(look.step, student, last=look is looks[-1])) for look in looks
            ]
            end = self.seconds(lambda: student.end_epoch(lambda: 0.0))
            usual = statistics.median(times[1:] or times)
            if number:
                steps += times[1:] or times
                around.append(begin + times[0] - usual + end)
            elif usual > LONG_SECONDS:
                epochs = 1
            number += 1
        return statistics.median(steps), max(0.0, statistics.median(around))

    def _stage(
        self, student: Student, flops: int, enter: float, step: float, around: float
    ) -> StageParts:
        subset = student.subset
        return StageParts(
            name=student.stage.name,
            reads_teacher=student.reads_teacher,
            clean=student.stage.clean,
            apart=subset is not None,
            kept=1.0 if subset is None else len(subset) / self.stream.train_images,
            has_head=student.has_head,
            step_seconds=step,
            epoch_seconds=around,
            enter_seconds=enter,
            step_flops=flops,
        )

    def _peak(self, student: Student, look: _Look) -> int:
        return peak_bytes(partial(look.step, student), self.device)

    def _held_bytes(self, student: Student) -> int:
        momentum = (x for state in student.optimiser.state.values() for x in state.values())
        held = sum(x.numel() * x.element_size() for x in momentum if isinstance(x, Tensor))
        return held + _bytes_of(student.network) + _bytes_of(student.connector)

    def _predict(self, network: Network) -> Tensor:
        return predictions(network, self.stream.test, self.stream.student_images)


def lasting(cell: Cell, epochs: int) -> Cell:
    """The cell with so many epochs, in which its weights stay where they are."""
    recipe = cell.recipe.model_copy(update={"epochs": epochs, "learning_rate": 1e-12})
    return cell.model_copy(update={"recipe": recipe})


def _save_seconds(student: Student) -> float:
    """Until a student's checkpoint is safe on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Path(folder))
        began = time.perf_counter()
        kept.write("rehearsal", 1, {}, History(""), student.state())
        return time.perf_counter() - began


def refused(cell: Cell) -> StudentParts:
    """The pieces of a cell whose method cannot serve its pair: nothing of it is trained."""
    plan = registry.build(cell.method, **cell.hyperparameters).plan
    stages = tuple(
        StageParts(
            name=stage.name, reads_teacher=False, clean=False, apart=False, kept=0.0,
            has_head=False, step_seconds=0.0, epoch_seconds=0.0, enter_seconds=0.0, step_flops=0,
        )
        for stage in plan
    )  # fmt: skip
    return StudentParts(stages=stages, test_seconds=0.0, test_flops=0, held_bytes=0, step_bytes=0)


def _of_a_part(cell: Cell, share: float) -> Cell:
    data = cell.data.model_copy(update={"fraction": cell.data.fraction * share})
    return cell.model_copy(update={"data": data})


def _count(action: Callable[[], object]) -> int:
    with CountingMode() as counter:
        action()
    return counter.count.flops


def _bytes_of(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in module.state_dict().values())


def _line(sizes: Sequence[int], values: Sequence[float], at: int) -> int:
    """What two values say of a third, on a straight line that does not fall."""
    (first, second), (low, high) = sizes, values
    slope = (high - low) / (second - first) if second > first else 0.0
    return round(high + max(0.0, slope) * (at - second))
