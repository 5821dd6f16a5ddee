"""A real MLflow server with several writers: nothing is lost, nothing is there twice.

Under load that takes minutes; a short form runs by default. The slow tests write rows of
results/faults.md and the figures of results/mlflow-server.md:

    .venv/bin/python -m pytest tests/test_server.py -m slow --faults-table results/faults.md \\
        --server-table results/mlflow-server.md
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
from fault_table import Tally, write_rows
from lessons import cell, run
from mirror_writer import Sent, send
from processes import kd_bench, plan_of, results, start
from tracking_servers import MlflowServer, Watch, postgres, status

from bench.record import Plan, Record, Row, write_atomically
from bench.tracking import Mirror
from bench.workdir import WorkDir

WRITERS, RUNS, EPOCHS = 4, 500, 200
quiet_mlflow = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytestmark = quiet_mlflow


# --- records -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Record, Path]:
    """A cell that was trained, with diagnostics; its record and its folder."""
    folder = tmp_path_factory.mktemp("original")
    one = cell("soft_logits", diagnostics=True)
    record = run([one], folder)[one.id]
    assert record.status == "finished"
    return record, folder / one.id


def grid_of(
    root: Path, name: str, count: int, original: tuple[Record, Path], epochs: int = EPOCHS
) -> WorkDir:
    """A work directory with a grid of records like the original's, each with its own numbers."""
    work, (record, folder), rows = WorkDir(root), original, []
    for number in range(count):
        pair, seed = divmod(number, 25)
        row = Row(
            role="method", data="synthetic", axes={"fraction": 1.0}, teacher=f"cnn{pair + 10}",
            student="cnn2", label="soft_logits", method="soft_logits", category="response",
            seed=seed, cell_id=f"{name}-{number:04}",
        )  # fmt: skip
        rows.append(row)
        curves = {
            key: [(curve[i % len(curve)] or 0.0) + 1e-3 * number + i for i in range(epochs)]
            for key, curve in record.curves.items()
        }
        shutil.copytree(folder, work.store.folder(row.cell_id))
        work.store.write(replace(record, cell_id=row.cell_id, curves=curves))
    plan = Plan(name=name, description="Of a test.", config={}, rows=rows)
    write_atomically(work.plan(name), plan.to_json())
    return work


def grids(
    root: Path,
    count: int,
    original: tuple[Record, Path],
    writers: int = WRITERS,
    epochs: int = EPOCHS,
) -> dict[str, WorkDir]:
    """One for each writer, `count` records in all."""
    names = [f"load-{number}" for number in range(writers)]
    return {name: grid_of(root / name, name, count // writers, original, epochs) for name in names}


# --- writers, and what they left -----------------------------------------------------------------


@contextlib.contextmanager
def writers(count: int = WRITERS) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        # Each imports MLflow before anything is measured.
        list(pool.map(time.sleep, [0.5] * count))
        yield pool


def send_all(pool: ProcessPoolExecutor, works: dict[str, WorkDir]) -> list[Future[Sent]]:
    return [pool.submit(send, work.root, name) for name, work in works.items()]


def check(works: dict[str, WorkDir], store: str) -> dict[str, Record]:
    """Every result is there once, whole; read through the server, and all curves from its base."""
    everything = {}
    for name, work in works.items():
        mirror = Mirror(work.root, name)
        plan, records = mirror.fetch()
        assert plan == Plan.from_json(work.plan(name).read_text())
        cells = mirror.experiment.search("tags.`kd_bench.kind` = 'cell'")
        assert Counter(run.data.tags["cell_id"] for run in cells) == Counter(plan.cell_ids())
        assert {run.info.status for run in cells} == {"FINISHED"}
        groups = mirror.experiment.search("tags.`kd_bench.kind` = 'group'")
        wanted = {f"{row.teacher}>{row.student}" for row in plan.rows}
        assert Counter(run.info.run_name for run in groups) == Counter(wanted)
        assert len(mirror.experiment.search("tags.`kd_bench.kind` = 'summary'")) == 1
        runs = {run.info.run_id: records[run.data.tags["cell_id"]] for run in cells}
        check_curves(store, runs)
        some, record = next(iter(runs.items()))
        for key, curve in record.curves.items():  # as the UI asks for them
            history = mirror.client.get_metric_history(some, f"epoch/{key}")
            assert [(p.step, p.value) for p in history] == list(enumerate(curve, start=1))
        everything |= records
    return everything


def check_curves(store: str, runs: dict[str, Record]) -> None:
    """All points of all curves, no more and no fewer."""
    wanted, found = Counter(), Counter()
    for run_id, record in runs.items():
        for key, curve in record.curves.items():
            wanted.update((run_id, f"epoch/{key}", step, v) for step, v in enumerate(curve, 1))
    engine = sqlalchemy.create_engine(store)
    with engine.connect() as connection:
        points = connection.execute(
            sqlalchemy.text("SELECT run_uuid, key, step, value FROM metrics")
        )
        found.update(tuple(p) for p in points if p[0] in runs and p[1].startswith("epoch/"))
    engine.dispose()
    assert found == wanted


# --- tests ---------------------------------------------------------------------------------------


HEAD = f"""\
# An MLflow server under load

{WRITERS} processes at once send {RUNS} records of {EPOCHS} epochs, with 8 curves each, to a server
that `bench/launch/mlflow-server.sh` started on the same machine: `bench.tracking.mirror_all`, each
process a grid of its own, once. Milliseconds: those of a writer from one of its runs to the next, and
the CPU time of server and database for a run. Memory: proportional set size of all processes of the
server, without PostgreSQL's, idle and the most of one look a second. Nothing was lost and nothing
there twice, see faults.md. Other work on the machine: load is the system's mean over the time of
sending, of which the writers and their server are about {WRITERS + 2}. Made by:

    python -m pytest -m slow tests/test_server.py --server-table results/mlflow-server.md

| server | processes | seconds | runs per second | ms of a writer | CPU ms | idle MiB | peak MiB | load | when, torch, CPU cores |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
"""  # noqa: E501


@pytest.fixture(scope="module")
def figures(request) -> Iterator[list[tuple[object, ...]]]:
    """What each kind of server took; one row each."""
    rows: list[tuple[object, ...]] = []
    yield rows
    if rows and (path := request.config.getoption("--server-table")):
        write_rows(Path(path), HEAD, rows)


@pytest.fixture(scope="module")
def tally(request) -> Iterator[Tally]:
    counted = Tally()
    yield counted
    if counted.rows and (path := request.config.getoption("--faults-table")):
        counted.write(Path(path))


@contextlib.contextmanager
def store_of(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/server.db"
    else:
        with postgres() as uri:
            yield uri


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "PostgreSQL"])
@pytest.mark.parametrize(("workers", "jobs"), [(1, "false"), (2, "false"), (4, "true")])
def test_four_writers_at_once(tmp_path, original, monkeypatch, tally, figures, kind, workers, jobs):
    works = grids(tmp_path, RUNS, original)
    settings = {"WORKERS": str(workers), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": jobs}
    with store_of(kind, tmp_path) as store, MlflowServer(tmp_path, store, **settings) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        with writers() as pool, Watch(server) as watch:
            sent = [future.result() for future in send_all(pool, works)]
        assert [(one.error, one.records) for one in sent] == [("", RUNS // WRITERS)] * WRITERS
        found = check(works, store)
    jobs_too = ", job execution" * (jobs == "true")
    each = 1000 * sum(one.seconds for one in sent) / RUNS
    figures.append(
        (f"{kind}, {workers} worker{'s' * (workers > 1)}{jobs_too}", watch.processes,
         f"{watch.seconds:.0f}",
         f"{RUNS / watch.seconds:.1f}", f"{each:.0f}", f"{1000 * watch.cpu_seconds / RUNS:.0f}",
         f"{watch.idle_mib:.0f}", f"{watch.peak_mib:.0f}", f"{watch.load:.1f}")
    )  # fmt: skip
    if workers == 2:
        fault = f"MLflow server: {RUNS} runs of {EPOCHS} epochs from four writers at once ({kind})"
        tally.add(fault, 1, all_records(works), found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "PostgreSQL"])
def test_a_server_that_is_killed_under_load(tmp_path, original, monkeypatch, tally, kind):
    """Three times; the writers find it away, and send what it lacks when it is back."""
    works, kills = grids(tmp_path, RUNS, original), (60, 150, 300)
    with store_of(kind, tmp_path) as store:
        server = MlflowServer(tmp_path, store)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        found = killed_and_back(server, works, kills)
    tally.add(f"MLflow server killed under that load, the rest sent later ({kind})", len(kills),
              all_records(works), found)  # fmt: skip


def test_a_server_that_is_killed_while_two_send(tmp_path, original, monkeypatch):
    """The short form."""
    works = grids(tmp_path, 12, original, writers=2, epochs=3)
    server = MlflowServer(tmp_path, WORKERS="1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert killed_and_back(server, works, kills=(3,)) == all_records(works)


def killed_and_back(
    server: MlflowServer, works: dict[str, WorkDir], kills: Sequence[int]
) -> dict[str, Record]:
    """Kills a server that so many records have reached, each time; what it holds in the end."""
    with writers(len(works)) as pool:
        for kill in kills:
            server.start()
            sending = send_all(pool, works)
            while len(list(server.artifacts.glob("*/*/artifacts/record.json"))) < kill:
                assert not any(future.done() for future in sending), sending
                time.sleep(0.05)  # looks again
            server.kill()
            errors = [future.result().error for future in sending]
            assert all(errors), errors
        with server:
            rest = [future.result() for future in send_all(pool, works)]
            assert [one.error for one in rest] == [""] * len(works)
            again = [future.result().records for future in send_all(pool, works)]
            assert again == [0] * len(works)
            return check(works, server.settings["STORE"])


def all_records(works: dict[str, WorkDir]) -> dict[str, Record]:
    found = {}
    for name, work in works.items():
        plan = Plan.from_json(work.plan(name).read_text())
        found |= work.store.read_all(plan.cell_ids())
    return found


@pytest.mark.slow
def test_the_script_answers_its_names_and_refuses_others(tmp_path):
    names = "gpu-head gpu-head.cluster"
    with MlflowServer(tmp_path, NAMES=names) as server:
        page = f"{server.address}/api/2.0/mlflow/experiments/search?max_results=1"
        mine, port = ["gpu-head", "gpu-head.cluster", "localhost", "127.0.0.1"], server.port
        for host in [*mine, *(f"{name}:{port}" for name in mine), "localhost:8080"]:
            assert status(page, host) == 200, host
        for host in ["elsewhere", f"elsewhere:{port}", "gpu-head:1", "gpu-head.elsewhere",
                     f"gpu-head.elsewhere:{port}", "10.1.2.3"]:  # fmt: skip
            assert status(page, host) == 403, host


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
        while not mirror.experiment.search("attributes.status = 'RUNNING'"):  # somebody is sending
            assert launchers[0].poll() is None, outputs[0].read_text()
            time.sleep(0.1)  # looks again
        os.killpg(launchers[0].pid, signal.SIGKILL)
        codes = [launcher.wait(1800) for launcher in launchers]
        assert codes == [-signal.SIGKILL, 0, 0], [path.read_text() for path in outputs]
        for work in (shared, own, shared, own):
            done = kd_bench("sync", "--grid", "smoke", "--work-dir", str(work), timeout=1800)
            assert done.returncode == 0, done.stderr
        assert "0 records sent" in done.stdout
        left = [run for run in mirror.experiment.search("") if run.info.status != "FINISHED"]
        assert [(run.info.run_name, run.info.status) for run in left] == []
        cells = mirror.experiment.search("tags.`kd_bench.kind` = 'cell'")
        assert Counter(run.data.tags["cell_id"] for run in cells) == Counter(
            plan_of(own).cell_ids()
        )
        groups = mirror.experiment.search("tags.`kd_bench.kind` = 'group'")
        assert len({run.info.run_name for run in groups}) == len(groups)
        parents = {run.data.tags["mlflow.parentRunId"] for run in cells}
        assert parents == {run.info.run_id for run in groups}
        assert len(mirror.experiment.search("tags.`kd_bench.kind` = 'summary'")) == 1
        # Both directories trained the same cells to the same bits; one record of each was sent.
        sent = mirror.fetch()[1]
    assert results(shared) == results(own)
    for cell_id, record in sent.items():
        assert record in [WorkDir(work).store.read(cell_id) for work in (shared, own)]
    tally.add("two launchers, one killed, and a third elsewhere, on one MLflow server (4 epochs)",
              1, results(own), results(shared))  # fmt: skip
