"""What methods cost, as tables: each method's whole training, and each of its stages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.cost.costs import CostRecord, Costs, StageCost
from bench.record import FINISHED
from bench.report.cost_figures import draw_losses
from bench.report.drawing import save_figure
from bench.report.measured import MEGA, MIB, by_place, measured_with, pair_title, quartile_entry
from bench.report.tables import Column, Entry, Section, Table, Value, to_text, write_section

FIGURE = "cost_loss"
CAPTION = "Every transfer loss alone, forward and backward, on a log scale."

METHOD_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(
        key="training_cost_ratio",
        name="whole training, time",
        unit="x plain",
        digits=2,
        interval=True,
    ),
    Column(key="training_flop_ratio", name="whole training, FLOP", unit="x plain", digits=2),
    Column(key="step_ms", name="steps of its stages", unit="ms", align="right"),
    Column(key="loss_ms", name="transfer losses of its stages", unit="ms", align="right"),
    Column(key="extra_peak_mib", name="peak memory above plain", unit="MiB", digits=2),
    Column(key="extra_parameters", name="extra parameters"),
    Column(key="status", name="status", align="left"),
)

STAGE_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="stage", name="stage", align="left"),
    Column(key="epochs", name="epochs"),
    Column(key="kept", name="images trained on", unit="%", digits=0),
    Column(key="step_ms", name="step", unit="ms", digits=2, interval=True),
    Column(key="ratio", name="step over plain", digits=2, interval=True),
    Column(key="teacher_ms", name="teacher's pass", unit="ms", digits=2),
    Column(key="once_ms", name="teacher once, a batch", unit="ms", digits=2),
    Column(key="loss_ms", name="loss alone", unit="ms", digits=3, interval=True),
    Column(key="loss_share", name="loss in the step", unit="%", digits=1),
    Column(key="step_mflop", name="step", unit="MFLOP", digits=1),
    Column(key="loss_mflop", name="loss alone", unit="MFLOP", digits=2),
    Column(key="peak_mib", name="peak memory of a step", unit="MiB", digits=2),
    Column(key="loss_peak_mib", name="peak memory of the loss", unit="MiB", digits=2),
    Column(key="held_mib", name="held on top of plain", unit="MiB", digits=2),
)

NOTES = (
    "One method alone, on random images. Every step is warmed up, waited for, and measured in "
    "turns with all others, in a new order every round.",
    "Times are medians with [first quartile, third quartile] over rounds, with a ± where both lie "
    "equally far.",
    "Whole training: sum over stages of epochs x share of the images x step, over the plain "
    "student's epochs x step of the same round. It includes a teacher's pass over clean images, "
    "and leaves out the teacher's own training, a source's training and the choice of images.",
    "FLOP are counted while the step runs: products and convolutions (1 multiply-add = 2), "
    "elementwise (1 per element and operation), and eigh or svd by formula (9 n^3 for an n x n "
    "matrix).",
    "Transfer losses: alone, with their connectors, forward and backward, on the tensors that both "
    "networks show in a step; one number a stage.",
    "Peak memory above plain, of the costliest stage: what a step holds at most beyond weights and "
    "images, and what is held from step to step on top of plain training: connectors with their "
    "momentum, and the teacher's view of all training images where a stage caches it.",
    "Extra parameters are trained with the student and dropped afterwards.",
)

STAGE_NOTES = (
    "Teacher's pass: its forward pass over the batch to the deepest tap that the stage reads.",
    "Loss in the step: the median of the losses alone over the median of the step.",
)


def method_table(records: Sequence[CostRecord]) -> Table:
    """A row for each method, of one pair under one set of conditions."""
    teacher = records[0].teacher_bytes / MIB
    return Table.by_name(
        f"Cost of training, {pair_title(records[0])}",
        METHOD_COLUMNS,
        map(_method_row, records),
        (
            measured_with(records),
            *NOTES,
            f"The teacher's weights take {teacher:.2f} MiB more wherever a stage reads the "
            "teacher's view of the batch.",
        ),
    )


def _method_row(record: CostRecord) -> dict[str, Entry | Value]:
    row: dict[str, Entry | Value] = {"label": record.label, "category": record.category}
    if record.status != FINISHED:
        return {**row, "status": f"{record.status.replace('_', ' ')}: {record.error}"}
    losses = [stage.loss.ms.median if stage.loss else None for stage in record.stages]
    return {
        **row,
        "training_cost_ratio": quartile_entry(record.training_cost_ratio),
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


def stage_table(records: Sequence[CostRecord]) -> Table:
    """A row for each stage, of one pair under one set of conditions."""
    return Table.by_name(
        f"Cost of each stage, {pair_title(records[0])}",
        STAGE_COLUMNS,
        (_stage_row(record.label, stage) for record in records for stage in record.stages),
        STAGE_NOTES,
    )


def _stage_row(label: str, stage: StageCost) -> dict[str, Entry | Value]:
    row: dict[str, Entry | Value] = {
        "label": label,
        "stage": stage.name,
        "epochs": stage.epochs,
        "kept": stage.kept,
        "step_ms": quartile_entry(stage.step_ms),
        "ratio": quartile_entry(stage.ratio),
        "teacher_ms": stage.teacher_ms.median if stage.teacher_ms else None,
        "once_ms": stage.once_ms.median if stage.once_ms else None,
        "step_mflop": stage.step_flops / MEGA,
        "peak_mib": stage.peak_bytes / MIB,
        "held_mib": stage.held_bytes / MIB,
    }
    if stage.loss is None:
        return row
    return {
        **row,
        "loss_ms": quartile_entry(stage.loss.ms),
        "loss_share": stage.loss.ms.median / stage.step_ms.median,
        "loss_mflop": stage.loss.flops / MEGA,
        "loss_peak_mib": stage.loss.peak_bytes / MIB,
    }


# --- files --------------------------------------------------------------------------------------


def costs_to_text(costs: Costs) -> str:
    """The tables of methods for a terminal."""
    return "\n".join(to_text(method_table(r)) for r in by_place(costs.records).values())


def cost_section(costs: Costs) -> Section:
    """The methods and their stages, for each pair and set of conditions."""
    groups = by_place(costs.records).values()
    tables = tuple(table for r in groups for table in (method_table(r), stage_table(r)))
    return Section(name="cost", title="What methods cost", tables=tables)


def write_costs(costs: Costs, folder: Path) -> list[Path]:
    """Writes cost.md, .tex and .csv, cost_2.csv (the stages) and figures/cost_loss_*.svg.

    Args:
        costs: all that was profiled of a grid.
        folder: the grid's; made if it does not exist.

    Returns:
        The files.
    """
    paths = write_section(cost_section(costs), folder)
    used: Counter[str] = Counter()
    for records in by_place(costs.records).values():
        if (figure := draw_losses(records)) is not None:
            pair = re.sub(r"[^A-Za-z0-9]+", "-", f"{records[0].teacher} {records[0].student}")
            used[pair] += 1
            name = pair if used[pair] == 1 else f"{pair}-{used[pair]}"
            paths.append(save_figure(figure, folder / "figures" / f"{FIGURE}_{name}"))
    return paths
