"""A grid's results as lines for a terminal: tables, then the answer for each pair."""

from dataclasses import replace

from bench.report.card import pair_lines, sentences
from bench.report.results import Findings, remarks, summary_section
from bench.report.tables import Table, to_text

WIDE = 110
"""Columns of a terminal from which on tables show accuracies and seeds too."""

NARROW = ("label", "gain", "cost", "verdict")
REFERENCES = ("teacher", "student")


def result_tables(found: Findings, width: int) -> list[str]:
    """The tables of the summary for a terminal of so many columns, without notes, best first."""
    return [to_text(_shown(table, width)) for table in summary_section(found).tables]


def _shown(table: Table, width: int) -> Table:
    if width >= WIDE:
        keys = [column.key for column in table.columns if not column.detail]
        return replace(table.only(keys), notes=())
    narrow = table.only(NARROW)
    # Neither has a gain: it would be their accuracy that counts.
    rows = [row for row in narrow.rows if row["verdict"] not in REFERENCES]
    return replace(narrow, rows=rows, notes=())


def result_lines(found: Findings) -> list[str]:
    """What has to be said of single rows, then the answer, and for each pair if there are more."""
    lines = [
        f"{title}: {remark}"
        for key, title in found.titles.items()
        for remark in remarks(found, key)
    ]
    lines += ["".join(part.text for part in sentence) for sentence in sentences(found)]
    for pair in pair_lines(found) if len(found.answers) > 1 else ():
        answer = f"{pair.verdict}: {pair.row}, {pair.gain}, {pair.cost}"
        lines.append(f"{pair.title}: {answer if pair.verdict else f'no answer: {pair.row}'}")
    return lines
