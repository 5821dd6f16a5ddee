"""Jobs of a grid: their order, their balance, their memory, held against cases by hand."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lessons import cell, dataset, plain_cell, recipe

from bench.cost.footprint import Footprint
from bench.data.sources import Library
from bench.launch.job import Job, WorkerConfig
from bench.launch.resources import free_memory, usable_cpus, worker_room
from bench.launch.schedule import cut, group_cells, makespan, plan_jobs, plan_training

SHARED = 1.0  # a teacher's forward passes, in the unit of the lengths below


def length(cells) -> float:
    """A cell as long as its network is wide. Under a teacher the job takes one more."""
    taught = any(c.teacher is not None for c in cells)
    return sum(float(c.model_name.removeprefix("cnn")) for c in cells) + (SHARED if taught else 0)


def plain(width: int, seed: int = 0) -> Job:
    return Job((plain_cell(f"cnn{width}", seed),))


def taught(width: int, teacher: int, seed: int = 0) -> Job:
    one = cell("soft_logits", student=f"cnn{width}", teacher=f"cnn{teacher}", seed=seed)
    return Job((one,))


def cohort(count: int, seed: int = 0):
    """Students of width 2 under one teacher of width 3."""
    names = ("soft_logits", "fitnet", "rkd", "fsp", "attention_transfer", "kd_svd")
    return [cell(name, seed=seed) for name in names[:count]]


def end_of(jobs, workers) -> float:
    return makespan(jobs, workers, length)


def test_a_list_by_hand_on_two_workers():
    # 5 | 4; at 4 the second takes 3 (to 7), at 5 the first takes 3 (to 8), at 7 the last 2 (to 9).
    jobs = [plain(5), plain(4), plain(3), plain(3, seed=1), plain(2)]
    assert (end_of(jobs, 2), end_of(jobs, 1)) == (9, 17)


def test_students_wait_for_their_teacher():
    # The student (4, and 1 for the teacher's forward passes) starts when the teacher is done, at 6.
    assert end_of([plain(6), taught(4, teacher=6), plain(2)], 2) == 11
    assert end_of([taught(4, teacher=6)], 1) == 5  # a need that no job trains is finished


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_is_better_than_possible_or_worse_than_grahams_bound(seed):
    """Graham 1969: at most total / m + (1 - 1 / m) times the longest job."""
    generator = random.Random(seed)
    jobs = [plain(generator.randint(1, 9), seed) for seed in range(generator.randint(1, 20))]
    workers, lengths = generator.randint(1, 6), [length(job.cells) for job in jobs]
    share, longest = sum(lengths) / workers, max(lengths)
    assert max(share, longest) - 1e-9 <= end_of(jobs, workers)
    assert end_of(jobs, workers) <= share + (1 - 1 / workers) * longest + 1e-9


def test_a_baseline_joins_one_cohort_of_its_stream():
    teachers, groups = group_cells([plain_cell("cnn2"), *cohort(2), plain_cell("cnn2", seed=1)])
    assert teachers == []
    methods = [[c.method for c in group] for group in groups]
    assert methods == [["soft_logits", "fitnet", "student"], ["student"]]


def test_teachers_with_the_longest_work_behind_them_come_first_then_the_longest_cohorts():
    students = [taught(3, teacher=2).cells[0], taught(7, teacher=4, seed=1).cells[0]]
    cells = [plain_cell("cnn9", seed=2), *students, *(s.teacher for s in students)]
    jobs = plan_jobs(cells, 1, length)
    assert [job.cells[0].model_name for job in jobs] == ["cnn4", "cnn2", "cnn9", "cnn7", "cnn3"]


def test_a_cohort_is_split_over_all_workers_and_kept_whole_for_one():
    assert [len(job.cells) for job in plan_jobs(cohort(6), 3, length)] == [2, 2, 2]
    (job,) = plan_jobs(cohort(6), 1, length)
    assert (job.cells, job.teacher) == (tuple(cohort(6)), cohort(1)[0].teacher)


def test_long_cohorts_are_cut_where_all_workers_are_then_done_earlier():
    """Three cohorts of 13 on two workers: 26 if they stay whole, 21 in halves of 7."""
    cells = [c for seed in range(3) for c in cohort(6, seed)]
    jobs = plan_jobs(cells, 2, length)
    assert [len(job.cells) for job in jobs] == [3] * 6
    assert end_of(jobs, 2) == 21


@pytest.mark.parametrize("workers", [2, 3, 4, 8, 21, 1000])
def test_more_workers_are_done_earlier(workers):
    cells = [c for seed in range(3) for c in (cohort(1, seed)[0].teacher, *cohort(6, seed))]
    work, longest = 3 * (3 + 13), 3 + 13
    end = end_of(plan_jobs(cells, workers, length), workers)
    assert end <= work / workers + longest / 2
    assert workers < 1000 or end == 3 + 2 + SHARED  # a teacher, then a student by itself


def test_a_cohort_is_cut_into_balanced_parts_that_fit():
    parts = cut(cohort(6), 0, length, lambda cells: len(cells) <= 4)
    assert [len(part) for part in parts] == [3, 3]
    cells = [plain_cell(f"cnn{width}") for width in (8, 3, 3, 2, 2, 2)]
    models = [[c.model for c in part] for part in cut(cells, 2, length)]
    assert models == [["cnn8", "cnn2"], ["cnn3", "cnn3", "cnn2", "cnn2"]]
    # A cell that fits nowhere is tried all the same.
    assert cut(cohort(2), 0, length, lambda cells: False) == [[c] for c in cohort(2)]


V2 = ("memory.max", "memory.current", "inactive_file", "max")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", f"{2**63 - 4096}")


@pytest.mark.parametrize(
    ("line", "mount", "names"),
    [
        ("0::/slurm/job_7/step_0", "", V2),
        ("0::/slurm/job_7/step_0", "unified", V2),
        ("4:memory:/slurm/job_7/step_0", "memory", V1),
        ("4:cpu,memory:/slurm/job_7/step_0", "memory", V1),
    ],
)
def test_free_memory_is_the_systems_or_what_any_group_above_may_still_use(
    tmp_path, line, mount, names
):
    most, used, cache, unlimited = names
    assert free_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    table = "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n"
    (tmp_path / "proc/meminfo").write_text(table)
    assert free_memory(tmp_path) == 4000 * 1024
    (tmp_path / "proc/self/cgroup").write_text(f"9:name=systemd:/user\n{line}\n")
    groups = [tmp_path / "sys/fs/cgroup" / mount]
    for part in ("slurm", "job_7", "step_0"):
        groups.append(groups[-1] / part)
    assert free_memory(tmp_path) == 4000 * 1024
    groups[-1].mkdir(parents=True)
    for group in groups[1:]:  # the first has no limit in version 2
        (group / most).write_text(f"{unlimited}\n")
        (group / used).write_text("1000000\n")
    assert free_memory(tmp_path) == 4000 * 1024
    for group, limit in zip(groups[1:], (3_000_000, 2_500_000, 2_900_000), strict=True):
        (group / most).write_text(f"{limit}\n")
    assert free_memory(tmp_path) == 1_500_000  # the job's
    (groups[2] / "memory.stat").write_text(f"anon 500\n{cache} 300000\n")
    assert free_memory(tmp_path) == 1_800_000
    (groups[1] / used).write_text("3500000\n")
    assert free_memory(tmp_path) == 0


def test_a_container_that_is_told_its_hosts_path_finds_its_own_limit(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/docker/0123\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("300\n")
    (group / "memory.current").write_text("100\n")
    assert free_memory(tmp_path) == 200


@pytest.mark.parametrize(("asked", "cpus"), [("1", 1), ("999999", None), ("0", 1), ("", None)])
def test_a_slurm_task_has_no_more_workers_than_it_asked_for(monkeypatch, asked, cpus):
    before = usable_cpus()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", asked)
    assert usable_cpus() == (cpus or before)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as a container's quota
    assert usable_cpus() == 1


def test_workers_share_the_memory(monkeypatch):
    alone, shared = worker_room(["cpu"]), worker_room(["cpu"] * 2)
    assert alone is None or (shared is not None and shared < 0.6 * alone)
    free = {0: 1000, 1: 600}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 2000))
    assert worker_room(["cuda:0", "cuda:0", "cuda:1"]) == 400
    assert worker_room(["cuda:0"], part=0.25) == 200


def test_counted_work_grows_with_epochs_networks_and_students():
    one, two = plain_cell("cnn2"), plain_cell("cnn4")
    longer = plain_cell("cnn2", recipe=recipe(epochs=8))
    work = Footprint(lambda spec: dataset()).work
    assert work([longer]) == 2 * work([one])
    assert work([two]) > work([one])
    assert work([one, two]) == work([one]) + work([two])
    assert work([cell("rkd")]) > work([one])


@pytest.fixture
def library(monkeypatch) -> Library:
    monkeypatch.setattr(Library, "read", lambda self, spec: dataset())
    return Library(None, Path("unused"))


@pytest.fixture
def config(tmp_path) -> WorkerConfig:
    return WorkerConfig(store=tmp_path / "cells", cache=tmp_path / "data", data_root=None)


def test_no_cohort_is_planned_beyond_the_memory_of_a_worker(library, config):
    cells, largest = cohort(5), []
    footprint = Footprint(library.read)
    whole = footprint.bytes(cells)
    embeddings, plain = (footprint.bytes([cell(name)]) for name in ("selective", "soft_logits"))
    assert embeddings == plain + 40 * 12 * 4
    for room_bytes in (whole, 0.6 * whole, 0.3 * whole, 0.01 * whole):
        jobs = plan_training(cells, config, ["cpu"], library, room_bytes)
        assert {c.id for job in jobs for c in job.cells} == {c.id for c in cells}
        shared = [job for job in jobs if len(job.cells) > 1]
        assert all(footprint.bytes(job.cells) <= room_bytes for job in shared)
        largest.append(max(len(job.cells) for job in jobs))
    assert largest == sorted(largest, reverse=True)
    assert (largest[0], largest[-1]) == (5, 1)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (None, [4])])
def test_a_cohort_is_as_large_as_asked(library, config, most, sizes):
    cells = [plain_cell("cnn2"), *map(cell, ("soft_logits", "selective", "rkd"))]
    jobs = plan_training(cells, replace(config, cohort=most), ["cpu"], library)
    assert [len(job.cells) for job in jobs] == sizes
