"""The figures of a grid: what each shows, and where its marks lie. The templates draw them."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, mode
from typing import NamedTuple, Self

from bench.cost.costs import CostRecord
from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED
from bench.decide.evidence import LONGER, METHOD, REFERENCE, row_title
from bench.faults import counted
from bench.record import Record
from bench.report.groups import Group
from bench.report.results import IN_THE_RACE, Line
from bench.report.wording import cost_text, gain_text
from bench.statistics import Interval

# --- where marks and labels lie --------------------------------------------------------------

SIZE, LETTER = 12.0, 0.62 * 12.0
"""Of the text, and the width of a letter, at least that of every common sans-serif font."""

DISTANCES = (9, 16, 26, 38, 52)
DIRECTIONS = tuple(
    (math.cos(math.radians(turn)), math.sin(math.radians(turn)))
    for turn in (0, 180, -90, 90, -45, 45, -135, 135, -22, 22, -158, 158, -68, 68, -112, 112)
)
"""From a point to its label, the best first: right, left, above, below."""

RATIOS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


class Scale(NamedTuple):
    """A line from the number `low` at `start` to `high` at `end`, with round ticks in between.

    `end` is below `start` where numbers rise upwards; of a log scale ratios are equally long.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a number lies; one beyond an end, at that end."""
        numbers = (self.low, self.high, min(max(value, self.low), self.high))
        low, high, x = map(math.log, numbers) if self.log else numbers
        return round(self.start + (self.end - self.start) * (x - low) / (high - low), 2)


def linear(values: Iterable[float], start: float, end: float, count: int = 8) -> Scale:
    """A scale over all values, with about so many ticks."""
    found = list(values)
    low, high = min(found), max(found)
    margin = 0.04 * (high - low) or 0.01
    low, high = low - margin, high + margin
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Scale(low, high, start, end, [round(i * step, 10) for i in ticks])


def logarithmic(values: Iterable[float], start: float, end: float, room: float = 0) -> Scale:
    """A scale of ratios over all values, with room for a label after the last one."""
    found = list(values)
    low, high = min(found) / 1.15, max(found) * 1.15
    high *= (high / low) ** (room / (end - start - room))
    return Scale(low, high, start, end, [x for x in RATIOS if low <= x <= high], log=True)


class Box(NamedTuple):
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Self) -> bool:
        """Whether two boxes have an area in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: Self) -> bool:
        """Whether the other box holds all of it."""
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


class Label(NamedTuple):
    """A text, its left end, baseline, box, and the leader to its point with what that covers."""

    text: str
    x: float
    y: float
    box: Box
    leader: tuple[float, float, float, float] | None
    covered: Sequence[Box]


def place_labels(
    points: Sequence[tuple[float, float, str]], plot: Box, taken: Iterable[Box] = ()
) -> list[Label | None]:
    """Texts next to their points: none overlaps another, a leader or a point, none leaves.

    Each takes the nearest free place in the plot, clear of taken lines if there is one, and none
    where no place is free. Points are x, y and text, the most important ones first.
    """
    lines, texts = list(taken), list[Box]()
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]  # and leaders
    placed: list[Label | None] = []
    for x, y, text in points:
        free = [
            label
            for label in _candidates(x, y, text)
            if label.box.inside(plot)
            and not any(label.box.meets(box) for box in (*marks, *texts))
            and not any(part.meets(box) for part in label.covered for box in texts)
        ]
        clear = (label for label in free if not any(label.box.meets(box) for box in lines))
        found = next(clear, free[0] if free else None)
        placed.append(found)
        if found is not None:
            texts.append(found.box)
            marks += found.covered
    return placed


def _candidates(x: float, y: float, text: str) -> Iterable[Label]:
    width, height = LETTER * len(text), 1.15 * SIZE
    for distance in DISTANCES:
        for right, down in DIRECTIONS:
            end_x, end_y = x + distance * right, y + distance * down
            left = end_x if right > 0.3 else end_x - width if right < -0.3 else end_x - width / 2
            top = end_y - height / 2 + (height / 2) * (down if abs(right) <= 0.9 else 0)
            box = Box(*(round(v, 1) for v in (left, top, left + width, top + height)))
            leader = (x, y, round(end_x, 1), round(end_y, 1)) if distance > 16 else None
            covered = segment_boxes(*leader) if leader else ()
            yield Label(text, box.left, round(top + 0.85 * SIZE, 1), box, leader, covered)


def segment_boxes(x1: float, y1: float, x2: float, y2: float, half: float = 2) -> list[Box]:
    """A straight line as a row of small boxes."""
    steps = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 4))
    middles = ((x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1))
    return [Box(x - half, y - half, x + half, y + half) for x, y in middles]


# --- how rows look ---------------------------------------------------------------------------

COLOURS = ("baseline", "response", "multi-connection", "shared-representation")  # else "other"
SHAPES = ("circle", "square", "diamond", "triangle")  # of a method's first row and its variants
HIGHLIGHTED = 3  # rows of a figure, at most


class Mark(NamedTuple):
    """How a row looks in every figure: its category's colour, one of `SHAPES`, filled if proven."""

    colour: str
    shape: str
    filled: bool
    strong: bool


def mark_of(line: Line, strong: Iterable[str]) -> Mark:
    """A row's mark, among those that are highlighted."""
    colour = line.category if line.category in COLOURS else "other"
    return Mark(colour, SHAPES[line.variant % len(SHAPES)], line.proven, line.label in strong)


def highlighted(lines: Sequence[Line]) -> list[str]:
    """The rows that a figure of these draws attention to: best, longer student, runner-up."""
    order = {IN_THE_RACE: 1, UNDECIDED: 2, BEST_BET: 3, PROVEN: 4}
    ranked = sorted(
        (line for line in lines if line.gain is not None and line.kind in (LONGER, METHOD)),
        key=lambda line: (-order.get(line.verdict, 0), -line.gain.mean if line.gain else 0.0),
    )
    longer = [line for line in ranked if line.kind == LONGER][:1]
    open_ones = [line for line in ranked if line.verdict in order]
    chosen = dict.fromkeys(line.label for line in (*ranked[:1], *longer, *open_ones))
    return list(chosen)[:HIGHLIGHTED]


def file_name(text: str) -> str:
    """Text as a part of a file's name.

    Example:
        >>> file_name("selective (keep=0.8, selection=random)")
        'selective-keep=0.8-selection=random'
    """
    return re.sub(r"[^\w.=+-]+", "-", text.replace("→", "to")).strip("-")


class Forest(NamedTuple):
    """Gains of all rows that have one; places of the scale are per cent of the width."""

    rows: list[tuple[Line, Mark]]
    scale: Scale


def forest(lines: Sequence[Line]) -> Forest | None:
    """The gains of a pair's rows, in their order; None where there are none."""
    strong = highlighted(lines)
    rows = [(line, mark_of(line, strong)) for line in lines if line.gain is not None]
    gains = [line.gain for line, _ in rows if line.gain is not None]
    return Forest(rows, _gains_scale(gains, 0.75, 2, 98)) if gains else None


def _gains_scale(gains: Sequence[Interval], wider: float, start: float, end: float) -> Scale:
    """A scale over gains and their intervals, as far as `wider` spreads beyond the gains."""
    means = [0.0, *(gain.mean for gain in gains)]
    room = max(wider * (max(means) - min(means)), 0.01)
    least, most = min(means) - room, max(means) + room
    ends = (x for gain in gains for x in (gain.low, gain.high) if x is not None)
    return linear([*means, *(min(max(x, least), most) for x in ends)], start, end)


PLOT = Box(44, 12, 470, 318)


class Spot(NamedTuple):
    """A row in `GainCost`, with a label if it has room; highlighted rows have an interval."""

    line: Line
    mark: Mark
    x: float
    y: float
    gain: Interval
    label: Label | None = None


class GainCost(NamedTuple):
    """Gain against cost, the plain student first; `longer` is the line of longer training."""

    spots: list[Spot]
    longer: list[tuple[float, float]]
    x: Scale
    y: Scale


def gain_cost(lines: Sequence[Line]) -> GainCost | None:
    """Every row's gain against its cost; None where no method's cost is known."""
    strong = highlighted(lines)
    shown = [
        # Only highlighted rows have an interval.
        (line, line.cost, gain if line.label in strong else gain._replace(low=None, high=None))
        for line in lines
        if line.cost is not None and (gain := line.gain) is not None
    ]
    if not any(line.kind == METHOD for line, _, _ in shown):
        return None
    last = row_title(max(shown, key=lambda item: item[1])[0].label)
    room = min(LETTER * len(last), 0.35 * (PLOT.right - PLOT.left))
    costs = [1.0, *(cost for _, cost, _ in shown)]
    x = logarithmic(costs, PLOT.left + 12, PLOT.right - 12, room)
    y = _gains_scale([gain for *_, gain in shown], 0.5, PLOT.bottom, PLOT.top)
    student = Line(label="student", role="student", category="baseline", kind=REFERENCE)
    zero = Interval(0.0, None, None, 1)
    spots = [
        Spot(line, mark_of(line, strong), x.at(cost), y.at(gain.mean), gain)
        for line, cost, gain in ((student, 1.0, zero), *shown)
    ]
    alone = [s for s in spots if s.line.kind == LONGER and s.x > spots[0].x]
    longer = sorted((s.x, s.y) for s in (spots[0], *alone))
    return GainCost(_labelled(spots, y, longer), longer, x, y)


def _labelled(spots: Sequence[Spot], y: Scale, longer: Sequence[tuple[float, float]]) -> list[Spot]:
    """The spots, each with a label if it has room, the highlighted ones first."""
    ranked = sorted(spots, key=lambda spot: not spot.mark.strong)
    taken = segment_boxes(PLOT.left, y.at(0), PLOT.right, y.at(0), 1)
    taken += [box for a, b in pairwise(longer) for box in segment_boxes(*a, *b)]
    for spot in ranked:
        if spot.gain.low is not None and spot.gain.high is not None:
            taken += segment_boxes(spot.x, y.at(spot.gain.low), spot.x, y.at(spot.gain.high))
    placed = place_labels([(s.x, s.y, row_title(s.line.label)) for s in ranked], PLOT, taken)
    labels = {s.line.label: label for s, label in zip(ranked, placed, strict=True)}
    return [spot._replace(label=labels[spot.line.label]) for spot in spots]


CURVES = Box(44, 12, 430, 300)
BETWEEN = 15  # one name and the next, in the figure's unit


class Curve(NamedTuple):
    """One row's accuracy over epochs, without points if of another length, and its name's place."""

    title: str
    mark: Mark
    points: list[tuple[float, float]]
    end: float
    name_y: float
    last: str


class Curves(NamedTuple):
    """Accuracy over epochs of a pair's rows, the best first; there is room for all names."""

    rows: list[Curve]
    x: Scale
    y: Scale
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
        line, curve = by_row[group.role, group.label], _over_epochs(group.finished())
        if curve and line.accuracy is not None:
            found.append((line, curve, line.accuracy.mean))
    if not found:
        return None
    usual = mode(max(curve) for _, curve, _ in found)
    found.sort(key=lambda item: -item[2])
    bottom = max(CURVES.bottom, CURVES.top + BETWEEN * len(found))
    shown = [value for _, curve, last in found for value in (last, *curve.values())]
    y = linear(shown, bottom, CURVES.top)
    x = linear([1, usual], CURVES.left, CURVES.right)
    x = x._replace(ticks=[tick for tick in x.ticks if tick >= 1 and tick == int(tick)])
    strong = [*highlighted(lines), "student", "teacher"]
    names = spread([y.at(last) for _, _, last in found], BETWEEN, CURVES.top, bottom)
    rows = [
        Curve(
            line.title, mark_of(line, strong),
            [(x.at(e), y.at(v)) for e, v in curve.items()] if max(curve) == usual else [],
            y.at(last), name_y, f"{100 * last:.1f}",
        )
        for (line, curve, last), name_y in zip(found, names, strict=True)
    ]  # fmt: skip
    width = 470 + max(LETTER * len(f"{row.last} {row.title}") for row in rows)
    return Curves(rows, x, y, round(width), bottom + 54)


def _over_epochs(records: Sequence[Record]) -> dict[int, float]:
    """Epoch, from 1, -> mean accuracy over cells, where all of them measured it."""
    series = [enumerate(r.curves.get("test_accuracy", []), start=1) for r in records]
    measured = [{epoch: x for epoch, x in each if x is not None} for each in series]
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
    for i in reversed(range(len(places))):
        limit = places[i + 1] - least if i + 1 < len(places) else bottom
        places[i] = round(min(places[i], limit), 2)
    return places


class Dumbbell(NamedTuple):
    """A row's transfer loss and whole step, in ms; places of the scale are per cent."""

    title: str
    mark: Mark
    loss: float
    step: float
    scale: Scale


def dumbbells(records: Sequence[CostRecord]) -> list[Dumbbell]:
    """The costliest transfer loss of every row and the step that it is part of, by falling step."""
    found = []
    for record in records:
        stage = record.costliest
        if stage is not None and stage.loss_ms is not None and stage.loss_ms.median > 0:
            line = Line(label=record.label, category=record.category)
            found.append((line, stage.loss_ms.median, stage.step_ms.median))
    values = [ms for _, *both in found for ms in both]
    return [
        Dumbbell(line.title, mark_of(line, ()), loss, step, logarithmic(values, 14, 86))
        for line, loss, step in sorted(found, key=lambda item: -item[2])
    ]


def finding(lines: Sequence[Line]) -> str:
    """One sentence: the best row, and how many are proven."""
    gains = {line.label: (line, line.gain) for line in lines if line.gain is not None}
    if not (named := highlighted(lines)):
        return "No gain was measured."
    best, gain = gains[named[0]]
    proven = sum(line.proven for line, _ in gains.values())
    said = f"{best.title} leads: {gain_text(gain)}, {cost_text(best.cost)}, {best.verdict}"
    return f"{said}; proven better than the student: {proven} of {counted(len(gains), 'row')}."
