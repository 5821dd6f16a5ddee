"""Faults, with real processes: whatever happens, every result is there once and unchanged.

The short forms run in every test run. The long ones take most of an hour on two cores, and write
their rows of results/faults.md:

    .venv/bin/python -m pytest tests/test_faults.py -m slow --faults-table results/faults.md
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fault_table as faults
import psutil
import pytest
import test_checkpoint
from fault_table import tally, undisturbed
from mlflow_server import MlflowServer
from processes import ROOT, environment, kd_bench, plan_of, start, workers_of
from test_checkpoint import run

from bench.launch.leases import Leases
from bench.record import WorkDir, write_atomically
from bench.tracking import Mirror
from bench.train.checkpoint import Checkpoints

__all__ = ["tally", "undisturbed"]

LESSON = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from test_checkpoint import Checkpoints, all_cells, run
folder = Path(sys.argv[1])
run(all_cells()[:4], folder, checkpoints=Checkpoints(folder / "kept", 0), report=lambda *event:
    print(*event, flush=True))
"""


def test_a_training_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    cells = test_checkpoint.all_cells()[:4]
    with subprocess.Popen(
        [sys.executable, "-c", LESSON, str(tmp_path)], cwd=ROOT, text=True, env=environment(),
        stdout=subprocess.PIPE,
    ) as training:  # fmt: skip
        for _ in range(random.Random(faults.SEED).randrange(5, 14)):
            assert training.stdout.readline(), "it ended by itself"
        training.kill()
    records = run(cells, tmp_path, checkpoints=Checkpoints(tmp_path / "kept", 0))
    assert [record.conditions["resumed"] for record in records.values()] == [1] * len(cells)
    folder = tmp_path / "undisturbed"
    wanted = test_checkpoint.results(run(cells, folder), folder)
    assert test_checkpoint.results(records, tmp_path) == wanted


def test_a_write_that_the_system_refuses_leaves_what_was_there(tmp_path):
    path, before = tmp_path / "record.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomically(path, "before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full disk refuses it
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path, undisturbed, tally):
    """Of the launcher, of its whole group, or of one worker."""
    draws, kills, part = random.Random(faults.SEED), 0, 0
    while kills < 20:
        part += 1
        work = tmp_path / f"work{part}"
        work.mkdir()
        while kills < 20:
            with (tmp_path / "output").open("w") as output:
                launcher = start(output, *faults.words(work, "--retry-failed"))
                kills += kill_some(launcher, draws, undisturbed)
            if whole(work, undisturbed):
                break
        faults.finish(work, "--retry-failed")
        assert faults.compare(work, undisturbed.results) == (0, 0, 0)
        assert not list((work / "store" / "checkpoints").glob("*"))
    fault = "kill -9 of launcher, group or worker at a random moment"
    tally.add(fault, kills, undisturbed.results, work)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A shell ignores Ctrl-C for what it runs in the background: this suite, and what it starts."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, outside)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_twice(tmp_path, undisturbed, tally, number):
    """Its whole group is, as a scheduler does it; it goes on from its checkpoints."""
    work, output = tmp_path / "work", tmp_path / "output"
    for _ in range(2):
        before = set(faults.checkpoints(work))
        with output.open("w") as file:
            launcher = start(file, *faults.words(work))
            faults.until(lambda b=before: set(faults.checkpoints(work)) - b, launcher, output)
            workers = workers_of(launcher.pid)
            os.killpg(launcher.pid, number)
            assert launcher.wait(faults.TIMEOUT) == 128 + number
        said = output.read_text()
        assert said.splitlines()[-1].startswith("stopped; finished cells are kept"), said
        assert not {"Traceback", "leaked", "Warning"} & set(re.findall(r"\w+", said)), said
        assert not any(map(psutil.Process.is_running, workers))
        assert list((work / "store" / "leases" / "hearts").iterdir()) == []
        assert faults.checkpoints(work)
    faults.finish(work)
    resumed = WorkDir(work).store.read_all(plan_of(work, faults.grid_of(work)).cell_ids())
    assert any(record.conditions["resumed"] for record in resumed.values())
    fault = f"{number.name} to launcher and workers"
    tally.add(fault, 2, undisturbed.results, work)


@pytest.mark.slow
def test_a_run_that_sleeps_while_another_machine_takes_its_cells_writes_nothing(
    tmp_path, undisturbed, tally
):
    work, output = tmp_path / "work", tmp_path / "output"
    leases = work / "store" / "leases"
    with output.open("w") as file:
        launcher = start(file, *faults.words(work))
        faults.until(lambda: len(faults.checkpoints(work)) >= 4, launcher, output)
        os.killpg(launcher.pid, signal.SIGSTOP)
        for heart in (leases / "hearts").iterdir():
            os.utime(heart, (0, 0))  # as after a minute
        with Leases(leases, machine="another") as theirs:
            taken = [path.name for path in (leases / "held").iterdir() if "mlflow" not in path.name]
            assert all(map(theirs.acquire, taken))
            folders = [work / "store" / part for part in ("cells", "checkpoints")]
            before = {p: p.stat().st_mtime_ns for part in folders for p in part.rglob("*")}
            os.killpg(launcher.pid, signal.SIGCONT)
            assert launcher.wait(faults.TIMEOUT) == 2
            after = {p: p.stat().st_mtime_ns for part in folders for p in part.rglob("*")}
    assert "this process was suspended" in output.read_text()
    assert taken
    assert after == before
    faults.finish(work)
    fault = "launcher and workers suspended, their cells taken over"
    tally.add(fault, 1, undisturbed.results, work)


def kill_some(
    launcher: subprocess.Popen[str], draws: random.Random, usual: faults.Undisturbed
) -> int:
    """Kills parts of a run at random moments until its launcher is dead; returns how many."""
    kills = 0
    while True:
        try:
            launcher.wait(draws.uniform(0, usual.seconds))
            return kills
        except subprocess.TimeoutExpired:
            pass
        target = draws.choice(["launcher", "group", "worker"])
        workers = workers_of(launcher.pid)
        if target == "worker" and workers:
            draws.choice(workers).kill()
            kills += 1
            continue
        kill = os.killpg if target == "group" else os.kill
        kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
        psutil.wait_procs(workers, timeout=faults.TIMEOUT)
        return kills + 1


def whole(work: Path, usual: faults.Undisturbed) -> bool:
    """Whether nothing is left to be killed."""
    return bool(list(work.glob("smoke*/plan.json"))) and faults.found(work) == usual.results


def run_until_checkpoints(work: Path, output: Path) -> list[Path]:
    """Kills a run in its midst; returns the latest checkpoint of each cell."""
    with output.open("w") as file, start(file, *faults.words(work)) as launcher:
        faults.until(lambda: len(faults.checkpoints(work)) >= 8, launcher, output)
        os.killpg(launcher.pid, signal.SIGKILL)
    latest = {path.parent: path for path in sorted(faults.checkpoints(work))}
    return list(latest.values())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_checkpoints_and_data_cache(tmp_path, undisturbed, tally, damage):
    latest = run_until_checkpoints(tmp_path / "work", tmp_path / "output")
    caches = list((tmp_path / "work" / "store" / "data").glob("*/*"))
    assert latest
    assert caches
    for path in (*latest, *caches):
        path.write_bytes(test_checkpoint.HURT[damage](path.read_bytes()))
    done = faults.finish(tmp_path / "work")
    for path in latest:
        assert f"{path} cannot be used" in done.stderr
    for folder in {path.parent for path in caches}:
        assert f"{folder} is damaged" in done.stderr
    word = {"cut": "truncated", "flip": "bit-flipped"}[damage]
    fault = f"{word} checkpoints and data cache"
    tally.add(fault, len(latest) + len(caches), undisturbed.results, tmp_path / "work")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(small_disk, tmp_path, undisturbed, tally, monkeypatch):
    """At three moments: hardly any room left, some, and room for all but a few files."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    rooms, work = (30_000, 150_000, 300_000), small_disk / "work"
    for room in rooms:
        shutil.rmtree(work, ignore_errors=True)
        # Data, plan and the first kilobytes fit; then the disk is as good as full.
        assert kd_bench(*faults.words(work, "--dry-run")).returncode == 0
        filler = small_disk / "filler"
        free = os.statvfs(small_disk)
        filler.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - room))
        done = kd_bench(*faults.words(work), timeout=faults.TIMEOUT)
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.search(r"error: .*No space left on device.*make room", done.stderr)
        assert "Traceback" not in done.stderr
        filler.unlink()
        faults.finish(work)
        assert faults.compare(work, undisturbed.results) == (0, 0, 0)
    tally.add("full disk (tmpfs of 2 MiB)", len(rooms), undisturbed.results, work)


@pytest.mark.slow
def test_a_tracking_server_that_is_killed_and_comes_back(tmp_path, undisturbed, tally, monkeypatch):
    work, output = tmp_path / "work", tmp_path / "output"
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    with output.open("w") as file:
        with server:
            launcher = start(file, *faults.words(work))
            faults.until(lambda: "cells 1/" in output.read_text(), launcher, output)
        assert launcher.wait(faults.TIMEOUT) == 0, output.read_text()  # trained without a server
    assert "MLflow lacks records" in output.read_text()
    with server:
        for _ in range(2):  # the second time there is nothing left to send
            done = kd_bench("sync", "--grid", faults.grid_of(work), "--work-dir", str(work))
            assert done.returncode == 0, done.stderr
        assert "0 records sent" in done.stdout
        fault = "tracking server killed in mid-grid, back later"
        tally.add(fault, 1, undisturbed.results, work)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_the_database_of_mlflow(tmp_path):
    code = "import sys, pathlib, bench.tracking as t; t.Mirror(pathlib.Path(sys.argv[1]), 'grid')"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True
    ) as process:
        faults.until(lambda: list(tmp_path.glob(".mlflow-*/mlflow.db")), process, tmp_path)
        process.kill()
    assert Mirror(tmp_path, "grid").search("") == []


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_launchers_at_once(tmp_path, undisturbed, tally, killed):
    """They share the work; a killed one's part is taken over by the other."""
    work = tmp_path / "work"
    outputs = [tmp_path / name for name in ("first", "second")]
    with outputs[0].open("w") as first, outputs[1].open("w") as second:
        launchers = [start(file, *faults.words(work, "--workers", "1")) for file in (first, second)]
        if killed:
            faults.until(lambda: faults.checkpoints(work), launchers[0], outputs[0])
            os.killpg(launchers[0].pid, signal.SIGKILL)
        codes = [launcher.wait(faults.TIMEOUT) for launcher in launchers]
    said = [path.read_text() for path in outputs]
    assert codes == [-9 if killed else 0, 0], said
    if not killed:
        trained = [int(n) for text in said for n in re.findall(r"(\d+) cells trained", text)]
        assert sum(trained) == len(undisturbed.results), said
    fault = "two launchers at once" + (", one of them killed" if killed else "")
    tally.add(fault, 1, undisturbed.results, work)
