"""What the profiler measured, as figures: steps, losses alone, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.patches import Patch

from bench.cost.costs import CostRecord, StageCost
from bench.record import FINISHED
from bench.report.drawing import new_figure
from bench.report.measured import MIB, pair_title
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
    axes.set_title(title, fontsize=10)
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
    for place, bar in enumerate(bars):
        width = _loss_ms(bar.stage)
        _bar(axes, place, width, bar.record.category)
        _note(axes, place, width, f"{width:.2f}")
    axes.set_xscale("log")
    widths = [_loss_ms(bar.stage) for bar in bars]
    axes.set_xlim(10 ** math.floor(math.log10(min(widths))), 4 * max(widths))
    axes.xaxis.set_major_formatter("{x:g}")
    _legend_of_categories(figure, [bar.record for bar in bars])
    axes.set_xlabel(f"milliseconds of the transfer loss with its connectors, forward and backward\n"
                    f"log scale, medians of {_rounds(bars)} rounds")  # fmt: skip
    return figure


def _loss_ms(stage: StageCost) -> float:
    return stage.loss.ms.median if stage.loss is not None else 0.0


def _bar(axes: Axes, place: int, width: float, category: str) -> None:
    style = category_style(category)
    axes.barh(place, width, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0.5)


def _note(axes: Axes, place: int, width: float, text: str) -> None:
    axes.annotate(
        text, (width, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
    )


def _legend_of_categories(figure: Figure, records: Sequence[CostRecord]) -> None:
    handles = []
    for name in sorted({record.category for record in records}, key=_category_order):
        style = category_style(name)
        handles.append(
            Patch(facecolor=style.colour, hatch=style.hatch, edgecolor="white", label=name)
        )
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=len(handles))


def _category_order(name: str) -> tuple[int, str]:
    known = list(CATEGORIES)
    return (known.index(name) if name in known else len(known)), name


def _rounds(bars: Sequence[_Bar]) -> int:
    return min(bar.stage.step_ms.n for bar in bars)


def draw_memory(records: Sequence[CostRecord]) -> Figure:
    """Bars: peak memory of a method's costliest stage above that of the plain step.

    Args:
        records: of one pair under one set of conditions, some finished.
    """
    finished = [record for record in records if record.status == FINISHED]
    names = [record.label for record in finished]
    figure, axes = _horizontal(len(finished), names, pair_title(finished[0]))
    for place, record in enumerate(finished):
        width = record.extra_peak_bytes / MIB
        _bar(axes, place, width, record.category)
        note = f"{width:.2f}"
        if record.extra_parameters:
            note += f", {record.extra_parameters:,} extra parameters"
        _note(axes, place, width, note)
    largest = max(record.extra_peak_bytes / MIB for record in finished)
    axes.set_xlim(0, 1.4 * largest or 1.0)
    _legend_of_categories(figure, finished)
    axes.set_xlabel(f"peak memory above the plain step's {finished[0].plain_peak_bytes / MIB:.2f} "
                    "MiB (MiB)")  # fmt: skip
    return figure
