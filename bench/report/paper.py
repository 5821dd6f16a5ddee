r"""The paper's table of a grid, in LaTeX: gains of every method and pair that fit \textwidth."""

import re
from pathlib import Path
from typing import NamedTuple

import jinja2

from bench.decide.evidence import row_title
from bench.faults import counted, one_line
from bench.report.results import Findings, level_text
from bench.report.tables import Column, show
from bench.report.wording import mean_over, range_text

TEMPLATE = Path(__file__).parent / "template" / "paper.tex"
# Of LaTeX's article at its default size: points of \textwidth, lines of \scriptsize a page, points
# of its letters, at least the mean one's, and between two columns; letters of a name unbroken.
TEXT_WIDTH, TEXT_LINES, LETTER, GAP, LONGEST = 345.0, 56, 4.2, 7.0, 34

GAIN = Column("gain", "gain", "points", digits=1, signed=True, interval=True)

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
    shown = {("mean over", mean_over(found.overall)): found.overall_lines}
    for key in found.answers:
        title = found.titles[key].removeprefix(key.teacher).strip()
        shown[key.teacher, title] = found.lines[key]
    columns = []
    for head, lines in shown.items():
        gains = {line.label: show(GAIN, line.gain) for line in lines if line.gain is not None}
        proven = {line.label for line in lines if line.proven}
        columns += [_Column(head, gains, proven)] if gains else []
    labels = dict.fromkeys(label for column in columns for label in column.gains)
    name = LETTER * min(LONGEST, max((len(row_title(label)) for label in labels), default=0))
    widest = max((len(x) for c in columns for x in (*c.head, *c.gains.values())), default=1)
    a_block = max(1, int((TEXT_WIDTH - name) / (GAP + LETTER * widest)))
    blocks = [columns[i : i + a_block] for i in range(0, len(columns), a_block)]
    a_page = max(1, TEXT_LINES // (len(labels) + 4))
    pages = [blocks[i : i + a_page] for i in range(0, len(blocks), a_page)] or [[]]
    mark = re.sub(r"[^A-Za-z0-9]+", "-", found.plan.name)
    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<",
        variable_end_string=">>", trim_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"tex": escape, "title": row_title}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    claims = [claim for answer in found.answers.values() for claim in answer.claims]
    seeds = range_text({claim.gain.n for claim in claims if claim.gain} or {0}, str)
    caption = (
        f"{found.plan.name}: gain over the student alone in percentage points, ± half of the "
        "interval that holds for all claims of a pair at once; n = "
        f"{counted(seeds, 'seed')}. Bold: proven (paired t test, Holm, "
        f"{level_text(found.plan)})."
    )
    if found.overall:
        caption += " A mean's is its 95 % interval over students."
    more = dict.fromkeys(line.title for lines in shown.values() for line in lines if line.added)
    if more:
        caption += f" Deployed is more than the student: {', '.join(more)}."
    return template.render(pages=pages, labels=labels, width=name, mark=mark, caption=caption)
