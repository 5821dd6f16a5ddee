"""Where marks and labels lie in a figure: round ticks, and labels that never overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDE = 0.62
"""Width of a letter over the size of the text, at least that of every common sans-serif font."""

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

    def holds(self, value: float) -> bool:
        """Whether a number lies between the ends."""
        return self.low <= value <= self.high


def linear(values: Iterable[float], start: float, end: float, count: int = 8) -> Scale:
    """A scale over all values, with about so many ticks.

    Example:
        >>> linear([-0.012, 0.048], 0, 100, count=6).ticks
        [0.0, 0.02, 0.04]
    """
    found = list(values)
    low, high = min(found), max(found)
    margin = 0.04 * (high - low) or 0.01
    low, high = low - margin, high + margin
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Scale(low, high, start, end, [round(i * step, 10) for i in ticks])


def logarithmic(values: Iterable[float], start: float, end: float) -> Scale:
    """A scale of ratios over all values."""
    found = list(values)
    low, high = min(found) / 1.15, max(found) * 1.15
    return Scale(low, high, start, end, [x for x in RATIOS if low <= x <= high], log=True)


class Box(NamedTuple):
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether two boxes have an area in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: Box) -> bool:
        """Whether the other box holds all of it."""
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


class Label(NamedTuple):
    """A text, its left end, baseline and what it covers.

    `leader` goes from the point to the text, (x1, y1, x2, y2); None where it lies close by.
    """

    text: str
    x: float
    y: float
    box: Box
    leader: tuple[float, float, float, float] | None

    def leader_boxes(self) -> list[Box]:
        """What the leader covers."""
        return segment_boxes(*self.leader) if self.leader else []


def place_labels(
    points: Sequence[tuple[float, float, str]],
    plot: Box,
    taken: Iterable[Box] = (),
    size: float = 12,
) -> list[Label | None]:
    """Texts next to their points: none overlaps another, a leader or a point, none leaves.

    Each takes the nearest free place in the plot, clear of taken lines if there is one.

    Args:
        points: x, y and text, the most important ones first.
        plot: where all must lie.
        taken: lines, that labels keep off where they can.
        size: of the text.

    Returns:
        One a point; None where no place is free.
    """
    lines, texts = list(taken), list[Box]()
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]  # and leaders
    placed: list[Label | None] = []
    for x, y, text in points:
        free = [
            label
            for label in _candidates(x, y, text, size)
            if label.box.inside(plot)
            and not any(label.box.meets(box) for box in (*marks, *texts))
            and not any(part.meets(box) for part in label.leader_boxes() for box in texts)
        ]
        clear = (label for label in free if not any(label.box.meets(box) for box in lines))
        found = next(clear, free[0] if free else None)
        placed.append(found)
        if found is not None:
            texts.append(found.box)
            marks += found.leader_boxes()
    return placed


def text_width(text: str, size: float) -> float:
    """Width of a text, in the unit of its size, at most a little too wide."""
    return WIDE * size * len(text)


def _candidates(x: float, y: float, text: str, size: float) -> Iterable[Label]:
    width, height = text_width(text, size), 1.15 * size
    for distance in DISTANCES:
        for right, down in DIRECTIONS:
            end_x, end_y = x + distance * right, y + distance * down
            left = end_x if right > 0.3 else end_x - width if right < -0.3 else end_x - width / 2
            top = end_y - height / 2 + (height / 2) * (down if abs(right) <= 0.9 else 0)
            box = Box(*(round(v, 1) for v in (left, top, left + width, top + height)))
            leader = (x, y, round(end_x, 1), round(end_y, 1)) if distance > 16 else None
            yield Label(text, box.left, round(top + 0.85 * size, 1), box, leader)


def segment_boxes(x1: float, y1: float, x2: float, y2: float, half: float = 2) -> list[Box]:
    """A straight line as a row of small boxes."""
    steps = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 4))
    middles = ((x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps + 1))
    return [Box(x - half, y - half, x + half, y + half) for x, y in middles]
