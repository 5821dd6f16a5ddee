"""The workers of this machine: a cell that kills its process, or raises, fails alone."""

from __future__ import annotations

import pytest
from lessons import cell, plain_cell

from bench.launch import local
from bench.launch.job import Job, Setting, plan_jobs
from bench.launch.lease import Leases
from bench.record import Store

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
    setting = Setting(store=tmp_path, cache=tmp_path, data_root=None)
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
    setting = Setting(store=tmp_path, cache=tmp_path, data_root=None)
    (left,) = local.without_lost_needs(Job((taught, plain), taught.teacher), store, setting)
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
