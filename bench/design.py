"""The design of an experiment: every row is screened, and the best are confirmed on fresh seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from bench.cell import Spec
from bench.faults import DamagedError, UserError
from bench.record import Sealed, write_atomically
from bench.seeds import MOST_SEEDS

SCREENING, CONFIRMATION, EXTENSION = "screening", "confirmation", "extension"
EQUAL = ""  # the phase of a grid that trains every row on the same seeds
AtLeastOne = Annotated[int, Field(ge=1, le=MOST_SEEDS)]


class Design(Spec):
    """Screen, then confirm.

    Attributes:
        screen: seeds of every row.
        finalists: rows that are confirmed: the best longer-trained student and the best methods.
        confirm: fresh seeds of every finalist and of the plain student.
        extend: further seeds of the same rows, for the one second look that is allowed; 0 for none.
        first: the first seed; a new experiment needs seeds that none before it used.
    """

    screen: AtLeastOne
    finalists: Annotated[int, Field(ge=2, le=MOST_SEEDS)]
    confirm: Annotated[int, Field(ge=2, le=MOST_SEEDS)]
    extend: Annotated[int, Field(ge=0, le=MOST_SEEDS)] = 0
    first: Annotated[int, Field(ge=0, lt=2**31 - 3 * MOST_SEEDS)] = 0

    def seeds(self, phase: str) -> tuple[int, ...]:
        """The seeds of one phase; no two phases share one."""
        fresh = self.first + self.screen
        further = fresh + self.confirm
        ranges = {
            SCREENING: range(self.first, fresh),
            CONFIRMATION: range(fresh, further),
            EXTENSION: range(further, further + self.extend),
        }
        return tuple(ranges[phase])


class TeacherPools(Spec):
    """Numbers of teachers that several seeds share, other ones in each phase."""

    screen: AtLeastOne
    confirm: AtLeastOne


class PairId(NamedTuple):
    """A data set, its axes, a teacher and a student: what one choice is about."""

    data: str
    axes: str
    teacher: str
    student: str

    @property
    def title(self) -> str:
        """In one line, with those axes that are not 1: "digits, fraction 0.5: cnn16 → cnn4"."""
        axes = [f"{name} {value:g}" for name, value in json.loads(self.axes).items() if value != 1]
        return f"{', '.join([self.data, *axes])}: {self.teacher} → {self.student}"


class Choice(Spec):
    """The finalists of one pair, labels of rows, and what they were chosen by.

    `screened` maps the label of every row that was screened to its mean "accuracy", the number "n"
    of seeds, and its "cost" relative to the plain student's training (None if not limited).
    """

    data: str
    axes: dict[str, float]
    teacher: str
    student: str
    finalists: tuple[str, ...]
    screened: dict[str, dict[str, float | None]] = Field(default_factory=dict)


def pair_id(data: str, axes: Mapping[str, float], teacher: str, student: str) -> PairId:
    """The pair of these names and values of the axes."""
    values = {name: float(value) for name, value in axes.items()}
    return PairId(data, json.dumps(values, sort_keys=True), teacher, student)


@dataclass(frozen=True)
class _Choices(Sealed):
    choices: tuple[Choice, ...]


def read_choices(path: Path) -> tuple[Choice, ...] | None:
    """The choices that a command wrote; None if none did yet."""
    try:
        return _Choices.read(path).choices
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise UserError(f"{error}; delete it and run the grid again") from None


def write_choices_once(path: Path, choices: Sequence[Choice]) -> None:
    """Writes the choices unless another command did."""
    write_atomically(path, _Choices(tuple(choices)).to_json(), replace=False)
