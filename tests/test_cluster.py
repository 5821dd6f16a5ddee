"""A grid on a cluster: what the coordinator does as nodes die, lack something, or join.

In one process, with a stand-in for Ray; tests/test_ray.py does the same to a real one.
"""

import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
import yaml
from digits_cells import EPOCHS, digits_cell, worker_config
from fake_ray import NodeDies, RayError, WorkerCrashedError, fake_ray
from processes import ROOT, comparable

from bench.cell import Cell
from bench.cli import parse
from bench.code_version import numerics_digest
from bench.launch.job import Job, WorkerConfig, run_job
from bench.launch.leases import Leases
from bench.launch.ray_cluster import ClusterError, RayCluster, RayTasks, missing_here
from bench.launch.schedule import plan_jobs
from bench.record import FAILED, FINISHED, Store

__all__ = ["fake_ray"]
RAY = ["--grid", "smoke", "--launcher", "ray"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def cells(data_root) -> list[Cell]:
    """A teacher, a student of its own and two that it teaches."""
    teacher = digits_cell("cnn3", data_root)
    taught = [digits_cell("cnn2", data_root, name, teacher) for name in ("soft_logits", "fitnet")]
    return [teacher, digits_cell("cnn2", data_root), *taught]


def results(work: Path) -> dict[str, object]:
    return comparable(Store(work / "cells"), [path.name for path in (work / "cells").iterdir()])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cells, data_root) -> dict[str, object]:
    work = tmp_path_factory.mktemp("undisturbed")
    for job in plan_jobs(cells, 1):
        run_job(job, worker_config(work, data_root), lambda *event: None)
    found = results(work)
    assert {found[cell.id][0] for cell in cells} == {FINISHED}
    return found


def launch(cells: list[Cell], where: WorkerConfig, report=lambda *event: None) -> list[str]:
    """Runs cells on the cluster that there is; their ids in the order in which they came back."""
    cluster = RayCluster(device="cpu")
    with Leases(where.store.parent / "leases") as leases:
        jobs = plan_jobs(cells, len(cluster.devices))
        done = RayTasks(cluster, where, report, leases).run(jobs)
        return [cell.id for part in done for cell in part.cells]


def test_a_node_that_dies_costs_no_result(tmp_path, fake_ray, cells, data_root, undisturbed):
    """In the middle of the students' training, which goes on from their checkpoints."""
    fake_ray.add_node("a", CPU=1)
    epochs: list[tuple[object, ...]] = []

    def die_once(*event: object) -> None:
        epochs.append(event)
        if len(epochs) == EPOCHS + 4:
            epochs.append(event)
            raise NodeDies

    fake_ray.on_event = die_once
    where = worker_config(tmp_path, data_root)
    assert sorted(launch(cells, where)) == sorted(cell.id for cell in cells)
    assert results(tmp_path) == undisturbed
    assert fake_ray.ran_on == ["a"] * 3  # the teacher; its students; these again
    resumed = [Store(where.store).read(cell.id).conditions["resumed"] for cell in cells[1:]]
    assert resumed == [1, 1, 1]
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_cell_that_loses_every_node_fails_alone(tmp_path, fake_ray, cells, data_root):
    fake_ray.add_node("a", CPU=1)

    def doom(cell_id: str, *event: object) -> None:
        if cell_id == cells[3].id:
            raise NodeDies

    fake_ray.on_event = doom
    where = worker_config(tmp_path, data_root)
    assert sorted(launch(cells, where)) == sorted(cell.id for cell in cells)
    store = Store(where.store)
    assert [store.read(cell.id).status for cell in cells] == [FINISHED] * 3 + [FAILED]
    assert "lost 3 nodes" in store.read(cells[3].id).error


def test_a_process_that_dies_is_its_cells_fault_and_an_error_keeps_its_traceback(
    tmp_path, fake_ray, cells, data_root
):
    fake_ray.add_node("a", CPU=1)
    errors = {cells[2].id: WorkerCrashedError(), cells[3].id: OSError("no such file")}

    def interrupt(cell_id: str, *event: object) -> None:
        if cell_id in errors:
            raise errors[cell_id]

    fake_ray.on_event = interrupt
    where = worker_config(tmp_path, data_root)
    launch(cells, where)
    records = [Store(where.store).read(cell.id) for cell in cells]
    assert [record.status for record in records] == [FINISHED] * 2 + [FAILED] * 2
    assert "its process died" in records[2].error
    assert records[3].error == "OSError: no such file"
    assert "in a task of another process" in records[3].traceback


def test_a_node_that_lacks_the_data_ends_the_run_and_no_cell_is_to_blame(
    tmp_path, fake_ray, cells, data_root
):
    fake_ray.add_node("a", CPU=1)
    other = [cell.model_copy(update={"fingerprint": "another"}) for cell in cells[:1]]
    where = worker_config(tmp_path, data_root)
    with pytest.raises(ClusterError, match=r"node \S+: its data set 'digits' differs"):
        launch(other, where)
    assert Store(where.store).read(other[0].id) is None


def test_a_node_that_does_not_see_the_work_directory_says_so(tmp_path, cells, data_root):
    where = worker_config(tmp_path, data_root)
    code = numerics_digest("methods/*.py")
    said = missing_here(Job((cells[0],)), where, code, tmp_path / "hearts" / "of-a-coordinator")
    assert said is not None
    assert "--work-dir on a disk that all share" in said


def test_a_cluster_without_a_node_waits_for_one(tmp_path, fake_ray, cells, data_root, undisturbed):
    def join_late() -> None:
        if fake_ray.waited_in_vain == 4:
            fake_ray.add_node("a", CPU=1)

    fake_ray.before_wait = join_late
    assert launch(cells[:1], worker_config(tmp_path, data_root)) == [cells[0].id]
    assert results(tmp_path)[cells[0].id] == undisturbed[cells[0].id]


def test_an_interrupt_cancels_what_runs_before_its_leases_end(tmp_path, fake_ray, cells, data_root):
    fake_ray.add_node("a", CPU=4)
    where, cluster = worker_config(tmp_path, data_root), RayCluster(device="cpu")
    plain = [cells[0], cells[1].model_copy(update={"seed": 1})]

    def interrupt(*event: object) -> None:
        raise KeyboardInterrupt

    with Leases(tmp_path / "leases") as leases:
        jobs = [Job((cell,)) for cell in plain]
        with pytest.raises(KeyboardInterrupt):
            list(RayTasks(cluster, where, interrupt, leases).run(jobs))
        assert len(fake_ray.cancelled) == 2
    with Leases(tmp_path / "leases") as leases:
        assert all(leases.acquire(cell.id) for cell in plain)


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
    cluster = RayCluster(gpus_per_job=gpus_per_job, device=device, threads=2)
    assert cluster.slots() == slots
    assert cluster.devices == [device] * max(1, slots)
    assert RayCluster(workers=1, device="cpu").slots() <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "auto"], "add --launcher ray"),
        (["--launcher", "slurm"], "invalid choice: 'slurm'"),
        (["--launcher", "ray", "--gpus-per-job", "1.5"], "--gpus-per-job: got 1.5"),
        (["--launcher", "ray", "--gpus-per-job", "0"], "--gpus-per-job: got 0"),
        (["--launcher", "ray", "--gpus-per-job", "nan"], "--gpus-per-job: got "),
        (["--launcher", "ray", "--address", "ray://head:10001"], "wanted auto or HOST:PORT"),
        (["--launcher", "ray", "--address", "head"], "wanted auto or HOST:PORT"),
        (["--launcher", "ray", "--device", "cuda:1"], "--device: got 'cuda:1'"),
    ],
)
def test_a_wrong_cluster_is_refused_with_one_line(tmp_path, fake_ray, refused, words, said):
    assert said in refused("--grid", "smoke", "--work-dir", str(tmp_path), *words)


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path, fake_ray, refused):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        error = refused(*RAY, "--work-dir", str(tmp_path), "--address", address)
    assert f"error: --address {address}: nobody answers" in error


def test_a_connection_to_ray_leaves_sigterm_to_the_command(fake_ray):
    fake_ray.init = lambda *where, **how: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handler = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with RayCluster(device="cpu"):
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", [Exception("timed out during\nstartup"), RayError("busy")])
def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing_behind(
    tmp_path, fake_ray, refused, error
):
    def init(*where: object, **how: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray has a handler of its own
        raise error

    fake_ray.init = init
    before = signal.getsignal(signal.SIGTERM)
    try:
        said = refused(*RAY, "--work-dir", str(tmp_path))
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said.startswith("error: --address auto: ")
    assert " ".join(str(error).split()) in said
    assert fake_ray.shut_down == 1


def test_without_ray_one_line_says_how_to_get_it(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'kd-bench[cluster]'" in refused(*RAY, "--work-dir", str(tmp_path))


def test_the_slurm_script_runs_this_command_line_with_the_words_after_it():
    *_, directives, command = (ROOT / "bench/launch/slurm.sbatch").read_text().splitlines()
    assert {"--ntasks=1", "--requeue"} < set(directives.split())
    program = command.split(" run_all.py ", 1)[1].replace('"$@"', "--grid smoke --seeds 0-1")
    found, options = parse(shlex.split(program))
    assert found.__name__ == "run"
    assert (options.launcher, options.grid, options.seeds) == ("local", "smoke", [0, 1])


def test_the_kubernetes_manifest_is_a_ray_job_that_runs_this_command_line():
    (job,) = yaml.safe_load_all((ROOT / "bench/launch/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "kd-bench"
    command, options = parse(words)
    assert command.__name__ == "run"
    assert (options.launcher, options.address, options.device) == ("ray", "auto", "cuda")
    cluster = job["spec"]["rayClusterSpec"]
    images = set()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        images.add(container["image"])
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        for path in (options.work_dir, options.data_root):
            assert path.is_relative_to(mount["mountPath"])
    assert len(images) == 1  # one environment on every node
