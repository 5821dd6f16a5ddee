"""A real Ray: nodes that are killed or lack something, a coordinator that is interrupted.

All are slow: a Ray node takes seconds to start. Their short forms, with a stand-in for Ray, are in
tests/test_cluster.py.

    .venv/bin/python -m pytest tests/test_ray.py -m slow --faults-table results/faults.md
"""

import importlib.util
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fault_table as faults
import pytest
from fault_table import tally, undisturbed
from processes import kd_bench, plan_of, start
from ray_nodes import Nodes

from bench.launch.leases import Leases
from bench.record import WorkDir

__all__ = ["tally", "undisturbed"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
]
RAY = ["--launcher", "ray"]


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


def check_whole(work: Path, undisturbed: faults.Undisturbed) -> None:
    """Every result is there once, is the undisturbed one, and nothing else is left."""
    assert faults.found(work) == undisturbed.results
    assert faults.checkpoints(work) == []
    with Leases(work / "store" / "leases") as leases:
        assert all(map(leases.acquire, plan_of(work, faults.grid_of(work)).cell_ids()))


def test_a_node_killed_in_mid_grid_costs_no_result(tmp_path, nodes, two, undisturbed, tally):
    """Twice in the midst of a job; another node joins each time."""
    work, output = tmp_path / "work", tmp_path / "output"
    with output.open("w") as file:
        launcher = start(file, *faults.words(work, *RAY), **nodes.driver)
        for _ in range(2):
            ready = lambda: nodes.at_work(two[1]) and faults.checkpoints(work)  # noqa: E731
            faults.until(ready, launcher, output)
            nodes.kill(two[1])
            two[1] = nodes.add()
        assert launcher.wait(faults.TIMEOUT) == 0, output.read_text()
    assert f"{len(undisturbed.results)} cells trained" in output.read_text()
    check_whole(work, undisturbed)
    tally.add("Ray node killed in mid-grid", 2, undisturbed.results, work)


@pytest.mark.skipif(
    not Path("/usr/bin/unshare").exists()
    or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="hiding a folder from a process needs root",
)
def test_nodes_that_do_not_share_the_work_directory_are_named_in_one_line(tmp_path, nodes):
    """On the node, another file system covers the folder above it."""
    work = tmp_path / "all" / "work"
    work.mkdir(parents=True)
    cover = f'mount -t tmpfs none {work.parent} && exec "$@"'
    node = nodes.add("unshare", "--mount", "bash", "-c", cover, "node")
    try:
        refused = kd_bench(*faults.words(work, *RAY), timeout=faults.TIMEOUT, **nodes.driver)
    finally:
        nodes.kill(node)
    assert refused.returncode == 2, refused.stdout
    assert re.search(r"error: node \S+: it does not see ", refused.stderr)
    assert "Traceback" not in refused.stderr


def interrupt(work: Path, number: signal.Signals, nodes: Nodes) -> int:
    """Sends a signal to a coordinator in mid-grid; returns its exit code."""
    output = work / "output"
    with output.open("w") as file:
        launcher = start(file, *faults.words(work, *RAY), **nodes.driver)
        faults.until(lambda: len(faults.checkpoints(work)) >= 4, launcher, output)
        launcher.send_signal(number)
        code = launcher.wait(faults.TIMEOUT)
    assert "Traceback" not in output.read_text()
    return code


def resume(work: Path, undisturbed: faults.Undisturbed, nodes: Nodes) -> None:
    """The same command goes on, and ends with the undisturbed results."""
    done = kd_bench(*faults.words(work, *RAY), timeout=faults.TIMEOUT, **nodes.driver)
    assert done.returncode == 0, done.stdout + done.stderr
    records = WorkDir(work).store.read_all(plan_of(work, faults.grid_of(work)).cell_ids())
    assert any(record.conditions["resumed"] for record in records.values())
    check_whole(work, undisturbed)


@pytest.mark.parametrize(
    ("number", "fault"), [(signal.SIGTERM, "SIGTERM to"), (signal.SIGKILL, "kill -9 of")]
)
def test_a_coordinator_that_ends_leaves_the_cluster_to_the_next(
    tmp_path, nodes, two, undisturbed, tally, number, fault
):
    code = interrupt(tmp_path, number, nodes)
    assert code == (128 + number if number == signal.SIGTERM else -number)
    hearts = (tmp_path / "store" / "leases" / "hearts").iterdir()
    if number == signal.SIGTERM:  # the nodes' commands have ended by themselves
        assert not list(hearts)
    resume(tmp_path, undisturbed, nodes)
    tally.add(f"{fault} the Ray coordinator", 1, undisturbed.results, tmp_path)
