"""Calibration: what it measures adds up, is kept, and is believed under its own conditions only."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from lessons import CPU, cell, dataset, plain_cell, recipe

from bench.cell import Cell
from bench.cost.forecast import Forecast
from bench.cost.parts import EXTRAPOLATED, MEASURED, Parts, kind, stream_kind, teacher_kind
from bench.cost.probe import Rehearsal
from bench.cost.rough import DataSizes, Rough
from bench.cost.together import together
from bench.launch import calibrate, job
from bench.launch.calibrate import CalibrationError, Kept, groups_of, known_parts, read_parts
from bench.launch.job import Job, Library, WorkerConfig, run_job
from bench.launch.memory import free_memory, room
from bench.launch.outlook import look_ahead
from bench.launch.schedule import plan_jobs
from bench.record import Store
from methods import registry

NAMES = ("soft_logits", "selective", "fitnet")


def measured(cells):
    """The pieces of cells under one teacher, measured in this process."""
    taught = next((c for c in cells if c.teacher is not None), cells[0])
    rehearsal = Rehearsal(taught, lambda spec: dataset(), CPU)
    teacher = rehearsal.teach()
    pieces = Parts(
        {stream_kind(taught): rehearsal.opened},
        {teacher_kind(c): teacher for c in cells},
        {kind(c): rehearsal.measure(c) for c in cells},
    )
    return rehearsal, pieces


@pytest.fixture(scope="module")
def cohort():
    cells = [plain_cell("cnn2"), *map(cell, NAMES)]
    return cells, *measured(cells)


def test_the_pieces_of_a_cohort_are_what_the_engine_does(cohort):
    cells, rehearsal, pieces = cohort
    assert rehearsal.opened.train_images == 40
    assert rehearsal.opened.steps == 4
    for one in cells:
        found = pieces.students[kind(one)]
        plan = registry.build(one.method, **one.hyperparameters).plan
        assert [s.name for s in found.stages] == [s.name for s in plan]
        assert all(s.step_seconds > 0 and s.step_flops > 0 for s in found.stages)
        assert found.origin == MEASURED
    assert [s.reads_teacher for s in pieces.students[kind(cells[1])].stages] == [True]
    selective = pieces.students[kind(cells[2])].stages
    assert [s.clean for s in selective] == [False, True]
    assert not any(s.reads_teacher for s in selective)  # it looks its teacher's view up
    fitnet = pieces.students[kind(cells[3])].stages
    assert [s.has_head for s in fitnet] == [False, True]


def test_a_student_holds_weights_momentum_and_the_gradients_of_a_step(cohort):
    cells, rehearsal, pieces = cohort
    found = pieces.students[kind(cells[0])]
    network = rehearsal.teacher.network  # not the student's, but of the same build
    parameters = sum(p.numel() * 4 for p in build(cells[0], rehearsal).parameters())
    assert found.held_bytes >= 2 * parameters
    assert found.step_bytes > parameters
    assert pieces.teachers[teacher_kind(cells[1])].held_bytes == sum(
        x.numel() * x.element_size() for x in network.state_dict().values()
    )


def build(one, rehearsal):
    from bench.train.cohort import build_network

    return build_network(one, rehearsal.stream.classes, rehearsal.stream.image_shape)


def test_few_images_tell_the_operations_of_many(cohort):
    cells, rehearsal, pieces = cohort
    for one in cells:
        sketch, real = rehearsal.sketch(one), pieces.students[kind(one)]
        assert sketch.origin == EXTRAPOLATED
        for counted, stage in zip(sketch.stages, real.stages, strict=True):
            assert counted.step_flops == pytest.approx(stage.step_flops, rel=0.1)
            assert (counted.kept, counted.clean) == (stage.kept, stage.clean)
        assert sketch.step_bytes == pytest.approx(real.step_bytes, rel=0.2)
        assert sketch.test_flops == pytest.approx(real.test_flops, rel=0.05)


def test_a_whole_cohort_is_held_against_the_sum_of_its_pieces(cohort):
    cells, rehearsal, pieces = cohort
    found = together(rehearsal, cells, pieces)
    assert found.cell_seconds > 0
    assert 0.2 < found.together < 5  # of a run of milliseconds: the order of magnitude
    assert replace(found, together=1.0, cell_seconds=0.0) == pieces.teachers[teacher_kind(cells[1])]


def test_a_large_set_is_cut_and_scaled_up_again():
    small = plain_cell("cnn2", recipe=recipe(batch_size=4))
    whole = Rehearsal(small, lambda spec: dataset(train=400, test=20), CPU)
    assert whole.stream.train_images == 16
    assert (whole.opened.train_images, whole.opened.steps, whole.scale) == (400, 100, 25)


# --- what is kept ---------------------------------------------------------------------------------


def enter(kept: Kept, cells, pieces: Parts) -> None:
    """Keeps pieces as a calibration does."""
    for group in groups_of(cells):
        values = {
            "stream": asdict(pieces.streams[stream_kind(group.taught)]),
            "teacher": asdict(pieces.teachers[teacher_kind(group.taught)]),
        }
        kept.write("teacher", teacher_kind(group.taught), values)
        for one in group.cells:
            part = {"parts": asdict(pieces.students[kind(one)]), "limit": 1.0}
            kept.write("student", kind(one), part)
    kept.write("process", "", {"startup_seconds": 2.0, "process_bytes": 5})


@pytest.fixture
def setting(tmp_path) -> WorkerConfig:
    return WorkerConfig(store=tmp_path / "cells", cache=tmp_path / "data", data_root=None)


def test_what_was_kept_is_found_again_and_nothing_is_measured(
    cohort, tmp_path, setting, monkeypatch
):
    cells, _, pieces = cohort
    students = [c for c in cells]
    kept = Kept(tmp_path, calibrate.conditions_of(setting, ["cpu"]))
    enter(kept, students, pieces)
    found = read_parts(students, tmp_path, setting, ["cpu"])
    assert found is not None
    assert found.students == pieces.students
    assert (found.startup_seconds, found.process_bytes) == (2.0, 5)
    monkeypatch.setattr(calibrate, "_Crew", None)  # would be called to measure
    again = calibrate.calibrate(students, tmp_path, setting, ["cpu"], seconds=1.0)
    assert again == found


@pytest.mark.parametrize("name", ["workers", "threads", "torch", "device", "code", "plugins"])
def test_under_other_conditions_nothing_is_believed(cohort, tmp_path, setting, name):
    cells, _, pieces = cohort
    conditions = calibrate.conditions_of(setting, ["cpu"])
    assert name in conditions
    enter(Kept(tmp_path, {**conditions, name: "other"}), cells, pieces)
    assert read_parts(cells, tmp_path, setting, ["cpu"]) is None
    enter(Kept(tmp_path, conditions), cells, pieces)
    assert read_parts(cells, tmp_path, setting, ["cpu"]) is not None


def test_another_cell_is_not_known_and_a_damaged_file_is_none(cohort, tmp_path, setting):
    cells, _, pieces = cohort
    kept = Kept(tmp_path, calibrate.conditions_of(setting, ["cpu"]))
    enter(kept, cells, pieces)
    assert read_parts([*cells, cell("rkd")], tmp_path, setting, ["cpu"]) is None
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text()[:40])
    assert read_parts(cells, tmp_path, setting, ["cpu"]) is None


def test_what_was_only_sketched_is_measured_when_there_is_more_time(cohort, tmp_path, setting):
    cells, _, pieces = cohort
    kept = Kept(tmp_path, calibrate.conditions_of(setting, ["cpu"]))
    sketched = {k: replace(s, origin=EXTRAPOLATED) for k, s in pieces.students.items()}
    enter(kept, cells, replace(pieces, students=sketched))
    groups = groups_of(cells)
    assert not calibrate._Missing(groups, kept, 1.0)
    assert len(calibrate._Missing(groups, kept, 2.0).students) == len(cells)


def test_a_cohort_left_out_for_want_of_time_is_due_when_there_is_more(cohort, tmp_path, setting):
    cells, _, pieces = cohort
    kept = Kept(tmp_path, calibrate.conditions_of(setting, ["cpu"]))
    enter(kept, cells, pieces)
    groups, did = groups_of(cells), []

    class Crew:
        devices = ("cpu",)

        def ready(self):
            return {"startup_seconds": 2.0, "process_bytes": 5}

        def do(self, tasks):
            did.extend(task.what for task in tasks)
            return [
                ("cohort", calibrate._cohort_key(task.group),
                 asdict(pieces.teachers[teacher_kind(task.group.taught)]))
                for task in tasks
            ]  # fmt: skip

    def measure(seconds: float) -> None:
        missing = calibrate._Missing(groups, kept, seconds)
        calibrate._measure(missing, Crew(), kept, seconds, lambda what: None)

    measure(1e-9)
    assert did == []  # its rehearsal would take longer
    assert not calibrate._Missing(groups, kept, 1e-9)
    assert calibrate._Missing(groups, kept, 1e3)
    measure(1e3)
    assert did == ["cohort"] * len(groups)
    assert not calibrate._Missing(groups, kept, 1e9)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "no memory was left"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "no memory was"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "no memory was"),
        (RuntimeError("CUDA error: device-side assert\nCompile with"), "a device was lost"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("counted", [False, True])
def test_memory_or_a_device_that_is_lost_while_calibrating_is_one_line(
    tmp_path, setting, monkeypatch, error, said, counted
):
    class Crew:
        devices = ("cpu",)

        def ready(self):
            return {}

        def do(self, tasks):
            raise error

    monkeypatch.setattr(calibrate, "_Crew", lambda *how: contextlib.nullcontext(Crew()))
    with pytest.raises(CalibrationError, match=said) as told:
        calibrate.calibrate(
            [plain_cell("cnn2")], tmp_path, setting, ["cpu"], seconds=1.0, counted=counted
        )
    assert "\n" not in str(told.value)
    assert "--calibrate-seconds 0" in str(told.value)


def test_a_mistake_while_calibrating_is_not_taken_for_want_of_memory(
    tmp_path, setting, monkeypatch
):
    monkeypatch.setattr(calibrate, "_measure", lambda *what: [][0])
    monkeypatch.setattr(calibrate, "_Crew", lambda *how: contextlib.nullcontext())
    with pytest.raises(IndexError):
        calibrate.calibrate([plain_cell("cnn2")], tmp_path, setting, ["cpu"], seconds=1.0)


@pytest.mark.parametrize("shared", [True, False])
def test_a_process_that_only_keeps_busy_tells_of_memory_alone(cohort, monkeypatch, shared):
    cells, rehearsal, _ = cohort

    def go_on(cell: Cell, ended: object) -> None:
        raise MemoryError if shared else ValueError("a network's own mistake")

    monkeypatch.setattr(calibrate, "_rehearse", lambda group: rehearsal)
    monkeypatch.setattr(calibrate, "_stop", threading.Event(), raising=False)
    monkeypatch.setattr(rehearsal, "go_on", go_on)
    (group,) = [g for g in groups_of(cells) if len(g.cells) > 1]
    busy = calibrate.Task("student", group)
    with pytest.raises(MemoryError) if shared else contextlib.nullcontext():
        calibrate._keep_busy(busy)


def test_each_kind_is_measured_once_whatever_the_seeds():
    cells = [c for seed in (0, 1, 2) for c in (plain_cell("cnn2", seed), cell("rkd", seed=seed))]
    (group,) = groups_of(cells)
    assert [c.method for c in group.cells] == ["rkd", "student"]
    assert group.taught.method == "rkd"


# --- memory ---------------------------------------------------------------------------------------


def test_free_memory_is_the_systems_or_what_the_container_may_still_use(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n")
    assert free_memory(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory(meminfo, tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo, tmp_path) == 4000 * 1024
    assert free_memory(tmp_path / "none", tmp_path / "none") is None


def test_workers_share_the_memory(monkeypatch):
    monkeypatch.setattr("bench.launch.memory.free_memory", lambda: 1000)
    assert room("cpu", 2) == 400


def rough() -> Rough:
    return Rough(lambda spec: DataSizes(4, (1, 8, 8), 40))


def test_rough_sizes_hold_what_a_step_was_measured_to_hold(cohort):
    cells, _, pieces = cohort
    forecast = Forecast(pieces)
    for one in cells:
        assert rough().student_bytes(one) > 0.9 * forecast.student_bytes(one)


def test_rough_work_grows_with_epochs_networks_and_students():
    one, two = plain_cell("cnn2"), plain_cell("cnn4")
    longer = plain_cell("cnn2", recipe=recipe(epochs=8))
    work = rough().work
    assert work([longer]) == 2 * work([one])
    assert work([two]) > work([one])
    assert work([one, two]) == work([one]) + work([two])
    assert work([cell("rkd")]) > work([one])


def test_a_cohort_never_exceeds_the_memory_that_is_free(monkeypatch, setting):
    cells = list(map(cell, ("soft_logits", "fitnet", "rkd", "fsp", "attention_transfer")))
    library = Library(None, Path("unused"))
    monkeypatch.setattr(library, "read", lambda spec: dataset())
    monkeypatch.setattr("bench.launch.outlook.process_bytes", lambda: 1000)
    sizes, limits = rough(), []
    whole = sizes.bytes(cells)
    for part in (1.0, 0.6, 0.3, 0.01):
        monkeypatch.setattr("bench.launch.outlook.room", lambda *a, p=part: round(1000 + p * whole))
        jobs = look_ahead(cells, None, setting, ["cpu"], library).jobs
        assert {c.id for j in jobs for c in j.cells} == {c.id for c in cells}
        large = [j for j in jobs if len(j.cells) > 1]
        assert all(sizes.bytes(j.cells) <= part * whole + 1 for j in large)
        limits.append(max(len(j.cells) for j in jobs))
    assert limits == sorted(limits, reverse=True)
    assert (limits[0], limits[-1]) == (5, 1)


def test_the_size_of_a_cohort_can_be_given(monkeypatch, setting):
    cells = list(map(cell, ("soft_logits", "fitnet", "rkd", "fsp", "attention_transfer")))
    library = Library(None, Path("unused"))
    monkeypatch.setattr(library, "read", lambda spec: dataset())
    for most, sizes in ((1, [1] * 5), (2, [1, 2, 2]), (5, [5])):
        outlook = look_ahead(cells, None, replace(setting, cohort=most), ["cpu"], library)
        assert sorted(len(j.cells) for j in outlook.jobs) == sizes


def test_cell_by_cell_and_side_by_side_give_the_same_bits(tmp_path, monkeypatch):
    """`--cohort 1`, `2` and `auto`, through the launcher's own jobs."""
    monkeypatch.setattr(job.Library, "read", lambda self, spec: dataset())
    teacher = plain_cell("cnn3")
    cells = [plain_cell("cnn2"), *map(cell, ("soft_logits", "selective", "rkd"))]
    weights = []
    for most in (1, 2, None):
        setting = WorkerConfig(store=tmp_path / str(most), cache=tmp_path, data_root=None)
        run_job(Job((teacher,), None), setting, lambda *event: None)
        fits = None if most is None else (lambda part, most=most: len(part) <= most)
        jobs = plan_jobs(cells, 1, fits=fits)
        assert max(len(j.cells) for j in jobs) == (most or len(cells))
        for one in jobs:
            run_job(one, setting, lambda *event: None)
        store = Store(setting.store)
        found = [(store.folder(c.id) / "weights.safetensors").read_bytes() for c in cells]
        assert all(store.read(c.id).status == "finished" for c in cells)
        weights.append(found)
    assert weights[0] == weights[1] == weights[2]


def test_a_file_of_a_calibration_says_what_it_is(cohort, tmp_path, setting):
    cells, _, pieces = cohort
    conditions = calibrate.conditions_of(setting, ["cpu"])
    enter(Kept(tmp_path, conditions), cells, pieces)
    about = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert all(a["conditions"]["torch"] == torch.__version__ for a in about)
    assert known_parts(groups_of(cells), Kept(tmp_path, conditions)).students == pieces.students
