"""Small lessons for tests of the engine: a synthetic set, a teacher, a student, real stages."""

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.cell import Cell, DataSpec, Recipe
from bench.data.batches import Batch
from bench.data.dataset import DataSet
from bench.hyperparameters import build_method, resolve_hyperparameters
from bench.launch.job import Report
from bench.method import Method, Pair, Stage, View
from bench.record import Record, Store
from bench.train.checkpoint import Checkpoints
from bench.train.cohort import Cohort
from bench.train.engine import Student, make_student
from bench.train.stream import Stream, StudentBatch, open_stream
from bench.train.teacher import Teacher
from bench.train.weights import build_network

CPU = torch.device("cpu")


def squared_gap(pair: Pair, connector: nn.Module) -> Tensor:
    return (pair.student.logits - pair.teacher.logits).square().mean(dim=1)


def method_of(*plan: Stage, **changes: object) -> Method:
    return Method(**{"category": "response", "source": "by hand, 2026", "plan": plan, **changes})


def dataset(classes: int = 4, train: int = 40, test: int = 20) -> DataSet:
    """Noisy class prototypes, 1x8x8, the same in every test."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(40, 215, (classes, 1, 8, 8), generator=generator)

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        noise = torch.randint(-40, 41, (count, 1, 8, 8), generator=generator)
        return (prototypes[labels] + noise).clamp(0, 255).to(torch.uint8), labels

    return DataSet.of("synthetic", part(train), part(test), [f"c{i}" for i in range(classes)])


def recipe(**changes: object) -> Recipe:
    values = {"epochs": 4, "batch_size": 10, "learning_rate": 0.05, "weight_decay": 1e-2}
    return Recipe(**{**values, **changes})


def plain_cell(model: str, seed: int = 0, **changes: object) -> Cell:
    values = {
        "model": model, "data": DataSpec(source="synthetic", pad=1), "fingerprint": "synthetic",
        "method": "student", "code": "", "hyperparameters": {}, "recipe": recipe(), "seed": seed,
    }  # fmt: skip
    return Cell(**{**values, **changes})


def cell(
    method: str,
    student: str = "cnn2",
    teacher: str = "cnn3",
    seed: int = 0,
    hyperparameters: dict[str, object] | None = None,
    **changes: object,
) -> Cell:
    """A cell of `method`; with a teacher if it needs one, with a source if it starts from one."""
    resolved = resolve_hyperparameters(method, hyperparameters or {})
    built = build_method(method, **resolved)
    if built.starts_from == "source":
        other = DataSpec(source="synthetic", pad=1, classes=4)
        changes = {"source": plain_cell(student, seed, data=other), **changes}
    return plain_cell(
        student, seed, method=method, hyperparameters=resolved,
        teacher=plain_cell(teacher, seed) if built.needs_teacher else None, **changes,
    )  # fmt: skip


def teacher_for(cell: Cell, stream: Stream, device: torch.device = CPU) -> Teacher | None:
    """An untrained teacher: enough for bookkeeping, and the same for equal cells."""
    if cell.teacher is None:
        return None
    network = build_network(cell.teacher, stream.classes, stream.image_shape)
    return Teacher(network, cell.teacher, device, stream.image_shape)


def run(
    cells: list[Cell],
    folder: Path,
    data: DataSet | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report = lambda *event: None,
    device: torch.device = CPU,
) -> dict[str, Record]:
    """Trains the cells as one cohort; the records by cell id."""
    stream = open_stream(cells[0], data or dataset(), device)
    teachers = [teacher_for(c, stream, device) for c in cells]
    teacher = next((t for t in teachers if t is not None), None)
    store = Store(folder)
    for source in [c.source for c in cells if c.source is not None]:
        if store.read(source.id) is None:
            run([source], folder, data, device=device)
    Cohort(stream, teacher, store, device, report, {}, checkpoints).run(cells)
    return store.read_all([c.id for c in cells])


class Lesson:
    """One student stepped by hand through its stages."""

    def __init__(
        self,
        cell: Cell,
        data: DataSet | None = None,
        method: Method | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.stream = open_stream(cell, data or dataset(), device)
        self.teacher = teacher_for(cell, self.stream, device)
        shape = self.stream.image_shape
        network = build_network(cell, self.stream.classes, shape)
        method = method or build_method(cell.method, **cell.hyperparameters)
        self.student: Student = make_student(
            cell, method, network, shape, self.teacher, device, self.stream.known_labels
        )

    def clean_view(self, taps: tuple[str, ...]) -> View:
        images = (batch.images for batch in self.stream.train.clean(16))
        return self.teacher.clean_view(images, taps)

    def epoch(self) -> None:
        """One epoch, as a cohort runs it."""
        student, train = self.student, self.stream.train
        student.begin_epoch(self.clean_view, train.labels)
        batches = list(train.epoch(student.epochs_done, student.subset))
        for batch in batches:
            student.step(self.seen(batch, last=batch is batches[-1]))
        student.end_epoch(lambda: 0.5)

    def epochs(self, count: int) -> None:
        for _ in range(count):
            self.epoch()

    def moved(self, epochs: int = 1) -> set[str]:
        """Trains, and returns the names of what changed."""
        before = self.state()
        self.epochs(epochs)
        return {key for key, x in self.state().items() if not torch.equal(x, before[key])}

    def seen(self, batch: Batch, last: bool = False) -> StudentBatch:
        """A batch as the student's step takes it."""
        view = None
        if self.student.reads_teacher:
            view = self.teacher.view(batch.images, self.student.taps)
        return StudentBatch(*batch, view, last)

    def state(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer of student and connector."""
        parts = {"network": self.student.network, "connector": self.student.connector}
        return {
            f"{part}.{name}": tensor.clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
