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

LABEL_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
)


class _Pair(NamedTuple):
    """One pair's column: its heading, and label -> the rows of the pair."""

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
        _Pair(name, {group.label: group for group in groups})
        for name, groups in zip(_names(measured), measured.values(), strict=True)
    ]
    usual = _usual_n(pairs)
    # Each pair's begin with teacher and student.
    labels = dict.fromkeys(label for pair in pairs for label in pair.groups)
    accuracies = {
        label: {
            p.name: mean_entry(p.groups[label].by_cell("last_accuracy"), usual)
            for p in pairs
            if label in p.groups
        }
        for label in labels
    }
    gains = {
        label: {p.name: gain_entry(p.series(label), p.series("student"), usual) for p in pairs}
        for label in labels
        if label != "student"
    }
    percent = [Column(key=p.name, name=p.name, unit="%", digits=2, interval=True) for p in pairs]
    points = [
        Column(key=p.name, name=p.name, unit="pp", digits=2, signed=True, interval=True)
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


def _names(keys: Iterable[PairKey]) -> list[str]:
    """The heading of each pair: its title, without the data set where all pairs have it."""
    titles = [key.title for key in keys]
    heads = {title.partition(": ")[0] for title in titles}
    return titles if len(heads) > 1 else [title.partition(": ")[2] for title in titles]


def _notes(plan: Plan, usual: int, *wanted: str) -> tuple[str, ...]:
    seeds = f"{usual} seeds ± the half-width of the 95 % Student t interval"
    if usual == 1:
        seeds = "1 seed, without an interval"
    return (
        f"Means over {seeds}; another number of seeds is given as (n=k).",
        *(note for note in notes_of(plan) if note.startswith((*wanted, "Intervals"))),
    )


def _rows(
    pairs: Sequence[_Pair], cells: Mapping[str, Mapping[str, Entry]]
) -> Iterable[dict[str, Entry | Value]]:
    for label, entries in cells.items():
        category = next(p.groups[label].category for p in pairs if label in p.groups)
        yield {"label": label, "category": category, **entries}


def _usual_n(pairs: Sequence[_Pair]) -> int:
    counts = [len(g.by_cell("last_accuracy")) for p in pairs for g in p.groups.values()]
    return max(sorted(set(counts)), key=counts.count)
