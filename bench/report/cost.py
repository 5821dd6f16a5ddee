"""What methods cost, as tables: each method's whole training, and every stage taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.cost.record import PARTS, CostRecord, Costs, Quartiles, Scaling, StageCost
from bench.record import FINISHED, write_atomically
from bench.report.cost_figures import (
    MIB,
    draw_losses,
    draw_memory,
    draw_scaling,
    draw_step,
    fitted_exponent,
    pair_title,
)
from bench.report.drawing import save_figure
from bench.report.statistics import Interval
from bench.report.tables import Column, Entry, Table, to_csv, to_latex, to_markdown, to_text

MEGA = 1e6

CONDITIONS = (
    "device", "threads", "precision", "deterministic", "torch", "cuda", "python", "batch",
    "image_shape", "classes", "rounds", "warm_up", "commit", "dirty", "memory",
)  # fmt: skip
"""What is said of a measurement, in this order."""

FIGURES = {
    "cost_step": "What a training step of every method and stage is made of, medians over rounds.",
    "cost_loss": "Every transfer loss by itself, forward and backward, on a log scale.",
    "cost_memory": "Peak memory of a method's costliest stage above that of the plain step.",
    "cost_scaling": "How each transfer loss grows with batch, channels and positions.",
}
"""What a figure's name begins with -> what it shows."""

PAIR_COLUMNS = tuple(
    Column(key=key, name=key, align="left")
    for key in ("data", "teacher", "student", "device", "precision", "batch")
)

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
    "Moved: bytes read and written by every operation, as if nothing were fused or cached.",
    "Peak memory: what a step holds at most beyond weights and images; above plain: of the "
    "costliest stage.",
    "Extra parameters are trained beside the student and dropped afterwards.",
)


def group_records(records: Iterable[CostRecord]) -> dict[tuple[str, ...], list[CostRecord]]:
    """Records that may stand in one table: one pair under one set of conditions."""
    groups: dict[tuple[str, ...], list[CostRecord]] = {}
    for record in records:
        data, teacher, student, _, *where = record.key
        groups.setdefault((data, teacher, student, *where), []).append(record)
    return groups


def method_table(records: Sequence[CostRecord]) -> Table:
    """A row a method, of one pair under one set of conditions."""
    return Table(
        title=f"Cost of training, {pair_title(records[0])}",
        columns=METHOD_COLUMNS,
        rows=tuple(_method_row(record) for record in records),
        notes=(*_measured_on(records), *NOTES),
    )


def _method_row(record: CostRecord) -> tuple[Entry, ...]:
    finished = record.status == FINISHED
    losses = [_sum_ms(stage, ("loss_forward", "loss_backward")) for stage in record.stages]
    return (
        Entry(record.label),
        Entry(record.category),
        _quartiles(record.training_cost_ratio),
        Entry(record.training_flop_ratio),
        Entry(_joined(stage.step_ms.median for stage in record.stages)),
        Entry(_joined(losses)),
        Entry(record.extra_peak_bytes / MIB if finished else None),
        Entry(record.extra_parameters if finished else None),
        Entry("measured" if finished else f"{record.status.replace('_', ' ')}: {record.error}"),
    )


def _joined(values: Iterable[float | None]) -> str | None:
    """One number a stage, in the plan's order: "9.80; 8.01"."""
    return "; ".join("-" if x is None else f"{x:.2f}" for x in values) or None


def _sum_ms(stage: StageCost, parts: Iterable[str]) -> float | None:
    found = [stage.parts_ms[part].median for part in parts if part in stage.parts_ms]
    return sum(found) if found else None


def _quartiles(measured: Quartiles | None) -> Entry:
    if measured is None:
        return Entry(None)
    if measured.n == 1:
        return Entry(Interval(measured.median, None, None, 1))
    return Entry(Interval(measured.median, measured.q1, measured.q3, measured.n))


def _measured_on(records: Sequence[CostRecord]) -> list[str]:
    """The conditions that all records share; those that differ show both values."""
    first = records[0].conditions
    shown = []
    for name in (name for name in CONDITIONS if first.get(name) is not None):
        values = dict.fromkeys(_plain(record.conditions.get(name)) for record in records)
        shown.append(f"{name.replace('_', ' ')} {' or '.join(values)}")
    return [f"Measured with: {'; '.join(shown)}."]


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


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
        _quartiles(stage.step_ms),
        _quartiles(stage.ratio),
        *(Entry(_sum_ms(stage, (part,))) for part in PARTS),
        Entry(stage.once_ms.median if stage.once_ms else None),
        Entry(stage.step_count.flops / MEGA),
        *(Entry(value / MEGA if stage.transfers else None) for value in counted),
        Entry(stage.peak_bytes / MIB),
    )


def scaling_table(scaling: Sequence[Scaling]) -> Table:
    """A row a method, axis and size."""
    rows = [
        (
            Entry(line.method), Entry(line.stage), Entry(line.axis), Entry(size),
            _quartiles(measured), Entry(count.flops / MEGA),
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
    return "\n".join(to_text(method_table(r)) for r in group_records(costs.records).values())


def cost_tables(costs: Costs) -> tuple[Table, ...]:
    """For each pair and set of conditions its methods and their stages; then the losses alone."""
    groups = group_records(costs.records).values()
    pairs = (make(records) for records in groups for make in (method_table, stage_table))
    return (*pairs, *([scaling_table(costs.scaling)] if costs.scaling else []))


def write_costs(costs: Costs, folder: Path) -> list[Path]:
    """Writes cost.md and .tex, cost.csv, cost_stages.csv, cost_scaling.csv and figures/cost_*.

    Args:
        costs: all that was profiled of a grid.
        folder: the grid's; made if it is not there.

    Returns:
        The files.
    """
    groups = group_records(costs.records)
    methods = {key: method_table(records) for key, records in groups.items()}
    stages = {key: stage_table(records) for key, records in groups.items()}
    tables = cost_tables(costs)
    contents = {
        "cost.md": "\n".join(["# What methods cost\n", *map(to_markdown, tables)]),
        "cost.tex": "\n".join(map(to_latex, tables)),
        "cost.csv": to_csv(_with_pairs(methods)),
        "cost_stages.csv": to_csv(_with_pairs(stages)),
    }
    if costs.scaling:
        contents["cost_scaling.csv"] = to_csv(scaling_table(costs.scaling))
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [*(folder / name for name in contents), *write_figures(costs, folder / "figures")]


def _with_pairs(tables: dict[tuple[str, ...], Table]) -> Table:
    """All tables as one, with the pair and the conditions in its first columns."""
    columns = next(iter(tables.values())).columns if tables else ()
    rows = tuple((*map(Entry, key), *row) for key, table in tables.items() for row in table.rows)
    return Table(title="costs", columns=PAIR_COLUMNS + columns, rows=rows)


def write_figures(costs: Costs, folder: Path) -> list[Path]:
    """Writes the figures as SVG and PNG; returns their paths."""
    paths: list[Path] = []
    used: dict[str, int] = {}
    for records in group_records(costs.records).values():
        if all(record.status != FINISHED for record in records):
            continue
        pair = re.sub(r"[^A-Za-z0-9]+", "-", f"{records[0].teacher} {records[0].student}")
        used[pair] = used.get(pair, 0) + 1
        name = pair if used[pair] == 1 else f"{pair}-{used[pair]}"
        drawn = {"step": draw_step, "loss": draw_losses, "memory": draw_memory}
        for kind, draw in drawn.items():
            if (figure := draw(records)) is not None:
                paths += save_figure(figure, folder / f"cost_{kind}_{name}")
    if costs.scaling:
        paths += save_figure(draw_scaling(costs.scaling), folder / "cost_scaling")
    return paths
