"""Jobs that fail or lose their process: what is tried again, what is recorded as failed."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from digits_cells import digits_cell, worker_config
from lessons import cell, plain_cell, run
from processes import ROOT, comparable, environment, workers_of

from bench.cell import Cell
from bench.faults import DamagedError, UserError, is_out_of_memory
from bench.launch.job import Held, Job, Report, WorkerConfig, run_job, unfinished
from bench.launch.launcher import Done, Launcher, without_failed_needs
from bench.launch.leases import LeaseLostError, Leases
from bench.launch.resources import usable_cpus
from bench.launch.workers import Workers
from bench.plugin import Plugin
from bench.record import FAILED, FINISHED, Store
from bench.train.device import is_device_lost
from bench.train.engine import Student
from bench.train.failure import KilledError, fail, record_of

# cnn2 with something that happens in the midst of a training step. `wait_once` returns when the
# test opens the pipe of that name for writing, and at once in later trainings.
MODELS = """
import itertools, os, signal
from pathlib import Path
from bench.models.small import SmallCnn

FOLDER = Path({folder!r})

def wait_once(name):
    if not (FOLDER / (name + "-waited")).exists():
        (FOLDER / (name + "-waited")).touch()
        (FOLDER / name).open().close()

def killed():
    wait_once("killed")
    os.kill(os.getpid(), signal.SIGKILL)

def held():
    wait_once("held")

def broken():
    raise OSError("no such file")

def quits():
    raise SystemExit(3)

def model(act):
    def build(classes, image_shape):
        network, steps = SmallCnn(classes, image_shape, width=2), itertools.count(1)
        def hook(module, inputs, output):
            if module.training and next(steps) == 8:  # in the second epoch
                act()
        network.head.register_forward_hook(hook)
        return network
    return build

MODELS = {{act.__name__: model(act) for act in (killed, held, broken, quits)}}
"""


@pytest.fixture
def config(tmp_path) -> WorkerConfig:
    """With models that wait, raise, or kill their process."""
    plugin = Plugin(str(tmp_path / "culprits.py"), MODELS.format(folder=str(tmp_path)))
    return worker_config(tmp_path, tmp_path / "data", plugins=(plugin,))


def launch(jobs: list[Job], config: WorkerConfig, workers: int, report: Report) -> Iterator[Done]:
    with Leases(config.store.parent / "leases") as leases:
        yield from Launcher(["cpu"] * workers, config, report, leases).run(jobs)


def test_a_killed_worker_costs_the_job_it_held_and_no_other(tmp_path, config):
    """It is killed while another worker is in the midst of an epoch, and stays there meanwhile."""
    for name in ("killed", "held"):
        os.mkfifo(tmp_path / name)
    names = ("killed", "cnn2", "held", "cnn3")
    culprit, mate, held, other = cells = [digits_cell(name, config.cache) for name in names]
    jobs = [Job((culprit, mate)), Job((held, other))]
    events: list[tuple[str, int]] = []

    def report(cell_id: str, done: int, total: int, accuracy: float | None) -> None:
        events.append((cell_id, done))
        if (cell_id, done) == (held.id, 1):  # the other job trains: now the first may die
            (tmp_path / "killed").open("w").close()

    for done in launch(jobs, config, 2, report):
        if culprit in done.cells:  # it died twice: now the other job may go on
            (tmp_path / "held").open("w").close()
    store = Store(config.store)
    records = [store.read(one.id) for one in cells]
    assert [record.status for record in records] == [FAILED, FINISHED, FINISHED, FINISHED]
    assert "its process died twice" in records[0].error
    assert records[0].failed_from_outside
    assert [record.conditions["resumed"] for record in records[1:]] == [1, 0, 0]
    for one in (held, other):
        assert [epoch for cell_id, epoch in events if cell_id == one.id] == [1, 2, 3]
    alone = worker_config(tmp_path / "alone", config.cache, plugins=config.plugins)
    for one in cells[1:]:
        run_job(Job((one,)), alone, lambda *event: None, {})
    ids = [one.id for one in cells[1:]]
    assert comparable(store, ids) == comparable(Store(alone.store), ids)


def train_for_ever(folder: Path) -> None:
    """Two jobs, with a line for each epoch, in a process of its own."""
    cells = [digits_cell("cnn2", folder, seed=seed, epochs=100_000) for seed in (0, 1)]
    jobs = [Job((one,)) for one in cells]
    list(launch(jobs, worker_config(folder, folder), 2, lambda *event: print(event[0], flush=True)))


def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    code = f"import pathlib, test_workers as t; t.train_for_ever(pathlib.Path({str(tmp_path)!r}))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment(PYTHONPATH=paths)
    )
    trained: set[bytes] = set()
    with launcher:
        while len(trained) < 2:
            trained.add(launcher.stdout.readline())
            assert b"" not in trained, "it ended before both of its workers reported an epoch"
        workers = workers_of(launcher.pid)
        assert len(workers) == 2
        launcher.kill()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_an_error_comes_back_with_its_traceback_and_the_worker_goes_on(tmp_path, config):
    names = ("cnn2", "broken", "cnn3", "quits")
    cells = [digits_cell(name, config.cache) for name in names]
    workers: set[int | None] = set()

    def report(*event: object) -> None:
        workers.update(process.pid for process in multiprocessing.active_children())

    done = list(launch([Job(tuple(cells))], config, 1, report))
    assert {one.id for part in done for one in part.cells} == {one.id for one in cells}
    records = [Store(config.store).read(one.id) for one in cells]
    assert [record.status for record in records] == [FINISHED, FAILED, FINISHED, FAILED]
    assert records[1].error == "OSError: no such file"
    assert "in broken" in records[1].traceback
    assert records[3].error == "SystemExit: 3"
    assert len(workers) == 1


@pytest.mark.parametrize(
    ("name", "grace"), [("cnn2", 60.0), pytest.param("held", 0.1, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_writes_last_checkpoints_and_leaves_no_worker(
    tmp_path, config, monkeypatch, name, grace
):
    """Within the time that there is; a worker in the midst of a longer epoch is killed."""
    monkeypatch.setattr("bench.launch.workers.GRACE_SECONDS", grace)
    os.mkfifo(tmp_path / "held")
    one = digits_cell(name, config.cache, epochs=100_000)

    def stop(*event: object) -> None:  # as a scheduler does it: to every process
        while name == "held" and not (tmp_path / "held-waited").exists():
            time.sleep(0.01)  # looks again: a signal before that would still leave a checkpoint
        for process in psutil.Process().children(recursive=True):
            process.terminate()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(launch([Job((one,))], replace(config, checkpoint_seconds=1e6), 1, stop))
    assert multiprocessing.active_children() == []
    written = list((tmp_path / "checkpoints").glob("*/*.safetensors"))
    assert len(written) == (1 if name == "cnn2" else 0)
    assert Store(config.store).read(one.id) is None
    with Leases(config.store.parent / "leases") as leases:
        assert leases.acquire(one.id)


def test_a_process_that_slept_while_its_lease_was_taken_writes_nothing(tmp_path, config):
    """From the end of an epoch on; a checkpoint would follow each, and the record the last."""
    one = digits_cell("cnn2", config.cache)
    folder, found = tmp_path / "leases", []

    def files() -> dict[Path, int]:
        parts = (p for part in ("cells", "checkpoints") for p in (tmp_path / part).rglob("*"))
        return {path: path.stat().st_mtime_ns for path in parts}

    with Leases(folder, beat=1000) as mine, Leases(folder, machine="another") as theirs:
        assert mine.acquire(one.id)

        def sleep_long(cell_id: str, done: int, *more: object) -> None:
            if done == 2:
                os.utime(mine.heart, (0, 0))
                assert theirs.acquire(one.id)
                found.append(files())

        held = {one.id: mine.generation(one.id)}
        with pytest.raises(LeaseLostError, match=f"took over {one.id}"):
            run_job(Job((one,)), config, sleep_long, held)
        assert [files()] == found
        assert len(found[0]) == 2  # the checkpoint of the first epoch, and its folder
        theirs.release(one.id, forget=True)  # with the record that they wrote
        with pytest.raises(LeaseLostError):
            run_job(Job((one,)), config, lambda *event: None, held)


def test_what_was_done_to_a_cell_is_tried_again_and_what_it_did_itself_is_not(tmp_path):
    store, names = Store(tmp_path), ("cnn3", "cnn4")
    teachers = [plain_cell(name) for name in names]
    taught = [cell("soft_logits", teacher=name) for name in names]
    lone = plain_cell("cnn2", seed=3)
    for one, error in zip(teachers, (KilledError("killed"), RuntimeError("wrong")), strict=True):
        store.write(fail(one, error, {}))
    store.write(fail(lone, DamagedError("damaged: x"), {}))
    config = WorkerConfig(store=tmp_path, cache=tmp_path, data_root=None)
    assert without_failed_needs(Job(tuple(taught)), store, config).cells == ()
    cells = [*teachers, *taught, lone]
    assert unfinished(cells, store, retry_failed=False) == [teachers[0], taught[0], lone]
    assert unfinished(cells, store, retry_failed=True) == cells
    finish(store, teachers[0])
    assert unfinished(cells, store, retry_failed=False) == [lone]


def test_who_holds_the_cells_that_are_waited_for_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("bench.launch.launcher.FOLLOW_SECONDS", 0.0)
    one, store = plain_cell("cnn2"), Store(tmp_path / "cells")

    class Waiting(InProcess):
        def collect(self, report: Report) -> Iterator[tuple[Job, BaseException | None]]:
            if "waiting for" in caplog.text:
                finish(store, one)
            return super().collect(report)

    with Leases(tmp_path / "leases") as theirs:
        assert theirs.acquire(one.id)
        (done,) = run_with(Waiting(lambda job: None), tmp_path, Job((one,)))
    assert not done.here
    assert f"waiting for process {os.getpid()} on " in caplog.text
    assert caplog.text.count("waiting for") == 1


def test_a_system_that_does_not_say_which_cpus_are_usable_counts_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert usable_cpus() == os.cpu_count()


class InProcess(Workers):
    """One job at a time, run by a function of the test."""

    def __init__(self, train: Callable[[Job], None]) -> None:
        self.train, self.running = train, {}
        self.ran: list[list[str]] = []

    def has_room(self) -> bool:
        return not self.running

    def submit(self, job: Job, held: Held) -> None:
        self.running[len(self.ran)] = job

    def collect(self, report: Report) -> Iterator[tuple[Job, BaseException | None]]:
        for handle, job in list(self.running.items()):
            self.ran.append([str(one.model) for one in job.cells])
            error = None
            try:
                self.train(job)
            except (OSError, RuntimeError) as caught:
                error = caught
            del self.running[handle]
            yield job, error

    def stop(self) -> None:
        self.running.clear()


def run_with(workers: InProcess, work: Path, *jobs: Job) -> list[Done]:
    config = WorkerConfig(store=work / "cells", cache=work, data_root=None)
    with Leases(work / "leases") as leases:
        launcher = Launcher([], config, lambda *event: None, leases)
        launcher.workers = workers
        return list(launcher.run(jobs))


def finish(store: Store, one: Cell) -> None:
    store.write(record_of(one, FINISHED, {}))


def test_a_job_that_ran_out_of_memory_is_halved_and_a_full_disk_ends_the_run(tmp_path):
    """Memory holds one student, and no cnn6; the disk is full when cnn7 trains."""
    cells = [plain_cell(f"cnn{width}") for width in (2, 3, 4, 6)]
    last, store = plain_cell("cnn7"), Store(tmp_path / "cells")

    def train(job: Job) -> None:
        if len(job.cells) > 1 or job.cells[0].model == "cnn6":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if job.cells[0].model == "cnn7":
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(store, job.cells[0])

    workers = InProcess(train)
    run_with(workers, tmp_path, Job(tuple(cells)))
    with pytest.raises(OSError, match="No space left"):
        run_with(workers, tmp_path, Job((last,)))
    assert [store.read(one.id).status for one in cells] == [FINISHED] * 3 + [FAILED]
    assert store.read(cells[3].id).error.startswith("OutOfMemoryError: CUDA out of memory")
    assert store.read(last.id) is None  # no cell is to blame
    assert workers.ran[:3] == [["cnn2", "cnn3", "cnn4", "cnn6"], ["cnn2", "cnn4"], ["cnn2"]]
    assert workers.ran[-2:] == [["cnn6"], ["cnn7"]]


def test_a_cell_that_ran_out_of_memory_is_tried_again_when_nothing_else_runs(tmp_path):
    large, small = plain_cell("cnn8"), plain_cell("cnn2")
    store = Store(tmp_path / "cells")

    def train(job: Job) -> None:
        if job.cells == (large,) and store.read(small.id) is None:
            raise RuntimeError("CUDA error: out of memory")
        finish(store, job.cells[0])

    workers = InProcess(train)
    run_with(workers, tmp_path, Job((large,)), Job((small,)))
    assert workers.ran == [["cnn8"], ["cnn2"], ["cnn8"]]
    assert store.read(large.id).status == FINISHED


def test_memory_that_runs_out_in_a_cohort_is_for_the_launcher_to_sort_out(tmp_path, monkeypatch):
    """The CPU's own error, from the place where a step of training allocates."""

    def step(*batch: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(Student, "step", step)
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        run([plain_cell("cnn2"), plain_cell("cnn3")], tmp_path)
    assert is_out_of_memory(caught.value)
    signs = "driver error: out of memory", "_HOST_ALLOCATION_FAILED", "FIND was unable to find an"
    assert all(is_out_of_memory(RuntimeError(f"CUDA {sign} engine")) for sign in signs)
    assert is_device_lost(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    assert Store(tmp_path).read(plain_cell("cnn2").id) is None


def test_cells_whose_teacher_failed_say_so_and_the_others_go_on(tmp_path):
    taught, plain = cell("soft_logits"), plain_cell("cnn2")
    store = Store(tmp_path)
    config = WorkerConfig(store=tmp_path, cache=tmp_path, data_root=None)
    left = without_failed_needs(Job((taught, plain)), store, config)
    assert left == Job((plain,))
    assert "cnn3/student/0, which it learns from, did not finish" in store.read(taught.id).error


def test_what_waits_for_a_teacher_that_is_gone_ends_with_a_line(tmp_path):
    """As where the work directory is removed after the teacher was trained."""
    store, waiting = Store(tmp_path / "cells"), Job((cell("soft_logits"),))
    workers = InProcess(lambda job: finish(store, job.cells[0]))
    with pytest.raises(UserError, match="records of finished cells are gone"):
        run_with(workers, tmp_path, waiting, Job((plain_cell("cnn2"),)))
    assert workers.ran == [["cnn2"]]


def test_two_launchers_share_cells_and_one_takes_over_what_the_other_gives_up(tmp_path):
    """The other one records the first cell while this one trains, and ends without the second."""
    first, second, third = (plain_cell(f"cnn{width}") for width in (2, 3, 4))
    store = Store(tmp_path / "cells")
    with Leases(tmp_path / "leases") as theirs:
        assert theirs.acquire(first.id)
        assert theirs.acquire(second.id)

        def train(job: Job) -> None:
            if third in job.cells:
                store.write(record_of(first, FAILED, {}, error="as an example"))
                theirs.release(first.id, forget=True)
                theirs.release(second.id)
            for one in job.cells:
                finish(store, one)

        workers = InProcess(train)
        done = run_with(workers, tmp_path, Job((first, second, third)))
    found = [(part.cells, part.here) for part in done]
    assert found == [((third,), True), ((first,), False), ((second,), True)]
    assert workers.ran == [["cnn4"], ["cnn3"]]
    assert store.read(first.id).error == "as an example"
