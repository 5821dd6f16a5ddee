"""Figures: where marks and labels lie, what is highlighted, and colours that everybody can tell."""

import re
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import summary_grid as grid
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost import COSTS

from bench.cost.costs import Costs, Quartiles
from bench.hyperparameters import METHODS, build_method
from bench.record import Plan
from bench.report import figures, page
from bench.report.figures import Box, linear, logarithmic, place_labels
from bench.report.results import findings

LABELS = ("teacher", "student", "soft_logits", "fitnet", "rkd")
PLOT = Box(0, 0, 400, 300)


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


# --- labels ----------------------------------------------------------------------------------

CROWD = [(150 + 16 * (i % 4), 100 + 11 * (i % 5), f"method {i}") for i in range(20)]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.floats(0, 300), st.text("a_= (", min_size=1, max_size=30)),
        max_size=12,
    )
)
def test_no_label_overlaps_another_or_leaves_the_plot(points):
    boxes = [label.box for label in place_labels(points, PLOT) if label is not None]
    assert all(box.inside(PLOT) for box in boxes)
    assert not any(a.meets(b) for a, b in combinations(boxes, 2))


def test_most_of_a_crowd_and_the_first_of_all_have_a_label():
    placed = place_labels(CROWD, PLOT)
    assert placed[0] is not None
    assert sum(label is not None for label in placed) > 10
    taken = [Box(0, 0, 400, 145)]
    first = place_labels(CROWD[-1:], PLOT, taken)[0]
    assert first is not None
    assert not first.box.meets(taken[0])


def test_scales_have_round_ticks_and_keep_what_is_beyond_at_their_ends():
    scale = linear([-0.02, 0.03], 100, 0)
    assert 0 in scale.ticks
    assert all(tick == pytest.approx(round(tick, 2)) for tick in scale.ticks)
    assert (scale.at(-1), scale.at(1)) == (100, 0)
    assert logarithmic([1, 9], 0, 10).ticks == [1, 1.5, 2, 3, 4, 6, 8]


# --- what they show --------------------------------------------------------------------------


def test_rows_are_sorted_and_filled_if_proven_and_three_are_highlighted_at_most():
    plan, records = evidence(pairs=1)
    found = findings(plan, records, costs())
    lines = found.lines[next(iter(found.answers))]
    lines = [replace(line, proven=line.label == "rkd") for line in lines]
    plot = figures.forest(lines)
    assert plot is not None
    assert [line.label for line, _ in plot.rows] == ["soft_logits", "fitnet", "rkd"]
    assert [mark.filled for _, mark in plot.rows] == [False, False, True]
    assert sum(mark.strong for _, mark in plot.rows) <= figures.HIGHLIGHTED
    assert plot.scale.at(0.1) > plot.scale.at(0) > plot.scale.at(-0.1)
    assert figures.forest([]) is None


def test_the_line_of_longer_training_begins_at_the_student():
    rows, records = [], {}
    values = {"student": 0.5, "student (epochs_factor=2.0)": 0.6, "rkd": 0.7}
    for label, value in values.items():
        for seed in range(3):
            row = replace(
                grid.row("rkd", seed), label=label, cell_id=f"{label[:13]}{len(label)}-{seed}",
                role="student" if label == "student" else "method",
                method="student" if "student" in label else "rkd", category="baseline",
            )  # fmt: skip
            record = grid.finished(row, value + 0.01 * seed, value, None)
            records[row.cell_id] = replace(
                record, final={**record.final, "epochs": 60 if "2.0" in label else 30}
            )
            rows.append(row)
    plan = Plan(name="p", description="", config={}, rows=rows)
    measured = Costs([replace(costs().records[-1], teacher="wide", student="narrow")])
    found = findings(plan, records, measured)
    lines = found.lines[next(iter(found.answers))]
    plot = figures.gain_cost([replace(line, added="+707 % parameters") for line in lines])
    assert plot is not None
    student, *_ = plot.spots
    assert plot.longer[0] == (student.x, student.y)
    assert len(plot.longer) == 2
    assert {spot.label.text for spot in plot.spots} == {
        "no teacher",
        "no teacher, 2.0× epochs",
        "rkd",
    }


def test_without_costs_or_curves_there_is_no_figure():
    plan, records = evidence(pairs=1)
    bare = {cell: replace(record, curves={}) for cell, record in records.items()}
    found = findings(plan, bare, None)
    key = next(iter(found.answers))
    assert figures.gain_cost(found.lines[key]) is None
    assert figures.curves(found.groups[key], found.lines[key]) is None


def test_a_row_of_another_length_has_a_name_and_no_curve():
    plan, records = evidence(pairs=1)
    for cell, record in records.items():
        if "rkd" in cell:
            curve = {"test_accuracy": [0.5] * 8}
            records[cell] = replace(record, curves=curve)
    found = findings(plan, records, None)
    key = next(iter(found.answers))
    plot = figures.curves(found.groups[key], found.lines[key])
    assert plot is not None
    assert {row.title: len(row.points) for row in plot.rows} == {
        "teacher": 2, "no teacher": 2, "soft_logits": 2, "fitnet": 2, "rkd": 0,
    }  # fmt: skip
    names = [row.name_y for row in plot.rows]
    assert min(b - a for a, b in pairwise(names)) >= figures.BETWEEN


def test_a_figure_of_its_own_is_an_image_with_its_finding_as_text():
    plan, records = evidence(pairs=1)
    found = findings(plan, records, costs())
    key = next(iter(found.answers))
    hostile = key._replace(data="<data>")
    found = replace(found, groups={hostile: found.groups[key]}, lines={hostile: found.lines[key]})
    files = page.figure_files(found)
    svg = next(text for name, text in files.items() if name.startswith("gain_cost_"))
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "soft_logits leads" in svg
    assert "&lt;data&gt;" in svg
    assert "prefers-color-scheme: dark" in svg


# --- colours ---------------------------------------------------------------------------------

CSS = (Path(page.FOLDER) / "figure.css").read_text()
THEMES = [
    dict(re.findall(r"--(\w+): (#\w{6})", part))
    for part in CSS.split("@media screen and (prefers", maxsplit=1)
]
HUES = ("baseline", "response", "multi", "shared", "other")
# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision
# Deficiency, IEEE TVCG 15, 2009: severity 1.0.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
}  # fmt: skip


def linear_rgb(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    bright = sorted(float(linear_rgb(x) @ [0.2126, 0.7152, 0.0722]) for x in (a, b))
    return (bright[1] + 0.05) / (bright[0] + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([
        [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]) @ rgb.clip(0, 1) / [0.95047, 1.0, 1.08883]  # fmt: skip
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_categories_stand_out_from_the_page_and_from_each_other(theme):
    for hue in HUES:
        assert contrast(theme[hue], theme["paper"]) >= 3
    for text in ("ink", "faint"):
        assert contrast(theme[text], theme["paper"]) >= 4.5
    for name, matrix in BLINDNESS.items():
        for a, b in combinations(HUES[:4], 2):
            seen = [lab(matrix @ linear_rgb(theme[hue])) for hue in (a, b)]
            assert np.linalg.norm(seen[0] - seen[1]) > 20, (name, a, b)


def test_every_method_s_category_has_a_colour():
    for name in METHODS.names():
        assert f".{build_method(name).category} {{" in CSS
