"""What the profiler measured, as figures: a step's parts, the losses, memory, how losses grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.patches import Patch

from bench.cost.record import AXES, LOSS_PARTS, CostRecord, Quartiles, Scaling, StageCost
from bench.record import FINISHED
from bench.report.drawing import new_figure
from bench.report.measured import MIB, pair_title
from bench.report.palette import CATEGORIES, STEP_PARTS, category_style, method_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEGMENTS = {
    "teacher": ("teacher",),
    "student": ("student_forward", "student_backward", "optimiser"),
    "loss": LOSS_PARTS,
    "second backward": ("second_backward",),
}
"""Segment of a stacked bar -> the parts of a step that it holds."""


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
    """Stacked bars: what a training step of every method and stage is made of.

    Args:
        records: of one pair under one set of conditions, some finished.
    """
    bars = _bars(records)
    figure, axes = _horizontal(len(bars), [b.name for b in bars], pair_title(bars[0].record))
    ends = [0.0] * len(bars)
    for segment, parts in SEGMENTS.items():
        style = STEP_PARTS[segment]
        widths = [sum(b.stage.parts_ms[p].median for p in parts if p in b.stage.parts_ms)
                  for b in bars]  # fmt: skip
        axes.barh(
            range(len(bars)), widths, left=ends, label=segment, color=style.colour,
            hatch=style.hatch, edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    plain = bars[0].record.plain_ms
    if plain is not None:
        axes.axvline(plain.median, color="black", linewidth=1, linestyle="--", label="plain step")
    axes.set_xlabel(f"milliseconds of a step, medians of {_rounds(bars)} rounds")
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(SEGMENTS) + 1)
    return figure


def draw_losses(
    records: Sequence[CostRecord], textbook: Sequence[CostRecord] = ()
) -> Figure | None:
    """Bars on a log scale: every transfer loss alone, forward and backward, by category.

    Args:
        records: of one pair under one set of conditions, some finished.
        textbook: those of them with losses of two forms, in the textbook form: drawn as a line.

    Returns:
        None if no stage has a transfer loss.
    """
    bars = [bar for bar in _bars(records) if bar.stage.loss is not None]
    bars.sort(key=lambda bar: (_category_order(bar.record.category), _loss_ms(bar.stage)))
    if not bars:
        return None
    figure, axes = _horizontal(len(bars), [b.name for b in bars], pair_title(bars[0].record))
    theirs = _textbook_ms(textbook)
    for place, bar in enumerate(bars):
        width = _loss_ms(bar.stage)
        _bar(axes, place, width, bar.record.category)
        _note(axes, place, max(width, theirs.get(bar.name, 0.0)), f"{width:.2f}")
    lines = {place: theirs[bar.name] for place, bar in enumerate(bars) if bar.name in theirs}
    if lines:
        axes.plot(
            list(lines.values()), list(lines), "|", color="black", markersize=13,
            markeredgewidth=2, label="textbook form",
        )  # fmt: skip
        axes.legend(fontsize=8, loc="upper right")  # where the cheapest losses leave room
    axes.set_xscale("log")
    widths = [*map(_loss_ms, (bar.stage for bar in bars)), *lines.values()]
    axes.set_xlim(10 ** math.floor(math.log10(min(widths))), 4 * max(widths))
    axes.xaxis.set_major_formatter("{x:g}")
    _legend_of_categories(figure, [bar.record for bar in bars])
    axes.set_xlabel(f"milliseconds of the transfer loss with its connectors, forward and backward\n"
                    f"log scale, medians of {_rounds(bars)} rounds")  # fmt: skip
    return figure


def _textbook_ms(records: Sequence[CostRecord]) -> dict[str, float]:
    """Name of a bar -> median time of its textbook form, where that is another."""
    return {
        bar.name: bar.stage.loss.ms.median
        for bar in _bars(records)
        if bar.stage.loss is not None and bar.stage.loss.over_fast is not None
    }


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
        extra = f", {record.extra_parameters:,} extra parameters" * bool(record.extra_parameters)
        _note(axes, place, width, f"{width:.2f}{extra}")
    largest = max(record.extra_peak_bytes / MIB for record in finished)
    axes.set_xlim(0, 1.4 * largest or 1.0)
    _legend_of_categories(figure, finished)
    axes.set_xlabel(f"peak memory above the plain step's {finished[0].plain_peak_bytes / MIB:.2f} "
                    "MiB (MiB)")  # fmt: skip
    return figure


# --- scaling -----------------------------------------------------------------------------------


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of value = c size^p that fits best in log-log, by least squares.

    Args:
        sizes: at least two different ones, above 0.
        values: one each, above 0.

    Example:
        >>> round(fitted_exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    return linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def draw_scaling(scaling: Sequence[Scaling]) -> Figure:
    """A panel an axis, a line a method, with the fitted exponents.

    Args:
        scaling: under one set of conditions, at least one.
    """
    shown = [axis for axis in AXES if any(line.axis == axis for line in scaling)]
    figure = new_figure(1.0 + 4.4 * len(shown), 5.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, axis in zip(panels, shown, strict=True):
        lines = [line for line in scaling if line.axis == axis]
        for line in lines:
            _line(axes, line)
        _decorate(axes, lines[0])
    panels[0].set_ylabel("milliseconds of the loss alone, forward and backward")
    at = scaling[0].conditions
    figure.suptitle(
        f"Each method's transfer loss by itself, {at.get('device')}, {at.get('precision')}; "
        "bars are quartiles, the legend's numbers fitted exponents",
        fontsize=10,
    )
    return figure


def _line(axes: Axes, line: Scaling) -> None:
    style = method_style(line.method)
    medians = [quartiles.median for quartiles in line.milliseconds]
    axes.errorbar(
        line.sizes, medians, yerr=list(zip(*map(_whiskers, line.milliseconds), strict=True)),
        color=style.colour, marker=style.marker, markersize=5, linewidth=1.3, elinewidth=0.8,
        label=f"{line.method}: {fitted_exponent(line.sizes, medians):.1f}".replace("-0.0", "0.0"),
    )  # fmt: skip


def _whiskers(quartiles: Quartiles) -> tuple[float, float]:
    return quartiles.median - quartiles.q1, quartiles.q3 - quartiles.median


def _decorate(axes: Axes, line: Scaling) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(line.sizes, [str(size) for size in line.sizes])
    axes.minorticks_off()
    others = ", ".join(f"{line.conditions[axis]} {unit}" for axis, unit in AXES.items()
                       if axis in line.conditions and axis != line.axis)  # fmt: skip
    axes.set_xlabel(f"{AXES[line.axis]} (at {others})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
