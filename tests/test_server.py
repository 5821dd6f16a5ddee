"""A real MLflow server with several writers: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fault_table import tally
from lessons import cell, run
from mirror_writer import Sent, send
from mlflow_server import MlflowServer
from processes import kd_bench, plan_of, results, start

from bench.record import Plan, Record, Row, write_atomically
from bench.tracking import Mirror
from bench.workdir import WorkDir

__all__ = ["tally"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EPOCHS = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Record, Path]:
    """A cell that was trained, with diagnostics; its record and its folder."""
    folder = tmp_path_factory.mktemp("original")
    one = cell("soft_logits", diagnostics=True)
    record = run([one], folder)[one.id]
    assert record.status == "finished"
    return record, folder / one.id


def write_grid(root: Path, name: str, count: int, original: tuple[Record, Path]) -> WorkDir:
    """A work directory with a grid of records like the original's, each with its own numbers."""
    work, (record, folder), rows = WorkDir(root), original, []
    for number in range(count):
        row = Row(
            role="method", data="synthetic", axes={"fraction": 1.0}, teacher=f"cnn{number % 3 + 9}",
            student="cnn2", label="soft_logits", method="soft_logits", category="response",
            seed=number, cell_id=f"{name}-{number:04}",
        )  # fmt: skip
        rows.append(row)
        curves = {
            key: [(curve[epoch] or 0.0) + 1e-3 * number for epoch in range(EPOCHS)]
            for key, curve in record.curves.items()
        }
        shutil.copytree(folder, work.store.folder(row.cell_id))
        work.store.write(replace(record, cell_id=row.cell_id, curves=curves))
    plan = Plan(name=name, description="Of a test.", config={}, rows=rows)
    write_atomically(work.plan(name), plan.to_json())
    return work


def check(works: dict[str, WorkDir]) -> None:
    """Every result is on the server once and whole."""
    for name, work in works.items():
        mirror, expected = Mirror(work.root, name), plan_of(work.root, name)
        plan, records = mirror.fetch()
        assert plan == expected
        assert records == work.store.read_all(plan.cell_ids())
        cells = mirror.experiment.search("tags.`kd_bench.kind` = 'cell'")
        assert Counter(run.data.tags["cell_id"] for run in cells) == Counter(plan.cell_ids())
        assert {run.info.status for run in cells} == {"FINISHED"}
        groups = mirror.experiment.search("tags.`kd_bench.kind` = 'group'")
        wanted = {f"{row.teacher}>{row.student}" for row in plan.rows}
        assert Counter(run.info.run_name for run in groups) == Counter(wanted)
        assert len(mirror.experiment.search("tags.`kd_bench.kind` = 'summary'")) == 1
        one = cells[0]
        for key, curve in records[one.data.tags["cell_id"]].curves.items():  # as the UI asks
            history = mirror.client.get_metric_history(one.info.run_id, f"epoch/{key}")
            assert [(p.step, p.value) for p in history] == list(enumerate(curve, start=1))


def test_a_server_that_is_killed_while_two_send_lacks_nothing_later(
    tmp_path, original, monkeypatch
):
    works = {name: write_grid(tmp_path / name, name, 6, original) for name in ("one", "two")}
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:

        def send_all() -> list[Future[Sent]]:
            return [pool.submit(send, work.root, name) for name, work in works.items()]

        with server:
            sending = send_all()
            while len(list(server.artifacts.glob("*/*/artifacts/record.json"))) < 3:
                assert not any(future.done() for future in sending), sending
                time.sleep(0.05)  # looks again
        assert all(future.result().error for future in sending)
        with server:
            assert [future.result().error for future in send_all()] == ["", ""]
            assert [future.result().records for future in send_all()] == [0, 0]
            check(works)


@pytest.mark.slow
def test_three_launchers_of_which_one_is_killed_leave_every_run_once(tmp_path, monkeypatch, tally):
    """Two share a work directory, the third has one of its own with the same grid."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    grid = ["--grid", "smoke", "--workers", "1"]
    with MlflowServer(tmp_path) as server, contextlib.ExitStack() as stack:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        outputs = [tmp_path / f"output{number}" for number in range(3)]
        launchers = [
            start(stack.enter_context(output.open("w")), *grid, "--work-dir", str(work))
            for output, work in zip(outputs, (shared, shared, own), strict=True)
        ]
        mirror = Mirror(own, "smoke")
        while not mirror.experiment.search("attributes.status = 'RUNNING'"):  # one is sending
            assert launchers[0].poll() is None, outputs[0].read_text()
            time.sleep(0.1)  # looks again
        os.killpg(launchers[0].pid, signal.SIGKILL)
        codes = [launcher.wait(1800) for launcher in launchers]
        assert codes == [-signal.SIGKILL, 0, 0], [path.read_text() for path in outputs]
        for work in (shared, own, shared, own):
            done = kd_bench("sync", "--grid", "smoke", "--work-dir", str(work), timeout=1800)
            assert done.returncode == 0, done.stderr
        assert "0 records sent" in done.stdout
        assert not [r for r in mirror.experiment.search("") if r.info.status != "FINISHED"]
        cells = mirror.experiment.search("tags.`kd_bench.kind` = 'cell'")
        ids = [run.data.tags["cell_id"] for run in cells]
        assert sorted(ids) == sorted(plan_of(own).cell_ids())
        # Both directories trained the same cells to the same bits; one record of each was sent.
        sent = mirror.fetch()[1]
    assert results(shared) == results(own)
    for cell_id, record in sent.items():
        assert record in [WorkDir(work).store.read(cell_id) for work in (shared, own)]
    tally.add("two launchers, one killed, and a third elsewhere, on one MLflow server (4 epochs)",
              1, results(own), results(shared))  # fmt: skip
