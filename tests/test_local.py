"""The workers of this machine: a cell that kills its process, or raises, fails alone."""

from __future__ import annotations

import pytest
import torch
from lessons import cell, plain_cell, run

from bench.launch import local, share
from bench.launch.crew import without_lost_needs
from bench.launch.job import Job, WorkerConfig
from bench.launch.lease import Leases
from bench.launch.schedule import plan_jobs
from bench.record import Store
from bench.train.cohort import record_without_result
from bench.train.device import is_out_of_memory
from bench.train.engine import Student

# Runs in the worker in the place of real training: a student named cnn6 is the culprit.
WORKER = """
import os, sys
from bench.launch import local
from bench.record import FINISHED, Record, Store
def work(job):
    for cell in job.cells:
        if cell.model == "cnn6" and {mode!r} == "die":
            os._exit(1)
        if cell.model == "cnn6":
            raise OSError("no such file")
    store = Store(local._setting.store)
    for cell in job.cells:
        store.write(Record(cell_id=cell.id, cell=cell.resolved(), category="baseline",
                           source="test", status=FINISHED))
"""


def _die(job: Job) -> None:
    _pretend(job, "die")


def _raise(job: Job) -> None:
    _pretend(job, "raise")


def _pretend(job: Job, mode: str) -> None:
    namespace: dict[str, object] = {}
    exec(WORKER.format(mode=mode), namespace)
    namespace["work"](job)


@pytest.mark.parametrize("work", [_die, _raise])
def test_the_culprit_fails_alone_and_all_others_finish(tmp_path, monkeypatch, work):
    monkeypatch.setattr(local, "_work", work)
    cells = [plain_cell(f"cnn{width}", seed) for width in (2, 3, 6) for seed in (0, 1)]
    jobs = plan_jobs(cells, workers=2)
    setting = WorkerConfig(store=tmp_path, cache=tmp_path, data_root=None)
    with Leases(tmp_path / "leases") as leases:
        devices = ["cpu", "cpu"]
        done = list(local.run_processes(jobs, setting, devices, lambda *event: None, leases))
    records = Store(tmp_path).read_all([c.id for c in cells])
    status = {c.id: records[c.id].status for c in cells}
    assert {c.model for c in cells if status[c.id] == "failed"} == {"cnn6"}
    assert [c.model for c in cells if status[c.id] == "finished"] == ["cnn2"] * 2 + ["cnn3"] * 2
    assert {c.id for part in done for c in part.cells} == set(status)


def test_cells_whose_teacher_failed_say_so_and_the_others_go_on(tmp_path):
    taught, plain = cell("soft_logits"), plain_cell("cnn2")
    store = Store(tmp_path)
    setting = WorkerConfig(store=tmp_path, cache=tmp_path, data_root=None)
    (left,) = without_lost_needs(Job((taught, plain), taught.teacher), store, setting)
    assert left == Job((plain,), None)
    assert "cnn3/student/0, which it learns from, did not finish" in store.read(taught.id).error


def test_cohorts_are_split_for_idle_workers_and_teachers_come_first():
    taught = [cell(name) for name in ("soft_logits", "fitnet", "rkd")]
    jobs = plan_jobs([taught[0].teacher, plain_cell("cnn2"), *taught], workers=2)
    assert jobs[0].cells == (taught[0].teacher,)
    assert [len(job.cells) for job in jobs[1:]] == [2, 2]
    assert {c.id for job in jobs for c in job.cells} == {
        c.id for c in (taught[0].teacher, plain_cell("cnn2"), *taught)
    }


# Runs in the worker: memory for one student, and none for cnn6; then the disk is full.
CRAMPED = """
import errno, torch
from bench.launch import local
from bench.record import FINISHED, Record, Store
def work(job):
    if len(job.cells) > 1 or job.cells[0].model == "cnn6":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    (cell,) = job.cells
    if cell.model == "cnn7":
        raise OSError(errno.ENOSPC, "No space left on device")
    Store(local._setting.store).write(Record(
        cell_id=cell.id, cell=cell.resolved(), category="baseline", source="test",
        status=FINISHED))
"""


def _cramped(job: Job) -> None:
    namespace: dict[str, object] = {}
    exec(CRAMPED, namespace)
    namespace["work"](job)


def test_what_memory_does_not_hold_is_retried_smaller_and_a_full_disk_ends_the_run(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(local, "_work", _cramped)
    cells = [plain_cell(f"cnn{width}") for width in (2, 3, 4, 6)]
    last = plain_cell("cnn7")
    jobs = [Job(tuple(cells), None), Job((last,), None)]
    setting = WorkerConfig(store=tmp_path, cache=tmp_path, data_root=None)
    with Leases(tmp_path / "leases") as leases:
        done = local.run_processes(jobs, setting, ["cpu"], lambda *event: None, leases)
        with pytest.raises(OSError, match="No space left"):
            list(done)
    store = Store(tmp_path)
    assert [store.read(c.id).status for c in cells] == ["finished"] * 3 + ["failed"]
    assert store.read(cells[3].id).error.startswith("OutOfMemoryError: CUDA out of memory")
    assert ", in work" in store.read(cells[3].id).traceback
    assert store.read(last.id) is None  # no cell is to blame


def test_memory_that_runs_out_in_a_cohort_is_for_the_launcher_to_sort_out(tmp_path, monkeypatch):
    """The CPU's own error, from the place where a step of training allocates."""

    def step(*batch: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(Student, "step", step)
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        run([plain_cell("cnn2"), plain_cell("cnn3")], tmp_path)
    assert is_out_of_memory(caught.value)
    assert Store(tmp_path).read(plain_cell("cnn2").id) is None


def test_two_launchers_share_cells_and_take_over_what_the_other_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(share, "LOOK_SECONDS", 0.0)
    first, second = plain_cell("cnn2"), plain_cell("cnn3")
    store = Store(tmp_path)
    with Leases(tmp_path / "leases") as mine, Leases(tmp_path / "leases") as theirs:
        here, there = share.Share(store, mine), share.Share(store, theirs)
        both = Job((first, second), None)
        assert there.take(Job((first,), None))[0].cells == (first,)
        assert here.take(both)[0].cells == (second,)
        assert list(here.look()) == []
        store.write(record_without_result(first, "failed", "as an example", {}))
        assert list(here.look()) == [share.Done((first,), here=False)]
        there.give_back([first])
        assert there.take(both) == (Job((), None), share.Done((first,), here=False))
        mine.release(second.id)
        assert list(there.look()) == [Job((second,), None)]
        there.discard([first])
        assert store.read(first.id) is None
