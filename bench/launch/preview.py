"""What a run would do: cells, those done already, epochs."""

from __future__ import annotations

from bench.grid import Expansion
from bench.launch.job import total_epochs, unfinished
from bench.record import Store


def preview(expansion: Expansion, store: Store, retry_failed: bool) -> str:
    """A plain text: one line per pair and the totals.

    Args:
        expansion: the grid, written out.
        store: the records there are.
        retry_failed: whether failed cells count as still to run.
    """
    waiting = {cell.id: cell for cell in unfinished(expansion.cells.values(), store, retry_failed)}
    plan = expansion.plan
    lines = [f"grid {plan.name}: {plan.description}"]
    pairs = dict.fromkeys((row.data, row.teacher, row.student) for row in plan.rows)
    for data, teacher, student in pairs:
        rows = [r for r in plan.rows if (r.data, r.teacher, r.student) == (data, teacher, student)]
        labels = dict.fromkeys(row.label for row in rows)
        seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
        lines.append(f"  {data}: {teacher} > {student}: {', '.join(labels)}; seeds {seeds}")
    epochs = sum(map(total_epochs, waiting.values()))
    total = len(expansion.cells)
    lines.append(
        f"cells: {total}, done already: {total - len(waiting)}, to train: {len(waiting)} "
        f"({epochs} epochs in all)"
    )
    return "\n".join(lines)
