"""What a method gains and what it costs: the summary's rows joined with the profiler's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.cost.costs import CostRecord, Costs
from bench.record import FINISHED, Plan, Record
from bench.report.candidates import STUDENT, cost_ratio, costs_of, plain_factor
from bench.report.measured import MIB, measured_with, other_code, quartile_entry
from bench.report.summary import PairKey, group_by_pair, notes_of, pair_table
from bench.report.tables import Column, Entry, Section, Table, Value

GAINED = ("label", "category", "n", "last_accuracy", "gain")
"""Columns taken over from the summary."""

COST_COLUMNS = (
    Column(
        key="training_cost_ratio", name="whole training", unit="x plain", digits=2, interval=True
    ),
    Column(key="step_ratio", name="costliest step", unit="x plain", digits=2, interval=True),
    Column(key="loss_ms", name="transfer loss", unit="ms", digits=2, interval=True),
    Column(key="extra_peak_mib", name="memory above plain", unit="MiB", digits=2),
    Column(key="extra_parameters", name="extra parameters"),
)

GAIN_NOTES = (
    "Last accuracy: last epoch, test set; gain: over the student, paired by seed; ± is the "
    "half-width of the 95 % Student t interval over seeds, ~ that of a gain that contains 0.",
)
NOTES = (
    "Costs: one method by itself on random images, medians with [quartiles]; a row that was not "
    "profiled has none. Costliest step and transfer loss: of the stage where they are largest.",
    "Whole training: all stages by their epochs, over the plain student's; of a plain student "
    "trained longer, by definition, as many times as its epochs.",
    "Memory above plain: a step's peak and what is held from step to step, of the costliest stage.",
)


def accuracy_cost_section(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None
) -> Section:
    """A table a pair of which any row was profiled.

    Args:
        plan: what was asked for.
        records: by cell id.
        costs: of the same grid; None for none.
    """
    tables = (
        _pair_table(
            key,
            pair_table(key, rows, records, notes_of(plan)),
            costs,
            [records[r.cell_id] for r in rows if r.cell_id in records],
        )
        for key, rows in group_by_pair(plan).items()
        if any(row.cell_id in records for row in rows)
    )
    return Section(
        name="accuracy_cost",
        title=f"Accuracy and cost of {plan.name}",
        tables=tuple(table for table in tables if table is not None),
    )


def _pair_table(
    key: PairKey, summary: Table, costs: Costs | None, cells: Sequence[Record]
) -> Table | None:
    measured = {record.label: record for record in costs_of(costs, key)[0]}
    if not measured:
        return None
    rows = []
    for pairs in summary.pairs():
        row = {column.key: entry for column, entry in pairs if column.key in GAINED}
        rows.append({**row, **_costs(str(row["label"].value), measured)})
    taken = tuple(column for column in summary.columns if column.key in GAINED)
    version = other_code(measured.values(), cells)
    conditions = measured_with(list(measured.values()))
    notes = (*GAIN_NOTES, conditions, *filter(None, [version]), *NOTES)
    return Table.by_name(f"Accuracy and cost, {key.title}", taken + COST_COLUMNS, rows, notes)


def _costs(label: str, measured: Mapping[str, CostRecord]) -> dict[str, Entry | Value]:
    """What is known of a row, by `COST_COLUMNS`."""
    factor = plain_factor(label)
    ratio = quartile_entry(cost_ratio(label, measured.get(label)))
    whole = ratio if factor is None else Entry(factor)  # by definition
    # A longer plain training takes the same steps, only more of them.
    record = measured.get(label if factor is None else STUDENT)
    if record is None or record.status != FINISHED:
        return {"training_cost_ratio": whole}
    return {
        "training_cost_ratio": whole,
        "step_ratio": quartile_entry(max(stage.ratio for stage in record.stages)),
        "loss_ms": quartile_entry(record.loss and record.loss.ms),
        "extra_peak_mib": record.extra_peak_bytes / MIB,
        "extra_parameters": record.extra_parameters,
    }
