"""Tables that long tests write: results/faults.md, and any other whose rows have a name."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.record import write_atomically

HEAD = """\
# Faults

Each fault is done to real processes. They run the grid `smoke` with 30 epochs, 2 workers and a
checkpoint after every epoch, if the row says nothing else; then the same command runs until it ends
by itself. A result counts as lost if its cell has no record (or, where the row is about MLflow, no
run), and as changed if a weight, a curve or a number differs by one bit from the undisturbed run's
(from the record's). Random moments are drawn by a seed. Made by:

    python -m pytest -m slow tests/test_faults.py tests/test_server.py tests/test_ray.py \\
        --faults-table results/faults.md

| fault | times | results | lost | changed | when, torch, CPU cores |
|---|--:|--:|--:|--:|---|
"""
ROW = re.compile(r"^\| (?!fault )([^|]+) \| \d.*\|$", re.MULTILINE)


@dataclass
class Tally:
    """What the long tests of one module did."""

    rows: list[tuple[str, int, int, int, int]] = field(default_factory=list)

    def add(self, fault: str, times: int, expected: dict, found: dict) -> None:
        """Counts a fault's results and refuses any loss."""
        lost = len(expected.keys() - found.keys())
        changed = sum(found[i] != expected[i] for i in expected.keys() & found.keys())
        self.rows.append((fault, times, len(expected), lost, changed))
        assert (lost, changed) == (0, 0), fault
        assert found.keys() == expected.keys()

    def write(self, path: Path) -> None:
        """Puts the rows into the table, in place of older ones of the same fault."""
        write_rows(path, HEAD, self.rows)


def write_rows(path: Path, head: str, rows: Sequence[Sequence[object]]) -> None:
    """Writes a Markdown table anew; rows that are there and not among these stay.

    Args:
        path: the file.
        head: all that comes before the first row.
        rows: their first entries are their names; when, where and with which torch is added.
    """
    import torch

    where = f"{time.strftime('%Y-%m-%d')}, {torch.__version__}, {os.cpu_count()}"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = {found[1]: found[0] for found in ROW.finditer(before)}
    lines |= {str(row[0]): f"| {' | '.join(map(str, row))} | {where} |" for row in rows}
    write_atomically(path, head + "\n".join(lines.values()) + "\n")
