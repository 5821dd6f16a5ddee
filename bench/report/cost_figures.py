"""What the profiler measured, as figures: steps and losses alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.cost.costs import CostRecord, StageCost
from bench.record import FINISHED
from bench.report.drawing import new_figure
from bench.report.measured import pair_title
from bench.report.palette import CATEGORIES, STEP_PARTS, category_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Bar(NamedTuple):
    """A measured stage and its name on an axis."""

    name: str
    record: CostRecord
    stage: StageCost


def _bars(records: Sequence[CostRecord]) -> list[_Bar]:
    return [
        _Bar(f"{r.label}: {stage.name}" if len(r.stages) > 1 else r.label, r, stage)
        for r in records
        if r.status == FINISHED
        for stage in r.stages
    ]


def _horizontal(count: int, names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    figure = new_figure(8.0, 1.3 + 0.27 * count)
    axes = figure.subplots()
    figure.suptitle(title, fontsize=10)
    axes.set_yticks(range(count), names, fontsize=8)
    axes.set_ylim(count - 0.4, -0.6)  # the first row on top
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def draw_step(records: Sequence[CostRecord]) -> Figure:
    """Stacked bars: the teacher's pass, the transfer losses and the rest of every stage's step.

    Args:
        records: of one pair under one set of conditions, some finished.
    """
    bars = _bars(records)
    figure, axes = _horizontal(len(bars), [b.name for b in bars], pair_title(bars[0].record))
    ends = [0.0] * len(bars)
    for segment, style in STEP_PARTS.items():
        widths = [_segments(bar.stage)[segment] for bar in bars]
        axes.barh(
            range(len(bars)),
            widths,
            left=ends,
            label=segment,
            color=style.colour,
            hatch=style.hatch,
            edgecolor="white",
            linewidth=0.5,
        )
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    plain = bars[0].record.plain_ms
    if plain is not None:
        axes.axvline(plain.median, color="black", linewidth=1, linestyle="--", label="plain step")
    axes.set_xlabel(f"milliseconds of a step, medians of {_rounds(bars)} rounds")
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(STEP_PARTS) + 1)
    return figure


def _segments(stage: StageCost) -> dict[str, float]:
    """Milliseconds of a step by the names in `STEP_PARTS`."""
    teacher = stage.teacher_ms.median if stage.teacher_ms else 0.0
    loss = _loss_ms(stage)
    return {
        "teacher": teacher,
        "loss": loss,
        "rest": max(0.0, stage.step_ms.median - teacher - loss),
    }


def draw_losses(records: Sequence[CostRecord]) -> Figure | None:
    """Bars on a log scale: every transfer loss alone, forward and backward, by category.

    Args:
        records: of one pair under one set of conditions, some finished.

    Returns:
        None if no stage has a transfer loss.
    """
    bars = [bar for bar in _bars(records) if bar.stage.loss is not None]
    bars.sort(key=lambda bar: (_category_order(bar.record.category), _loss_ms(bar.stage)))
    if not bars:
        return None
    figure, axes = _horizontal(len(bars), [b.name for b in bars], pair_title(bars[0].record))
    widths = [_loss_ms(bar.stage) for bar in bars]
    styles = [category_style(bar.record.category) for bar in bars]
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
    handles = {bar.record.category: patch for bar, patch in zip(bars, drawn.patches, strict=True)}
    figure.legend(
        handles.values(), handles, fontsize=8, loc="outside lower center", ncols=len(handles)
    )
    axes.set_xlabel(
        "milliseconds of the transfer loss with its connectors\n"
        f"forward and backward, log scale, medians of {_rounds(bars)} rounds"
    )
    return figure


def _loss_ms(stage: StageCost) -> float:
    return stage.loss.ms.median if stage.loss is not None else 0.0


def _category_order(name: str) -> tuple[int, str]:
    known = list(CATEGORIES)
    return (known.index(name) if name in known else len(known)), name


def _rounds(bars: Sequence[_Bar]) -> int:
    return min(bar.stage.step_ms.n for bar in bars)
