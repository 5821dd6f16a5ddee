"""A grid on a cluster: what the coordinator does as nodes die, lack something, or share no disk.

In one process, beside a stand-in for Ray; tests/test_ray.py does the same to a real one.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_ray import (
    FakeRay,
    NodeDiedError,
    NodeDies,
    RayError,
    WorkerCrashedError,
    fake_ray,
)
from processes import ROOT

from bench.cell import Cell, DataSpec, Recipe
from bench.cli import main, parse
from bench.launch import depot, ray_cluster, ray_worker
from bench.launch.crew import Crew
from bench.launch.depot import Depot, SupersededError
from bench.launch.job import Job, Library, WorkerConfig, run_job
from bench.launch.lease import Leases
from bench.launch.ray_cluster import ClusterError, Options, RayCluster
from bench.launch.schedule import plan_jobs
from bench.record import FAILED, FINISHED, Store
from bench.train.cohort import record_without_result
from methods import registry

__all__ = ["fake_ray"]
DATA = DataSpec(source="digits", classes=2, fraction=0.3, pad=1, flip=False)
EPOCHS = 3
SHARED = Options()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def cells(data_root) -> list[Cell]:
    """A teacher, a student of its own and two that it teaches."""
    fingerprint = Library(None, data_root).fingerprint(DATA)
    recipe = Recipe(epochs=EPOCHS, batch_size=16, learning_rate=0.05)

    def cell(method: str, model: str, teacher: Cell | None = None) -> Cell:
        return Cell(
            model=model, data=DATA, fingerprint=fingerprint, method=method, recipe=recipe, seed=0,
            code=registry.code_digest(method), hyperparameters=registry.resolve(method, {}),
            teacher=teacher,
        )  # fmt: skip

    teacher = cell("student", "cnn3")
    taught = [cell(name, "cnn2", teacher) for name in ("soft_logits", "fitnet")]
    return [teacher, cell("student", "cnn2"), *taught]


def setting(work: Path, data_root: Path, **changes: object) -> WorkerConfig:
    values = {
        "store": work / "cells", "cache": data_root, "data_root": None,
        "checkpoints": work / "checkpoints", "checkpoint_seconds": 0.0,
    }  # fmt: skip
    return WorkerConfig(**{**values, **changes})


def results(work: Path) -> dict[str, object]:
    found = {}
    for folder in sorted((work / "cells").iterdir()):
        record = Store(work / "cells").read(folder.name)
        assert record is not None
        final = {k: v for k, v in record.final.items() if not k.endswith("seconds")}
        weights = (folder / "weights.safetensors").read_bytes()
        found[folder.name] = (record.status, record.curves, final, weights)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cells, data_root) -> dict[str, object]:
    work = tmp_path_factory.mktemp("undisturbed")
    for job in plan_jobs(cells, 1):
        run_job(job, setting(work, data_root), lambda *event: None)
    found = results(work)
    assert {found[cell.id][0] for cell in cells} == {FINISHED}
    return found


def launch(
    cells: list[Cell], where: WorkerConfig, options: Options = SHARED, report=lambda *event: None
) -> list[str]:
    """Runs cells on the cluster that there is; the ids in the order they came back."""
    cluster = RayCluster(options, "cpu", threads=1)
    with Leases(where.store.parent / "leases") as leases:
        jobs = plan_jobs(cells, len(cluster.devices))
        done = cluster.run(jobs, where, cluster.devices, report, leases)
        return [cell.id for part in done for cell in part.cells]


def at_report(number: int, monkeypatch, error: BaseException) -> list[tuple]:
    """Raises in the worker at its n-th report; all reports that reached the coordinator."""
    seen, report = [], Depot.report

    def interrupted(self: Depot, *event: object) -> None:
        seen.append(event)
        if len(seen) == number:
            raise error
        report(self, *event)

    monkeypatch.setattr(Depot, "report", interrupted)
    return seen


@pytest.mark.parametrize("node_dir", [None, "own"])
def test_a_node_that_dies_costs_no_result(
    tmp_path, fake_ray, cells, data_root, undisturbed, monkeypatch, node_dir
):
    """With a shared disk and without one, in the middle of the students' training."""
    fake_ray.add_node("a", CPU=1)
    at_report(1 + EPOCHS + 1 + 4, monkeypatch, NodeDies())  # each job tells that it begins
    where = setting(tmp_path / "work", data_root)
    own = node_dir and str(tmp_path / node_dir)
    done = launch(cells, where, Options(node_dir=own))
    assert sorted(done) == sorted(cell.id for cell in cells)
    assert results(tmp_path / "work") == undisturbed
    assert len(fake_ray.tasks) == 3  # the teacher; its students; these again
    resumed = [Store(where.store).read(cell.id).conditions["resumed"] for cell in cells[1:]]
    assert resumed == [1, 1, 1]
    assert not list((tmp_path / "work" / "checkpoints").glob("*"))
    if own:
        assert [p.name for p in Path(own).iterdir()] == ["data"]


def test_a_cell_that_loses_every_node_is_a_suspect_and_fails_alone(
    tmp_path, fake_ray, cells, data_root, monkeypatch
):
    fake_ray.add_node("a", CPU=1)
    report = Depot.report

    def doomed(self: Depot, attempt: str, kind: str, cell_id: str, *event: object) -> None:
        if cell_id == cells[3].id:
            raise NodeDies
        report(self, attempt, kind, cell_id, *event)

    monkeypatch.setattr(Depot, "report", doomed)
    where = setting(tmp_path, data_root)
    assert sorted(launch(cells, where)) == sorted(cell.id for cell in cells)
    store = Store(where.store)
    assert [store.read(cell.id).status for cell in cells] == [FINISHED] * 3 + [FAILED]
    assert "it lost 3 nodes: the node is dead" in store.read(cells[3].id).error


def test_a_job_that_ray_sends_to_a_dead_node_is_no_fault_of_its_cells(
    tmp_path, fake_ray, cells, data_root, undisturbed, caplog
):
    fake_ray.add_node("a", CPU=1)
    wait, dead = fake_ray.wait, list(range(10))

    def wait_in_vain(refs: list, **how: object) -> object:
        if dead and dead.pop():
            refs[0].done, refs[0].error = True, NodeDiedError("the node is dead")
        return wait(refs, **how)

    fake_ray.wait = wait_in_vain
    launch(cells[:1], setting(tmp_path, data_root))
    assert results(tmp_path)[cells[0].id] == undisturbed[cells[0].id]
    assert "a node was lost" not in caplog.text


def test_a_process_that_dies_is_its_cells_fault_and_an_error_keeps_its_traceback(
    tmp_path, fake_ray, cells, data_root, monkeypatch
):
    fake_ray.add_node("a", CPU=1)
    errors = {cells[2].id: WorkerCrashedError(), cells[3].id: OSError("no such file")}
    report = Depot.report

    def interrupted(self: Depot, attempt: str, kind: str, cell_id: str, *event: object) -> None:
        if cell_id in errors:
            raise errors[cell_id]
        report(self, attempt, kind, cell_id, *event)

    monkeypatch.setattr(Depot, "report", interrupted)
    where = setting(tmp_path, data_root)
    launch(cells, where)
    records = [Store(where.store).read(cell.id) for cell in cells]
    assert [record.status for record in records] == [FINISHED] * 2 + [FAILED] * 2
    assert records[2].error == "RuntimeError: its process died, twice: killed, or out of memory"
    assert records[3].error == "OSError: no such file"
    assert "in a task of another process" in records[3].traceback


def test_an_attempt_that_was_given_up_can_write_nothing_more(tmp_path):
    place = Depot(tmp_path / "cells", tmp_path / "checkpoints")
    place.write("first", depot.CELLS, "a", "record.json", b"{}")
    place.end("first")
    for refused in (
        lambda: place.report("first", "epoch", "a", 1, 2, None),
        lambda: place.write("first", depot.CELLS, "a", "record.json", b"other"),
        lambda: place.remove("first", depot.CELLS, "a", "record.json"),
        lambda: place.discard_checkpoints("first", "a"),
    ):
        with pytest.raises(SupersededError):
            refused()
    place.report("second", "epoch", "a", 1, 2, None)
    assert place.events() == [("epoch", ("a", 1, 2, None))]
    assert place.events() == []
    assert place.read(depot.CELLS, "a", "record.json") == b"{}"


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".hidden"])
def test_what_workers_send_stays_in_its_folder(tmp_path, name):
    place = Depot(tmp_path / "cells", None)
    for cell_id, file in ((name, "x"), ("a", name)):
        with pytest.raises(ValueError, match="no plain file name"):
            place.write("try", depot.CELLS, cell_id, file, b"")
        with pytest.raises(ValueError, match="no plain file name"):
            place.read(depot.CELLS, cell_id, file)
    assert list(tmp_path.iterdir()) == []


def in_turn(ray: FakeRay) -> Callable:
    """Tasks run on the first node, then on the next."""
    wait = ray.wait

    def wait_and_turn(*refs: object, **how: object) -> object:
        found = wait(*refs, **how)
        ray.nodes_there.append(ray.nodes_there.pop(0))
        return found

    return wait_and_turn


def test_a_node_that_lacks_something_is_left_out_and_the_last_one_ends_the_run(
    tmp_path, fake_ray, cells, data_root, caplog, monkeypatch
):
    fake_ray.add_node("a", CPU=1)
    fake_ray.add_node("b", CPU=1)
    elsewhere = [cell.model_copy(update={"fingerprint": "another"}) for cell in cells[:1]]
    where = setting(tmp_path, data_root)
    monkeypatch.setattr(fake_ray, "wait", in_turn(fake_ray))
    with pytest.raises(ClusterError, match="another content than the coordinator's"):
        launch(elsewhere, where)
    assert "going on without that node" in caplog.text
    assert len(fake_ray.tasks) == 2
    strategy = fake_ray.tasks[1].asked["scheduling_strategy"]
    assert strategy[2]["hard"]["ray.io/node-id"][1] == ("a",)
    assert Store(where.store).read(elsewhere[0].id) is None


def before_waiting(ray: FakeRay, number: int, happens: Callable[[], object]) -> None:
    """Makes something happen before the n-th time that the coordinator waits for its tasks."""
    wait, left = ray.wait, [number]

    def wait_after_that(*refs: object, **how: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            happens()
        return wait(*refs, **how)

    ray.wait = wait_after_that


def dies(node: dict[str, object]) -> Callable[[], object]:
    return lambda: node.update(Alive=False)


def test_the_last_node_ends_the_run_though_a_dead_one_was_counted_as_it_refused(
    tmp_path, fake_ray, cells, data_root, caplog
):
    """Ray notices after seconds that a node is dead; until then it has room for jobs."""
    fake_ray.add_node("a", CPU=1)
    fake_ray.add_node("b", CPU=1)
    elsewhere = [cell.model_copy(update={"fingerprint": "another"}) for cell in cells[:1]]
    before_waiting(fake_ray, 2, dies(fake_ray.nodes_there[1]))
    with pytest.raises(ClusterError, match="another content than the coordinator's"):
        launch(elsewhere, setting(tmp_path, data_root))
    assert len(fake_ray.tasks) == 1
    assert "going on without that node" in caplog.text


def test_a_cluster_without_a_node_waits_for_one_and_says_so_once(
    tmp_path, fake_ray, cells, data_root, undisturbed, caplog
):
    before_waiting(fake_ray, 5, lambda: fake_ray.add_node("a", CPU=1))
    assert launch(cells[:1], setting(tmp_path, data_root)) == [cells[0].id]
    assert results(tmp_path)[cells[0].id] == undisturbed[cells[0].id]
    assert fake_ray.waited_in_vain == 4
    assert caplog.text.count("no node has room for a job; waiting for one to join") == 1
    assert "a job asks for 1 CPU, and there is no node" in caplog.text


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", "a job asks for 8 CPUs, the largest node has 6 CPUs"),
        ("cuda", "a job asks for 0.5 GPUs and 8 CPUs, the largest node has 1 GPU and 4 CPUs"),
    ],
)
def test_what_no_node_can_hold_is_told_with_what_the_largest_one_has(fake_ray, device, said):
    fake_ray.add_node("a", CPU=6)
    fake_ray.add_node("b", CPU=4, GPU=1)
    fake_ray.add_node("dead", CPU=64, GPU=8)
    fake_ray.nodes_there[-1]["Alive"] = False
    cluster = RayCluster(Options(gpus_per_job=0.5), device, threads=8)
    assert cluster.slots() == 0
    assert cluster.shortage() == said


def test_a_job_that_no_node_can_hold_is_told_once(
    tmp_path, fake_ray, cells, data_root, undisturbed, caplog
):
    fake_ray.add_node("small", CPU=0.5)
    before_waiting(fake_ray, 5, lambda: fake_ray.add_node("a", CPU=1))
    wait = fake_ray.wait

    def wait_without_the_small_one(*refs: object, **how: object) -> object:
        small = fake_ray.nodes_there.pop(0)
        try:
            return wait(*refs, **how)
        finally:
            fake_ray.nodes_there.insert(0, small)

    fake_ray.wait = wait_without_the_small_one
    assert launch(cells[:1], setting(tmp_path, data_root)) == [cells[0].id]
    assert caplog.text.count("a job asks for 1 CPU, the largest node has 0.5 CPUs") == 1


@pytest.mark.parametrize("patience", [600.0, 0.0])
def test_the_like_of_a_good_node_is_waited_for_beside_one_that_refused(
    tmp_path, fake_ray, cells, data_root, undisturbed, monkeypatch, caplog, patience
):
    """The only node that can train is lost; what is left says why it cannot."""
    monkeypatch.setattr(ray_cluster, "REPLACEMENT_SECONDS", patience)
    good, blind = "a", "b"
    fake_ray.add_node(good, CPU=1)
    fake_ray.add_node(blind, CPU=1)
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file",
        lambda self: is_file(self) and ("hearts" not in self.parts or fake_ray.here != blind),
    )  # fmt: skip
    before_waiting(fake_ray, 2, dies(fake_ray.nodes_there[0]))  # the teacher is trained
    before_waiting(fake_ray, 9, lambda: fake_ray.add_node("c", CPU=1))
    where = setting(tmp_path, data_root)
    if patience:
        assert sorted(launch(cells, where)) == sorted(cell.id for cell in cells)
        assert results(tmp_path) == undisturbed
        assert "no node has room for a job; waiting for one to join" in caplog.text
    else:
        with pytest.raises(ClusterError, match=r"does not see .*--node-dir"):
            launch(cells, where)
        assert Store(where.store).read(cells[0].id).status == FINISHED
    assert "does not see" in caplog.text


def test_a_node_with_other_code_trains_nothing(tmp_path, fake_ray, cells, data_root, monkeypatch):
    fake_ray.add_node("a", CPU=1)
    monkeypatch.setattr(ray_worker, "code_digest", lambda: "of another version")
    with pytest.raises(ClusterError, match=r"the code in .*/bench is another"):
        launch(cells[:1], setting(tmp_path, data_root))
    assert Store(tmp_path / "cells").read(cells[0].id) is None


@pytest.mark.parametrize(
    "node_dir", ["$NOT_SET_HERE/kd-bench", "${NOT_SET_HERE}", "kd", "~no-such-user/x", ""]
)
def test_a_nodes_own_folder_is_a_whole_path_there_or_the_node_is_left_out(
    tmp_path, fake_ray, cells, data_root, monkeypatch, node_dir
):
    fake_ray.add_node("a", CPU=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(
        ClusterError, match=r"node \S+: --node-dir .*wanted an absolute path"
    ) as told:
        launch(cells[:1], setting(tmp_path / "work", data_root), Options(node_dir=node_dir))
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_variables_of_a_nodes_own_folder_are_the_nodes(
    tmp_path, fake_ray, cells, data_root, monkeypatch, undisturbed
):
    fake_ray.add_node("a", CPU=1)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "own"))
    launch(cells[:1], setting(tmp_path, data_root), Options(node_dir="$TMPDIR/kd-bench"))
    assert results(tmp_path)[cells[0].id] == undisturbed[cells[0].id]
    assert (tmp_path / "own" / "kd-bench" / "data").is_dir()


def test_nodes_that_do_not_see_the_work_directory_say_how_to_go_on(
    tmp_path, fake_ray, cells, data_root, monkeypatch
):
    fake_ray.add_node("a", CPU=1)
    monkeypatch.setattr(Path, "is_file", lambda self: "hearts" not in self.parts)
    with pytest.raises(ClusterError, match=r"does not see .*--node-dir"):
        launch(cells[:1], setting(tmp_path, data_root))


def test_warnings_of_workers_are_shown_by_the_coordinator(
    tmp_path, fake_ray, cells, data_root, undisturbed, caplog
):
    fake_ray.add_node("a", CPU=1)
    damaged = tmp_path / "checkpoints" / cells[0].id / "000001.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    launch(cells[:1], setting(tmp_path, data_root), Options(node_dir=str(tmp_path / "own")))
    assert "000001.safetensors cannot be used" in "".join(
        r.getMessage() for r in caplog.records if r.name == "bench.launch.ray_cluster"
    )
    assert results(tmp_path)[cells[0].id] == undisturbed[cells[0].id]


def test_an_interrupt_cancels_what_runs_before_its_leases_end(tmp_path, fake_ray, cells, data_root):
    fake_ray.add_node("a", CPU=4)
    where, cluster = setting(tmp_path, data_root), RayCluster(Options(), "cpu", threads=1)
    plain = [cells[0], cells[1].model_copy(update={"seed": 1})]

    def interrupt(*event: object) -> None:
        raise KeyboardInterrupt

    with Leases(tmp_path / "leases") as leases:
        jobs = [Job((cell,), None) for cell in plain]
        with pytest.raises(KeyboardInterrupt):
            list(cluster.run(jobs, where, cluster.devices, interrupt, leases))
        assert len(fake_ray.cancelled) == 2
        assert len(fake_ray.killed) == 1
    with Leases(tmp_path / "leases") as leases:
        assert all(leases.acquire(cell.id) for cell in plain)


def test_a_part_of_a_job_that_is_done_is_not_run_again(tmp_path, cells, data_root):
    class Idle(Crew[int]):
        def has_room(self, alone: bool) -> bool:
            return False

        def submit(self, job: Job, alone: bool) -> int:
            raise NotImplementedError

        collect = stop = submit

    with Leases(tmp_path / "leases") as leases:
        crew = Idle(setting(tmp_path, data_root), lambda *event: None, leases)
        crew.store.write(record_without_result(cells[0], FAILED, "as an example", {}))
        (done,) = crew.put_back(Job(tuple(cells[:2]), None))
    assert done.cells == (cells[0],)
    assert crew.waiting == [Job((cells[1],), None)]


# --- how many jobs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "gpus_per_job", "nodes", "slots"),
    [
        ("cpu", 1.0, [{"CPU": 4}, {"CPU": 3}], 3),
        ("cpu", 1.0, [{}], 0),
        ("cuda", 1.0, [{"CPU": 16, "GPU": 4}, {"CPU": 16}], 4),
        ("cuda", 0.5, [{"CPU": 16, "GPU": 4}], 8),
        ("cuda", 0.4, [{"CPU": 16, "GPU": 2}], 4),
        ("cuda", 2.0, [{"CPU": 16, "GPU": 3}], 1),
        ("cuda", 0.1, [{"CPU": 4, "GPU": 2}], 2),
    ],
)
def test_a_cluster_has_room_for_as_many_jobs_as_its_nodes_hold(
    fake_ray, device, gpus_per_job, nodes, slots
):
    for name, resources in enumerate(nodes):
        fake_ray.add_node(str(name), **resources)
    cluster = RayCluster(Options(gpus_per_job=gpus_per_job), device, threads=2)
    assert cluster.slots() == slots
    assert cluster.devices == [device] * max(1, slots)
    fake_ray.nodes_there[0]["Alive"] = False
    assert cluster.slots() <= slots
    assert RayCluster(Options(workers=1), "cpu", 1).slots() <= 1


def test_a_suspect_has_a_gpu_to_itself(fake_ray):
    cluster = RayCluster(Options(gpus_per_job=0.25), "cuda", threads=2)
    assert cluster.asks(alone=False) == {"num_cpus": 2, "num_gpus": 0.25}
    assert cluster.asks(alone=True)["num_gpus"] == 1


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "add --launcher ray"),
        (["--launcher", "slurm"], "invalid choice: 'slurm'"),
        (["--launcher", "ray", "--gpus-per-job", "1.5"], "--gpus-per-job: got 1.5"),
        (["--launcher", "ray", "--gpus-per-job", "0"], "--gpus-per-job: got 0"),
        (["--launcher", "ray", "--gpus-per-job", "inf"], "--gpus-per-job: got "),
        (["--launcher", "ray", "--gpus-per-job", "nan"], "--gpus-per-job: got "),
        (["--launcher", "ray", "--address", "ray://head:10001"], "wanted auto or HOST:PORT"),
        (["--launcher", "ray", "--address", "head"], "wanted auto or HOST:PORT"),
        (["--launcher", "ray", "--device", "cuda:1"], "--device: got 'cuda:1'"),
        (["--launcher", "ray", "--workers", "0"], "--workers: got 0"),
    ],
)
def test_a_wrong_cluster_is_refused_with_one_line(tmp_path, fake_ray, capsys, words, said):
    assert main(["--grid", "smoke", "--work-dir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path, fake_ray, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = ["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]
        assert main([*words, "--address", address]) == 2
    assert f"error: --address {address}: nobody answers at {address}" in capsys.readouterr().err


TIMED_OUT = "The current node timed out during startup. This could\nhappen because the GCS is busy."


@pytest.mark.parametrize(
    "error",
    [Exception(TIMED_OUT), TimeoutError(TIMED_OUT), RuntimeError(TIMED_OUT), RayError(TIMED_OUT)],
)
def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing_running(
    tmp_path, fake_ray, capsys, error
):
    def init(**how: object) -> None:
        raise error

    fake_ray.init = init
    command = ["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert main([*command, "--address", address]) == 2
    assert main(command) == 2
    there, here = capsys.readouterr().err.splitlines()
    assert there.startswith(f"error: --address {address}: The current node timed out during")
    assert "could happen because the GCS is busy; wanted what `ray start --head` said" in there
    assert here.startswith("error: --launcher ray: Ray does not start on this machine: The cur")
    assert here.endswith("or use --launcher local")
    assert fake_ray.shut_down == 2


def test_a_ray_that_fails_right_after_its_start_leaves_nothing_behind(tmp_path, fake_ray, capsys):
    def init(**how: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has a handler of its own

    def cluster_resources() -> dict[str, float]:
        raise RuntimeError("Failed to connect to GCS within 60 seconds.")

    fake_ray.init, fake_ray.cluster_resources = init, cluster_resources
    before = signal.getsignal(signal.SIGTERM)
    try:
        command = ["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]
        assert main(command) == 2
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert error.startswith("error: --launcher ray: ")
    assert "Failed to connect to GCS" in error
    assert error.count("\n") == 1
    assert fake_ray.shut_down == 1


def test_an_interrupt_while_ray_starts_is_no_fault_of_rays(tmp_path, fake_ray, capsys):
    def init(**how: object) -> None:
        raise KeyboardInterrupt

    fake_ray.init = init
    command = ["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]
    assert main(command) == 130
    assert capsys.readouterr().err.startswith("stopped; finished cells are kept")
    assert fake_ray.shut_down == 1


def test_a_ray_that_cannot_be_imported_is_one_line(tmp_path, fake_ray, monkeypatch, capsys):
    class Broken:
        def find_spec(self, name: str, *path: object) -> None:
            if name == "ray":
                raise ImportError("libcrypto.so.9: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: fake_ray.__spec__)
    command = ["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "Ray is installed, but cannot be imported: libcrypto.so.9" in error
    assert error.count("\n") == 1


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["--grid", "smoke", "--work-dir", str(tmp_path), "--launcher", "ray"]) == 2
    assert "pip install 'kd-bench[cluster]'" in capsys.readouterr().err


# --- templates -----------------------------------------------------------------------------------

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
RAY = """#!/bin/bash
printf '%s\\n' "$RAY_AUTH_MODE:${#RAY_AUTH_TOKEN}" "$@" > "$TOLD"
"""


def test_the_slurm_script_starts_one_cluster_and_one_coordinator(tmp_path):
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("ray", RAY)):
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    script = ROOT / "bench/launch/slurm.sbatch"
    job = {
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_ON_NODE": "8", "KD_BENCH_VENV": str(tmp_path / "venv"),
        "KD_BENCH_HEAD": "10.0.0.7", "TOLD": str(tmp_path / "told"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(script), "--grid", "smoke", "--seeds", "0-1", "recipe.epochs=2"],
        env={**os.environ, **job}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    auth, *told = (tmp_path / "told").read_text().splitlines()
    assert auth == "token:64"
    split = told.index("--")
    assert told[:5] == ["symmetric-run", "--address", "10.0.0.7:23456", "--min-nodes", "3"]
    assert told[split + 1 : split + 3] == ["python", "run_all.py"]
    command, options = parse(told[split + 3 :])
    assert command.__name__ == "run"
    assert (options.launcher, options.address) == ("ray", "10.0.0.7:23456")
    assert (options.grid, options.seeds, options.overrides) == (
        "smoke", [0, 1], ["recipe.epochs=2"]
    )  # fmt: skip
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --ntasks-per-node=1", "#SBATCH --exclusive"} <= set(directives)


def test_the_kubernetes_manifest_is_a_ray_job_that_runs_this_command_line():
    (job,) = yaml.safe_load_all((ROOT / "bench/launch/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    spec = job["spec"]
    program, *words = shlex.split(spec["entrypoint"])
    assert program == "kd-bench"
    command, options = parse(words)
    assert command.__name__ == "run"
    assert (options.launcher, options.address, options.device) == ("ray", "auto", "cuda")
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    images = set()
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"]
        for path in (options.work_dir, options.data_root):
            assert path.is_relative_to(mount["mountPath"])
    assert len(images) == 1  # one environment on every node
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
