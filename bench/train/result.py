"""The result of a finished student: its weights, files and record."""

from collections.abc import Mapping
from functools import partial

from torch import nn

from bench.record import FINISHED, Store, dump_json
from bench.train.checkpoint import History
from bench.train.diagnostics import EXAMINED, knowledge_facts, own_stage
from bench.train.engine import Student
from bench.train.failure import record_of
from bench.train.stream import Stream, accuracy, predictions
from bench.train.teacher import Teacher
from bench.train.weights import FILE, WEIGHTS, weights_content

SECONDS = ("train_seconds", "evaluation_seconds", "checkpoint_seconds")


def stage_entries(student: Student) -> list[dict[str, object]]:
    """A record's `stages`: what each one was and what became of it; see `bench.record.Record`."""
    entries, first = [], 0
    for stage, epochs in zip(student.method.plan, student.stage_epochs, strict=True):
        entry: dict[str, object] = {"name": stage.name, "epochs": epochs, "taps": list(stage.taps)}
        if (chosen := student.selections.get(stage.name)) is not None:
            entry |= {"kept_images": int(chosen.kept.sum()), "note": chosen.note}
        for name, curve in student.curves.items():
            values = [value for value in curve[first : first + epochs] if value is not None]
            if values and name.endswith("_samples"):
                entry[name] = round(sum(values))
            elif values and name.endswith("_share"):
                entry[name] = sum(values) / len(values)
        entries.append(entry)
        first += epochs
    return entries


class Results:
    """Writes the results of students that share a stream and a teacher."""

    def __init__(self, stream: Stream, teacher: Teacher | None, store: Store) -> None:
        """Predicts the teacher's classes of the test set, once for all students."""
        self.stream, self.teacher, self.store = stream, teacher, store
        self._theirs = None if teacher is None else predictions(teacher.network, stream.test)

    def write(self, student: Student, history: History, conditions: Mapping[str, object]) -> None:
        """Writes a finished student's weights, selections and record."""
        cell = student.cell
        selections = {f"selection_{name}": chosen for name, chosen in student.selections.items()}
        contents = {name: dump_json(s.details).encode() for name, s in selections.items()}
        self.store.write(
            record_of(
                cell,
                FINISHED,
                conditions,
                stages=stage_entries(student) if cell.trains else [],
                curves=student.curves,
                final=self._final(student, history),
                files={WEIGHTS: FILE, **{name: f"{name}.json" for name in selections}},
            ),
            {WEIGHTS: weights_content(student.deployed), **contents},
        )

    def _final(self, student: Student, history: History) -> dict[str, float]:
        first = 1 if student.cell.trains else 0
        curve = enumerate(student.curves["test_accuracy"], start=first)
        measured = [(accuracy, epoch) for epoch, accuracy in curve if accuracy is not None]
        best, epoch = max(measured, key=lambda point: (point[0], -point[1]))
        final = {
            "last_accuracy": measured[-1][0],
            "best_accuracy": best,
            "best_epoch": epoch,
            "epochs": student.total_epochs,
            "train_images": len(self.stream.train.labels),
            "test_images": len(self.stream.test.labels),
            "classes": self.stream.classes,
            "parameters": _parameters(student.deployed),
            **{name: round(getattr(history, name), 3) for name in SECONDS},
        }
        if student.method.deploy is not None:
            final["student_parameters"] = _parameters(student.network)
        if self._theirs is not None and student.method.needs_teacher:
            predicted = predictions(student.deployed, self.stream.test, self.stream.student_images)
            final["agreement"] = accuracy(predicted, self._theirs)
        if student.cell.diagnostics and self.teacher is not None and student.method.needs_teacher:
            # Of the teacher and the method alone, the same for students of any architecture.
            teacher, method, stage = self.teacher, student.method, own_stage(student.method)
            optional = () if stage is None else student.optional[stage.name]
            images, labels, _ = next(self.stream.test.clean(EXAMINED))
            view, size = partial(teacher.view, images), student.cell.recipe.batch_size
            facts = teacher.facts(labels)
            final |= knowledge_facts(view, facts, method, optional, teacher.shapes, size)
        return final


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
