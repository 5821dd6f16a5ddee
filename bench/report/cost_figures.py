"""What the profiler measured of the losses alone, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.cost.costs import CostRecord, Quartiles
from bench.report.drawing import new_figure
from bench.report.measured import pair_title
from bench.report.palette import CATEGORIES, category_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Bar(NamedTuple):
    """The loss of a stage: its name on the axis, its category and its time."""

    name: str
    category: str
    ms: Quartiles


def _bars(records: Sequence[CostRecord]) -> list[_Bar]:
    """By category, the fastest first."""
    bars = [
        _Bar(f"{r.label}: {s.name}" if len(r.stages) > 1 else r.label, r.category, s.loss.ms)
        for r in records
        for s in r.stages
        if s.loss is not None
    ]
    order = {name: place for place, name in enumerate(CATEGORIES)}
    return sorted(bars, key=lambda bar: (order.get(bar.category, len(order)), bar.ms.median))


def draw_losses(records: Sequence[CostRecord]) -> Figure | None:
    """Bars on a log scale: every transfer loss alone, forward and backward, by category.

    Args:
        records: of one pair under one set of conditions.

    Returns:
        None if no stage has a transfer loss.
    """
    bars = _bars(records)
    if not bars:
        return None
    figure = new_figure(8.0, 1.3 + 0.27 * len(bars))
    axes = figure.subplots()
    figure.suptitle(pair_title(records[0]), fontsize=10)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)  # the first row on top
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    widths = [bar.ms.median for bar in bars]
    styles = [category_style(bar.category) for bar in bars]
    drawn = axes.barh(
        range(len(bars)),
        widths,
        color=[style.colour for style in styles],
        hatch=[style.hatch for style in styles],
        edgecolor="white",
        linewidth=0.5,
    )
    axes.bar_label(drawn, fmt="{:.2f}", padding=4, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(10 ** math.floor(math.log10(min(widths))), 4 * max(widths))
    axes.xaxis.set_major_formatter("{x:g}")
    handles = {bar.category: patch for bar, patch in zip(bars, drawn.patches, strict=True)}
    figure.legend(
        handles.values(), handles, fontsize=8, loc="outside lower center", ncols=len(handles)
    )
    rounds = min(bar.ms.n for bar in bars)
    axes.set_xlabel(
        "milliseconds of the transfer loss with its connectors\n"
        f"forward and backward, log scale, medians of {rounds} rounds"
    )
    return figure
