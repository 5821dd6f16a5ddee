"""Results of any code base as a CSV file: a row's name, a seed and an accuracy in each line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import ConfigDict, Field, ValidationError

from bench.cell import Spec
from bench.decide.evidence import METHOD, REFERENCE, Pair, Row
from bench.design import CONFIRMATION, EXTENSION, SCREENING
from bench.faults import UserError, one_line

NEEDED = ("row", "seed", "accuracy")
OPTIONAL = ("pair", "cost", "phase")


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
    UserError names the file, the line and what was wanted.
    """
    found: dict[str, dict[str, list[Line]]] = {}
    for line in _read(path):
        found.setdefault(line.pair, {}).setdefault(line.row, []).append(line)
    for name, rows in found.items():
        if baseline not in rows:
            raise UserError(
                f"{path}: pair {name} has no row {baseline!r}, which gains are over; it has: "
                f"{', '.join(rows)}; choose one with --baseline"
            )
    made = {
        name: tuple(_row(path, row, mine, row == baseline) for row, mine in rows.items())
        for name, rows in found.items()
    }
    return [Pair(name=name, rows=rows, test_images=0) for name, rows in made.items()]


def _read(path: Path) -> list[Line]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise UserError(f"--csv: no file {path}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a CSV file: {one_line(error)}") from None
    names = [str(name).strip().lower() for name in table.columns]
    if missing := [name for name in NEEDED if name not in names]:
        wanted = f"wanted {', '.join(NEEDED)}, and if you like {', '.join(OPTIONAL)}"
        raise UserError(f"{path}: no column {missing[0]!r}; {wanted}")
    found: dict[tuple[str, str, int], Line] = {}
    for number, values in enumerate(table.itertuples(index=False, name=None), start=2):
        cells = {name: value.strip() for name, value in zip(names, values, strict=True)}
        texts = {name: cells[name] for name in (*NEEDED, *OPTIONAL) if cells.get(name)}
        try:
            line = Line.model_validate(texts)
        except ValidationError as error:
            name, said = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
            got = f"{name} is {texts.get(name, '')!r}"
            raise UserError(f"{path}, line {number}: {got}; {said}") from None
        if found.setdefault((line.pair, line.row, line.seed), line) is not line:
            raise UserError(f"{path}, line {number}: row {line.row} has seed {line.seed} already")
    if not found:
        raise UserError(f"{path}: no line of results below the columns' names")
    return list(found.values())


def _row(path: Path, name: str, lines: Sequence[Line], is_baseline: bool) -> Row:
    costs = {line.cost for line in lines if line.cost is not None}
    if len(costs) > 1:
        raise UserError(f"{path}: row {name} has {len(costs)} different costs, wanted one")
    if is_baseline and costs - {1.0}:
        raise UserError(
            f"{path}: row {name} costs {min(costs):g}; wanted 1, as costs are over its own"
        )

    def series(*phases: str) -> dict[int, float]:
        return {line.seed: line.accuracy for line in lines if line.phase in phases}

    confirmation = series("", CONFIRMATION)
    return Row(
        name=name,
        kind=REFERENCE if is_baseline else METHOD,
        screening=series(SCREENING),
        confirmation=confirmation,
        extension=series(EXTENSION),
        cost=1.0 if is_baseline else next(iter(costs), None),
        finalist=bool(confirmation) and not is_baseline,
    )
