"""Results of any code base as a CSV file: a row's name, a seed and an accuracy in each line."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from bench.cell import Spec
from bench.decide.evidence import METHOD, REFERENCE, Pair, Row, Series
from bench.design import CONFIRMATION, EXTENSION, SCREENING
from bench.faults import UserError, one_line

NEEDED = ("row", "seed", "accuracy")
OPTIONAL = ("pair", "cost", "phase")
ROUNDED = 0.0005  # accuracies of one training may be written with three digits


class Line(Spec):
    """One line of the file, in which numbers are text."""

    model_config = ConfigDict(strict=False)

    pair: str = "all"
    row: str
    seed: int
    accuracy: Annotated[float, Field(ge=0, le=1)]
    cost: Annotated[float, Field(gt=0)] | None = None
    phase: Literal["", "screening", "confirmation", "extension"] = ""


def read_csv(path: Path, baseline: str) -> list[Pair]:
    """The pairs of a CSV file, in the order of first mention.

    Columns are "row", "seed" and "accuracy" in [0, 1]; optional "pair", "cost" (the whole training
    over the baseline's, equal in all lines of a row) and "phase" (of `bench.design`). Without a
    phase all seeds count alike, and every row is a finalist. Gains are over the row `baseline`.
    Pairs whose baselines differ by `ROUNDED` at most, at every seed of both, are of one student.
    UserError names the file, the line and what was wanted.
    """
    found: dict[str, dict[str, list[Line]]] = {}
    for line in _read(path):
        found.setdefault(line.pair, {}).setdefault(line.row, []).append(line)
    made, alone = [], dict[str, Series]()
    for name, lines in found.items():
        if baseline not in lines:
            raise UserError(
                f"{path}: pair {name} has no row {baseline!r}, which gains are over; it has: "
                f"{', '.join(lines)}; choose one with --baseline"
            )
        rows = tuple(_row(path, row, mine, row == baseline) for row, mine in lines.items())
        if not any(row.finalist for row in rows):
            wanted = f"to hold against {baseline!r}; wanted one in no phase or in {CONFIRMATION}"
            raise UserError(f"{path}: pair {name} has no row {wanted}")
        own = next(row.every_seed for row in rows if row.kind == REFERENCE)
        first = _student(name, own, alone)
        made.append(Pair(name=name, rows=rows, test_images=0, alone=(first,)))
    return made


def _student(pair: str, mine: Series, alone: dict[str, Series]) -> str:
    """The first pair of this student; `alone`, the accuracies of each, grows by the pair's own."""
    for first, known in alone.items():
        apart = [abs(known[seed] - mine[seed]) for seed in known.keys() & mine.keys()]
        if apart and round(max(apart), 9) <= ROUNDED:
            alone[first] = {**mine, **known}
            return first
    alone[pair] = mine
    return pair


def _read(path: Path) -> list[Line]:
    found: dict[tuple[str, str, int], Line] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            names = _names(path, next(reader, []))
            for values in filter(any, reader):
                line = _line(f"{path}, line {reader.line_num}", names, values)
                if found.setdefault((line.pair, line.row, line.seed), line) is not line:
                    said = f"row {line.row} has seed {line.seed} already"
                    raise UserError(f"{path}, line {reader.line_num}: {said}")
    except FileNotFoundError:
        raise UserError(f"--csv: no file {path}") from None
    except UnicodeError as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    if not found:
        raise UserError(f"{path}: no line of results below the columns' names")
    return list(found.values())


def _names(path: Path, header: Sequence[str]) -> list[str]:
    names = [one_line(name).lower() for name in header]
    wanted = f"wanted {', '.join(NEEDED)}, and if you like {', '.join(OPTIONAL)}, between commas"
    if missing := [name for name in NEEDED if name not in names]:
        raise UserError(f"{path}: no column {missing[0]!r}; {wanted}")
    if twice := [name for name in (*NEEDED, *OPTIONAL) if names.count(name) > 1]:
        raise UserError(f"{path}: two columns {twice[0]!r}; {wanted}, each once")
    return names


def _line(where: str, names: Sequence[str], values: Sequence[str]) -> Line:
    if surplus := [value for value in values[len(names) :] if value]:
        raise UserError(f"{where}: {surplus[0]!r} is under no column; the head names {len(names)}")
    cells = dict(zip(names, map(one_line, values), strict=False))
    texts = {name: cells[name] for name in (*NEEDED, *OPTIONAL) if cells.get(name)}
    try:
        return Line.model_validate(texts)
    except ValidationError as error:
        name, said = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        if name == "accuracy":
            said = "wanted a number in [0, 1], 0.93 is 93 %; leave out a line without one"
        raise UserError(f"{where}: {name} is {texts.get(name, '')!r}; {said}") from None


def _row(path: Path, name: str, lines: Sequence[Line], is_baseline: bool) -> Row:
    costs = {line.cost for line in lines if line.cost is not None}
    if len(costs) > 1 or (is_baseline and costs - {1.0}):
        wanted = "1, as costs are over its own" if is_baseline else "the same in all its lines"
        raise UserError(f"{path}: row {name} costs {min(costs):g} in a line; wanted {wanted}")
    by_phase = defaultdict[str, dict[int, float]](dict)
    for line in lines:
        by_phase[line.phase or CONFIRMATION][line.seed] = line.accuracy
    return Row(
        name=name,
        kind=REFERENCE if is_baseline else METHOD,
        screening=by_phase[SCREENING],
        confirmation=by_phase[CONFIRMATION],
        extension=by_phase[EXTENSION],
        cost=1.0 if is_baseline else next(iter(costs), None),
        finalist=bool(by_phase[CONFIRMATION]) and not is_baseline,
    )
