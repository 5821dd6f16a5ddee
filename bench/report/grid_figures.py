"""The figures of a grid: what each is drawn from, its file and its caption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.cost.costs import Costs
from bench.record import FINISHED, Plan, Record
from bench.report.candidates import cost_ratio, costs_of
from bench.report.drawing import file_name, save_figure
from bench.report.figures import Line, Point, draw_curves, draw_gain_against_cost
from bench.report.palette import Style, row_styles
from bench.report.summary import Group, PairKey, baseline, measured_groups
from bench.statistics import Interval, mean_interval, paired_differences


class Picture(NamedTuple):
    """A figure that was written.

    Attributes:
        part: of the report, that it belongs to.
        path: the SVG file.
        caption: what it shows, one or two sentences.
    """

    part: str
    path: Path
    caption: str


def write_grid_figures(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None, folder: Path
) -> list[Picture]:
    """Draws whatever the records hold enough for; equal records give equal bytes.

    Args:
        plan: what was asked for.
        records: by cell id.
        costs: of the grid; None for none.
        folder: made if there is anything to write.

    Returns:
        For each pair `curves_<pair>` and, where it was profiled, `gain_cost_<pair>`.
    """
    # A row looks the same in all figures.
    styles = row_styles({row.label: row.method for row in plan.rows if row.role != "source"})
    pictures = []
    for key, groups in measured_groups(plan, records).items():
        pictures += _curves(plan, key, groups, styles, folder)
        pictures += _gain_cost(key, groups, costs, styles, folder)
    return pictures


# --- learning curves -------------------------------------------------------------------------


def _curves(
    plan: Plan, key: PairKey, groups: Iterable[Group], styles: Mapping[str, Style], folder: Path
) -> list[Picture]:
    lines = [line for group in groups if (line := _line(group, styles[group.label])) is not None]
    if not lines:
        return []
    held_out = plan.config.get("data", {}).get("validation")
    measured_on = "held-out training images" if held_out else "test set"
    caption = (
        f"{key.title}: accuracy on the {measured_on} over epochs, mean over seeds; on the right "
        "the last epoch with its 95 % t interval."
    )
    figure = draw_curves(lines, key.title, measured_on)
    path = save_figure(figure, folder / f"curves_{file_name(key.title)}")
    return [Picture("pairs", path, caption)]


def _line(group: Group, style: Style) -> Line | None:
    """Means over the finished cells, at the epochs that all of them measured."""
    finished = [r for r in group.records.values() if r.status == FINISHED]
    measured = [_measured(record) for record in finished]
    last = group.by_cell("last_accuracy")
    common = sorted(set.intersection(*(set(m) for m in measured))) if measured else []
    if not common or not last:
        return None
    values = [mean_interval([m[epoch] for m in measured]).mean for epoch in common]
    return Line(group.label, common, values, mean_interval(last), style)


def _measured(record: Record) -> dict[int, float]:
    """Epoch, from 1, -> accuracy, where it was measured."""
    curve = record.curves.get("test_accuracy", [])
    return {i: x for i, x in enumerate(curve, start=1) if x is not None and math.isfinite(x)}


# --- gain against cost -------------------------------------------------------------------------


def _gain_cost(
    key: PairKey,
    groups: Sequence[Group],
    costs: Costs | None,
    styles: Mapping[str, Style],
    folder: Path,
) -> list[Picture]:
    measured, conditions = costs_of(costs, key)
    if not measured:
        return []
    known = {record.label: record for record in measured}
    student = baseline(groups)
    points = []
    for group in groups:
        differences = paired_differences(group.by_seed("last_accuracy"), student)
        ratio = cost_ratio(group.label, known.get(group.label))
        if group.role != "teacher" and ratio is not None and differences:
            gain = mean_interval(differences)
            if group.label == "student":
                gain = Interval(0.0, None, None, gain.n)  # itself: nothing to tell
            points.append(Point(group.label, ratio, gain, styles[group.label]))
    if len(points) < 2:
        return []
    caption = (
        f"{key.title}: gain over the student against the cost of the whole training, measured "
        f"{conditions}."
    )
    figure = draw_gain_against_cost(points, key.title)
    path = save_figure(figure, folder / f"gain_cost_{file_name(key.title)}")
    return [Picture("cost", path, caption)]
