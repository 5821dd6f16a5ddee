"""Accuracies and gains of all pairs of a grid side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.record import Plan, Record
from bench.report.summary import (
    NO_EVIDENCE,
    Group,
    PairKey,
    gain_entry,
    mean_entry,
    measured_groups,
    notes_of,
)
from bench.report.tables import Column, Entry, Table, Value

AXES = ("fraction", "resolution", "labels")
"""Axes of the data."""

LABEL_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
)


class _Pair(NamedTuple):
    """One pair's column.

    Attributes:
        key: of the column in the CSV.
        name: its heading.
        groups: label -> the rows of the pair.
    """

    key: str
    name: str
    groups: Mapping[str, Group]

    def series(self, label: str) -> dict[int, float]:
        """Seed -> last accuracy of a row; empty where the pair has no such row."""
        return self.groups[label].by_seed("last_accuracy") if label in self.groups else {}


def overview_tables(plan: Plan, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Accuracy, then gain over the student: a row a method, a column a pair with any record.

    Args:
        plan: what was asked for.
        records: by cell id.

    Returns:
        Two tables, or none where no pair has a record.
    """
    measured = measured_groups(plan, records)
    if not measured:
        return ()
    pairs = [
        _Pair(*names, {group.label: group for group in groups})
        for names, groups in zip(_names(list(measured)), measured.values(), strict=True)
    ]
    usual = _usual_n(pairs)
    accuracies = {
        label: {
            p.key: mean_entry(p.groups[label].by_cell("last_accuracy"), usual)
            for p in pairs
            if label in p.groups
        }
        for label in _labels(pairs)
    }
    gains = {
        label: {p.key: gain_entry(p.series(label), p.series("student"), usual) for p in pairs}
        for label in _labels(pairs)
        if label != "student"
    }
    percent = [Column(key=p.key, name=p.name, unit="%", digits=2, interval=True) for p in pairs]
    points = [
        Column(key=p.key, name=p.name, unit="pp", digits=2, signed=True, interval=True)
        for p in pairs
    ]
    return (
        Table.by_name(
            "Accuracy of the last epoch",
            (*LABEL_COLUMNS, *percent),
            _rows(pairs, accuracies),
            _notes(plan, usual, "Last accuracy:"),
        ),
        Table.by_name(
            "Gain over the student",
            (*LABEL_COLUMNS, *points),
            _rows(pairs, gains),
            _notes(plan, usual, "Gain:", NO_EVIDENCE),
        ),
    )


def _names(keys: Sequence[PairKey]) -> list[tuple[str, str]]:
    """Key and heading of each pair; data set and axes only where the grid has several."""
    several = len({key.data for key in keys}) > 1
    axes = [dict(key.axes) for key in keys]
    varying = [name for name in AXES if len({each.get(name, 1.0) for each in axes}) > 1]
    names = []
    for key, each in zip(keys, axes, strict=True):
        first = [key.data] if several else []
        parts = [f"{name}={each.get(name, 1.0):g}" for name in varying]
        words = [_shown(name, each.get(name, 1.0)) for name in varying]
        names.append(
            (
                ";".join([*first, *parts, f"{key.teacher}>{key.student}"]),
                ", ".join([*first, *words, f"{key.teacher} -> {key.student}"]),
            )
        )
    return names


def _shown(axis: str, value: float) -> str:
    """An axis's value as people say it.

    Example:
        >>> _shown("fraction", 0.25), _shown("resolution", 2), _shown("labels", 1.0)
        ('25 % of images', '1/2 size', '100 % of labels')
    """
    if axis == "resolution":
        return "full size" if value == 1 else f"1/{value:g} size"
    return f"{100 * value:g} % of {'labels' if axis == 'labels' else 'images'}"


def _notes(plan: Plan, usual: int, *wanted: str) -> tuple[str, ...]:
    seeds = f"{usual} seeds ± the half-width of the 95 % Student t interval"
    if usual == 1:
        seeds = "1 seed, without an interval"
    return (
        f"Means over {seeds}; another number of seeds is given as (n=k).",
        *(note for note in notes_of(plan) if note.startswith((*wanted, "Intervals"))),
    )


def _labels(pairs: Sequence[_Pair]) -> list[str]:
    """Teacher and student, then the others in the order of first mention."""
    found = dict.fromkeys(label for pair in pairs for label in pair.groups)
    first = [label for label in ("teacher", "student") if label in found]
    return [*first, *(label for label in found if label not in first)]


def _rows(
    pairs: Sequence[_Pair], cells: Mapping[str, Mapping[str, Entry]]
) -> Iterable[dict[str, Entry | Value]]:
    for label, entries in cells.items():
        category = next(p.groups[label].category for p in pairs if label in p.groups)
        yield {"label": label, "category": category, **entries}


def _usual_n(pairs: Sequence[_Pair]) -> int:
    counts = [len(g.by_cell("last_accuracy")) for p in pairs for g in p.groups.values()]
    return max(sorted(set(counts)), key=counts.count)
