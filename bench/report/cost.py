"""What each method's whole training costs, as tables. Every stage's numbers are in cost.json."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.cost.costs import MIB, CostRecord, Costs
from bench.decide.evidence import row_title
from bench.record import FINISHED
from bench.report.figures import dumbbells
from bench.report.tables import Column, Section, Table, Value, write_csv, write_markdown
from bench.statistics import Interval

METHOD_COLUMNS = (
    Column("label", "method", align="left"),
    Column(
        "training_cost_ratio", "whole training", "× student", digits=1, interval=True, best="low"
    ),
    Column("training_flop_ratio", "FLOP", "× student", digits=1, best="low"),
    Column("loss_ms", "transfer losses", "ms"),
    Column("step_ms", "steps", "ms"),
    Column("extra_peak_mib", "memory above plain", "MiB", digits=1, best="low"),
    Column("extra_parameters", "extra parameters", best="low"),
    Column("status", "status", align="left", detail=True),
)

NOTES = (
    "One method alone, on random images, warmed up, in turns with all others; medians with [first "
    "quartile, third quartile] over rounds, with a ± where both lie equally far.",
    "Whole training: sum over stages of epochs x share of the images x step, over the plain "
    "student's epochs x step of the same round, with a teacher's pass over clean images; without "
    "the teacher's own training, a source's training and the choice of images.",
    "FLOP: products, convolutions (1 multiply-add = 2) and matrix decompositions by formula (9 n^3 "
    "for eigh of an n x n matrix); nothing elementwise.",
    "Transfer losses: alone, with their connectors, forward and backward; one number a stage.",
    "Memory above plain, of the costliest stage: a step's peak beyond weights and images, and what "
    "is held from step to step: connectors, their momentum, the teacher's view if it is cached.",
    "Extra parameters are trained with the student and dropped afterwards.",
)


def _title(record: CostRecord) -> str:
    """What a measurement was made on, in one line."""
    at = record.conditions
    threads = f", threads {at['threads']}" if at.get("device_type") == "cpu" else ""
    return (
        f"{record.data}: {record.teacher} → {record.student}, batch {at.get('batch')}, "
        f"{at.get('device')}{threads}, {at.get('precision')}"
    )


def method_table(records: Sequence[CostRecord]) -> Table:
    """A row for each method, of one pair under one set of conditions."""
    shown = []
    for name in sorted({name for record in records for name in record.conditions}):
        texts = dict.fromkeys(str(record.conditions.get(name)) for record in records)
        shown.append(f"{name.replace('_', ' ')} {' or '.join(texts)}")
    notes = (
        f"Measured with: {'; '.join(shown)}.",
        *NOTES,
        f"The teacher's weights take {records[0].teacher_bytes / MIB:.2f} MiB more wherever a "
        "stage reads the teacher's view of the batch.",
    )
    rows = [_method_row(record) for record in records]
    return Table(f"Cost of training, {_title(records[0])}", METHOD_COLUMNS, rows, notes)


def _method_row(record: CostRecord) -> dict[str, Value]:
    title = row_title(record.label)
    if record.status != FINISHED:
        return {"label": title, "status": f"{record.status.replace('_', ' ')}: {record.error}"}
    losses = (stage.loss_ms.median if stage.loss_ms else None for stage in record.stages)
    ratio = record.training_cost_ratio
    ends = (ratio.q1, ratio.q3) if ratio and ratio.n > 1 else (None, None)
    return {
        "label": title,
        "training_cost_ratio": ratio and Interval(ratio.median, *ends, ratio.n),
        "training_flop_ratio": record.training_flop_ratio,
        "step_ms": _joined(stage.step_ms.median for stage in record.stages),
        "loss_ms": _joined(losses),
        "extra_peak_mib": record.extra_peak_bytes / MIB,
        "extra_parameters": record.extra_parameters,
        "status": "measured",
    }


def _joined(values: Iterable[float | None]) -> str | None:
    """One number for each stage, in the plan's order: "9.80; 8.01"."""
    return "; ".join("-" if x is None else f"{x:.2f}" for x in values) or None


def cost_section(costs: Costs) -> Section:
    """The methods, for each pair under one set of conditions, and every loss next to its step."""
    places = defaultdict[tuple[str, ...], list[CostRecord]](list)
    for record in costs.records:
        places[record.place].append(record)
    tables = [method_table(records) for records in places.values()]
    drawn = [(_title(records[0]), dumbbells(records)) for records in places.values()]
    rows = [(title, rows) for title, rows in drawn if rows]
    return Section(name="cost", title="What methods cost", tables=tables, dumbbells=rows)


def write_costs(costs: Costs, folder: Path) -> list[Path]:
    """Writes cost.md and cost.csv; returns their paths."""
    section = cost_section(costs)
    return [write_csv(section, folder), write_markdown(section, folder)]
