"""Accuracies and gains of a whole grid side by side: over its pairs, and over its data axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.record import Plan, Record
from bench.report.statistics import mean_interval, paired_differences
from bench.report.summary import (
    NO_EVIDENCE,
    Group,
    PairKey,
    measured_groups,
    notes_of,
)
from bench.report.tables import Column, Entry, Table, Value

AXES = {
    "fraction": "part of the training images",
    "resolution": "resolution of the student's images",
    "labels": "part of the labels",
}
"""Axis of the data -> what its table is about."""

LABEL_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
)


MakeEntry = Callable[[Mapping[str, Group], str, int], Entry]
"""From a setting's groups, a label and the usual number of seeds."""


class Setting(NamedTuple):
    """One column: a pair, and what it is called there.

    Attributes:
        key: of the column in the CSV.
        name: its heading.
        groups: label -> the rows of the pair.
    """

    key: str
    name: str
    groups: Mapping[str, Group]


def overview_tables(plan: Plan, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Accuracy, then gain over the student: a row a method, a column a pair with any record.

    Args:
        plan: what was asked for.
        records: by cell id.

    Returns:
        Two tables, or none where no pair has a record.
    """
    settings = pair_settings(plan, records)
    if not settings:
        return ()
    return (
        _accuracies("Accuracy of the last epoch", settings, plan),
        _gains("Gain over the student", settings, plan),
    )


def pair_settings(plan: Plan, records: Mapping[str, Record]) -> list[Setting]:
    """The pairs that have any record, named by what differs between them."""
    groups = _grouped(plan, records)
    data = len({key.data for key in groups}) > 1
    varying = [name for name in AXES if len(_values(groups, name)) > 1]
    return [Setting(*_named(key, data, varying), found) for key, found in groups.items()]


def _grouped(plan: Plan, records: Mapping[str, Record]) -> dict[PairKey, dict[str, Group]]:
    return {
        key: {group.label: group for group in groups}
        for key, groups in measured_groups(plan, records).items()
    }


def _values(keys: Iterable[PairKey], axis: str) -> list[float]:
    return sorted({dict(key.axes).get(axis, 1.0) for key in keys})


def _named(key: PairKey, data: bool, varying: Sequence[str]) -> tuple[str, str]:
    """The pair's key and heading; data set and axes only where the grid has several."""
    axes = dict(key.axes)
    words = [_shown(name, axes.get(name, 1.0)) for name in varying]
    parts = [f"{name}={axes.get(name, 1.0):g}" for name in varying]
    if data:
        words, parts = [key.data, *words], [key.data, *parts]
    return (
        ";".join([*parts, f"{key.teacher}>{key.student}"]),
        ", ".join([*words, f"{key.teacher} -> {key.student}"]),
    )


def _shown(axis: str, value: float) -> str:
    """An axis's value as people say it.

    Example:
        >>> _shown("fraction", 0.25), _shown("resolution", 2), _shown("labels", 1.0)
        ('25 % of images', '1/2 size', '100 % of labels')
    """
    if axis == "resolution":
        return "full size" if value == 1 else f"1/{value:g} size"
    return f"{100 * value:g} % of {'labels' if axis == 'labels' else 'images'}"


def axis_tables(plan: Plan, records: Mapping[str, Record]) -> dict[str, tuple[Table, ...]]:
    """For every axis of the data with several values: accuracy and gain, a column a value.

    Args:
        plan: what was asked for.
        records: by cell id.

    Returns:
        Axis -> two tables for each pair and each value of the other axes; axes with one value
        are left out.
    """
    grouped = _grouped(plan, records)
    found = {}
    for axis in AXES:
        if len(_values(grouped, axis)) > 1:
            found[axis] = tuple(_along(plan, axis, grouped))
    return found


def _along(
    plan: Plan, axis: str, grouped: Mapping[PairKey, Mapping[str, Group]]
) -> Iterable[Table]:
    rest = {key: tuple(x for x in key.axes if x[0] != axis) for key in grouped}
    for same in dict.fromkeys((k.data, rest[k], k.teacher, k.student) for k in grouped):
        keys = [k for k in grouped if (k.data, rest[k], k.teacher, k.student) == same]
        # The whole data set first: most images, most labels, full size.
        keys.sort(key=lambda k: dict(k.axes).get(axis, 1.0), reverse=axis != "resolution")
        values = [dict(key.axes).get(axis, 1.0) for key in keys]
        settings = [
            Setting(f"{axis}={value:g}", _shown(axis, value), grouped[key])
            for key, value in zip(keys, values, strict=True)
        ]
        title = f"{AXES[axis]}, {PairKey(same[0], same[1], same[2], same[3]).title}"
        yield _accuracies(f"Accuracy by {title}", settings, plan)
        yield _gains(f"Gain by {title}", settings, plan)


# --- one table -------------------------------------------------------------------------------


def _accuracies(title: str, settings: Sequence[Setting], plan: Plan) -> Table:
    columns = (Column(key=s.key, name=s.name, unit="%", digits=2, interval=True) for s in settings)
    return Table.by_name(
        title,
        (*LABEL_COLUMNS, *columns),
        _rows(settings, _labels(settings), _accuracy),
        _notes(plan, settings, "Last accuracy:"),
    )


def _gains(title: str, settings: Sequence[Setting], plan: Plan) -> Table:
    columns = (
        Column(key=s.key, name=s.name, unit="pp", digits=2, signed=True, interval=True)
        for s in settings
    )
    labels = [label for label in _labels(settings) if label != "student"]
    return Table.by_name(
        title,
        (*LABEL_COLUMNS, *columns),
        _rows(settings, labels, _gain),
        _notes(plan, settings, "Gain:", NO_EVIDENCE),
    )


def _notes(plan: Plan, settings: Sequence[Setting], *wanted: str) -> tuple[str, ...]:
    n = _usual_n(settings)
    seeds = f"{n} seeds ± the half-width of the 95 % Student t interval"
    if n == 1:
        seeds = "1 seed, without an interval"
    return (
        f"Means over {seeds}; another number of seeds stands beside its entry as (n=k).",
        *(note for note in notes_of(plan) if note.startswith((*wanted, "Intervals"))),
    )


def _labels(settings: Sequence[Setting]) -> list[str]:
    """Teacher and student, then the others in the order of first mention."""
    found = dict.fromkeys(label for setting in settings for label in setting.groups)
    first = [label for label in ("teacher", "student") if label in found]
    return [*first, *(label for label in found if label not in first)]


def _rows(
    settings: Sequence[Setting], labels: Iterable[str], entry: MakeEntry
) -> list[dict[str, Entry | Value]]:
    usual = _usual_n(settings)
    return [
        {
            "label": label,
            "category": next(s.groups[label].category for s in settings if label in s.groups),
            **{s.key: entry(s.groups, label, usual) for s in settings},
        }
        for label in labels
    ]


def _usual_n(settings: Sequence[Setting]) -> int:
    counts = [len(g.by_cell("last_accuracy")) for s in settings for g in s.groups.values()]
    return max(sorted(set(counts)), key=counts.count)


def _accuracy(groups: Mapping[str, Group], label: str, usual: int) -> Entry:
    values = groups[label].by_cell("last_accuracy") if label in groups else []
    if not values:
        return Entry(None)
    return Entry(mean_interval(values), mark=_n(len(values), usual))


def _gain(groups: Mapping[str, Group], label: str, usual: int) -> Entry:
    both = [groups[x].by_seed("last_accuracy") if x in groups else {} for x in (label, "student")]
    differences = paired_differences(*both)
    if not differences:
        return Entry(None)
    gain = mean_interval(differences)
    mark = _n(gain.n, usual)
    return Entry(gain, mark=mark if gain.excludes_zero else f"{mark} {NO_EVIDENCE}".strip())


def _n(n: int, usual: int) -> str:
    return "" if n in (1, usual) else f"(n={n})"  # an interval shows its n=1 by itself
