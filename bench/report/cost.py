"""What methods cost, as tables: each method's whole training, and every stage taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.cost.record import PARTS, CostRecord, Costs, Scaling, StageCost
from bench.record import FINISHED, write_atomically
from bench.report.cost_figures import (
    draw_losses,
    draw_memory,
    draw_scaling,
    draw_step,
    fitted_exponent,
)
from bench.report.cost_order import category_table, order_table
from bench.report.drawing import save_figure
from bench.report.measured import (
    MEGA,
    MIB,
    by_place,
    measured_with,
    pair_title,
    quartile_entry,
    textbook_of,
    with_places,
)
from bench.report.roofline import roofline_table
from bench.report.tables import (
    Column,
    Entry,
    Section,
    Table,
    to_csv,
    to_latex,
    to_markdown,
    to_text,
)

FIGURES = {
    "cost_step": "What a training step of every method and stage is made of, medians over rounds.",
    "cost_loss": "Every transfer loss by itself, forward and backward, on a log scale; a line "
    "marks the textbook form where there are two.",
    "cost_memory": "Peak memory of a method's costliest stage above that of the plain step.",
    "cost_scaling": "How each transfer loss grows with batch, channels and positions.",
}
"""What a figure's name begins with -> what it shows."""

METHOD_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(
        key="training_cost_ratio", name="whole training, time", unit="x plain", digits=2,
        interval=True,
    ),
    Column(key="training_flop_ratio", name="whole training, FLOP", unit="x plain", digits=2),
    Column(key="step_ms", name="steps of its stages", unit="ms", align="right"),
    Column(key="loss_ms", name="transfer losses of its stages", unit="ms", align="right"),
    Column(key="reference_loss_ms", name="their textbook forms", unit="ms", align="right"),
    Column(key="extra_peak_mib", name="peak memory above plain", unit="MiB", digits=2),
    Column(key="extra_parameters", name="extra parameters"),
    Column(key="status", name="status", align="left"),
)  # fmt: skip

STAGE_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="stage", name="stage", align="left"),
    Column(key="epochs", name="epochs"),
    Column(key="kept", name="images trained on", unit="%", digits=0),
    Column(key="step_ms", name="step", unit="ms", digits=2, interval=True),
    Column(key="ratio", name="step over plain", digits=2, interval=True),
    *(Column(key=f"{part}_ms", name=part.replace("_", " "), unit="ms", digits=2) for part in PARTS),
    Column(key="once_ms", name="teacher once, a batch", unit="ms", digits=2),
    Column(key="step_mflop", name="step", unit="MFLOP", digits=1),
    Column(key="loss_matmul_mflop", name="loss, matmul and conv", unit="MFLOP", digits=2),
    Column(key="loss_elementwise_mflop", name="loss, elementwise", unit="MFLOP", digits=2),
    Column(key="loss_decomposition_mflop", name="loss, eigh and svd", unit="MFLOP", digits=2),
    Column(key="loss_moved_mb", name="loss, moved", unit="MB", digits=2),
    Column(key="peak_mib", name="peak memory of a step", unit="MiB", digits=2),
    Column(key="held_mib", name="held beside plain", unit="MiB", digits=2),
)

SCALING_COLUMNS = (
    Column(key="method", name="method", align="left"),
    Column(key="stage", name="stage", align="left"),
    Column(key="axis", name="grows", align="left"),
    Column(key="size", name="to"),
    Column(key="milliseconds", name="loss alone", unit="ms", digits=3, interval=True),
    Column(key="mflop", name="loss alone", unit="MFLOP", digits=2),
    Column(key="exponent", name="fitted exponent", digits=2),
)

NOTES = (
    "One method by itself, on random images; every step waited for, warmed up, and measured in "
    "turns with all others in a new order every round.",
    "Times are medians with [first quartile, third quartile] over rounds; a ± stands where both "
    "lie equally far.",
    "Whole training: sum over stages of epochs x share of the images x step, over the plain "
    "student's epochs x step of the same round; a teacher pass made once over clean images is "
    "in it, the teacher's own training, a source's training and the choosing of images are not.",
    "FLOP are counted while the step runs, not estimated: products and convolutions (1 "
    "multiply-add = 2), elementwise (1 per element and operation), and eigh or svd by formula "
    "(9 n^3 for an n x n matrix).",
    "Transfer losses: alone, with their connectors, forward and backward, on the tensors that both "
    "networks show in a step; one number a stage.",
    "Peak memory above plain, of the costliest stage: what a step holds at most beyond weights and "
    "images, and what is held from step to step beside plain training: connectors with their "
    "momentum, and the teacher's view of all training images where a stage caches it.",
    "Extra parameters are trained beside the student and dropped afterwards.",
)


def method_table(records: Sequence[CostRecord], costs: Costs) -> Table:
    """A row a method, of one pair under one set of conditions.

    Args:
        records: those of the pair, as shipped.
        costs: has their textbook forms.
    """
    textbook, teacher = textbook_of(costs), records[0].teacher_bytes / MIB
    return Table(
        title=f"Cost of training, {pair_title(records[0])}",
        columns=METHOD_COLUMNS,
        rows=tuple(_method_row(r, textbook.get((*r.place, r.label))) for r in records),
        notes=(measured_with(records), *NOTES, f"The teacher's weights take {teacher:.2f} MiB more "
               "wherever a stage reads the teacher's view of the batch."),
    )  # fmt: skip


def _method_row(record: CostRecord, textbook: CostRecord | None) -> tuple[Entry, ...]:
    finished = record.status == FINISHED
    theirs = [] if textbook is None else textbook.stages
    apart = any(stage.loss is not None and stage.loss.over_fast is not None for stage in theirs)
    return (
        Entry(record.label),
        Entry(record.category),
        quartile_entry(record.training_cost_ratio),
        Entry(record.training_flop_ratio),
        Entry(_joined(stage.step_ms.median for stage in record.stages)),
        Entry(_joined(map(_loss_ms, record.stages))),
        Entry(_joined(map(_loss_ms, theirs)) if apart else None),
        Entry(record.extra_peak_bytes / MIB if finished else None),
        Entry(record.extra_parameters if finished else None),
        Entry("measured" if finished else f"{record.status.replace('_', ' ')}: {record.error}"),
    )


def _loss_ms(stage: StageCost) -> float | None:
    return stage.loss.ms.median if stage.loss is not None else None


def _joined(values: Iterable[float | None]) -> str | None:
    """One number a stage, in the plan's order: "9.80; 8.01"."""
    return "; ".join("-" if x is None else f"{x:.2f}" for x in values) or None


def _sum_ms(stage: StageCost, parts: Iterable[str]) -> float | None:
    found = [stage.parts_ms[part].median for part in parts if part in stage.parts_ms]
    return sum(found) if found else None


def stage_table(records: Sequence[CostRecord]) -> Table:
    """A row a stage, of one pair under one set of conditions."""
    return Table(
        title=f"Stages taken apart, {pair_title(records[0])}",
        columns=STAGE_COLUMNS,
        rows=tuple(_stage_row(r.label, stage) for r in records for stage in r.stages),
        notes=tuple(f"{part.replace('_', ' ').capitalize()}: {what}."
                    for part, what in PARTS.items()),
    )  # fmt: skip


def _stage_row(label: str, stage: StageCost) -> tuple[Entry, ...]:
    loss = stage.loss_count
    counted = (loss.matmul, loss.elementwise, loss.decomposition, loss.moved_bytes)
    return (
        Entry(label),
        Entry(stage.name),
        Entry(stage.epochs),
        Entry(stage.kept),
        quartile_entry(stage.step_ms),
        quartile_entry(stage.ratio),
        *(Entry(_sum_ms(stage, (part,))) for part in PARTS),
        Entry(stage.once_ms.median if stage.once_ms else None),
        Entry(stage.step_count.flops / MEGA),
        *(Entry(value / MEGA if stage.loss is not None else None) for value in counted),
        Entry(stage.peak_bytes / MIB),
        Entry(stage.held_bytes / MIB),
    )


def scaling_table(scaling: Sequence[Scaling]) -> Table:
    """A row a method, axis and size."""
    rows = [
        (
            Entry(line.method), Entry(line.stage), Entry(line.axis), Entry(size),
            quartile_entry(measured), Entry(count.flops / MEGA),
            Entry(fitted_exponent(line.sizes, [x.median for x in line.milliseconds])),
        )
        for line in scaling
        for size, measured, count in zip(line.sizes, line.milliseconds, line.count, strict=True)
    ]  # fmt: skip
    return Table(
        title="Losses alone while one size grows",
        columns=SCALING_COLUMNS,
        rows=tuple(rows),
        notes=(
            "Each method's first transfer loss with its defaults, forward and backward, on random "
            "taps of one shape in both networks, so that connectors have nothing to do.",
            "The exponent p is that of time = c size^p, fitted over all sizes; small sizes cost "
            "mostly the launching of operations and pull it down.",
        ),
    )


# --- files -----------------------------------------------------------------------------------


def costs_to_text(costs: Costs) -> str:
    """The tables of methods for a terminal."""
    groups = by_place(costs.records).values()
    return "\n".join(to_text(method_table(records, costs)) for records in groups)


def cost_tables(costs: Costs) -> tuple[Table, ...]:
    """For each pair and set of conditions its methods and their stages; then the losses alone."""
    groups = by_place(costs.records).values()
    pairs = (t for records in groups for t in (method_table(records, costs), stage_table(records)))
    return (*pairs, *([scaling_table(costs.scaling)] if costs.scaling else []))


def cost_sections(costs: Costs) -> tuple[Section, ...]:
    """The losses against the machine's limits, and against the claimed order of cost."""
    groups = by_place(costs.records).values()
    limits = tuple(roofline_table(records, costs) for records in groups)
    orders = (t for r in groups for t in (order_table(r, costs), category_table(r, costs)))
    return (
        Section(name="roofline", title="Losses against the machine's limits", tables=limits),
        Section(name="cost_order", title="The claimed order of cost", tables=tuple(orders)),
    )


def cost_metrics(costs: Costs) -> dict[str, float]:
    """The tables' main numbers by name, for a tracking store: the newest of every row."""
    metrics: dict[str, float | None] = {}
    for record in (r for r in costs.records if r.status == FINISHED):
        name = f"cost/{record.teacher}-{record.student}/{record.label}"
        metrics |= {
            f"{name}/training_cost_ratio": record.training_cost_ratio
            and record.training_cost_ratio.median,
            f"{name}/step_ratio": max(stage.ratio.median for stage in record.stages),
            f"{name}/loss_ms": record.loss and record.loss.ms.median,
            f"{name}/extra_peak_mib": record.extra_peak_bytes / MIB,
            f"{name}/extra_parameters": record.extra_parameters,
        }
    return {name: float(value) for name, value in metrics.items() if value is not None}


def write_costs(costs: Costs, folder: Path) -> list[Path]:
    """Writes cost.md and .tex, cost.csv, cost_stages.csv, cost_scaling.csv and figures/cost_*.

    Args:
        costs: all that was profiled of a grid.
        folder: the grid's; made if it is not there.

    Returns:
        The files.
    """
    places, tables = by_place(costs.records), cost_tables(costs)
    methods = {key: method_table(records, costs) for key, records in places.items()}
    stages = {key: stage_table(records) for key, records in places.items()}
    contents = {
        "cost.md": "\n".join(["# What methods cost\n", *map(to_markdown, tables)]),
        "cost.tex": "\n".join(map(to_latex, tables)),
        "cost.csv": to_csv(with_places(methods, "costs")),
        "cost_stages.csv": to_csv(with_places(stages, "costs")),
    }
    if costs.scaling:
        contents["cost_scaling.csv"] = to_csv(scaling_table(costs.scaling))
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [*(folder / name for name in contents), *write_figures(costs, folder / "figures")]


def write_figures(costs: Costs, folder: Path) -> list[Path]:
    """Writes the figures; returns their paths."""
    paths: list[Path] = []
    used: dict[str, int] = {}
    textbook = by_place(costs.references)
    for place, records in by_place(costs.records).items():
        if all(record.status != FINISHED for record in records):
            continue
        pair = re.sub(r"[^A-Za-z0-9]+", "-", f"{records[0].teacher} {records[0].student}")
        used[pair] = used.get(pair, 0) + 1
        name = pair if used[pair] == 1 else f"{pair}-{used[pair]}"
        drawn = {
            "step": draw_step(records),
            "loss": draw_losses(records, textbook.get(place, [])),
            "memory": draw_memory(records),
        }
        for kind, figure in drawn.items():
            if figure is not None:
                paths.append(save_figure(figure, folder / f"cost_{kind}_{name}"))
    if costs.scaling:
        paths.append(save_figure(draw_scaling(costs.scaling), folder / "cost_scaling"))
    return paths
