"""One table model, and its form as Markdown, CSV and plain text; `page` makes HTML of it.

Values are kept as measured: accuracies and shares in [0, 1]. Percent exists only in what is
rendered for eyes; the CSV holds the raw numbers. Equal tables render to equal bytes.
"""

import csv
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from bench.faults import one_line
from bench.record import write_atomically
from bench.statistics import Interval

PERCENT_UNITS = ("%", "points")  # values are stored as fractions and shown times 100
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formula begins
INTERVAL_ENDS = ("", "_low", "_high", "_n")  # of the keys of an interval's four columns of a CSV

Value = str | int | float | Interval | None


@dataclass(frozen=True)
class Column:
    """What one column holds.

    Attributes:
        key: its name in the CSV; `name` is its heading everywhere else.
        unit: printed in the heading; "%" and "points" (of percent) show fractions times 100.
        align: "left" for text, "right" for numbers.
        digits: decimals shown; None for as many as the number needs.
        signed: whether a number above 0 shows its +.
        interval: whether values are intervals, which take four columns of the CSV.
        best: "high" or "low", whichever of its numbers is better; empty for neither.
        detail: whether Markdown leaves it out.
    """

    key: str
    name: str
    unit: str = ""
    align: str = "right"
    digits: int | None = None
    signed: bool = False
    interval: bool = False
    best: str = ""
    detail: bool = False

    @property
    def heading(self) -> str:
        """Name and unit, in one line."""
        return one_line(f"{self.name} ({self.unit})" if self.unit else self.name)


def text_columns(*keys: str) -> tuple[Column, ...]:
    """Columns of text whose headings are their keys, but for a row's label: it is a method."""
    names = {key: key for key in keys} | {"label": "method"}
    return tuple(Column(key, names[key], align="left") for key in keys)


@dataclass(frozen=True)
class Table:
    """Columns, rows (column's key -> value; what is left out is empty), and notes under them."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Value]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuses a value without a column."""
        if unknown := {key for row in self.rows for key in row} - {c.key for c in self.columns}:
            raise ValueError(f"table {self.title!r} has no column {', '.join(sorted(unknown))}")

    def only(self, keys: Sequence[str]) -> Self:
        """The columns of these keys alone, in their order."""
        columns = {column.key: column for column in self.columns}
        rows = [{key: row.get(key) for key in keys} for row in self.rows]
        return replace(self, columns=[columns[key] for key in keys], rows=rows)

    def without_details(self) -> Self:
        """The columns but those of details."""
        return self.only([column.key for column in self.columns if not column.detail])

    def shown(self) -> list[list[str]]:
        """The values of each row as people read them."""
        return [[show(column, row.get(column.key)) for column in self.columns] for row in self.rows]


class Section(NamedTuple):
    """What belongs together: one CSV file called `name`, and one closed section of the page.

    Tables have the columns of the widest one, or fewer. On the page lines of text, curves (a pair's
    title, what they show in words, the figure) and dumbbells (a pair's title, its rows) are first.
    """

    name: str
    title: str
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    curves: Sequence[tuple[str, str, NamedTuple]] = ()
    dumbbells: Sequence[tuple[str, Sequence[NamedTuple]]] = ()


def show(column: Column, value: Value) -> str:
    """A value as people read it, before any escaping."""
    if value is None or isinstance(value, str):
        return "-" if value is None else one_line(value)
    if not isinstance(value, Interval):
        return _number(column, value)
    mean = _number(column, value.mean)
    if value.low is None or value.high is None:
        return f"{mean} (n={value.n})"
    up, down = value.high - value.mean, value.mean - value.low
    if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-12):
        return f"{mean} ± {_number(column, up).removeprefix('+')}"
    return f"{mean} [{_number(column, value.low)}, {_number(column, value.high)}]"


def _number(column: Column, value: float) -> str:
    shown = 100 * value if column.unit in PERCENT_UNITS else value
    text = f"{shown:.{column.digits}f}" if column.digits is not None else f"{shown:.10g}"
    if float(text) == 0:
        return text.removeprefix("-")  # a rounded "-0.00" claims a direction that is not there
    return f"+{text}" if column.signed and shown > 0 else text


# --- renderers -------------------------------------------------------------------------------


def to_markdown(table: Table, level: int = 2) -> str:
    """A Markdown section, narrow enough for GitHub: heading, columns but details, notes."""
    table = table.without_details()
    heads = [column.heading for column in table.columns]
    rows = [[_escape_markdown(text) for text in row] for row in (heads, *table.shown())]
    widths = _widths(rows, least=3)
    head, *body = (_padded(table, row, widths) for row in rows)
    rule = [
        "-" * width if column.align == "left" else "-" * (width - 1) + ":"
        for column, width in zip(table.columns, widths, strict=True)
    ]
    lines = [f"{'#' * level} {_escape_markdown(one_line(table.title))}", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    if table.notes:
        lines += ["", *(f"- {_escape_markdown(one_line(note))}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, long headings over several lines."""
    body = table.shown()
    words = [column.heading.split() for column in table.columns]
    # A column is as wide as its longest word or value, so that headings do not set the width.
    widths = _widths([[max(map(len, parts), default=1) * "-" for parts in words], *body])
    heads = [
        textwrap.wrap(" ".join(parts), width, break_on_hyphens=False) or [""]
        for parts, width in zip(words, widths, strict=True)
    ]
    depth = max(map(len, heads))
    lines = zip(*([""] * (depth - len(head)) + head for head in heads), strict=True)
    rule = ["-" * width for width in widths]
    rows = ("  ".join(_padded(table, row, widths)) for row in (*map(list, lines), rule, *body))
    notes = (f"  {one_line(note)}" for note in table.notes)
    return "\n".join([one_line(table.title), "", *map(str.rstrip, rows), *notes]) + "\n"


def to_csv(table: Table) -> str:
    """The raw values, in full precision; an interval as key, key_low, key_high and key_n.

    What there is no value for is empty. Titles and notes are left out. A text that a
    spreadsheet would run as a formula has an apostrophe before it. Read it with
    `pandas.read_csv(path, keep_default_na=False, na_values=[""])`: a method may be called "none".
    ValueError for an interval in a column that is not declared with `interval=True`.
    """
    ends = ((c.key, INTERVAL_ENDS if c.interval else ("",)) for c in table.columns)
    out = io.StringIO()
    writer = csv.DictWriter(out, [key + e for key, each in ends for e in each], lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerow({
            key + end: csv_value(number)
            for key, value in row.items()
            for end, number in zip(
                INTERVAL_ENDS, value if isinstance(value, Interval) else (value,), strict=False
            )
        })  # fmt: skip
    return out.getvalue()


def csv_value(value: str | float | None) -> str:
    """A value as a CSV file holds it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(float(value))  # numpy's own floats print their type as well
    text = one_line(str(value))
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else text


def _widths(rows: Sequence[Sequence[str]], least: int = 0) -> list[int]:
    return [max(least, *map(len, column)) for column in zip(*rows, strict=True)]


def _padded(table: Table, row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if column.align == "left" else text.rjust(width)
        for column, text, width in zip(table.columns, row, widths, strict=True)
    ]


def _escape_markdown(text: str) -> str:
    # "_" within a word, "~" next to a space and "&" before no entity are plain: they stay readable.
    text = re.sub(r"[\\`*<|\[$]|&(?=#?\w+;)", r"\\\g<0>", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|(?<=\S)~|~(?=\S)", r"\\\g<0>", text)


def write_csv(section: Section, folder: Path) -> Path:
    """Writes `<name>.csv`, with the tables' titles in a first column "table"; returns its path."""
    columns = max((table.columns for table in section.tables), key=len)
    rows = [{"table": table.title, **row} for table in section.tables for row in table.rows]
    path = folder / f"{section.name}.csv"
    write_atomically(path, to_csv(Table("", [*text_columns("table"), *columns], rows)))
    return path


def write_markdown(section: Section, folder: Path) -> Path:
    """Writes `<name>.md`; returns its path. Notes that all tables have are under the last one."""
    heading = f"# {_escape_markdown(one_line(section.title))}\n"
    path = folder / f"{section.name}.md"
    write_atomically(path, "\n".join([heading, *map(to_markdown, notes_once(section.tables))]))
    return path


def notes_once(tables: Sequence[Table]) -> list[Table]:
    """The tables for readers, with the notes that all of them have under the last one alone."""
    last = tables[-1:]
    shared = {n for t in last for n in t.notes if all(n in other.notes for other in tables)}
    own = [replace(t, notes=[n for n in t.notes if n not in shared]) for t in tables[:-1]]
    return [*own, *last]
