"""What tables and figures of costs share: units, quartiles, pairs and conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.cost.costs import CostRecord, Quartiles
from bench.record import Record
from bench.report.tables import Entry
from bench.statistics import Interval

MIB = 2**20
MEGA = 1e6

CONDITIONS = (
    "device", "threads", "precision", "deterministic", "torch", "cuda", "python", "batch",
    "image_shape", "classes", "train_images", "rounds", "warm_up", "started", "commit", "dirty",
    "memory",
)  # fmt: skip
"""What is said of a measurement, in this order."""

Place = tuple[str, ...]
"""A pair and the conditions that it was measured under, see `CostRecord.place`."""


def by_place(records: Iterable[CostRecord]) -> dict[Place, list[CostRecord]]:
    """Records that may share a table: one pair under one set of conditions."""
    places: dict[Place, list[CostRecord]] = {}
    for record in records:
        places.setdefault(record.place, []).append(record)
    return places


def pair_title(record: CostRecord) -> str:
    """What a measurement was made on, in one line."""
    at = record.conditions
    threads = f", threads {at['threads']}" if at.get("device_type") == "cpu" else ""
    return (
        f"{record.data}: {record.teacher} -> {record.student}, batch {at.get('batch')}, "
        f"{at.get('device')}{threads}, {at.get('precision')}"
    )


def measured_with(records: Sequence[CostRecord]) -> str:
    """The conditions that all records share; those that differ show every value."""
    shown = []
    for name in CONDITIONS:
        values = [record.conditions.get(name) for record in records]
        if any(value is not None for value in values):
            texts = dict.fromkeys(map(_plain, values))
            shown.append(f"{name.replace('_', ' ')} {' or '.join(texts)}")
    return f"Measured with: {'; '.join(shown)}."


def other_code(costs: Iterable[CostRecord], cells: Iterable[Record]) -> str:
    """One sentence where costs and accuracies are of different commits; else empty."""
    cost, accuracy = (
        dict.fromkeys(str(x.conditions["commit"])[:10] for x in found if x.conditions.get("commit"))
        for found in (costs, cells)
    )
    if not cost or not accuracy or set(cost) == set(accuracy):
        return ""
    return (
        f"Costs were measured with another version of the code (commit {', '.join(cost)}) than "
        f"accuracies ({', '.join(accuracy)})."
    )


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def quartile_entry(measured: Quartiles | None) -> Entry:
    """The median with its quartiles; without them if it was measured once."""
    if measured is None:
        return Entry(None)
    low, high = (None, None) if measured.n == 1 else (measured.q1, measured.q3)
    return Entry(Interval(measured.median, low, high, measured.n))
