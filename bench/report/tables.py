"""One table model, and its form as Markdown, CSV and plain text; `page` makes HTML of it.

Values are kept as measured: accuracies and shares in [0, 1]. Percent exists only in what is
rendered for eyes; the CSV holds the raw numbers. Equal tables render to equal bytes.
"""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.faults import one_line
from bench.record import write_atomically
from bench.statistics import Interval

PERCENT_UNITS = ("%", "points")
"""Units whose values are stored as fractions and shown times 100."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""

Value = str | int | float | Interval | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column holds.

    Attributes:
        key: its name in the CSV.
        name: its heading everywhere else, without the unit.
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

    @property
    def scale(self) -> float:
        """What a value is multiplied with before it is shown."""
        return 100 if self.unit in PERCENT_UNITS else 1


def text_columns(*keys: str) -> tuple[Column, ...]:
    """Columns of text whose headings are their keys, but for a row's label: it is a method."""
    names = {"label": "method"}
    return tuple(Column(key=key, name=names.get(key, key), align="left") for key in keys)


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        value: in the unit of the column, fractions for percent; None where there is none.
        instead: printed in place of a value that is None, and not in the CSV.
    """

    value: Value
    instead: str = "-"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, rows of as many entries, and notes: what has to be said under them."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses rows that do not fit the columns."""
        wanted = len(self.columns)
        for row in self.rows:
            if len(row) != wanted:
                got = f"a row of {len(row)} entries for {wanted} columns"
                raise ValueError(f"table {self.title!r}: {got}")
        for column, entry in (pair for row in self.pairs() for pair in row):
            if isinstance(entry.value, Interval) and not column.interval:
                raise ValueError(
                    f"table {self.title!r}: an interval in column {column.key!r}; "
                    "declare the column with interval=True"
                )

    @classmethod
    def by_name(
        cls,
        title: str,
        columns: tuple[Column, ...],
        rows: Iterable[Mapping[str, Entry | Value]],
        notes: Iterable[str] = (),
    ) -> Table:
        """A table of rows, column's key -> entry or its bare value; what a row leaves out is empty.

        Raises:
            ValueError: a row names a column that the table does not have.
        """
        keys = [column.key for column in columns]
        made = []
        for row in rows:
            if unknown := sorted(set(row) - set(keys)):
                raise ValueError(f"table {title!r} has no column {', '.join(unknown)}")
            cells = (row.get(key) for key in keys)
            made.append(tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in cells))
        return cls(title=title, columns=columns, rows=tuple(made), notes=tuple(notes))

    def only(self, keys: Iterable[str]) -> Table:
        """The columns of these keys alone, in their order."""
        places = [[column.key for column in self.columns].index(key) for key in keys]
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        return replace(self, columns=tuple(self.columns[place] for place in places), rows=rows)

    def pairs(self) -> list[list[tuple[Column, Entry]]]:
        """The rows, each entry with its column."""
        return [list(zip(self.columns, row, strict=True)) for row in self.rows]


# --- one entry -------------------------------------------------------------------------------


def show(column: Column, entry: Entry) -> str:
    """An entry as people read it, before any escaping.

    Example:
        >>> gain = Column(key="g", name="gain", unit="points", digits=1, signed=True, interval=True)
        >>> show(gain, Entry(Interval(0.0123, 0.0100, 0.0146, 5)))
        '+1.2 ± 0.2'
        >>> show(gain, Entry(Interval(0.0123, None, None, 1)))
        '+1.2 (n=1)'
        >>> show(gain, Entry(None, instead="not run"))
        'not run'
    """
    value = entry.value
    if value is None or isinstance(value, str):
        return one_line(entry.instead if value is None else value)
    return _interval(column, value) if isinstance(value, Interval) else _number(column, value)


def _interval(column: Column, value: Interval) -> str:
    mean = _number(column, value.mean)
    if value.low is None or value.high is None:
        return f"{mean} (n={value.n})"
    up, down = value.high - value.mean, value.mean - value.low
    if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-12):
        return f"{mean} ± {_number(column, up).removeprefix('+')}"
    return f"{mean} [{_number(column, value.low)}, {_number(column, value.high)}]"


def _number(column: Column, value: float) -> str:
    shown = value * column.scale
    text = f"{shown:.{column.digits}f}" if column.digits is not None else f"{shown:.10g}"
    if float(text) == 0:
        return text.removeprefix("-")  # a rounded "-0.00" claims a direction that is not there
    return f"+{text}" if column.signed and shown > 0 else text


def _body(table: Table) -> list[list[str]]:
    return [[show(column, entry) for column, entry in row] for row in table.pairs()]


# --- renderers -------------------------------------------------------------------------------


def to_markdown(table: Table, level: int = 2) -> str:
    """A GitHub-flavoured Markdown section: heading, table padded for reading, notes.

    Columns of detail are left out, so that the table is no wider than GitHub shows.
    """
    table = table.only(column.key for column in table.columns if not column.detail)
    heads = [column.heading for column in table.columns]
    rows = [[_escape_markdown(text) for text in row] for row in (heads, *_body(table))]
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
    body = _body(table)
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
    rows = [*map(list, lines), rule, *body]
    return "\n".join([
        one_line(table.title),
        "",
        *("  ".join(_padded(table, row, widths)).rstrip() for row in rows),
        *(f"  {one_line(note)}" for note in table.notes),
    ]) + "\n"  # fmt: skip


def to_csv(table: Table) -> str:
    """The raw values, in full precision; an interval as key, key_low, key_high and key_n.

    What there is no value for is empty. Titles and notes are left out. A text that a
    spreadsheet would run as a formula has an apostrophe before it. Read it with
    `pandas.read_csv(path, keep_default_na=False, na_values=[""])`: a method may be called "none".
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    for row in table.pairs():
        writer.writerow([text for column, entry in row for text in _csv_values(column, entry)])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    ends = ("", "_low", "_high", "_n") if column.interval else ("",)
    return [column.key + end for end in ends]


def _csv_values(column: Column, entry: Entry) -> list[str]:
    values = entry.value if isinstance(entry.value, Interval) else (entry.value,)
    texts = [csv_value(value) for value in values]
    return texts + [""] * (len(_csv_names(column)) - len(texts))


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
    # "_" within a word, "~" beside a space and "&" before no entity are plain: they stay readable.
    text = re.sub(r"[\\`*<|\[$]|&(?=#?\w+;)", r"\\\g<0>", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|(?<=\S)~|~(?=\S)", r"\\\g<0>", text)


# --- files -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tables that belong together: they share their files and a section of the page.

    `name` is that of the files, without an ending, and of the section, for links; `text` is a
    paragraph above the tables, empty for none.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    text: str = ""


def write_csv(section: Section, folder: Path) -> list[Path]:
    """Writes `<name>.csv`, with the tables' titles in a first column "table"; returns the paths.

    Tables of other columns than the first one's are in files of their own, `<name>_2.csv` and so
    on; those that an earlier call wrote and this one does not are removed.
    """
    contents = {}
    for place, alike in enumerate(_by_columns(section.tables), start=1):
        name = section.name if place == 1 else f"{section.name}_{place}"
        contents[f"{name}.csv"] = to_csv(_titled(alike))
    for name, content in contents.items():
        write_atomically(folder / name, content)
    for path in folder.glob(f"{section.name}_[0-9]*.csv"):
        if path.name not in contents and path.stem.rpartition("_")[2].isdecimal():
            path.unlink()
    return [folder / name for name in contents]


def write_markdown(section: Section, folder: Path) -> Path:
    """Writes `<name>.md`; returns its path. Notes that all tables have are under the last one."""
    lines = [f"# {_escape_markdown(one_line(section.title))}\n"]
    lines += [f"{_escape_markdown(one_line(section.text))}\n"] if section.text else []
    path = folder / f"{section.name}.md"
    write_atomically(path, "\n".join([*lines, *map(to_markdown, notes_once(section.tables))]))
    return path


def notes_once(tables: Sequence[Table]) -> list[Table]:
    """The tables for readers, with the notes that all of them have under the last one alone."""
    if not tables:
        return []
    *others, last = tables
    shared = [note for note in last.notes if all(note in table.notes for table in others)]
    return [
        *(replace(t, notes=tuple(note for note in t.notes if note not in shared)) for t in others),
        last,
    ]


def _by_columns(tables: Sequence[Table]) -> list[list[Table]]:
    groups: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        names = (name for column in table.columns for name in _csv_names(column))
        groups.setdefault(tuple(names), []).append(table)
    return list(groups.values())


def _titled(tables: Sequence[Table]) -> Table:
    """Tables of equal columns as one, their titles in its first column."""
    rows = tuple((Entry(table.title), *row) for table in tables for row in table.rows)
    columns = (Column(key="table", name="table", align="left"), *tables[0].columns)
    return Table(title="", columns=columns, rows=rows)
