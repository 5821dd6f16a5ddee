"""What a run would do: its cells, and which of them are done already."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cell import Cell
from bench.grid import Expansion
from bench.launch.job import total_epochs, unfinished
from bench.record import Row, Store


def describe(expansion: Expansion, store: Store, retry_failed: bool) -> str:
    """A plain text: one line per pair and the totals.

    Args:
        expansion: the grid, written out.
        store: the records there are.
        retry_failed: whether failed cells count as still to run.
    """
    waiting = unfinished(expansion.cells.values(), store, retry_failed)
    plan = expansion.plan
    lines = [f"grid {plan.name}: {plan.description}"]
    for (data, teacher, student, _), rows in _by_pair(expansion).items():
        labels = dict.fromkeys(row.label for row in rows)
        lines.append(f"  {data}: {teacher} > {student}: {', '.join(labels)}; {_seeds(rows)}")
    lines.append(_count(expansion, waiting))
    return "\n".join(lines)


def _by_pair(expansion: Expansion) -> dict[tuple[str, str, str, str], list[Row]]:
    """Rows by data set, teacher, student and those axes in which the grid's rows differ."""
    rows = expansion.plan.rows
    varied = [name for name in rows[0].axes if len({row.axes[name] for row in rows}) > 1]
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        axes = "".join(f", {name} {row.axes[name]:g}" for name in varied)
        found.setdefault((row.data, row.teacher, row.student, axes), []).append(row)
    return found


def _seeds(rows: Sequence[Row]) -> str:
    return f"seeds {', '.join(str(seed) for seed in sorted({row.seed for row in rows}))}"


def _count(expansion: Expansion, waiting: Sequence[Cell]) -> str:
    total, epochs = len(expansion.cells), sum(map(total_epochs, waiting))
    return (
        f"cells: {total}, done already: {total - len(waiting)}, to train: {len(waiting)} "
        f"({epochs} epochs in all)"
    )
