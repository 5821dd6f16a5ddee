"""Accuracies and gains of all pairs side by side."""

from __future__ import annotations

from dataclasses import replace

import summary_grid as grid

from bench.record import Plan
from bench.report.overview import overview_tables
from bench.report.tables import Table, show, to_csv


def measured(values: dict[tuple[str, float, str], list[float]]) -> tuple[Plan, dict]:
    """A plan and records from (axis, its value, label) -> accuracies by seed."""
    rows, records = [], {}
    for (axis, value, label), accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            row = grid.row(label, seed)
            axes = {"fraction": 1.0, "labels": 1.0, "resolution": 1.0, axis: value}
            row = replace(row, axes=axes, cell_id=f"{row.cell_id}-{axis}-{value:g}")
            rows.append(row)
            records[row.cell_id] = grid.finished(row, accuracy, accuracy, None)
    return Plan(name="p", description="", config={}, rows=rows), records


def shown(table: Table) -> dict[str, list[str]]:
    """Label -> its entries as shown, without label and category."""
    return {
        str(row[0][1].value): [show(column, entry) for column, entry in row[2:]]
        for row in table.pairs()
    }


def test_a_column_a_pair_and_a_row_a_method_as_worked_out_by_hand():
    accuracy, gain = overview_tables(grid.plan(), grid.records())
    assert [c.heading for c in accuracy.columns] == ["method", "category", "wide -> narrow (%)"]
    # The arithmetic is that of tests/golden/summary/README.md.
    assert shown(accuracy)["soft_logits"] == ["75.25 ± 15.88"]
    assert shown(accuracy)["fitnet"] == ["71.00 (n=1)"]
    assert shown(accuracy)["fsp"] == ["-"]
    assert list(shown(accuracy))[:2] == ["teacher", "student"]
    assert shown(gain)["soft_logits"] == ["+4.25 ± 3.18"]
    assert shown(gain)["attention_transfer"] == ["+0.50 ± 12.71 ~"]
    assert "student" not in shown(gain)
    assert accuracy.notes[0].startswith("Means over 2 seeds ± the half-width")


def test_columns_name_what_differs_between_pairs():
    values = (1.0, 0.25)
    plan, records = measured(
        {
            ("fraction", value, label): [value / 10, value / 10]
            for value in values
            for label in ("student", "fitnet")
        }
    )
    accuracy, gain = overview_tables(plan, records)
    names = [column.name for column in accuracy.columns[2:]]
    assert names == ["digits: wide -> narrow", "digits, fraction 0.25: wide -> narrow"]
    assert shown(accuracy)["fitnet"] == [f"{10 * value:.2f} ± 0.00" for value in values]
    # Equal to the student at every seed: an interval of no width that contains 0.
    assert shown(gain)["fitnet"] == ["0.00 ± 0.00 ~"] * len(values)


def test_a_row_that_a_pair_lacks_is_empty_there_and_fewer_seeds_are_said():
    plan, records = measured(
        {
            ("fraction", 1.0, "student"): [0.5, 0.5, 0.5],
            ("fraction", 1.0, "rkd"): [0.6, 0.6],
            ("fraction", 0.5, "student"): [0.4, 0.4, 0.4],
        }
    )
    accuracy, gain = overview_tables(plan, records)
    assert shown(accuracy)["rkd"] == ["60.00 ± 0.00 (n=2)", "-"]
    assert shown(gain)["rkd"] == ["+10.00 ± 0.00 (n=2)", "-"]
    header, *lines = to_csv(accuracy).splitlines()
    assert header.startswith("label,category,digits: wide -> narrow,digits: wide -> narrow_low,")
    assert lines[1].endswith(",,,,")
