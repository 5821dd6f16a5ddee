"""One table model and its renderers: Markdown, CSV, LaTeX, HTML and plain text.

Values are kept as measured: accuracies and shares in [0, 1]. Percent exists only in what is
rendered for eyes; the CSV holds the raw numbers. Equal tables render to equal bytes.
"""

from __future__ import annotations

import csv
import html
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

PERCENT_UNITS = ("%", "pp")
"""Units whose values are stored as fractions and shown times 100."""

LONG = 45
"""Characters from which on an entry may stand on several lines of an HTML table."""

Value = str | int | float | Interval | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column holds.

    Attributes:
        key: its name in the CSV.
        name: its heading everywhere else, without the unit.
        unit: printed in the heading; "%" and "pp" (percentage points) show fractions times 100.
        align: "left" for text, "right" for numbers.
        digits: decimals shown; None for as many as the number needs.
        signed: whether a number above 0 shows its +.
        interval: whether values are intervals, which take four columns of the CSV.
        p_value: whether a number that its digits would show as 0 is shown as "<0.0001".
    """

    key: str
    name: str
    unit: str = ""
    align: str = "right"
    digits: int | None = None
    signed: bool = False
    interval: bool = False
    p_value: bool = False

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def scale(self) -> float:
        """What a value is multiplied with before it is shown."""
        return 100 if self.unit in PERCENT_UNITS else 1


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        value: in the unit of the column, fractions for percent; None where there is none.
        mark: printed after the value, and not in the CSV.
        instead: printed in place of a value that is None, and not in the CSV.
    """

    value: Value
    mark: str = ""
    instead: str = "-"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, rows and what has to be said under them.

    Attributes:
        title: one line.
        columns: from left to right.
        rows: as many entries each as there are columns.
        notes: one line each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses rows that do not fit the columns."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row of {len(row)} entries for "
                    f"{len(self.columns)} columns"
                )
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
        """A table of rows that name their columns; a column that a row leaves out is empty.

        Args:
            title: one line.
            columns: from left to right.
            rows: column's key -> entry, or its bare value.
            notes: one line each.

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

    def pairs(self) -> list[list[tuple[Column, Entry]]]:
        """The rows, each entry with its column."""
        return [list(zip(self.columns, row, strict=True)) for row in self.rows]


# --- one entry -------------------------------------------------------------------------------


def show(column: Column, entry: Entry) -> str:
    """An entry as people read it, before any escaping.

    Example:
        >>> gain = Column(key="gain", name="gain", unit="pp", digits=2, signed=True, interval=True)
        >>> show(gain, Entry(Interval(0.0123, 0.0100, 0.0146, 5)))
        '+1.23 ± 0.23'
        >>> show(gain, Entry(Interval(0.0123, None, None, 1), mark="~"))
        '+1.23 (n=1) ~'
        >>> show(gain, Entry(None, instead="not run"))
        'not run'
    """
    value = entry.value
    if value is None:
        text = entry.instead
    elif isinstance(value, str):
        text = value
    elif isinstance(value, Interval):
        text = _interval(column, value)
    else:
        text = _number(column, value, column.signed)
    return one_line(f"{text} {entry.mark}")


def _interval(column: Column, value: Interval) -> str:
    mean = _number(column, value.mean, column.signed)
    if value.low is None or value.high is None:
        return f"{mean} (n={value.n})"
    up, down = value.high - value.mean, value.mean - value.low
    if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-12):
        return f"{mean} ± {_number(column, up, signed=False)}"
    ends = (_number(column, end, column.signed) for end in (value.low, value.high))
    return f"{mean} [{', '.join(ends)}]"


def _number(column: Column, value: float, signed: bool) -> str:
    shown = value * column.scale
    text = f"{shown:.{column.digits}f}" if column.digits is not None else f"{shown:.10g}"
    if column.p_value and column.digits is not None and 0 <= shown < 10**-column.digits:
        return f"<{10**-column.digits:.{column.digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")  # a rounded "-0.00" claims a direction that is not there
    return f"+{text}" if signed and shown > 0 else text


def _headings(table: Table) -> list[str]:
    return [one_line(column.heading) for column in table.columns]


def _body(table: Table) -> list[list[str]]:
    return [[show(column, entry) for column, entry in row] for row in table.pairs()]


# --- renderers -------------------------------------------------------------------------------


def to_markdown(table: Table, level: int = 2) -> str:
    """A GitHub-flavoured Markdown section: heading of `level`, table padded for reading, notes."""
    rows = [[_escape_markdown(text) for text in row] for row in (_headings(table), *_body(table))]
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
    words = [heading.split() for heading in _headings(table)]
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

    What there is no value for is empty. Titles, notes and marks are left out. Read it with
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
    texts = [_csv_text(value) for value in values]
    return texts + [""] * (len(_csv_names(column)) - len(texts))


def _csv_text(value: str | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(float(value))  # numpy's own floats print their type as well
    return one_line(str(value))


def to_latex(table: Table) -> str:
    r"""A LaTeX table; the document needs \usepackage{booktabs}."""
    rows = [[_escape_latex(text) for text in row] for row in (_headings(table), *_body(table))]
    head, *body = (f"{' & '.join(row)} \\\\" for row in rows)
    notes = [f"{_escape_latex(one_line(note))}\\\\" for note in table.notes]
    return "\n".join([
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape_latex(one_line(table.title))}}}",
        rf"\begin{{tabular}}{{{''.join(column.align[0] for column in table.columns)}}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}",
        *((r"\par\raggedright\footnotesize", *notes) if notes else ()),
        r"\end{table}",
    ]) + "\n"  # fmt: skip


def to_html(table: Table) -> str:
    """A <table> that scrolls within itself, and a list of notes.

    `data-value` holds the raw number, to sort by; texts of many words may be broken.
    """
    heads = (
        f'<th scope="col" style="text-align:{column.align}">{html.escape(text)}</th>'
        for column, text in zip(table.columns, _headings(table), strict=True)
    )
    title = html.escape(one_line(table.title))
    lines = [f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">']
    lines += ["<table>", f"<caption><span>{title}</span></caption>"]
    lines += ["<thead>", f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for row in table.pairs():
        lines.append(f"<tr>{''.join(_html_cell(column, entry) for column, entry in row)}</tr>")
    lines += ["</tbody>", "</table>", "</div>"]
    if table.notes:
        notes = (f"<li>{html.escape(one_line(note))}</li>" for note in table.notes)
        lines += ['<ul class="notes">', *notes, "</ul>"]
    return "\n".join(lines) + "\n"


def _html_cell(column: Column, entry: Entry) -> str:
    value = entry.value.mean if isinstance(entry.value, Interval) else entry.value
    raw = f' data-value="{_csv_text(value)}"' if isinstance(value, (int, float)) else ""
    text = show(column, entry)
    long = ' class="long"' if len(text) > LONG else ""
    return f'<td{long} style="text-align:{column.align}"{raw}>{html.escape(text)}</td>'


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


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    # At the start of a row these would be read as arguments of the line break before it.
    "[": "{[}", "*": "{*}",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(c, c) for c in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus sign, not a hyphen


# --- files -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tables that belong together: they share their files and a section of the report.

    Attributes:
        name: of the files, without an ending, and of the section, for links.
        title: one line.
        tables: in order.
        text: a paragraph above them; empty for none.
    """

    name: str
    title: str
    tables: tuple[Table, ...] = ()
    text: str = ""


def notes_once(tables: Sequence[Table]) -> list[Table]:
    """The tables, with the notes that all of them have under the last one alone."""
    if not tables:
        return []
    *others, last = tables
    shared = [note for note in last.notes if all(note in table.notes for table in others)]
    return [
        *(replace(t, notes=tuple(note for note in t.notes if note not in shared)) for t in others),
        last,
    ]


def write_section(section: Section, folder: Path) -> list[Path]:
    """Writes `<name>.md`, `<name>.tex` and `<name>.csv`; returns their paths.

    Notes that all tables have are written under the last one alone.
    The CSV holds the tables' titles in a first column "table". Tables of other columns than the
    first one's are in files of their own, `<name>_2.csv` and so on; those that an earlier call
    wrote and this one does not are removed.
    """
    head = [f"# {_escape_markdown(one_line(section.title))}\n"]
    head += [f"{_escape_markdown(one_line(section.text))}\n"] if section.text else []
    tables = notes_once(section.tables)
    contents = {
        f"{section.name}.md": "\n".join([*head, *map(to_markdown, tables)]),
        f"{section.name}.tex": "\n".join(map(to_latex, tables)),
    }
    for place, alike in enumerate(_by_columns(section.tables), start=1):
        name = section.name if place == 1 else f"{section.name}_{place}"
        contents[f"{name}.csv"] = to_csv(_titled(alike))
    for name, content in contents.items():
        write_atomically(folder / name, content)
    for path in folder.glob(f"{section.name}_[0-9]*.csv"):
        if path.name not in contents and path.stem.rpartition("_")[2].isdecimal():
            path.unlink()
    return [folder / name for name in contents]


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
