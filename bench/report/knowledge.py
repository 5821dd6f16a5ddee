"""What diagnostics measured of every row: how large its knowledge is and how it binds."""

from __future__ import annotations

from collections.abc import Mapping

from bench.record import Plan, Record
from bench.report.measures import (
    Observed,
    Value,
    conflict_share,
    final,
    mean_cosine,
    read,
    train_test_gap,
)
from bench.report.statistics import mean_interval
from bench.report.summary import Group
from bench.report.tables import Column, Entry, Table

ROW_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="n"),
    Column(key="knowledge_scalars", name="scalars of knowledge per sample"),
    Column(key="knowledge_rank", name="effective rank", digits=1, interval=True),
    Column(key="knowledge_directions", name="directions held fast", digits=1, interval=True),
    Column(key="cosine", name="gradient cosine", digits=3, signed=True, interval=True),
    Column(key="conflict", name="conflicting steps", unit="%", digits=1, interval=True),
    Column(key="gap", name="train - test", unit="pp", digits=2, signed=True, interval=True),
)

ROW_NOTES = (
    "n: finished cells, one a seed; ± is the half-width of the 95 % t interval over seeds.",
    "Effective rank: exp of the entropy of the normalised singular values of the knowledge over "
    "at most 256 test images, whose number bounds it.",
    "Directions held fast: participation ratio of the curvature of the transfer loss in the "
    "teacher's own tensors, per sample; the fewer, the softer.",
    "Gradient cosine: in the stage of the row's own knowledge. In one without labels the head is "
    "untrained and its task gradient close to a random one: a cosine about 0 says little there.",
    "Conflicting steps: share of the measured steps with a gradient cosine below 0.",
    "Train - test: accuracy on the training images without augmentation minus the last epoch's.",
)


VALUES: Mapping[str, Value] = {
    "knowledge_rank": final("knowledge_rank"),
    "knowledge_directions": final("knowledge_directions"),
    "cosine": mean_cosine(),
    "conflict": conflict_share(),
    "gap": train_test_gap,
}


def diagnostics_tables(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """One table for each pair that was examined; none for a grid without diagnostics."""
    tables = []
    for key, groups in Observed.of(plan, records).groups.items():
        rows = [_row(group) for group in groups if read(group, final("train_accuracy"))]
        if rows:
            tables.append(
                Table(title=key.title, columns=ROW_COLUMNS, rows=tuple(rows), notes=ROW_NOTES)
            )
    return tables


def _row(group: Group) -> tuple[Entry, ...]:
    scalars = read(group, final("knowledge_scalars"))
    measured = [_mean(group, value) for value in VALUES.values()]
    return (
        Entry(group.label),
        Entry(group.category),
        Entry(len(read(group, final("train_accuracy")))),
        Entry(int(next(iter(scalars.values()))) if scalars else None),
        *measured,
    )


def _mean(group: Group, value: Value) -> Entry:
    series = read(group, value)
    return Entry(mean_interval(list(series.values())) if series else None)
