"""The table model, its renderers, and the summary against files worked out by hand."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import summary_grid as grid
from hypothesis import given
from hypothesis import strategies as st

from bench.faults import one_line
from bench.record import FAILED, NOT_APPLICABLE, Plan
from bench.report.groups import cells_csv
from bench.report.results import findings, summary_section
from bench.report.tables import (
    Column,
    Section,
    Table,
    Value,
    notes_once,
    show,
    to_csv,
    to_markdown,
    to_text,
    write_csv,
    write_markdown,
)
from bench.statistics import Interval

GOLDEN = Path(__file__).parent / "golden" / "summary"
PERCENT = Column(key="a", name="accuracy", unit="%", digits=2, interval=True)
POINTS = Column(key="g", name="gain", unit="points", digits=2, signed=True, interval=True)
PLAIN = Column(key="x", name="x")
LABEL = Column(key="label", name="method", align="left")

SMALL = Table(
    title="A & B",
    columns=(LABEL, POINTS),
    rows=({"label": "soft_logits", "g": Interval(0.01, 0.005, 0.015, 3)}, {"label": "a|b <i>"}),
    notes=("~ is 5 % of $x_1$",),
)


def one(value) -> Table:
    return Table(title="t", columns=(LABEL,), rows=({"label": value},))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (PERCENT, Interval(0.7123, 0.7, 0.7246, 3), "71.23 ± 1.23"),
        (PERCENT, Interval(0.7123, None, None, 1), "71.23 (n=1)"),
        (PERCENT, Interval(0.7, 0.6, 0.75, 9), "70.00 [60.00, 75.00]"),
        (PERCENT, None, "-"),
        (POINTS, Interval(0.01, -0.01, 0.03, 2), "+1.00 ± 2.00"),
        (POINTS, Interval(-0.01, -0.02, 0.0, 2), "-1.00 ± 1.00"),
        (POINTS, Interval(-0.00001, None, None, 1), "0.00 (n=1)"),
        (POINTS, 0.0, "0.00"),
        (PLAIN, 30, "30"),
        (PLAIN, 30.0, "30"),
        (PLAIN, 12.5, "12.5"),
        (LABEL, "two\nlines\t\x1b[31m", "two lines [31m"),
    ],
)
def test_a_value_is_shown_as_people_read_it(column: Column, value: Value, expected: str) -> None:
    assert show(column, value) == expected


def test_a_table_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="table 't' has no column y"):
        Table("t", (LABEL, PLAIN), ({"label": "a", "y": 1},))
    with pytest.raises(ValueError, match="x_low"):
        to_csv(Table("t", (PLAIN,), ({"x": Interval(1, None, None, 1)},)))


def test_markdown_is_escaped_and_aligned() -> None:
    assert to_markdown(SMALL, level=3) == (
        "### A & B\n\n"
        "| method      | gain (points) |\n"
        "| ----------- | ------------: |\n"
        "| soft_logits |  +1.00 ± 0.50 |\n"
        "| a\\|b \\<i>   |             - |\n\n"
        "- ~ is 5 % of \\$x_1\\$\n"
    )


def test_csv_holds_raw_numbers_in_full_precision() -> None:
    assert to_csv(SMALL) == (
        "label,g,g_low,g_high,g_n\nsoft_logits,0.01,0.005,0.015,3\na|b <i>,,,,\n"
    )
    third = Table("t", (replace(PERCENT, interval=False),), ({"a": 1 / 3},))
    assert to_csv(third) == "a\n0.3333333333333333\n"


@pytest.mark.parametrize("render", [to_markdown, to_text, to_csv])
def test_a_table_without_rows_or_notes_renders(render) -> None:
    assert render(Table(title="t", columns=(LABEL,), rows=())).endswith("\n")


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_stays_in_its_markdown_cell(text: str) -> None:
    row = to_markdown(one(text)).split("\n")[4]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 2


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_from_the_csv_in_one_line(text: str) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(one(text)), newline="")))
    (found,) = (rows[1] or [""]) if len(rows) > 1 else [""]
    assert found.removeprefix("'") == one_line(text).removeprefix("'")
    assert not found.startswith(("=", "+", "-", "@"))


def test_numbers_below_zero_are_no_formulas_and_stay_numbers() -> None:
    assert to_csv(one(-0.5)).splitlines()[1] == "-0.5"
    assert to_csv(one("-0.5")).splitlines()[1] == "'-0.5"


def test_columns_of_detail_are_in_the_csv_alone() -> None:
    table = replace(SMALL, columns=(LABEL, replace(POINTS, detail=True)))
    assert "gain" not in to_markdown(table)
    assert "g_low" in to_csv(table)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("attention_transfer", "attention_transfer"),
        ("_x_ *y* `z`", "\\_x\\_ \\*y\\* \\`z\\`"),
        ("1.00 ~", "1.00 ~"),
        ("[a](b) &lt; <i> $x$", "\\[a](b) \\&lt; \\<i> \\$x\\$"),
    ],
)
def test_markdown_escapes_only_what_would_be_markup(text: str, escaped: str) -> None:
    assert f"| {escaped} |" in re.sub(r" +", " ", to_markdown(one(text)))


def golden(name: str) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


def test_the_summary_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    section = summary_section(findings(grid.plan(), grid.records(), None))
    files = [write_csv(section, tmp_path), write_markdown(section, tmp_path)]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == golden("summary.md")
    written = (tmp_path / "summary.csv").read_text(encoding="utf-8")
    found, expected = (list(csv.reader(io.StringIO(x))) for x in (written, golden("summary.csv")))
    assert [list(map(number_or_text, row)) for row in found] == [
        [pytest.approx(x, abs=1e-11) if isinstance(x, float) else x for x in row]
        for row in (list(map(number_or_text, row)) for row in expected)
    ]


def number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_cells_equal_those_written_by_hand() -> None:
    assert cells_csv(grid.plan(), grid.records()) == golden("cells.csv")


def tables(plan, records) -> Sequence[Table]:
    return summary_section(findings(plan, records, None)).tables


def test_what_holds_for_every_table_is_said_once() -> None:
    plan, records = grid.plan(), grid.records()
    for other in plan.rows[-2:]:
        records[other.cell_id] = grid.finished(other, 0.5, 0.5, None)
    first, last = notes_once(tables(plan, records))
    failure, refusal, gain = first.notes
    assert failure.startswith("fitnet, seed 1: FloatingPointError")
    assert refusal.startswith("fsp, seeds 0-1: FSP")
    assert gain.startswith("Gain")
    assert len(last.notes) == 3
    assert not notes_once([])


def shown(rows, records, label: str) -> dict[str, str]:
    """The entries of one label as shown, by the key of their column."""
    plan = Plan(name="p", description="", config={}, rows=rows)
    (table,) = tables(plan, {one.cell_id: one for one in records})
    row = next(row for row in table.shown() if row[0] == label)
    return {column.key: text for column, text in zip(table.columns, row, strict=True)}


def seeds(label: str, *accuracies: float | None):
    rows = [grid.row(label, seed) for seed in range(len(accuracies))]
    pairs = zip(rows, accuracies, strict=True)
    return rows, [grid.finished(row, a, a, None) for row, a in pairs if a is not None]


def test_a_verdict_is_for_every_row_and_the_best_are_first() -> None:
    rows, records = seeds("student", *[0.5] * 4)
    methods = {"fsp": 0.45, "soft_logits": 0.8, "rkd": 0.497, "fitnet": None}
    for label, mean in methods.items():
        values = [None if mean is None else mean + 0.01 * (seed % 2) for seed in range(4)]
        more_rows, more_records = seeds(label, *values)
        rows, records = rows + more_rows, records + more_records
    plan = Plan(name="p", description="", config={}, rows=rows)
    (table,) = tables(plan, {one.cell_id: one for one in records})
    assert table.columns[1].key == "verdict"
    assert [(row["label"], row["verdict"]) for row in table.rows] == [
        ("no teacher", "student"),
        ("soft_logits", "proven"),
        ("rkd", "not proven"),
        ("fsp", "not proven"),
        ("fitnet", "not run"),
    ]


def test_a_teacher_shared_by_all_seeds_is_one_observation() -> None:
    rows, records = seeds("student", 0.50, 0.52)
    shared = [replace(grid.row("teacher", seed), cell_id="one") for seed in (0, 1)]
    records.append(grid.finished(shared[0], 0.75, 0.75, None))
    cells = shown(rows + shared, records, "teacher")
    assert cells["n"] == "1"
    assert cells["accuracy"] == "75.0 (n=1)"


def test_equal_failures_and_notes_are_told_once_with_all_their_seeds() -> None:
    rows = [grid.row("fitnet", seed) for seed in range(3)]
    errors = ["out of\nmemory", "boom", "out of\nmemory"]
    records = [grid.record(row, FAILED, e) for row, e in zip(rows, errors, strict=True)]
    taught = [grid.row("rkd", seed) for seed in range(3)]
    records += [grid.finished(row, 0.7, 0.7, None) for row in taught]
    for one, note in zip(records[3:], ("floor", "", "floor"), strict=True):
        one.stages.extend([{"name": "train"}, {"name": "finetune", "note": note}])
    plan = Plan(name="p", description="", config={}, rows=rows + taught)
    (table,) = tables(plan, {one.cell_id: one for one in records})
    told = to_markdown(table).split("\n- ")[1:4]
    assert told == [
        "fitnet, seeds 0, 2: out of memory", "fitnet, seed 1: boom", "rkd, seeds 0, 2: floor"
    ]  # fmt: skip
    assert shown(rows, records[:3], "fitnet")["verdict"] == "failed"


def test_cells_with_an_accuracy_are_counted() -> None:
    rows = [grid.row("fsp", seed) for seed in range(5)]
    records = [
        grid.finished(rows[0], 0.7, 0.7, None),
        grid.record(rows[1], FAILED, "boom"),
        grid.record(rows[2], NOT_APPLICABLE, "widths"),
        grid.record(rows[3], agreement=0.9),
    ]
    cells = shown(rows, records, "fsp")
    assert cells["n"] == "1"


def test_baselines_come_first_and_methods_in_the_order_of_the_plan() -> None:
    labels = ["rkd", "student", "fitnet", "teacher"]
    rows = [grid.row(label, 0) for label in labels]
    plan = Plan(name="p", description="", config={}, rows=rows)
    one = grid.finished(rows[0], 0.7, 0.7, None)
    (table,) = tables(plan, {one.cell_id: one})
    assert [row["label"] for row in table.rows] == ["teacher", "no teacher", "rkd", "fitnet"]


def test_rows_trained_by_different_code_are_said() -> None:
    records = grid.records()
    (table,) = tables(grid.plan(), records)
    assert not any("different code" in note for note in table.notes)
    for place, record in enumerate(records.values()):
        record.conditions["code"] = "old" if place == 0 else "new"
    (table,) = tables(grid.plan(), records)
    (note,) = [note for note in table.notes if "different code" in note]
    assert "old (1 cell)" in note


def test_two_cells_for_one_label_and_seed_are_refused() -> None:
    row = grid.row("rkd", 0)
    other = replace(row, cell_id="other")
    plan = Plan(name="p", description="", config={}, rows=[row, other])
    with pytest.raises(ValueError, match="both answer for 'rkd', seed 0"):
        tables(plan, {other.cell_id: grid.finished(other, 0.7, 0.7, None)})


def test_tables_of_a_section_share_a_file(tmp_path):
    other = Table("B", (LABEL, POINTS, PLAIN), ({"label": "rkd", "x": 7},))
    path = write_csv(Section(name="both", title="t", tables=(SMALL, other)), tmp_path)
    assert path.read_text() == (
        "table,label,g,g_low,g_high,g_n,x\nA & B,soft_logits,0.01,0.005,0.015,3,\n"
        "A & B,a|b <i>,,,,,\nB,rkd,,,,,7\n"
    )
