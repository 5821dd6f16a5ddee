"""What a decision is made from: the accuracies of the rows of each pair, by seed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from bench.faults import UserError

REFERENCE, LONGER, METHOD, ABLATION = "reference", "longer", "method", "ablation"

Series = Mapping[int, float]  # seed -> accuracy of the last epoch, in [0, 1]


def row_title(label: str) -> str:
    """A row as people say it.

    Example:
        >>> [row_title(f"student{x}") for x in ("", " (epochs_factor=2)", " (learning_rate=0.4)")]
        ['no teacher', 'no teacher, 2× epochs', 'no teacher (learning_rate=0.4)']
    """
    longer = re.sub(r"^student \(epochs_factor=([0-9.e+]+)\)$", r"no teacher, \1× epochs", label)
    return re.sub(r"^student( \(|$)", r"no teacher\1", longer)


def reference_title(label: str) -> str:
    """The row that others are held against, as it reads in a sentence."""
    return "the student alone" if label == "student" else row_title(label)


def guess(accuracy: float, classes: int | None, images: int) -> str:
    """A sentence if a teacher's accuracy is within two standard errors of chance; else empty."""
    chance = 1 / classes if classes and images else 0.0
    error = math.sqrt(chance * (1 - chance) / max(images, 1))
    near = chance > 0 and accuracy <= chance + 2 * error
    return f"the teacher guesses: {accuracy:.1%} right, {classes} classes." if near else ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a pair.

    Attributes:
        kind: "reference" (plain student), "longer" (of another recipe), "method", "ablation".
        screening: by the seeds that choose the finalists.
        confirmation: by the seeds that claims rest on; all seeds where rows are trained alike.
        extension: by the seeds of the one second look.
        cost: whole training over the plain student's; None where it was not measured.
        finalist: whether the row was chosen for confirmation.
        reached: share of the samples that its transfer losses reached in whole; None where that is
            not recorded.
        added: what is deployed on top of the student's own network, in words; empty for nothing.
    """

    name: str
    kind: str
    screening: Series = field(default_factory=dict)
    confirmation: Series = field(default_factory=dict)
    extension: Series = field(default_factory=dict)
    cost: float | None = None
    finalist: bool = False
    reached: float | None = None
    added: str = ""

    def __post_init__(self) -> None:
        """Refuses what is no row."""
        for accuracy in self.every_seed.values():
            if not 0 <= accuracy <= 1:
                raise UserError(
                    f"row {self.name}: accuracy {accuracy}, wanted one in [0, 1]: 0.93 is 93 %"
                )
        if twice := self.screening.keys() & self.at_look(2).keys():
            raise UserError(
                f"row {self.name}: seed {min(twice)} is a screening seed and a confirmation seed; "
                "confirmation needs fresh ones"
            )

    @property
    def nameable(self) -> bool:
        """Whether an answer may name it: neither the plain student nor a control."""
        return self.kind in (LONGER, METHOD)

    @property
    def longer(self) -> bool:
        """Whether it is the student alone for more epochs, whose ratio is its cost."""
        return self.kind == LONGER and self.cost is not None and self.cost > 1

    def too_dear(self, max_cost: float | None) -> str:
        """How it exceeds a limit on cost; empty if it does not."""
        if max_cost is None or (self.cost is not None and self.cost <= max_cost):
            return ""
        known = self.cost is not None
        return f"cost ×{self.cost:.2f} above ×{max_cost:g}" if known else "cost not measured"

    @property
    def every_seed(self) -> Series:
        """Accuracy by all its seeds."""
        return {**self.screening, **self.confirmation, **self.extension}

    def at_look(self, look: int) -> Series:
        """Accuracy by what the first look (1) or the second one (2) rests on."""
        return self.confirmation if look == 1 else {**self.confirmation, **self.extension}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The rows of one teacher and student on one data set, in the grid's order.

    Attributes:
        test_images: how many images an accuracy is a share of, and `measured_on`, which.
        against: the row that gains are over; empty for the plain student.
        teacher_accuracy: mean of the teachers, in [0, 1]; None where unknown.
        classes: how many there are; None where unknown.
        teachers: seed -> the teacher it was trained with; None where there is one for all.
        alone: what trained the plain student; equal for pairs that share it, empty for no others.
    """

    name: str
    rows: tuple[Row, ...]
    test_images: int
    measured_on: str = "this test set"
    against: str = ""
    teacher_accuracy: float | None = None
    classes: int | None = None
    teachers: Mapping[int, str] | None = None
    alone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a pair without exactly one plain student, or with two rows of a name."""
        names = [row.name for row in self.rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{self.name}: two rows are called {twice[0]!r}")
        students = sum(row.kind == REFERENCE for row in self.rows)
        if students != 1:
            raise UserError(f"{self.name}: {students} plain students, wanted one for the gains")

    @property
    def student(self) -> Row:
        """The plain student."""
        return next(row for row in self.rows if row.kind == REFERENCE)

    @property
    def reference(self) -> Row:
        """The row that gains are over; UserError if it has no confirmation seeds."""
        known = {row.name: row for row in self.confirmed}
        if (name := self.against or self.student.name) not in known:
            raise UserError(
                f"{self.name}: got {name!r} to hold the others against, wanted a row with "
                f"confirmation seeds: {', '.join(known)}"
            )
        return known[name]

    @property
    def finalists(self) -> tuple[Row, ...]:
        """The rows that claims are made about, the plain student too if it is not the reference."""
        reference = self.reference
        return tuple(row for row in self.confirmed if row is not reference)

    @property
    def confirmed(self) -> tuple[Row, ...]:
        """The plain student and the finalists that an answer may name."""
        return (self.student, *(row for row in self.rows if row.finalist and row.nameable))

    @property
    def teacher_fault(self) -> str:
        """What is wrong with the teachers' accuracy, as a sentence; empty if nothing is."""
        accuracy, alone = self.teacher_accuracy, self.student.every_seed.values()
        if accuracy is None:
            return ""
        below = alone and accuracy <= fmean(alone)
        worse = "the teacher is no better than the student." if below else ""
        return guess(accuracy, self.classes, self.test_images) or worse

    @property
    def look(self) -> int:
        """2 where any finalist has seeds of the extension, else 1."""
        return 2 if any(row.extension for row in self.finalists) else 1
