"""Plans and their simulation, held against schedules worked out by hand and against bounds."""

from __future__ import annotations

import itertools
import random

import pytest
from lessons import cell, plain_cell

from bench.launch.job import Job
from bench.launch.schedule import (
    cut_to_fit,
    group_cells,
    longest_chain,
    lower_bound,
    ordered,
    plan_jobs,
    simulate,
    split,
)

SHARED = 1.0  # a teacher's forward passes, in the unit of the lengths below


def length(cells) -> float:
    """A cell as long as its network is wide; under a teacher the job takes one more."""
    taught = any(c.teacher is not None for c in cells)
    return sum(float(c.model_name.removeprefix("cnn")) for c in cells) + SHARED * taught


def plain(width: int, seed: int = 0) -> Job:
    return Job((plain_cell(f"cnn{width}", seed),), None)


def taught(width: int, teacher: int, seed: int = 0) -> Job:
    one = cell("soft_logits", student=f"cnn{width}", teacher=f"cnn{teacher}", seed=seed)
    return Job((one,), one.teacher)


def slots_of(jobs, workers, startup=0.0):
    slots = simulate(jobs, workers, length, startup).slots
    return [(jobs.index(s.job), s.worker, s.begin, s.end) for s in slots]


def test_one_worker_takes_the_sum():
    jobs = [plain(width, seed) for width in (2, 3, 5) for seed in (0, 1)]
    schedule = simulate(jobs, 1, length)
    assert schedule.seconds == schedule.busy_seconds == 20
    assert schedule.efficiency == 1


def test_a_list_by_hand_on_two_workers():
    # 5 | 4; at 4 the second takes 3 (to 7), at 5 the first takes 3 (to 8), at 7 the last 2 (to 9).
    jobs = [plain(5), plain(4), plain(3), plain(3, seed=1), plain(2)]
    assert slots_of(jobs, 2) == [
        (0, 0, 0, 5),
        (1, 1, 0, 4),
        (2, 1, 4, 7),
        (3, 0, 5, 8),
        (4, 1, 7, 9),
    ]
    assert simulate(jobs, 2, length).efficiency == pytest.approx(17 / 18)


def test_students_wait_for_their_teacher_and_idle_workers_take_what_is_ready():
    # The teacher of 6 runs alone beside the plain 2; its student (4, and 1 for the teacher's
    # forward) starts at 6.
    jobs = [plain(6), taught(4, teacher=6), plain(2)]
    assert slots_of(jobs, 2) == [(0, 0, 0, 6), (2, 1, 0, 2), (1, 0, 6, 11)]


def test_the_start_of_a_worker_is_paid_once():
    assert slots_of([plain(2), plain(3)], 1, startup=1.5) == [(0, 0, 1.5, 3.5), (1, 0, 3.5, 6.5)]


def test_with_workers_to_spare_it_takes_as_long_as_the_longest_chain():
    jobs = [plain(6), taught(4, teacher=6), plain(5), taught(9, teacher=5), plain(7)]
    schedule = simulate(jobs, 100, length)
    assert schedule.seconds == longest_chain(jobs, length) == 5 + 9 + 1


def test_a_need_that_no_job_trains_is_done_already():
    assert simulate([taught(4, teacher=6)], 1, length).seconds == 5


def random_jobs(generator: random.Random) -> list[Job]:
    jobs = [plain(generator.randint(1, 9), seed) for seed in range(generator.randint(1, 6))]
    for seed, job in enumerate(list(jobs)):
        teacher = int(job.cells[0].model_name.removeprefix("cnn"))
        widths = random.Random(seed).sample(range(10, 20), generator.randint(0, 4))
        jobs += [taught(width, teacher, seed) for width in widths]
    return jobs


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_beats_the_bounds_nor_is_worse_than_grahams(seed):
    """Graham 1969: at most total / m + (1 - 1 / m) times the longest chain."""
    generator = random.Random(seed)
    jobs = random_jobs(generator)
    workers = generator.randint(1, 6)
    schedule, total = simulate(jobs, workers, length), sum(length(j.cells) for j in jobs)
    chain = longest_chain(jobs, length)
    assert schedule.busy_seconds == pytest.approx(total)
    assert schedule.seconds >= lower_bound(jobs, workers, length) - 1e-9
    assert schedule.seconds <= total / workers + (1 - 1 / workers) * chain + 1e-9
    ends = {c.id: s.end for s in schedule.slots for c in s.job.cells}
    for slot in schedule.slots:
        assert all(ends[need.id] <= slot.begin for need in slot.job.needs)
    for worker in range(workers):
        own = [s for s in schedule.slots if s.worker == worker]
        assert all(a.end <= b.begin for a, b in itertools.pairwise(own))


def test_teachers_with_the_longest_work_behind_them_come_first_then_the_longest_cohorts():
    jobs = [plain(9), taught(3, teacher=2), plain(2), plain(4), taught(7, teacher=4, seed=0)]
    # Waited for: 2 (with 4 behind it) and 4 (with 8 behind it); the plain 9 has nobody waiting.
    wanted = [(4, 0), (2, 0), (9, 0), (7, 1), (3, 1)]
    found = [(int(j.cells[0].model_name[3:]), int(j.teacher is not None))
             for j in ordered(jobs, length)]  # fmt: skip
    assert found == wanted


def cohort(count: int, seed: int = 0):
    """So many students of width 2 under one teacher of width 3."""
    names = ("soft_logits", "fitnet", "rkd", "fsp", "attention_transfer", "kd_svd")
    return [cell(name, seed=seed) for name in names[:count]]


def test_a_lone_cohort_is_split_over_all_workers():
    jobs = plan_jobs(cohort(6), workers=3, seconds=length)
    assert [len(job.cells) for job in jobs] == [2, 2, 2]
    assert plan_jobs(cohort(6), workers=1, seconds=length) == [
        Job(tuple(cohort(6)), cohort(1)[0].teacher)
    ]


def test_only_what_would_end_last_is_split():
    """Three cohorts of 13 on two workers: two as they are, the third in halves of 7; 20, not 26."""
    cells = [c for seed in range(3) for c in cohort(6, seed)]
    jobs = plan_jobs(cells, workers=2, seconds=length)
    assert sorted(len(job.cells) for job in jobs) == [3, 3, 6, 6]
    assert simulate(jobs, 2, length).seconds == 20


def test_several_jobs_that_end_together_are_split_together():
    """Seven cohorts of 13 on four workers: halving one of the last three alone gains nothing."""
    cells = [c for seed in range(7) for c in cohort(6, seed)]
    jobs = plan_jobs(cells, workers=4, seconds=length)
    assert simulate(jobs, 4, length).seconds < 26
    assert {c.id for job in jobs for c in job.cells} == {c.id for c in cells}
    assert sum(len(job.cells) for job in jobs) == len(cells)


def test_more_workers_never_make_a_plan_end_later():
    cells = [c for seed in range(3) for c in (cohort(1, seed)[0].teacher, *cohort(6, seed))]
    ends = []
    for workers in (1, 2, 3, 4, 6, 8, 12, 21, 1000):
        ends.append(simulate(plan_jobs(cells, workers, length), workers, length).seconds)
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == 3 + 2 + SHARED  # a teacher, then a student by itself


def test_at_most_so_many_cells_train_side_by_side_in_balanced_parts():
    parts = cut_to_fit(cohort(6), length, lambda cells: len(cells) <= 4)
    assert [len(part) for part in parts] == [3, 3]
    assert [len(p) for p in cut_to_fit(cohort(5), length, lambda cells: len(cells) <= 1)] == [1] * 5
    jobs = plan_jobs(cohort(6), 1, length, lambda cells: len(cells) <= 4)
    assert sorted(len(job.cells) for job in jobs) == [3, 3]


def test_parts_are_balanced_by_time_and_never_larger_than_fits():
    cells = [plain_cell(f"cnn{width}") for width in (8, 3, 3, 2, 2, 2)]
    assert [[c.model for c in part] for part in split(cells, 2, length)] == [
        ["cnn8", "cnn2"], ["cnn3", "cnn3", "cnn2", "cnn2"],
    ]  # fmt: skip
    for part in split(cells, 2, length, lambda part: len(part) <= 3):
        assert len(part) == 3


def test_a_cell_that_fits_nowhere_is_still_somebodys_to_try():
    assert cut_to_fit(cohort(2), length, lambda cells: False) == [[c] for c in cohort(2)]


def test_a_baseline_joins_one_cohort_of_its_stream():
    teachers, groups = group_cells([plain_cell("cnn2"), *cohort(2), plain_cell("cnn2", seed=1)])
    assert teachers == []
    assert [[c.method for c in group] for group in groups] == [
        ["soft_logits", "fitnet", "student"], ["student"],
    ]  # fmt: skip


def test_no_workers_make_no_plan():
    with pytest.raises(ValueError, match="0 workers"):
        plan_jobs(cohort(1), 0)
