"""The figures of a grid: what each shows, and where its marks lie. The templates draw them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, mode
from typing import NamedTuple

from bench.cost.costs import CostRecord
from bench.decide.decision import PROVEN
from bench.decide.evidence import LONGER, METHOD
from bench.record import FINISHED, Record
from bench.report.groups import Group
from bench.report.plot import (
    Box,
    Label,
    Scale,
    costs_scale,
    linear,
    place_labels,
    segment_boxes,
    text_width,
)
from bench.report.results import IN_THE_RACE, Line
from bench.report.wording import cost_text, gain_text, points

SHAPES = ("circle", "square", "diamond", "triangle")
"""A method's first row, then its variants; a fifth begins again."""

HIGHLIGHTED = 3
"""Rows of a figure that are highlighted, at most."""

Tick = tuple[float, str]


class Mark(NamedTuple):
    """How a row looks in every figure.

    Attributes:
        colour: the category, as a class of the style sheet.
        shape: one of `SHAPES`.
        filled: whether the row is proven.
        strong: whether it is highlighted.
    """

    colour: str
    shape: str
    filled: bool
    strong: bool


def mark_of(line: Line, strong: Iterable[str]) -> Mark:
    """A row's mark, among those that are highlighted."""
    known = ("baseline", "response", "multi-connection", "shared-representation")
    colour = line.category if line.category in known else "other"
    shape = SHAPES[line.variant % len(SHAPES)]
    return Mark(colour, shape, line.proven, line.label in strong)


def highlighted(lines: Sequence[Line]) -> list[str]:
    """The rows that a figure of these draws attention to: best, longer student, runner-up."""
    ranked = sorted(
        (line for line in lines if line.gain is not None and line.kind in (LONGER, METHOD)),
        key=lambda line: (-_standing(line), -line.gain.mean if line.gain else 0.0),
    )
    longer = [line for line in ranked if line.kind == LONGER][:1]
    open_ones = [line for line in ranked if _standing(line)]
    chosen = dict.fromkeys(line.label for line in (*ranked[:1], *longer, *open_ones))
    return list(chosen)[:HIGHLIGHTED]


def _standing(line: Line) -> int:
    order = ("", IN_THE_RACE, "undecided", "best bet", PROVEN)
    return order.index(line.verdict) if line.verdict in order else 0


def file_name(text: str) -> str:
    """Text as a part of a file's name.

    Example:
        >>> file_name("selective (keep=0.8, selection=random)")
        'selective-keep=0.8-selection=random'
    """
    return re.sub(r"[^\w.=+-]+", "-", text.replace("→", "to")).strip("-")


# --- gains, one row each ---------------------------------------------------------------------


class Track(NamedTuple):
    """A row of a forest plot; places are per cent of its width.

    Attributes:
        line: the row.
        mark: how it looks.
        at: its gain.
        low: lower end of the interval; None without one.
        high: upper end.
        cut_low: whether the interval goes on below the plot.
        cut_high: likewise above.
    """

    line: Line
    mark: Mark
    at: float
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool


class Forest(NamedTuple):
    """Gains of all rows, the best first.

    Attributes:
        rows: of the pair.
        ticks: place and text.
        zero: where no gain lies.
    """

    rows: list[Track]
    ticks: list[Tick]
    zero: float


def forest(lines: Sequence[Line]) -> Forest | None:
    """The gains of a pair's rows; None where there are none.

    Intervals much wider than the spread of the gains end at the plot's edge.
    """
    shown = [(line, line.gain) for line in lines if line.gain is not None]
    if not shown:
        return None
    means = [0.0, *(gain.mean for _, gain in shown)]
    room = max(0.75 * (max(means) - min(means)), 0.01)
    ends = [end for _, gain in shown for end in (gain.low, gain.high) if end is not None]
    floor, ceiling = min(means) - room, max(means) + room
    scale = linear([*means, *(min(max(end, floor), ceiling) for end in ends)], 2, 98)
    strong = highlighted(lines)
    rows = [
        Track(
            line, mark_of(line, strong), scale.at(gain.mean),
            None if gain.low is None else scale.at(gain.low),
            None if gain.high is None else scale.at(gain.high),
            gain.low is not None and not scale.holds(gain.low),
            gain.high is not None and not scale.holds(gain.high),
        )
        for line, gain in shown
    ]  # fmt: skip
    return Forest(rows, [(scale.at(t), _whole_points(t)) for t in scale.ticks], scale.at(0))


def _whole_points(value: float) -> str:
    text = f"{100 * value:+.10g}"
    return "0" if text in ("+0", "-0") else text


# --- gain against cost -----------------------------------------------------------------------

WIDTH, HEIGHT = 480, 372
PLOT = Box(44, 12, 470, 318)


class Spot(NamedTuple):
    """A row in the plot of gain against cost.

    Attributes:
        line: the row.
        mark: how it looks.
        x: of its cost.
        y: of its gain.
        whisker: y of the interval's ends; None for rows that are not highlighted.
        label: None where there is no room for one.
    """

    line: Line
    mark: Mark
    x: float
    y: float
    whisker: tuple[float, float] | None
    label: Label | None


class GainCost(NamedTuple):
    """Gain against training cost.

    Attributes:
        spots: the rows, the plain student first.
        longer: the line of the student trained longer, as points.
        x_ticks: place and text.
        y_ticks: likewise.
        zero: y of no gain.
        log: whether costs are on a log scale.
    """

    spots: list[Spot]
    longer: list[tuple[float, float]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    zero: float
    log: bool


def gain_cost(lines: Sequence[Line]) -> GainCost | None:
    """Every row's gain against its cost; None where no method's cost is known."""
    shown = [
        (line, line.cost, line.gain.mean)
        for line in lines
        if line.cost is not None and line.gain is not None
    ]
    if not any(line.kind == METHOD for line, _, _ in shown):
        return None
    strong = highlighted(lines)
    x = costs_scale([1.0, *(cost for _, cost, _ in shown)], PLOT.left + 12, PLOT.right - 12)
    ends = [
        end
        for line, _, _ in shown
        if line.gain is not None and line.label in strong
        for end in (line.gain.low, line.gain.high)
        if end is not None
    ]
    means = [0.0, *(gain for _, _, gain in shown)]
    room = max(0.5 * (max(means) - min(means)), 0.01)
    ends = [min(max(end, min(means) - room), max(means) + room) for end in ends]
    y = linear([*means, *ends], PLOT.bottom, PLOT.top)
    student = Line(label="student", role="student", category="baseline", kind="reference")
    shown = [(student, 1.0, 0.0), *shown]
    longer = sorted((x.at(cost), y.at(gain)) for line, cost, gain in shown
                    if line.kind in (LONGER, "reference"))  # fmt: skip
    labels = _labels(shown, strong, x, y, longer)
    spots = [
        Spot(line, mark_of(line, strong), x.at(cost), y.at(gain), _whisker(line, strong, y),
             labels[line.label])
        for line, cost, gain in shown
    ]  # fmt: skip
    x_ticks = [(x.at(tick), f"×{tick:g}") for tick in x.ticks]
    y_ticks = [(y.at(tick), _whole_points(tick)) for tick in y.ticks]
    return GainCost(spots, longer, x_ticks, y_ticks, y.at(0), x.log)


def _whisker(line: Line, strong: Sequence[str], y: Scale) -> tuple[float, float] | None:
    gain = line.gain
    if gain is None or gain.low is None or gain.high is None or line.label not in strong:
        return None
    return y.at(gain.low), y.at(gain.high)


def _labels(
    shown: Sequence[tuple[Line, float, float]],
    strong: Sequence[str],
    x: Scale,
    y: Scale,
    longer: Sequence[tuple[float, float]],
) -> dict[str, Label | None]:
    """A label for every row that has room, the highlighted ones first."""
    ranked = sorted(shown, key=lambda item: item[0].label not in strong)
    texts = [(x.at(cost), y.at(gain), line.title) for line, cost, gain in ranked]
    taken = [Box(PLOT.left, y.at(0) - 1, PLOT.right, y.at(0) + 1)]
    taken += [box for a, b in pairwise(longer) for box in segment_boxes(*a, *b)]
    for line, cost, _ in ranked:
        ends = _whisker(line, strong, y)
        if ends is not None:
            taken += segment_boxes(x.at(cost), ends[0], x.at(cost), ends[1])
    placed = place_labels(texts, PLOT, taken)
    return {line.label: label for (line, _, _), label in zip(ranked, placed, strict=True)}


# --- learning curves -------------------------------------------------------------------------

CURVES = Box(44, 12, 430, 300)
BETWEEN = 15
"""From one name to the next, in the figure's unit."""


class Curve(NamedTuple):
    """One row's accuracy over epochs.

    Attributes:
        title: the row's.
        mark: how it looks.
        points: of the line; empty for a row of another length than most.
        end: y of the last epoch.
        name_y: y of its name on the right.
        last: the last epoch's accuracy, in words.
    """

    title: str
    mark: Mark
    points: list[tuple[float, float]]
    end: float
    name_y: float
    last: str


class Curves(NamedTuple):
    """Accuracy over epochs of a pair's rows, with their names on the right.

    Attributes:
        rows: by falling accuracy of the last epoch.
        x_ticks: place and text.
        y_ticks: likewise.
        width: of the figure, that has room for all names.
        height: likewise.
    """

    rows: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: float
    height: float


def curves(groups: Sequence[Group], lines: Sequence[Line]) -> Curves | None:
    """Means over seeds of a pair's rows; None where nothing was measured during the training.

    Rows of another length than most, such as the student trained longer, have a name and no line,
    which would squeeze all others.
    """
    by_row = {(line.role, line.label): line for line in lines}
    found = []
    for group in groups:
        line, series = by_row[group.role, group.label], _over_epochs(group.finished())
        if series and line.accuracy is not None:
            found.append((line, series, line.accuracy.mean))
    if not found:
        return None
    usual = mode(max(series) for _, series, _ in found)
    found.sort(key=lambda item: -item[2])
    bottom = max(CURVES.bottom, CURVES.top + BETWEEN * len(found))
    values = [v for _, series, last in found for v in (last, *series.values())]
    y = linear(values, bottom, CURVES.top)
    x = linear([1, usual], CURVES.left, CURVES.right)
    strong = [*highlighted(lines), "student", "teacher"]
    names = spread([y.at(last) for _, _, last in found], BETWEEN, CURVES.top, bottom)
    rows = [
        Curve(
            line.title, mark_of(line, strong),
            [(x.at(e), y.at(v)) for e, v in series.items()] if max(series) == usual else [],
            y.at(last), name_y, f"{100 * last:.1f}",
        )
        for (line, series, last), name_y in zip(found, names, strict=True)
    ]  # fmt: skip
    x_ticks = [(x.at(tick), f"{tick:g}") for tick in x.ticks if tick >= 1 and tick == int(tick)]
    y_ticks = [(y.at(tick), f"{100 * tick:g}") for tick in y.ticks]
    width = 470 + max(text_width(f"{row.last} {row.title}", 12) for row in rows)
    return Curves(rows, x_ticks, y_ticks, round(width), bottom + 54)


def _over_epochs(records: Sequence[Record]) -> dict[int, float]:
    """Epoch, from 1, -> mean accuracy over cells, where all of them measured it."""
    measured = [
        {
            epoch: value
            for epoch, value in enumerate(record.curves.get("test_accuracy", []), start=1)
            if value is not None and math.isfinite(value)
        }
        for record in records
    ]
    common = sorted(set.intersection(*map(set, measured))) if measured else []
    return {epoch: fmean(cell[epoch] for cell in measured) for epoch in common}


def spread(wanted: Sequence[float], least: float, top: float, bottom: float) -> list[float]:
    """Rising places at least so far apart, near the wanted ones, from top to bottom.

    Example:
        >>> spread([5, 6, 50], 10, 0, 100)
        [5, 15, 50]
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + least if places else top))
    for i in range(len(places) - 1, -1, -1):
        limit = places[i + 1] - least if i + 1 < len(places) else bottom
        places[i] = round(min(places[i], limit), 2)
    return places


# --- costs -----------------------------------------------------------------------------------


class Dumbbell(NamedTuple):
    """A row's transfer loss and whole step, in ms; places are per cent of the width."""

    title: str
    mark: Mark
    loss: float
    loss_at: float
    step: float
    step_at: float


def dumbbells(records: Sequence[CostRecord]) -> list[Dumbbell]:
    """The costliest transfer loss of every row and the step that it is part of, by falling step."""
    found = []
    seen: dict[str, int] = {}
    for record in records:
        stages = [s for s in record.stages if s.loss is not None and s.loss is record.loss]
        variant = seen[record.method] = seen.get(record.method, -1) + 1
        if record.status == FINISHED and stages and record.loss is not None:
            line = Line(label=record.label, category=record.category, variant=variant)
            found.append((line, record.loss.ms.median, stages[0].step_ms.median))
    found = [item for item in found if min(item[1:]) > 0]
    if not found:
        return []
    values = [ms for _, *both in found for ms in both]
    scale = Scale(min(values) / 1.2, max(values) * 1.2, 14, 86, (), log=True)
    return [
        Dumbbell(line.title, mark_of(line, ()), loss, scale.at(loss), step, scale.at(step))
        for line, loss, step in sorted(found, key=lambda item: -item[2])
    ]


# --- what a figure says, for those who cannot see it -----------------------------------------


def finding(lines: Sequence[Line]) -> str:
    """One sentence: the best row, how many are proven, and the best longer student."""
    shown = [line for line in lines if line.gain is not None]
    named = [line for line in shown if line.label in highlighted(lines)[:1]]
    if not named or named[0].gain is None:
        return "No gain was measured."
    best, gain = named[0], named[0].gain
    proven = sum(line.proven for line in shown)
    parts = [f"{best.title} leads: {gain_text(gain)}, {cost_text(best.cost)}, {best.verdict}"]
    parts += [f"{proven} of {len(shown)} rows are proven better than the student"]
    longer = [(line.title, line.gain.mean) for line in shown if line.kind == LONGER and line.gain]
    if longer:
        title, mean = max(longer, key=lambda item: item[1])
        parts.append(f"{title} gains {points(mean)}")
    return "; ".join(parts) + "."
