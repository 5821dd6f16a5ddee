"""A grid on a cluster: what happens as nodes die, lack something, or join.

In one process, with a stand-in for Ray; tests/test_ray.py does the same to a real one.
"""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from digits_cells import digits_cell, worker_config
from fake_ray import NodeDies, RayError, RayTaskError, fake_ray
from malformed_trees import write_tree
from PIL import Image
from processes import ROOT
from rich.console import Console

from bench.cell import Cell
from bench.cli import main, parse
from bench.expansion import Expansion
from bench.launch.coordinator import run_grid
from bench.launch.job import Job, WorkerConfig
from bench.launch.leases import Leases
from bench.launch.ray_cluster import ClusterError, NodeCommands, RayCluster
from bench.record import FAILED, FINISHED, Plan, Store, WorkDir
from bench.train.failure import record_of

__all__ = ["fake_ray"]
RAY = ["--grid", "smoke", "--launcher", "ray"]
FIRST = [
    "--grid", "smoke", "--methods", "soft_logits", "--seeds", "0", "recipe.epochs=1",
    "teacher.fraction=0.1",
]  # fmt: skip


@pytest.fixture
def cells(tmp_path) -> list[Cell]:
    return [digits_cell("cnn2", tmp_path / "data", seed=seed) for seed in range(4)]


class Node:
    """What a command on a node does, one entry of `deeds` for each: record a cell, or raise.

    It is pickled by reference, so that all copies share the class.
    """

    deeds: list[Cell | BaseException]
    store: Store

    def __call__(self) -> None:
        if not self.deeds:
            return
        deed = self.deeds.pop(0)
        if isinstance(deed, BaseException):
            raise deed
        self.store.write(record_of(deed, FAILED, {}, error="done"))


def commands(
    where: Path,
    deeds: list[Cell | BaseException],
    cells: list[Cell],
    change: Callable[[NodeCommands, Leases], None] = lambda made, leases: None,
    **cluster: int | str,
) -> Iterator[str]:
    """Runs cells on the cluster that there is; yields their ids as they come back."""
    config: WorkerConfig = worker_config(where, where / "data")
    Node.deeds, Node.store = list(deeds), Store(config.store)
    found = RayCluster(**{"device": "cpu", **cluster})
    with Leases(where / "store" / "leases") as leases:
        made = NodeCommands(found, Node(), config, lambda *event: None, leases)
        change(made, leases)
        for done in made.run([Job((cell,)) for cell in cells]):
            yield from (cell.id for cell in done.cells)


def test_cells_come_back_as_commands_record_them(tmp_path, fake_ray, cells):
    fake_ray.add_node(CPU=1)
    assert list(commands(tmp_path, [*cells], cells)) == [cell.id for cell in cells]


def test_a_lost_node_is_replaced_until_too_many_are_lost_in_a_row(tmp_path, fake_ray, cells):
    fake_ray.add_node(CPU=1)
    a_few, too_many = [NodeDies()] * 5, [NodeDies()] * 6
    found = commands(tmp_path, [*a_few, cells[0], *a_few, *cells[1:]], cells)
    assert sorted(found) == sorted(cell.id for cell in cells)
    again = commands(tmp_path / "again", [cells[0], *too_many], cells)
    assert next(again) == cells[0].id
    with pytest.raises(ClusterError, match=r"^6 nodes were lost, .*: The node is dead$"):
        next(again)


@pytest.mark.parametrize("error", [OSError(28, "no space left"), ClusterError("no space left")])
def test_what_the_user_can_mend_on_a_node_ends_the_run_in_one_line(
    tmp_path, fake_ray, cells, error
):
    fake_ray.add_node(CPU=1)
    with pytest.raises(ClusterError, match=r"^node \S+: .*no space left$"):
        list(commands(tmp_path, [error], cells))


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path, fake_ray, cells):
    fake_ray.add_node(CPU=1)
    with pytest.raises(RayTaskError, match="in a task of another process: broken"):
        list(commands(tmp_path, [RuntimeError("broken")], cells))


def test_a_node_that_lacks_the_directory_the_code_or_the_package_says_so(tmp_path, fake_ray, cells):
    fake_ray.add_node(CPU=1)

    def other(made: NodeCommands, leases: Leases) -> None:
        made.order = (made.order[0], "of another version", made.order[2])

    def absent(made: NodeCommands, leases: Leases) -> None:
        made.order = (b"cbench.nowhere\ntrain\n.", *made.order[1:])

    for change, said in (
        (lambda made, leases: leases.heart.unlink(), "--work-dir on a disk that all share"),
        (other, "install the same version on every node"),
        (absent, "this kd-bench is not installed"),
    ):
        with pytest.raises(ClusterError, match=rf"^node \S+: .*{said}"):
            list(commands(tmp_path, [], cells, change=change))


def test_a_cluster_without_a_node_says_so_and_waits_for_one(tmp_path, fake_ray, cells, caplog):
    def join_late() -> None:
        if fake_ray.waited_in_vain == 4:
            fake_ray.add_node(CPU=1)

    fake_ray.before_wait = join_late
    assert list(commands(tmp_path, [*cells], cells)) == [cell.id for cell in cells]
    assert "no node has room" in caplog.text


def test_an_interrupt_ends_the_commands_before_the_leases_end(tmp_path, fake_ray, cells):
    def interrupt() -> None:
        if not fake_ray.cancelled:
            raise KeyboardInterrupt

    fake_ray.before_wait = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(commands(tmp_path, [], cells, workers=3))
    assert fake_ray.cancelled == fake_ray.submitted
    assert len(fake_ray.submitted) == 3


def test_as_many_commands_wait_as_run_for_an_autoscaler_to_see(tmp_path, fake_ray, cells):
    fake_ray.add_node(CPU=2, GPU=1)
    found = commands(tmp_path, [*cells], cells, device="cuda", gpus_per_job=1)
    assert next(found) == cells[0].id
    assert len(fake_ray.submitted) == 2
    assert fake_ray.options["num_gpus"] == 1
    found.close()


def test_a_grid_that_was_trained_on_a_cluster_is_done_on_one_machine(
    tmp_path, fake_ray, no_figures, capsys
):
    fake_ray.add_node(CPU=1)
    grid = [*FIRST, "--device", "cpu", "--work-dir", str(tmp_path)]
    assert main([*grid, "--launcher", "ray"]) == 0
    assert "3 cells trained" in capsys.readouterr().out
    (plan,) = tmp_path.glob("smoke-*/plan.json")
    records = WorkDir(tmp_path).store.read_all(Plan.read(plan).cell_ids()).values()
    # Two commands share the work, so that the cohort of two students is cut.
    assert {record.conditions["cohort"] for record in records} == {1}
    assert main(grid) == 0
    assert "nothing to train; in all: 3 finished" in capsys.readouterr().out


def test_a_record_that_another_command_writes_as_one_starts_is_kept(tmp_path, cells):
    cell, config = cells[0], worker_config(tmp_path / "store", tmp_path / "data")
    work = WorkDir(tmp_path)
    work.store.write(record_of(cell, FAILED, {}, error="KilledError: with its node"))

    class Devices(list[str]):
        def __iter__(self) -> Iterator[str]:
            """Once jobs are planned, and so after a look at what is unfinished."""
            work.store.write(record_of(cell, FINISHED, {}, error=""))
            return super().__iter__()

    class Nothing:
        def run(self, jobs: list[Job]) -> Iterator[None]:
            yield from ()

    expansion = Expansion(Plan(name="g", description="", config={}, rows=[]), {cell.id: cell})
    run_grid(
        expansion, work, config, Devices(["cpu"]), retry_failed=False, mirrored=False,
        console=Console(stderr=True), launch=lambda *given: Nothing(),
    )  # fmt: skip
    assert work.store.read(cell.id).status == FINISHED


def test_a_node_with_other_images_ends_the_run_and_no_cell_is_to_blame(tmp_path, fake_ray, refused):
    fake_ray.add_node(CPU=1)
    first = write_tree(tmp_path)

    fake_ray.before_wait = lambda: Image.new("L", (8, 8), 99).save(first)
    grid = [*FIRST, "data.source=d", "data.fraction=1", "teacher.fraction=1"]
    where = ["--data-root", str(tmp_path), "--work-dir", str(tmp_path / "work")]
    assert "its data set 'd' differs" in refused(*grid, *where, "--device", "cpu", *RAY[2:])
    assert not list((tmp_path / "work" / "store").glob("cells/*"))


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
    for resources in nodes:
        fake_ray.add_node(**resources)
    cluster = RayCluster(gpus_per_job=gpus_per_job, device=device, threads=2)
    assert cluster.slots() == slots
    assert RayCluster(workers=1, device="cpu").slots() <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launcher", "slurm"], "invalid choice: 'slurm'"),
        (["--launcher", "ray", "--gpus-per-job", "1.5"], "--gpus-per-job: got 1.5"),
        (["--launcher", "ray", "--gpus-per-job", "0"], "--gpus-per-job: got 0"),
        (["--launcher", "ray", "--device", "cuda:1"], "--device: got 'cuda:1'"),
    ],
)
def test_a_wrong_cluster_is_refused_with_one_line(tmp_path, fake_ray, refused, words, said):
    assert said in refused("--grid", "smoke", "--work-dir", str(tmp_path), *words)


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
    assert said.startswith("error: --launcher ray: ")
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
    assert (options.launcher, options.device) == ("ray", "cuda")
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
