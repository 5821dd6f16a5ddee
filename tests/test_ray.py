"""A real Ray: nodes that are killed or lack something, a coordinator that is interrupted.

All are slow: a Ray node takes seconds to start. Their short forms, with a stand-in for Ray, are in
tests/test_cluster.py.

    .venv/bin/python -m pytest tests/test_ray.py -m slow --faults-table results/faults.md
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from fault_table import (
    SEED,
    TIMEOUT,
    Undisturbed,
    checkpoints,
    found,
    grid_of,
    mirrored_once,
    quiet_mlflow,
    tally,
    undisturbed,
    words,
)
from processes import kd_bench, plan_of, start
from ray_nodes import ALONE, Nodes

from bench.launch.leases import Leases
from bench.workdir import WorkDir

__all__ = ["tally", "undisturbed"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
]
KILLS = 6
RAY = ["--launcher", "ray"]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """In the background of a script these tests, and so what they start, would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head; tests add their nodes."""
    with Nodes() as cluster:
        yield cluster


@pytest.fixture
def two(nodes) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two nodes with room for one job each."""
    pair = [nodes.add(), nodes.add()]
    yield pair
    for node in pair:
        nodes.kill(node)


def on(nodes: Nodes, *more: str) -> list[str]:
    return [*RAY, "--address", nodes.address, *more]


def until(condition: Callable[[], object], running: subprocess.Popen[str], output: Path) -> None:
    while not condition():
        assert running.poll() is None, output.read_text()
        time.sleep(0.02)  # looks again; nothing depends on how soon


def whole(work: Path, undisturbed: Undisturbed) -> None:
    """Every result is there once, is the undisturbed one, and nothing else is left."""
    assert found(work) == undisturbed.results
    assert checkpoints(work) == []
    with Leases(work / "store" / "leases") as leases:
        assert all(map(leases.acquire, plan_of(work, grid_of(work)).cell_ids()))


def test_ray_on_this_machine_gives_the_same_bits(tmp_path, undisturbed):
    done = kd_bench(*words(tmp_path, *RAY), timeout=TIMEOUT, **ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert not re.search("raylet|INFO|WARNING", done.stdout)  # what Ray says of itself
    whole(tmp_path, undisturbed)


@quiet_mlflow
def test_nodes_killed_in_mid_grid(tmp_path, nodes, two, undisturbed, tally, monkeypatch):
    """At random moments, in the midst of a job; another node joins for each that dies."""
    draws, kills, part = random.Random(SEED), 0, 0
    while kills < KILLS:
        part += 1
        work, output = tmp_path / f"work{part}", tmp_path / f"output{part}"
        with output.open("w") as file:
            launcher = start(file, *words(work, *on(nodes)), **ALONE)
            while kill_one(nodes, two, launcher, draws, undisturbed):
                pass
            assert launcher.wait(TIMEOUT) == 0, output.read_text()
        kills += output.read_text().count("a node was lost")  # others had just ended their job
        whole(work, undisturbed)
        mirrored_once(work, {}, monkeypatch)
    tally.add("Ray node killed in mid-grid", kills, undisturbed.results, found(work))


def kill_one(
    nodes: Nodes,
    pair: list[subprocess.Popen[bytes]],
    launcher: subprocess.Popen[str],
    draws: random.Random,
    usual: Undisturbed,
) -> bool:
    """Kills a node that is at work and adds another; whether the grid still ran."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(draws.uniform(0, usual.seconds / 2))
    position = draws.randrange(2)
    while not nodes.at_work(pair[position]):
        if launcher.poll() is not None:
            return False
        position = draws.randrange(2)
        time.sleep(0.02)  # looks again
    nodes.kill(pair[position])
    pair[position] = nodes.add()
    return True


def hidden(*folders: Path) -> tuple[str, ...]:
    """A command that runs another one where these folders are empty: on another disk."""
    covers = "".join(f"mount -t tmpfs none {folder} && " for folder in folders)
    return ("unshare", "--mount", "bash", "-c", f'{covers} exec "$@"', "node")


needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    if Path("/usr/bin/unshare").exists() else True,
    reason="hiding a folder from a process needs root",
)  # fmt: skip


@needs_namespaces
def test_nodes_that_do_not_share_the_work_directory_are_named_in_one_line(tmp_path, nodes):
    """It exists for the coordinator alone."""
    work = tmp_path / "all" / "work"
    work.mkdir(parents=True)
    node = nodes.add(hidden(work.parent))
    try:
        refused = kd_bench(*words(work, *on(nodes)), timeout=TIMEOUT, **ALONE)
    finally:
        nodes.kill(node)
    assert refused.returncode == 2, refused.stdout
    assert re.search(r"error: node \S+: it does not see ", refused.stderr)
    assert "Traceback" not in refused.stderr


@needs_namespaces
def test_a_node_without_the_data_is_named_and_left_out(tmp_path, nodes, undisturbed):
    data, work = tmp_path / "data" / "mine", tmp_path / "work"
    (data / "downloads").mkdir(parents=True)
    blind, seeing = nodes.add(hidden(data.parent)), nodes.add()
    try:
        more = on(nodes, "--data-root", str(data))
        done = kd_bench(*words(work, *more), timeout=TIMEOUT, **ALONE)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(rf"node \S+: data set 'digits': data root {data} is no", done.stderr)
        whole(work, undisturbed)
        nodes.kill(seeing)
        done = kd_bench(*words(tmp_path / "other", *more), timeout=TIMEOUT, **ALONE)
        assert done.returncode == 2, done.stdout
        assert f"data root {data} is no folder" in done.stderr
    finally:
        for node in (blind, seeing):
            nodes.kill(node)


def interrupt(
    work: Path, output: Path, number: signal.Signals, undisturbed: Undisturbed, *more: str
) -> int:
    """Sends a signal to a coordinator in mid-grid; its exit code."""
    with output.open("w") as file:
        launcher = start(file, *words(work, *more), **ALONE)
        until(lambda: len(checkpoints(work)) >= 4, launcher, output)
        if number == signal.SIGINT:  # a terminal sends it to all of the group
            os.killpg(launcher.pid, number)
        else:
            launcher.send_signal(number)
        code = launcher.wait(TIMEOUT)
    assert "Traceback" not in output.read_text()
    assert checkpoints(work)
    assert found(work) != undisturbed.results
    if number != signal.SIGKILL:
        assert "stopped; finished cells are kept" in output.read_text()
        with Leases(WorkDir(work).leases) as leases:
            assert all(map(leases.acquire, plan_of(work, grid_of(work)).cell_ids()))
    return code


def resume(work: Path, *more: str) -> None:
    done = kd_bench(*words(work, *more), timeout=TIMEOUT, **ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    records = WorkDir(work).store.read_all(plan_of(work, grid_of(work)).cell_ids())
    assert any(record.conditions["resumed"] for record in records.values())


def test_ctrl_c_ends_a_ray_of_its_own_and_the_grid_goes_on_without_ray(
    tmp_path, undisturbed, tally
):
    before = {process.pid for process in psutil.process_iter()}
    code = interrupt(tmp_path, tmp_path / "output", signal.SIGINT, undisturbed, *RAY)
    assert code == 130
    left = [p for p in psutil.process_iter() if p.pid not in before and is_of_ray(p, tmp_path)]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert alive == []
    resume(tmp_path)
    whole(tmp_path, undisturbed)
    tally.add("Ctrl-C with Ray on one machine", 1, undisturbed.results, found(tmp_path))


def is_of_ray(process: psutil.Process, work: Path) -> bool:
    """Whether a process was started by a Ray that a launcher of this work directory started."""
    try:
        text = process.environ().get("RAY_AUTH_TOKEN") == ALONE["RAY_AUTH_TOKEN"]
        return text and "--block" not in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_coordinator_that_ends_leaves_the_cluster_to_the_next(
    tmp_path, nodes, two, undisturbed, tally, number
):
    code = interrupt(tmp_path, tmp_path / "output", number, undisturbed, *on(nodes))
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    resume(tmp_path, *on(nodes))
    whole(tmp_path, undisturbed)
    name = f"{'SIGTERM to' if number == signal.SIGTERM else 'kill -9 of'} the Ray coordinator"
    tally.add(name, 1, undisturbed.results, found(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_jobs_take_parts_of_gpus_and_a_node_whose_gpu_is_none_is_named(tmp_path, nodes):
    """Ray believes what it is told of GPUs; torch does not."""
    node = nodes.add(gpus=1)
    try:
        more = on(nodes, "--device", "cuda", "--gpus-per-job", "0.5")
        done = kd_bench(*words(tmp_path, *more), timeout=TIMEOUT, **ALONE)
    finally:
        nodes.kill(node)
    assert done.returncode == 2, done.stdout
    assert re.search(r"error: node \S+: .*'cuda', but torch sees 0 CUDA devices", done.stderr)
