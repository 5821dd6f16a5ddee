"""A cohort: students with the same data, teacher and seed, trained side by side.

On the CPU, each student's numbers are bit-equal to those of training it alone.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from bench.cell import Cell
from bench.faults import CODE_FAULTS, is_out_of_memory
from bench.hyperparameters import build_method
from bench.method import NotApplicable, View
from bench.record import Store
from bench.train.checkpoint import Checkpoints, History
from bench.train.device import conditions, is_device_lost, note_nondeterministic, set_numerics
from bench.train.engine import Student, make_student
from bench.train.failure import KilledError, fail
from bench.train.result import Results
from bench.train.stream import Stream, StudentBatch, accuracy, evaluation_batch, predictions
from bench.train.teacher import Teacher
from bench.train.weights import open_network, start_from_source, weights_facts

logger = logging.getLogger(__name__)


class SharedStateError(Exception):
    """A method changed what all students of a cohort share."""


@dataclass
class Cohort:
    """Students in training on one stream, with at most one teacher.

    Records and weights go to the store, and unfinished cells to `checkpoints`; None to save
    nothing. `report` is called after every epoch of a student with its cell id, the finished and
    the total epochs, and the last test accuracy or None. `provenance` is commit and the like, for
    the records. Once `stopping` is true, the epoch that runs is the last one.
    """

    stream: Stream
    teacher: Teacher | None
    store: Store
    device: torch.device
    report: Callable[[str, int, int, float | None], None]
    provenance: dict[str, object] = field(default_factory=dict)
    checkpoints: Checkpoints | None = None
    stopping: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        """Measures what all students share of the teacher."""
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._results = Results(self.stream, self.teacher, self.store)
        self._histories: dict[str, History] = {}
        self._nondeterministic: set[str] = set()
        self._batch: list[Tensor] = []  # what students read now
        self._teacher_digest = self.teacher.digest() if self.teacher and self.checkpoints else ""

    def run(self, cells: Sequence[Cell]) -> None:
        """Trains the cells, and writes each one's record as soon as it has finished or failed.

        Students that resume from checkpoints of different epochs are brought level first.
        """
        set_numerics(cells[0], self.device)
        self._size = len(cells)
        with note_nondeterministic(self._nondeterministic):
            students = list[Student]()
            for cell in cells:
                self._attempt(cell, self._admit, cell, students)
            for student in students:
                if not student.cell.trains and self._attempt(student.cell, self._show, student):
                    self._finish(student)
            students = [s for s in students if s.cell.trains]
            while students:
                fewest = min(s.epochs_done for s in students)
                active = [s for s in students if s.epochs_done == fewest]
                trained = self._train(active)
                for student in trained:
                    if student.finished:
                        self._finish(student)
                failed = [s for s in active if s not in trained]
                students = [s for s in students if s not in failed and not s.finished]
                stopping = self.stopping()
                if self.checkpoints is not None and (stopping or self.checkpoints.due()):
                    self._save(students, self.checkpoints)
                if stopping and students:
                    raise KilledError("stopped between two epochs")

    def _attempt(self, cell: Cell, action: Callable[..., None], *given: object) -> bool:
        """Runs what can fail through the cell's own fault; whether it succeeded.

        SharedStateError if it changed what all share: then each cell is tried again alone.
        """
        failed, before = False, self._shared_state()
        try:
            action(*given)
        except (NotApplicable, *CODE_FAULTS) as error:
            self._fail(cell, error)
            failed = True
        if self._shared_state() != before:
            what = "its pair, its images or torch's settings, which others share"
            raise SharedStateError(f"method {cell.method} on {cell.model_name} changes {what}")
        return not failed

    def _shared_state(self) -> tuple[object, ...]:
        """How often torch has written to what all students read, and its settings."""
        clean = self.teacher.clean.values() if self.teacher else ()
        writes = sum(x._version for x in (*self._batch, *clean))
        kinds = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        numerics = torch.get_deterministic_debug_mode(), torch.backends.mkldnn.enabled
        return writes, *kinds, *numerics, torch.get_num_threads()

    def _fail(self, cell: Cell, error: BaseException) -> None:
        if is_out_of_memory(error) or is_device_lost(error):
            raise error  # it concerns every cell of the process: the launcher deals with it
        self.store.write(fail(cell, error, self.provenance))

    def _admit(self, cell: Cell, students: list[Student]) -> None:
        """Adds the cell's student, at its latest checkpoint, to the students."""
        shape, labels = self.stream.image_shape, self.stream.known_labels
        method = build_method(cell.method, **cell.hyperparameters)
        network = open_network(cell, self.stream, self.store)
        if method.starts_from == "source":
            start_from_source(cell, network, self.store)
        teacher = self.teacher if method.needs_teacher else None
        student = make_student(cell, method, network, shape, teacher, self.device, labels)
        self._resume(student)
        students.append(student)

    def _resume(self, student: Student) -> None:
        """Brings a student to its latest checkpoint, if it has one."""
        cell_id = student.cell.id
        self._histories[cell_id] = History(self._started)
        if self.checkpoints is None:
            return
        began = time.perf_counter()
        found = self.checkpoints.read(cell_id, self._key(student))
        if found is None:
            return
        history, state = found
        try:
            student.restore(state, self._clean_view, self.stream.train.labels)
        except ValueError as error:  # written by an older version; nothing is restored yet
            logger.warning("checkpoint of cell %s cannot be used: %s", cell_id, error)
            self.checkpoints.discard(cell_id)
            return
        history.resumed += 1
        history.checkpoint_seconds += time.perf_counter() - began
        self._histories[cell_id] = history
        self._report(student)

    def _key(self, student: Student) -> dict[str, object]:
        """What a student's state depends on other than its cell: the weights of its teacher."""
        return {"teacher": self._teacher_digest if student.method.needs_teacher else ""}

    def _save(self, students: Sequence[Student], checkpoints: Checkpoints) -> None:
        """Writes the checkpoints of all students."""
        for student in students:
            self.store.may_write(student.cell.id)
            began, history = time.perf_counter(), self._history(student)
            saved = replace(history, conditions=[*history.conditions, self._conditions()])
            key, state = self._key(student), student.state()
            checkpoints.write(student.cell.id, student.epochs_done, key, saved, state)
            history.checkpoint_seconds += time.perf_counter() - began

    def _history(self, student: Student) -> History:
        """The student's history, with the nondeterministic operations of this process."""
        history = self._histories[student.cell.id]
        found = self._nondeterministic.union(history.nondeterministic)
        history.nondeterministic = sorted(found)
        return history

    def _conditions(self) -> dict[str, object]:
        """What this process trains with."""
        return {**conditions(self.device), **self.provenance}

    def _train(self, students: Sequence[Student]) -> list[Student]:
        """Trains the students for one epoch; returns those that did not fail."""
        began = time.perf_counter()
        shown = self._clean_view, self.stream.known_labels
        active = [s for s in students if self._attempt(s.cell, s.begin_epoch, *shown)]
        together = [s for s in active if s.subset is None]
        apart = [[s] for s in active if s.subset is not None]
        trained = [s for group in (together, *apart) if group for s in self._train_group(group)]
        ended = time.perf_counter()
        trained = [s for s in trained if self._attempt(s.cell, self._end_epoch, s)]
        evaluated = time.perf_counter()
        for student in students:  # wall-clock seconds, in equal parts
            history = self._histories[student.cell.id]
            history.train_seconds += (ended - began) / len(students)
            history.evaluation_seconds += (evaluated - ended) / len(students)
        return trained

    def _train_group(self, group: list[Student]) -> list[Student]:
        """One pass over the images that all students of the group train on in this epoch."""
        try:
            for batch in self._batches(group):
                group = [s for s in group if self._attempt(s.cell, s.step, batch)]
        except CODE_FAULTS as error:
            for student in group:
                self._fail(student.cell, error)
            return []
        return group

    def _batches(self, group: Sequence[Student]) -> Iterator[StudentBatch]:
        """The batches of an epoch, each with the taps of the teacher that the group reads."""
        train, epoch, subset = self.stream.train, group[0].epochs_done, group[0].subset
        taps = tuple(dict.fromkeys(tap for s in group if s.reads_teacher for tap in s.taps))
        steps = train.steps(len(train.labels) if subset is None else len(subset))
        for step, batch in enumerate(train.epoch(epoch, subset), start=1):
            images, targets = self.stream.mixed(batch, epoch, step)
            view = self.teacher.view(images, taps) if self.teacher and taps else None
            images, last = self.stream.student_images(images), step == steps
            self._batch = [images, *batch[1:], *(view.taps.values() if view else ())]
            yield StudentBatch(images, batch.labels, batch.index, view, last, targets)

    def _clean_view(self, taps: Sequence[str]) -> View:
        assert self.teacher is not None
        train = self.stream.train
        images = (batch.images for batch in train.clean(evaluation_batch(train.size)))
        return self.teacher.clean_view(images, taps)

    def _accuracy(self, student: Student) -> float:
        predicted = predictions(student.deployed, self.stream.test, self.stream.student_images)
        return accuracy(predicted, self.stream.test.labels)

    def _end_epoch(self, student: Student) -> None:
        student.end_epoch(lambda: self._accuracy(student))
        self._report(student)

    def _show(self, student: Student) -> None:
        """Measures a network that does not train."""
        student.curves["test_accuracy"] = [self._accuracy(student)]

    def _report(self, student: Student) -> None:
        last = student.curves["test_accuracy"][-1]
        self.report(student.cell.id, student.epochs_done, student.total_epochs, last)

    def _finish(self, student: Student) -> None:
        """Writes the student's result and removes its checkpoints."""
        history = self._history(student)
        more = {
            "precision": student.cell.precision,
            "cohort": self._size,
            "started": history.started,
            "nondeterministic": history.nondeterministic,
            "resumed": history.resumed,
            **weights_facts(student.cell, self.store),
        }
        if history.conditions:
            more["earlier"] = history.conditions
        self._results.write(student, history, {**self._conditions(), **more})
        if self.checkpoints is not None:
            self.checkpoints.discard(student.cell.id)
