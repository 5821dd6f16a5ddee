"""Figures of a grid: what they are drawn from, and what they say. Their bytes: test_page.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import summary_grid as grid
from test_cost import COSTS

from bench.cost.costs import Costs, Quartiles
from bench.record import Plan
from bench.report.figures import Line, draw_curves
from bench.report.grid_figures import write_grid_figures
from bench.report.palette import METHODS, row_styles
from bench.statistics import Interval

LABELS = ("teacher", "student", "soft_logits", "fitnet", "rkd")


def evidence(pairs: int = 2) -> tuple[Plan, dict]:
    """Two seeds of five rows for each pair, curves of four epochs, two of them measured."""
    rows, records = [], {}
    for pair in range(pairs):
        for place, label in enumerate(LABELS):
            for seed in (0, 1):
                row = grid.row(label, seed, f"big{pair}", f"small{pair}")
                last = 0.9 - 0.1 * place + 0.01 * seed
                curve = {"test_accuracy": [None, last / 2, None, last]}
                rows.append(row)
                records[row.cell_id] = replace(grid.finished(row, last, last, None), curves=curve)
    return Plan(name="p", description="", config={}, rows=rows), records


def costs() -> Costs:
    """Four rows of the first pair, with the stages of a made-up measurement."""
    ratios = {"student": 1.0, "soft_logits": 1.2, "fitnet": 1.1, "rkd": 1.5}
    names = {"data": "digits", "teacher": "big0", "student": "small0"}
    measured = next(record for record in COSTS.records if record.label != "student")
    return Costs([
        replace(measured, **names, label=label, method=label, category=grid.CATEGORIES[label],
                training_cost_ratio=Quartiles(x, x - 0.01, x + 0.01, 5))
        for label, x in ratios.items()
    ])  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    write_grid_figures(*evidence(), costs(), folder)
    return folder


def test_every_figure_that_the_records_hold_enough_for(drawn):
    assert sorted(path.name for path in drawn.glob("*.svg")) == [
        "curves_digits-fraction-0.5-big0-to-small0.svg",
        "curves_digits-fraction-0.5-big1-to-small1.svg",
        "gain_cost_digits-fraction-0.5-big0-to-small0.svg",
    ]


def test_text_in_an_svg_is_text_and_names_rows_units_and_what_was_measured(drawn):
    svg = (drawn / "curves_digits-fraction-0.5-big0-to-small0.svg").read_text()
    for text in (*LABELS, "epoch", "accuracy on the test set (%)"):
        assert f">{text}</text>" in svg
    assert "Verdana, sans-serif" in svg
    assert METHODS["rkd"].colour.lower() in svg.lower()


def test_little_evidence_draws_little(tmp_path):
    plan, records = evidence(pairs=1)
    bare = {cell: replace(record, curves={}) for cell, record in records.items()}
    assert write_grid_figures(plan, bare, None, tmp_path) == []
    assert write_grid_figures(plan, {}, None, tmp_path) == []


def test_held_out_images_are_not_called_the_test_set(tmp_path):
    plan, records = evidence(pairs=1)
    plan = replace(plan, config={"data": {"validation": 0.2}})
    pictures = write_grid_figures(plan, records, None, tmp_path)
    assert "accuracy on the held-out training images" in pictures[0].caption
    assert "test set" not in pictures[0].path.read_text()


def test_a_row_of_another_length_has_an_end_and_no_curve():
    styles = row_styles({"student": "student", "rkd": "rkd", "longer": "student"})
    lines = [
        Line(label, range(1, end + 1), [0.5] * end, Interval(0.5, 0.4, 0.6, 3), styles[label])
        for label, end in (("student", 4), ("rkd", 4), ("longer", 8))
    ]
    curves, ends = draw_curves(lines, "t", "test set").axes
    assert [max(line.get_xdata()) for line in curves.lines] == [4, 4]
    assert len(ends.get_yticks()) == 3
