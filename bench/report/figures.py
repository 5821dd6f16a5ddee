"""What a grid found, as figures: learning curves, and gain against cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mode
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.ticker import MaxNLocator

from bench.report.drawing import new_figure
from bench.report.palette import Style
from bench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.cost.costs import Quartiles

WIDTH = 7.1
"""Inches: the text of a two-column page, so that 7 points stay 7 points in print."""

SMALL, TEXT = 7, 8
PERCENT = 100
COST_TICKS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)


class Line(NamedTuple):
    """One row's learning curve.

    Attributes:
        label: the row's.
        epochs: 1-based, where it was measured.
        values: accuracy in [0, 1], means over seeds, one an epoch.
        last: the last epoch's, with its interval over seeds.
        style: how it looks.
    """

    label: str
    epochs: Sequence[int]
    values: Sequence[float]
    last: Interval
    style: Style


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _marker(style: Style, size: float = 4.5) -> dict:
    filled = style.filled or style.marker in "x+."
    return {
        "marker": style.marker, "markersize": size, "markeredgecolor": style.colour,
        "markerfacecolor": style.colour if filled else "white", "markeredgewidth": 0.9,
    }  # fmt: skip


# --- learning curves -------------------------------------------------------------------------


def draw_curves(lines: Sequence[Line], title: str, measured_on: str) -> Figure:
    """Accuracy over epochs, and the last epoch's intervals.

    Rows of another length than most, such as the student trained longer, have no curve, which
    would squeeze all others; their last epoch is shown.

    Args:
        lines: at least one; teacher and student among them where they ran.
        title: over all.
        measured_on: what the accuracy is of, such as "test set".
    """
    figure = new_figure(WIDTH, max(3.2, 1.0 + 0.17 * len(lines)))
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    figure.suptitle(title, fontsize=TEXT + 1)
    usual = mode(line.epochs[-1] for line in lines)
    curves = [line for line in lines if line.epochs[-1] == usual]
    for line in curves:
        _curve(left, line)
    _tidy(left)
    left.set_xlabel("epoch", fontsize=TEXT)
    left.margins(x=0.02)
    left.set_ylabel(f"accuracy on the {measured_on} (%)", fontsize=TEXT)
    left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _last_epochs(right, lines)
    return figure


def _curve(axes: Axes, line: Line) -> None:
    axes.plot(
        line.epochs,
        [PERCENT * x for x in line.values],
        color=line.style.colour,
        linestyle=line.style.dash,
        linewidth=1.1,
        markevery=max(1, len(line.epochs) // 6),
        **_marker(line.style, 3.5),
    )


def _last_epochs(axes: Axes, lines: Sequence[Line]) -> None:
    """Every row's last epoch with its interval, best on top: the legend of the curves as well."""
    ordered = sorted(lines, key=lambda line: -line.last.mean)
    for place, line in enumerate(ordered):
        _whisker(axes, place, line.last, line.style)
    axes.set_yticks(range(len(ordered)), [line.label for line in ordered], fontsize=SMALL)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.yaxis.tick_right()
    _tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.set_title("last epoch, 95 % interval", fontsize=SMALL)
    axes.set_xlabel("accuracy (%)", fontsize=TEXT)


def _whisker(axes: Axes, place: float, value: Interval, style: Style) -> None:
    mean = PERCENT * value.mean
    if value.low is not None and value.high is not None:
        axes.plot(
            [PERCENT * value.low, PERCENT * value.high], [place, place], color=style.colour,
            linestyle=style.dash, linewidth=1.1,
        )  # fmt: skip
    axes.plot([mean], [place], color=style.colour, linestyle="none", **_marker(style))


# --- gain against cost -------------------------------------------------------------------------


class Point(NamedTuple):
    """One row's gain and cost.

    Attributes:
        label: the row's.
        cost: whole training over the plain student's, with quartiles.
        gain: accuracy over the plain student's, with its interval.
        style: how it looks.
    """

    label: str
    cost: Quartiles
    gain: Interval
    style: Style


def draw_gain_against_cost(points: Sequence[Point], title: str) -> Figure:
    """Gain over cost.

    Args:
        points: at least one; the plain student (cost 1, gain 0) among them.
        title: over all.
    """
    figure = new_figure(WIDTH, max(3.2, 1.0 + 0.17 * len(points)))
    axes = figure.subplots()
    for point in points:
        _point(axes, point)
    axes.axhline(0, color="#555555", linewidth=0.7)
    axes.set_title(title, fontsize=TEXT + 1)
    scale = _cost_scale(axes, [point.cost.median for point in points])
    label = f"whole training, time over the plain student's (median, quartiles){scale}"
    axes.set_xlabel(label, fontsize=TEXT)
    axes.set_ylabel("gain over the student (pp), 95 % t interval", fontsize=TEXT)
    _tidy(axes)
    axes.legend(fontsize=SMALL, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _cost_scale(axes: Axes, costs: Sequence[float]) -> str:
    """A log scale where one costly row would squeeze the others; returns what to say of it."""
    if max(costs) < 3 * min(costs):
        return ""
    axes.set_xscale("log")
    axes.set_xticks([x for x in COST_TICKS if 0.8 * min(costs) <= x <= 2 * max(costs)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return ", log scale"


def _point(axes: Axes, point: Point) -> None:
    x, y, gain = point.cost.median, PERCENT * point.gain.mean, point.gain
    line = {"color": point.style.colour, "linewidth": 0.7, "alpha": 0.6}
    axes.plot([point.cost.q1, point.cost.q3], [y, y], **line)
    if gain.low is not None and gain.high is not None:
        axes.plot([x, x], [PERCENT * gain.low, PERCENT * gain.high], **line)
    axes.plot([x], [y], linestyle="none", label=point.label, **_marker(point.style, 5.0))
