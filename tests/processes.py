"""The command line in processes of its own, and what must be equal between two runs of a grid."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import psutil

from bench.record import Plan, Store, WorkDir

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def kd_bench(*words: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run_all.py"), *words], cwd=ROOT, capture_output=True,
        text=True, timeout=timeout, env=environment(**more),
    )  # fmt: skip


def start(output: IO[str] | int, *words: str, **more: str) -> subprocess.Popen[str]:
    """Starts the command line at the head of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_all.py"), *words], cwd=ROOT, stdout=output,
        stderr=subprocess.STDOUT, text=True, env=environment(**more), start_new_session=True,
    )  # fmt: skip


def workers_of(command: int) -> list[psutil.Process]:
    """The worker processes of a running command, which are forked from a child of it."""
    found = []
    for server in psutil.Process(command).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any("forkserver" in word for word in server.cmdline()):
                found += server.children()
    return found


def plan_of(work: Path, grid: str = "smoke") -> Plan:
    return Plan.from_json(WorkDir(work).plan(grid).read_text())


def results(work: Path, grid: str = "smoke") -> dict[str, object]:
    """Everything that must be equal between two runs of one grid, by cell id."""
    return comparable(WorkDir(work).store, plan_of(work, grid).cell_ids())


def comparable(store: Store, cell_ids: Iterable[str]) -> dict[str, object]:
    """Everything that must be equal between two trainings of the same cells, by cell id."""
    found = {}
    for cell_id, record in store.read_all(cell_ids).items():
        final = {k: v for k, v in record.final.items() if not k.endswith("seconds")}
        files = {k: (store.folder(cell_id) / f).read_bytes() for k, f in record.files.items()}
        found[cell_id] = record.status, record.error, final, record.curves, record.stages, files
    return found
