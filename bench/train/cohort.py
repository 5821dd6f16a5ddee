"""A cohort: students that share data, teacher and seed, trained side by side.

One stream of batches and one forward pass of the teacher serve all of them. Students do not touch
each other: each one's numbers are those of its training alone, bit for bit on the CPU.
"""

from __future__ import annotations

import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from bench.cell import Cell, DataSpec
from bench.data.dataset import DataSet
from bench.data.resolution import degrade
from bench.faults import CODE_FAULTS, name_and_reason, reason
from bench.hyperparameters import build_method
from bench.method import NotApplicable, Selection, Shapes, View, split_epochs
from bench.models import zoo
from bench.models.network import Network, tap_shapes
from bench.record import (
    FAILED,
    FINISHED,
    NOT_APPLICABLE,
    Record,
    Store,
    dump_json,
    write_atomically,
)
from bench.seeds import derive
from bench.train.admission import make_student
from bench.train.checkpoint import Checkpoints, History
from bench.train.device import conditions, is_device_lost, is_out_of_memory, set_numerics
from bench.train.diagnostics import EXAMINED, Knowledge, own_stage
from bench.train.engine import Student
from bench.train.evaluate import accuracy, predictions
from bench.train.step import Seen
from bench.train.stream import EVALUATION_BATCH, Stream
from bench.train.teacher import Teacher

Attempt = Callable[[list[Student], Callable[[], None]], None]

SECONDS = ("train_seconds", "evaluation_seconds", "checkpoint_seconds")


def build_network(cell: Cell, classes: int, image_shape: tuple[int, int, int]) -> Network:
    """The cell's network, initialised from its own stream of the cell's seed."""
    torch.manual_seed(derive(cell.seed, "init", cell.model_name))
    model = cell.model
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key != "name"}
    return zoo.build(model, classes, image_shape)


def load_teacher(cell: Cell, store: Store, stream: Stream, device: torch.device) -> Teacher:
    """The trained network of a finished cell, as a teacher.

    Raises:
        ValueError: its weights are missing, damaged or of another network.
    """
    network = build_network(cell, stream.classes, stream.image_shape)
    network.load_state_dict(read_weights(cell, store))
    return Teacher(network, cell, device, stream.image_shape)


def read_weights(cell: Cell, store: Store) -> dict[str, Tensor]:
    """What a finished cell saved.

    Raises:
        ValueError: the weights are missing or damaged.
    """
    path = store.folder(cell.id) / "weights.safetensors"
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{cell}: cannot read {path}: {error}") from None


def head_keys(network: Network) -> set[str]:
    """The classifier's entries of the network's state, wherever it sits in the network."""
    inside = {id(module) for module in network.head.modules()}
    owners = {name for name, module in network.named_modules() if id(module) in inside}
    return {key for key in network.state_dict() if key.rpartition(".")[0] in owners}


def start_from_source(cell: Cell, network: Network, store: Store) -> None:
    """Copies all parameters and buffers of the source's network but for the head.

    Raises:
        NotApplicable: the cell names no source.
        ValueError: the source is of another architecture: parameters cannot move.
    """
    if cell.source is None:
        raise NotApplicable("the grid names no source to start from; add `source:` to it")
    if cell.source.model != cell.model:
        raise ValueError(
            f"transfer moves parameters, so source and target must be of one architecture; "
            f"got {cell.source.model_name} for {cell.model_name}"
        )
    head = head_keys(network)
    weights = {k: v for k, v in read_weights(cell.source, store).items() if k not in head}
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if any(shapes.get(key) != tensor.shape for key, tensor in weights.items()):
        raise ValueError(f"{cell.source}: its weights are of another network than {cell}")
    missing = network.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - head:
        raise ValueError(f"{cell.source}: its weights are of another network than {cell}")


@dataclass
class Cohort:
    """Students in training on one stream, under at most one teacher.

    Attributes:
        report: called after every epoch of a student with (cell id, epochs done, of how many,
            last test accuracy or None).
        provenance: commit and the like, put into every record.
        checkpoints: where unfinished cells are kept and found; None for nowhere.
    """

    stream: Stream
    teacher: Teacher | None
    store: Store
    device: torch.device
    report: Callable[[str, int, int, float | None], None]
    provenance: dict[str, object] = field(default_factory=dict)
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        """Looks at the teacher once: its taps' shapes, and what it predicts on the test set."""
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._histories: dict[str, History] = {}
        self._caught: Sequence[warnings.WarningMessage] = ()
        self._known: dict[str, dict[str, float]] = {}
        self._teacher_shapes: Shapes | None = None
        self._teacher_predictions: Tensor | None = None
        if self.teacher is not None:
            self._teacher_shapes = tap_shapes(self.teacher.network, self.stream.image_shape)
            self._teacher_predictions = predictions(self.teacher.network, self.stream.test)
        kept = self.teacher is not None and self.checkpoints is not None
        self._teacher_digest = self.teacher.digest() if self.teacher and kept else ""

    def run(self, cells: Sequence[Cell]) -> None:
        """Trains the cells; writes each one's record as soon as it is finished or failed.

        Students that go on from checkpoints of different epochs catch up with each other: those
        with the fewest epochs done train until they are as far as the next.
        """
        set_numerics(cells[0])
        self._size = len(cells)
        with warnings.catch_warnings(record=True) as self._caught:
            warnings.filterwarnings("always", message=".*deterministic.*")
            students = [s for s in map(self._admit, cells) if s is not None]
            while students:
                behind = min(s.epochs_done for s in students)
                failed = self._epoch([s for s in students if s.epochs_done == behind])
                students = [s for s in students if s not in failed]
                for student in (s for s in students if s.finished):
                    self._finish(student)
                students = [s for s in students if not s.finished]
                self._save(students)
        for warning in self._caught:
            if "determin" not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )

    def _nondeterministic(self, history: History) -> list[str]:
        """Operations without a deterministic form that ran so far."""
        texts = (str(w.message) for w in self._caught)
        named = {text.split(" ")[0] for text in texts if "determin" in text}
        return sorted(named | set(history.nondeterministic))

    # --- admission ------------------------------------------------------------------------------

    def _admit(self, cell: Cell) -> Student | None:
        try:
            method = build_method(cell.method, **cell.hyperparameters)
            network = build_network(cell, self.stream.classes, self.stream.image_shape)
            if method.starts_from == "source":
                start_from_source(cell, network, self.store)
            shapes = tap_shapes(network, self.stream.image_shape)
            theirs = self._teacher_shapes if method.needs_teacher else None
            student = make_student(
                cell, method, network, shapes, theirs, self.device, self.stream.labelled
            )
            self._resume(student)
        except (NotApplicable, *CODE_FAULTS) as error:
            raise_if_shared(error)
            self._fail(cell, error)
            return None
        return student

    # --- checkpoints ----------------------------------------------------------------------------

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
        except ValueError as error:  # by an older form of the harness; nothing is restored yet
            self.checkpoints.reject(cell_id, str(error))
            return
        seconds = time.perf_counter() - began
        history = replace(history, resumed=history.resumed + 1).plus(checkpoint_seconds=seconds)
        self._histories[cell_id] = history
        self._report(student)

    def _key(self, student: Student) -> dict[str, object]:
        """What a student's state depends on beside its cell: the bits of its teacher."""
        return {"teacher": self._teacher_digest if student.method.needs_teacher else ""}

    def _save(self, students: Sequence[Student]) -> None:
        """Writes the checkpoints of all students, if it is time."""
        if self.checkpoints is None or not students or not self.checkpoints.due():
            return
        all_began = time.perf_counter()
        for student in students:
            began, cell_id = time.perf_counter(), student.cell.id
            history = self._histories[cell_id]
            self.checkpoints.write(
                cell_id, student.epochs_done, self._key(student),
                replace(
                    history,
                    conditions=[*history.conditions, self._conditions(student)],
                    nondeterministic=self._nondeterministic(history),
                ),
                student.state(),
            )  # fmt: skip
            seconds = time.perf_counter() - began
            self._histories[cell_id] = history.plus(checkpoint_seconds=seconds)
        self.checkpoints.saved(time.perf_counter() - all_began)

    def _conditions(self, student: Student) -> dict[str, object]:
        """What this process trains a student with."""
        return {**conditions(self.device), **self.provenance}

    # --- training -------------------------------------------------------------------------------

    def _epoch(self, active: list[Student]) -> list[Student]:
        """One epoch of every active student; returns those that failed."""
        failed: list[Student] = []

        def attempt(students: list[Student], action: Callable[[], None]) -> None:
            going = [student for student in students if student not in failed]
            if not going:
                return
            try:
                action()
            except (NotApplicable, *CODE_FAULTS) as error:
                raise_if_shared(error)
                failed.extend(going)
                for student in going:
                    self._fail(student.cell, error)

        began = time.perf_counter()
        for student in active:
            begin = partial(student.begin_epoch, self._clean_view, self.stream.train.labels)
            attempt([student], begin)
        going = [s for s in active if s not in failed]
        together = [s for s in going if s.subset is None]
        apart = [[s] for s in going if s.subset is not None]
        for group in filter(None, [together, *apart]):
            attempt(group, partial(self._train_group, group, attempt))
        self._share(active, train_seconds=time.perf_counter() - began)
        began = time.perf_counter()
        for student in going:
            attempt([student], partial(self._end_epoch, student))
        self._share(active, evaluation_seconds=time.perf_counter() - began)
        return failed

    def _share(self, students: Sequence[Student], **seconds: float) -> None:
        """Divides wall clock among the students that trained in it."""
        each = {name: s / len(students) for name, s in seconds.items()}
        for student in students:
            history = self._histories[student.cell.id]
            self._histories[student.cell.id] = history.plus(**each)

    def _train_group(self, group: list[Student], attempt: Attempt) -> None:
        """One pass over the images that all students of `group` train on in this epoch."""
        train, epoch, subset = self.stream.train, group[0].epochs_done, group[0].subset
        taps = tuple(dict.fromkeys(tap for s in group if s.reads_teacher for tap in s.taps))
        steps = train.steps(self.stream.train_images if subset is None else len(subset))
        for step, batch in enumerate(train.epoch(epoch, subset), start=1):
            view = self._look(batch.images, taps)
            images = self.stream.student_images(batch.images)
            seen = Seen(images, batch.labels, batch.index, view, step == steps)
            for student in group:
                attempt([student], partial(student.step, seen))

    def _look(self, images: Tensor, taps: tuple[str, ...]) -> View | None:
        if not taps:
            return None
        assert self.teacher is not None
        return self.teacher.view(images, taps)

    def _clean_view(self, taps: Sequence[str]) -> View:
        assert self.teacher is not None
        images = (batch.images for batch in self.stream.train.clean(EVALUATION_BATCH))
        return self.teacher.clean_view(images, taps)

    def _end_epoch(self, student: Student) -> None:
        student.end_epoch(lambda: accuracy(self._predict(student), self.stream.test.labels))
        self._report(student)

    def _report(self, student: Student) -> None:
        self.report(
            student.cell.id, student.epochs_done, student.total_epochs,
            student.curves["test_accuracy"][-1],
        )  # fmt: skip

    def _predict(self, student: Student) -> Tensor:
        return predictions(student.network, self.stream.test, self.stream.student_images)

    # --- results --------------------------------------------------------------------------------

    def _finish(self, student: Student) -> None:
        folder = self.store.folder(student.cell.id)
        state = student.network.state_dict()
        weights = {name: x.detach().cpu().contiguous() for name, x in state.items()}
        write_atomically(folder / "weights.safetensors", safetensors.torch.save(weights))
        files = {"weights": "weights.safetensors"}
        for stage, selection in student.selections.items():
            files |= self._write_selection(folder, f"selection_{stage}", selection)
        cell, method = student.cell, student.method
        history = self._histories[cell.id]
        self.store.write(
            Record(
                cell_id=cell.id,
                cell=cell.resolved(),
                category=method.category,
                source=method.source,
                status=FINISHED,
                conditions={
                    **self._conditions(student),
                    "precision": cell.precision,
                    "cohort": self._size,
                    "started": history.started,
                    "nondeterministic": self._nondeterministic(history),
                    "resumed": history.resumed,
                    **({"earlier": history.conditions} if history.conditions else {}),
                },
                stages=[
                    {"name": stage.name, "epochs": epochs, "taps": list(stage.taps)}
                    for stage, epochs in zip(method.plan, student.stage_epochs, strict=True)
                ],
                curves=student.curves,
                final=self._final(student),
                files=files,
            )
        )
        if self.checkpoints is not None:
            self.checkpoints.discard(cell.id)

    def _write_selection(self, folder: Path, name: str, selection: Selection) -> dict[str, str]:
        """Writes what a selection chose, and why; returns the record's files."""
        files = {name: f"{name}.json"}
        write_atomically(folder / files[name], dump_json(selection.evidence))
        return files

    def _final(self, student: Student) -> dict[str, float]:
        curve = enumerate(student.curves["test_accuracy"], start=1)
        measured = [(accuracy, epoch) for epoch, accuracy in curve if accuracy is not None]
        history = self._histories[student.cell.id]
        best, epoch = max(measured, key=lambda point: (point[0], -point[1]))
        final = {
            "last_accuracy": measured[-1][0],
            "best_accuracy": best,
            "best_epoch": epoch,
            "epochs": student.total_epochs,
            "train_images": self.stream.train_images,
            "test_images": len(self.stream.test.labels),
            "parameters": sum(p.numel() for p in student.network.parameters()),
            **{name: round(getattr(history, name), 3) for name in SECONDS},
        }
        if self._teacher_predictions is not None and student.method.needs_teacher:
            final["agreement"] = accuracy(self._predict(student), self._teacher_predictions)
        return final | (self._examine(student) if student.cell.diagnostics else {})

    def _examine(self, student: Student) -> dict[str, float]:
        """What `bench.train.diagnostics` measures of a student's method and its teacher."""
        if not student.method.needs_teacher:
            return {}
        stage = own_stage(student.method)
        return self._facts(student, student.optional[stage.name] if stage is not None else ())

    def _facts(self, student: Student, optional: Sequence[str]) -> dict[str, float]:
        """Of the teacher and the method alone: the same for students of every architecture."""
        cell = student.cell
        batch = cell.recipe.batch_size
        key = dump_json([cell.method, cell.hyperparameters, list(optional), batch])
        if key not in self._known:
            self._known[key] = self._knowledge.facts(student.method, optional, batch)
        return self._known[key]

    @cached_property
    def _knowledge(self) -> Knowledge:
        teacher, shapes = self.teacher, self._teacher_shapes
        assert teacher is not None
        assert shapes is not None
        batch = next(self.stream.test.batches())
        images, labels = batch.images[:EXAMINED], batch.labels[:EXAMINED]
        return Knowledge(lambda taps: teacher.view(images, taps), shapes, labels)

    def _fail(self, cell: Cell, error: BaseException) -> None:
        self.store.write(fail(cell, error, self.provenance))


def raise_if_shared(error: BaseException) -> None:
    """Raises what no cell can be blamed for while others train beside it: the launcher sorts out.

    Memory that ran out is that of all who used it, and a CUDA device that is lost is lost for all.
    """
    if is_out_of_memory(error) or is_device_lost(error):
        raise error


def fail(cell: Cell, error: BaseException, provenance: Mapping[str, object]) -> Record:
    """The record of a cell that raised; a verdict on its pair is no failure."""
    if isinstance(error, NotApplicable):
        return record_without_result(cell, NOT_APPLICABLE, reason(error), provenance)
    text = "".join(traceback.format_exception(error))
    return record_without_result(cell, FAILED, name_and_reason(error), provenance, text)


def record_without_result(
    cell: Cell, status: str, error: str, provenance: Mapping[str, object], text: str = ""
) -> Record:
    """The record of a cell that gave no result, with the traceback if there is one."""
    method = build_method(cell.method, **cell.hyperparameters)
    return Record(
        cell_id=cell.id, cell=cell.resolved(), category=method.category, source=method.source,
        status=status, error=error, traceback=text, conditions=dict(provenance),
    )  # fmt: skip


def check_fit(cells: Iterable[Cell], read: Callable[[DataSpec], DataSet]) -> None:
    """Builds every network once and tries every plan, before anything trains.

    Raises:
        ValueError: naming the cell: images that do not fit its network, its resolution or its
            padding, or fewer epochs than its method has stages.
    """
    built: set[tuple[str, DataSpec]] = set()
    for cell in cells:
        try:
            data, method = read(cell.data), build_method(cell.method, **cell.hyperparameters)
            split_epochs(method.plan, cell.recipe.epochs, cell.recipe.budget)
            key = (json.dumps(cell.model), cell.data)
            if key in built:
                continue
            built.add(key)
            channels, height, width = data.train_images.shape[1:]
            network = build_network(cell, len(data.classes), (channels, height, width))
            tap_shapes(network, (channels, height, width))
            degrade(torch.zeros(1, channels, height, width), cell.data.resolution)
            if cell.data.padding == "reflect" and cell.data.pad >= min(height, width):
                raise ValueError(
                    f"data.pad {cell.data.pad} reflects more than the image, {height}x{width}"
                )
        except CODE_FAULTS as error:
            raise ValueError(f"cell {cell}: {reason(error)}") from None
