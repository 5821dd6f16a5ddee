"""How far each loss is from what the machine could do: the roofline, and both forms of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.cost.record import CostRecord, Costs, LossCost, Machine, StageCost
from bench.report.measured import MEGA, MIB, pair_title, quartile_entry, textbook_of
from bench.report.tables import Column, Entry, Table

COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="stage", name="stage", align="left"),
    Column(key="mflop", name="counted", unit="MFLOP", digits=2),
    Column(key="inputs_mb", name="inputs", unit="MB", digits=2),
    Column(key="outputs_mb", name="outputs", unit="MB", digits=2),
    Column(key="saved_mb", name="saved", unit="MB", digits=2),
    Column(key="bound_ms", name="least time", unit="ms", digits=4),
    Column(key="bound_by", name="set by", align="left"),
    Column(key="fast_ms", name="as shipped", unit="ms", digits=3, interval=True),
    Column(key="fast_over_bound", name="as shipped over least", digits=1),
    Column(key="fast_gflops", name="as shipped", unit="GFLOP/s", digits=1),
    Column(key="reference_ms", name="textbook", unit="ms", digits=3, interval=True),
    Column(key="reference_over_bound", name="textbook over least", digits=1),
    Column(key="speedup", name="textbook over shipped", digits=2, interval=True),
    Column(key="fast_peak_mib", name="peak memory as shipped", unit="MiB", digits=2),
    Column(key="reference_peak_mib", name="peak memory textbook", unit="MiB", digits=2),
)  # fmt: skip

NOTES = (
    "Each stage's transfer losses alone, with their connectors, forward and backward, on the "
    "tensors that both networks show in a training step; medians with [quartiles] over rounds. A "
    "row without a textbook form has one form only.",
    "Least time: the larger of FLOP / matrix product peak and bytes / triad bandwidth. No "
    "operation is launched or waited for in it, elementwise operations and decompositions are "
    "taken to run as fast as products, and a tensor that a cache holds moves faster than in the "
    "triad: on small tensors it says little.",
    "FLOP: counted while the shipped form runs: products and convolutions (1 multiply-add = 2), "
    "elementwise (1 per element and operation), eigh and svd by formula.",
    "Inputs: the stage's taps of both networks and the connector's parameters and buffers, each "
    "read once. Outputs: gradients at the student's taps and the connector's parameters, each "
    "written once. Saved: what the shipped form's forward pass keeps for its backward pass; an "
    "input counts once (read again), anything else twice (written, then read). Nothing else is "
    "counted.",
    "Gradients of a textbook form that are not finite are set to 0 before the update, where a "
    "training would end.",
    "Textbook over shipped: of the same round. Peak memory: the most that the loss holds at a time "
    "beyond its inputs, its gradients included.",
)


class _Loss(NamedTuple):
    """One stage's transfer losses in the forms that there are."""

    record: CostRecord
    stage: StageCost
    shipped: LossCost
    textbook: LossCost | None


def roofline_table(records: Sequence[CostRecord], costs: Costs) -> Table:
    """A row a stage with a transfer loss, of one pair under one set of conditions.

    Args:
        records: those of the pair, as shipped.
        costs: has their textbook forms and the machine.
    """
    machine = costs.machine_of(records[0])
    return Table(
        title=f"Losses against the machine's limits, {pair_title(records[0])}",
        columns=COLUMNS,
        rows=tuple(_row(loss, machine) for loss in _losses(records, costs)),
        notes=(_limits(machine), *NOTES),
    )


def _losses(records: Sequence[CostRecord], costs: Costs) -> Iterator[_Loss]:
    textbook = textbook_of(costs)
    for record in records:
        other = textbook.get((*record.place, record.label))
        for position, stage in enumerate(record.stages):
            if stage.loss is None:
                continue
            theirs = other.stages[position].loss if other is not None and other.stages else None
            apart = theirs is not None and theirs.over_fast is not None
            yield _Loss(record, stage, stage.loss, theirs if apart else None)


def _limits(machine: Machine | None) -> str:
    if machine is None:
        return "The machine's limits were not measured; profile again."
    product, triad = machine.matmul_repeats, machine.triad_repeats
    return (
        f"The machine's limits, each the fastest of its repeats under the same threads: "
        f"{machine.matmul_gflops:.1f} GFLOP/s in float32 products of {machine.matmul_size} x "
        f"{machine.matmul_size} (median of {product.n}: {product.median:.1f}), "
        f"{machine.triad_gbs:.1f} GB/s in the triad a = b + s c over vectors of "
        f"{machine.triad_bytes / MIB:.0f} MiB (median of {triad.n}: {triad.median:.1f})."
    )


def _row(loss: _Loss, machine: Machine | None) -> tuple[Entry, ...]:
    shipped, textbook = loss.shipped, loss.textbook
    least, by = None, None
    if machine is not None:
        least, by = machine.least_ms(shipped.count.flops, shipped.traffic.total)

    def over(cost: LossCost | None) -> float | None:
        return cost.ms.median / least if cost is not None and least else None

    return (
        Entry(loss.record.label),
        Entry(loss.record.category),
        Entry(loss.stage.name),
        Entry(shipped.count.flops / MEGA),
        *(Entry(size / MEGA) for size in shipped.traffic),
        Entry(least),
        Entry(by),
        quartile_entry(shipped.ms),
        Entry(over(shipped)),
        Entry(shipped.count.flops / shipped.ms.median / MEGA),
        quartile_entry(textbook and textbook.ms),
        Entry(over(textbook)),
        quartile_entry(textbook and textbook.over_fast),
        Entry(shipped.peak_bytes / MIB),
        Entry(textbook and textbook.peak_bytes / MIB),
    )
