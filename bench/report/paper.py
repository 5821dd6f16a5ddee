r"""The paper's table of a grid, in LaTeX: gains of every method and pair that fit \textwidth."""

import re
from collections.abc import Mapping, Sequence

from bench.faults import one_line
from bench.report.results import Findings, Line
from bench.report.tables import Column, show
from bench.report.wording import row_title

TEXT_WIDTH, TEXT_LINES = 345.0, 56
r"""Points of \textwidth in LaTeX's article at its default size, and lines of \scriptsize a page."""

SIZES = (("footnotesize", 4.7), ("scriptsize", 4.2))
"""Size of the text, and points of a letter, at least the mean one's; the second for many pairs."""

GAP = 7.0
"""Points between two columns."""

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


def paper_table(found: Findings) -> str:
    r"""Rows by gain, a column a pair, in as many blocks as \textwidth needs.

    The document needs \usepackage{booktabs}. Bold is proven.
    """
    columns = {
        found.titles[key]: {line.label: line for line in found.lines[key] if line.gain is not None}
        for key in found.pairs
    }
    columns = {title: lines for title, lines in columns.items() if lines}
    overall = {line.label: line for line in found.overall_lines}
    if overall:
        columns = {f"mean over {len(found.pairs)} pairs": overall, **columns}
    labels = list(dict.fromkeys(label for lines in columns.values() for label in lines))
    name = min(LONGEST, max((len(row_title(label)) for label in labels), default=0))
    size, letter = SIZES[0]
    if len(_blocks(columns, name, letter)) > 2:
        size, letter = SIZES[1]
    blocks = [_block(b, labels, name * letter) for b in _blocks(columns, name, letter)]
    seeds = {len(row.every_seed) for pair in found.pairs.values() for row in pair.finalists}
    mark = re.sub(r"[^A-Za-z0-9]+", "-", found.plan.name)
    together = max(1, TEXT_LINES // (len(labels) + 4))
    tables = [blocks[i : i + together] for i in range(0, len(blocks), together)] or [[]]
    return "\n".join(
        "\n".join([
            r"\begin{table}", r"\centering", rf"\{size}", r"\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(_caption(found, seeds) if part == 0 else '(continued)')}}}",
            rf"\label{{tab:{mark}{f'-{part + 1}' if part else ''}}}",
            "\n\\par\\medskip\n".join(table),
            r"\end{table}", "",
        ])
        for part, table in enumerate(tables)
    )  # fmt: skip


def _caption(found: Findings, seeds: set[int]) -> str:
    n = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else "".join(map(str, seeds))
    return (
        f"{found.plan.name}: gain over the student alone in percentage points, ± half of the "
        f"interval that holds for all claims of a pair at once; n = {n or 0} seeds. Bold: proven "
        "(paired t test, Holm, 5 %)."
    )


def _cell(line: Line | None) -> str:
    if line is None or line.gain is None:
        return "--"
    text = escape(show(GAIN, line.gain))
    return rf"\textbf{{{text}}}" if line.proven else text


def _widest(title: str, lines: Mapping[str, Line]) -> int:
    """Letters of a column."""
    texts = [*_heading(title), *(show(GAIN, line.gain) for line in lines.values())]
    return max(map(len, texts))


def _heading(title: str) -> tuple[str, str]:
    """A pair's title in two lines: the teacher, then its student."""
    first, arrow, second = title.partition(" → ")
    return (first, f"{arrow.strip()} {second}") if arrow else (title, "")


def _blocks(
    columns: Mapping[str, Mapping[str, Line]], name: int, letter: float
) -> list[dict[str, Mapping[str, Line]]]:
    blocks: list[dict[str, Mapping[str, Line]]] = []
    left = 0.0
    for title, lines in columns.items():
        width = GAP + letter * _widest(title, lines)
        if not blocks or width > left:
            blocks.append({})
            left = TEXT_WIDTH - letter * name
        blocks[-1][title] = lines
        left -= width
    return blocks


def _block(columns: Mapping[str, Mapping[str, Line]], labels: Sequence[str], width: float) -> str:
    heads = [_heading(title) for title in columns]
    rows = [
        [row_title(label), *(_cell(lines.get(label)) for lines in columns.values())]
        for label in labels
    ]
    lines = [" & ".join([escape(row[0]), *row[1:]]) + r" \\" for row in rows]
    first, second = (" & ".join(["", *(escape(h[i]) for h in heads)]) + r" \\" for i in (0, 1))
    return "\n".join([
        rf"\begin{{tabular}}{{@{{}}p{{{width:.0f}pt}}{'r' * len(heads)}@{{}}}}",
        r"\toprule", first, second, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip
