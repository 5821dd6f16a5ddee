"""What the long tests of faults share: the grid that they run, and results/faults.md."""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import kd_bench, results

from bench.record import WorkDir, write_atomically
from bench.tracking import Mirror

SEED = 20261123
TIMEOUT = 1800
GRID = ["--grid", "smoke", "recipe.epochs=30", "--checkpoint-seconds", "0", "--workers", "2"]
HEAD = """\
# Faults

Each fault is done to real processes. Unless the row says otherwise, they run the grid `smoke` with
30 epochs, 2 workers and a checkpoint after every epoch; afterwards the same command runs until it
ends by itself. A result is lost if its cell has no record, or no run in MLflow. It is doubled if
MLflow has two runs of it. It is changed if a weight, a curve or a number differs by one bit from
the undisturbed run, or MLflow's copy from the record. Random moments come from a seed. Made by:

    python -m pytest -m slow tests/test_faults.py tests/test_ray.py tests/test_slurm.py \\
        --faults-table results/faults.md

| fault | times | results | lost | doubled | changed | when, torch, CPU cores |
|---|--:|--:|--:|--:|--:|---|
"""
ROW = re.compile(r"^\| (?!fault )([^|]+) \| \d.*\|$", re.MULTILINE)


@dataclass
class Tally:
    """What the long tests of one module did."""

    rows: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)

    def add(self, fault: str, times: int, expected: dict[str, object], work: Path) -> None:
        """Counts the results in a work directory after a fault, and refuses what is not right."""
        harm = compare(work, expected)
        self.rows.append((fault, times, len(expected), *harm))
        assert harm == (0, 0, 0), fault

    def write(self, path: Path) -> None:
        """Puts the rows into the table, in place of older ones of the same fault.

        What follows the table stays.
        """
        import torch

        where = f"{time.strftime('%Y-%m-%d')}, {torch.__version__}, {os.cpu_count()}"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        table, gap, after = before.partition(HEAD.splitlines()[-1])[2].partition("\n\n")
        lines = {found[1]: found[0] for found in ROW.finditer(table)}
        lines |= {row[0]: f"| {' | '.join(map(str, row))} | {where} |" for row in self.rows}
        write_atomically(path, HEAD + "\n".join(lines.values()) + (gap + after or "\n"))


@pytest.fixture(scope="module")
def tally(request) -> Iterator[Tally]:
    counted = Tally()
    yield counted
    if counted.rows and (path := request.config.getoption("--faults-table")):
        counted.write(Path(path))


@dataclass(frozen=True)
class Undisturbed:
    """The results of a run that nothing disturbs, and how long it takes."""

    results: dict[str, object]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    work = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    finish(work)
    return Undisturbed(found(work), time.monotonic() - began)


def words(work: Path, *more: str) -> list[str]:
    """The command line of a run in a work directory."""
    return [*GRID, "--work-dir", str(work), *more]


def finish(work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The same command, until it ends by itself."""
    done = kd_bench(*words(work, *more), timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def grid_of(work: Path) -> str:
    """The name of the grid as it is overridden here."""
    (plan,) = work.glob("smoke*/plan.json")
    return plan.parent.name


def found(work: Path) -> dict[str, object]:
    """The results in a work directory."""
    return results(work, grid_of(work))


def checkpoints(work: Path) -> list[Path]:
    """The checkpoints in a work directory."""
    return list((work / "store" / "checkpoints").glob("*/*.safetensors"))


def until(condition: Callable[[], object], running: subprocess.Popen[str], output: Path) -> None:
    """Waits for a condition; fails if the command ends before."""
    while not condition():
        assert running.poll() is None, output.read_text()
        time.sleep(0.02)  # looks again; nothing depends on how soon


def compare(work: Path, expected: dict[str, object]) -> tuple[int, int, int]:
    """How many results in a work directory and its MLflow are lost, doubled and changed."""
    mirror = Mirror(work, grid_of(work))
    cells = mirror.search("tags.`kd_bench.kind` = 'cell'")
    runs = Counter(run.data.tags["cell_id"] for run in cells)
    mirrored, records = mirror.fetch()[1], WorkDir(work).store.read_all(expected)
    now = found(work)
    assert {*now, *runs} <= expected.keys()
    there = now.keys() & mirrored.keys()
    changed = sum(now[i] != expected[i] or mirrored[i] != records[i] for i in there)
    return len(expected.keys() - there), sum(n > 1 for n in runs.values()), changed
