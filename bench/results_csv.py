"""Results of any code base as a CSV file: a row's name, a seed and an accuracy in each line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.decide.evidence import METHOD, REFERENCE, Pair, Row
from bench.design import CONFIRMATION, EXTENSION, SCREENING
from bench.faults import UserError

NEEDED = ("row", "seed", "accuracy")
OPTIONAL = ("pair", "cost", "phase")
PHASES = (SCREENING, CONFIRMATION, EXTENSION)


def read_csv(path: Path, baseline: str) -> list[Pair]:
    """The pairs of a CSV file, in the order of first mention.

    Args:
        path: columns "row", "seed" and "accuracy" in [0, 1]; optional "pair", "cost" (the whole
            training over the baseline's, equal in all lines of a row) and "phase" (one of
            `PHASES`). Without a phase all seeds count alike, and every row is a finalist.
        baseline: the row that gains are over.

    Raises:
        UserError: one line with the file, the line and what was wanted.
    """
    table = _read(path)
    pairs = []
    for name, lines in table.groupby("pair", sort=False):
        names = list(dict.fromkeys(lines["row"]))
        if baseline not in names:
            raise UserError(
                f"{path}: pair {name} has no row {baseline!r}, which gains are over; it has: "
                f"{', '.join(names)}; choose one with --baseline"
            )
        rows = tuple(_row(path, row, lines[lines["row"] == row], baseline) for row in names)
        pairs.append(Pair(name=str(name), rows=rows, test_images=0))
    return pairs


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(
            path, dtype={"row": str, "pair": str, "phase": str}, skipinitialspace=True
        )
    except FileNotFoundError:
        raise UserError(f"--csv: no file {path}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    table.columns = [str(column).strip().lower() for column in table.columns]
    if missing := [column for column in NEEDED if column not in table]:
        raise UserError(
            f"{path}: no column {missing[0]!r}; wanted {', '.join(NEEDED)}, and if you like "
            f"{', '.join(OPTIONAL)}"
        )
    table = table.assign(**{c: table.get(c, default) for c, default in _DEFAULTS.items()})
    for column in ("seed", "accuracy", "cost"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = numbers.isna() & (table[column].notna() | (column != "cost"))
        _refuse(path, table, wrong, column, "a number")
        table[column] = numbers
    _refuse(path, table, table["seed"] % 1 != 0, "seed", "a whole number")
    inside = table["accuracy"].between(0, 1)
    _refuse(path, table, ~inside, "accuracy", "a number in [0, 1]: 0.93 is 93 %")
    _refuse(path, table, table["row"].isna(), "row", "a name")
    table["phase"] = table["phase"].fillna("")
    wrong = ~table["phase"].isin(["", *PHASES])
    _refuse(path, table, wrong, "phase", f"one of {', '.join(PHASES)}, or nothing")
    twice = table.duplicated(["pair", "row", "seed"])
    _refuse(path, table, twice, "seed", "every seed once for each row")
    return table


_DEFAULTS = {"pair": "all", "cost": float("nan"), "phase": ""}


def _refuse(path: Path, table: pd.DataFrame, wrong: pd.Series, column: str, wanted: str) -> None:
    """Names the first wrong line of the file; the header is line 1."""
    if wrong.any():
        position = int(wrong.to_numpy().argmax())
        value = table[column].astype(object).iloc[position]
        raise UserError(f"{path}, line {position + 2}: {column} is {value}, wanted {wanted}")


def _row(path: Path, name: str, lines: pd.DataFrame, baseline: str) -> Row:
    costs = lines["cost"].dropna().unique()
    if len(costs) > 1:
        raise UserError(f"{path}: row {name} has {len(costs)} different costs, wanted one")
    series = {
        phase: dict(zip(part["seed"].astype(int), part["accuracy"].astype(float), strict=True))
        for phase, part in lines.groupby("phase")
    }
    confirmation = {**series.get("", {}), **series.get(CONFIRMATION, {})}
    is_baseline = name == baseline
    return Row(
        name=name,
        kind=REFERENCE if is_baseline else METHOD,
        screening=series.get(SCREENING, {}),
        confirmation=confirmation,
        extension=series.get(EXTENSION, {}),
        cost=1.0 if is_baseline else float(costs[0]) if len(costs) else None,
        finalist=bool(confirmation) and not is_baseline,
    )
