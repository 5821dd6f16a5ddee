r"""The paper's table of a grid, in LaTeX: gains of every method and pair that fit \textwidth."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.faults import one_line
from bench.report.results import Findings, Line
from bench.report.tables import Column, show
from bench.report.wording import range_text, row_title

TEXT_WIDTH, TEXT_LINES = 345.0, 56
r"""Points of \textwidth in LaTeX's article at its default size, and lines of \scriptsize a page."""

LETTER, GAP = 4.2, 7.0
r"""Points of a letter of \scriptsize, at least the mean one's, and between two columns."""

LONGEST = 34
"""Letters of a row's name; a longer one is broken."""

GAIN = Column(key="", name="", digits=1, unit="points", signed=True, interval=True)

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "×": r"$\times$", "→": r"$\to$",
    # At the start of a row these would be read as arguments of the line break before it.
    "[": "{[}", "*": "{*}",
}  # fmt: skip


def escape(text: str) -> str:
    """A text for LaTeX, whatever it holds; letters that its fonts lack become question marks."""
    shown = "".join(_SPECIAL.get(c, c if ord(c) < 0x250 else "?") for c in one_line(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", shown)  # a minus sign, not a hyphen


class _Column(NamedTuple):
    """A heading in two lines, the teacher above its student, and row's label -> gain."""

    head: tuple[str, str]
    gains: dict[str, str]
    proven: set[str]


def paper_table(found: Findings) -> str:
    r"""Rows by gain, a column a pair, in blocks of \textwidth; needs \usepackage{booktabs}."""
    columns = [_column("mean over", f"{len(found.pairs)} pairs", found.overall_lines)]
    columns += [
        _column(key.teacher, found.titles[key].removeprefix(key.teacher).strip(), found.lines[key])
        for key in found.pairs
    ]
    columns = [column for column in columns if column.gains]
    labels = dict.fromkeys(label for column in columns for label in column.gains)
    name = LETTER * min(LONGEST, max((len(row_title(label)) for label in labels), default=0))
    widest = max((len(x) for c in columns for x in (*c.head, *c.gains.values())), default=1)
    a_block = max(1, int((TEXT_WIDTH - name) / (GAP + LETTER * widest)))
    blocks = [
        _block(columns[i : i + a_block], labels, name) for i in range(0, len(columns), a_block)
    ]
    a_page = max(1, TEXT_LINES // (len(labels) + 4))
    pages = [blocks[i : i + a_page] for i in range(0, len(blocks), a_page)] or [[]]
    mark = re.sub(r"[^A-Za-z0-9]+", "-", found.plan.name)
    return "\n".join(
        "\n".join([
            r"\begin{table}", r"\centering", r"\scriptsize", r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape('(continued)' if part else _caption(found))}}}",
            rf"\label{{tab:{mark}{f'-{part + 1}' if part else ''}}}",
            "\n\\par\\medskip\n".join(page),
            r"\end{table}", "",
        ])
        for part, page in enumerate(pages)
    )  # fmt: skip


def _caption(found: Findings) -> str:
    seeds = {len(row.every_seed) for pair in found.pairs.values() for row in pair.finalists} or {0}
    return (
        f"{found.plan.name}: gain over the student alone in percentage points, ± half of the "
        "interval that holds for all claims of a pair at once; n = "
        f"{range_text(seeds, str)} seeds. Bold: proven (paired t test, Holm, 5 %)."
    )


def _column(first: str, second: str, lines: Iterable[Line]) -> _Column:
    measured = [line for line in lines if line.gain is not None]
    gains = {line.label: show(GAIN, line.gain) for line in measured}
    return _Column((first, second), gains, {line.label for line in measured if line.proven})


def _cell(column: _Column, label: str) -> str:
    text = escape(column.gains.get(label, "--"))
    return rf"\textbf{{{text}}}" if label in column.proven else text


def _block(columns: Sequence[_Column], labels: Iterable[str], width: float) -> str:
    rows = [["", *(escape(column.head[line]) for column in columns)] for line in (0, 1)]
    for label in labels:
        rows.append([escape(row_title(label)), *(_cell(column, label) for column in columns)])
    first, second, *body = (" & ".join(row) + r" \\" for row in rows)
    return "\n".join([
        rf"\begin{{tabular}}{{@{{}}p{{{width:.0f}pt}}{'r' * len(columns)}@{{}}}}",
        r"\toprule", first, second, r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip
