"""What MLflow is sent, and what comes back: names, numbers, inputs, files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from summary_grid import plan, records

from bench.cost.costs import Costs
from bench.decide.records import numbers_of_cells
from bench.record import Store
from bench.tracking import Mirror


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work directory with an empty MLflow store, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("tracking")
    Mirror(folder, "made")
    return folder


def runs(mirror: Mirror, kind: str) -> list:
    return mirror.search(f"tags.`kd_bench.kind` = '{kind}'")


@pytest.fixture(scope="module")
def sent(work) -> tuple[Mirror, Store]:
    """The grid written by hand, sent once; its cells know their data and when they began."""
    store = Store(work / "cells")
    for record in records().values():
        cell = {"data": {"source": "digits", "size": 8}, "fingerprint": "0123456789abcdef"}
        began = {"started": "2026-11-23T10:00:00+00:00"}
        final = record.final | ({"evaluation_seconds": 2.5} if record.final else {})
        trace = "Traceback (most recent call last): ..." if record.status == "failed" else ""
        store.write(replace(record, cell=cell, conditions=began, final=final, traceback=trace))
    mirror = Mirror(work, "by_hand")
    assert mirror.send(plan(), store) == len(records())
    return mirror, store


def run_of(mirror: Mirror, name: str):
    return next(run for run in runs(mirror, "cell") if run.info.run_name == name)


def test_runs_say_who_was_taught_by_whom_and_how(sent):
    mirror, _ = sent
    found = {
        run.info.run_name: [run.data.tags[key] for key in ("method", "teacher", "student", "pair")]
        for run in runs(mirror, "cell")
    }
    assert found["wide>narrow/soft_logits/1"] == ["soft_logits", "wide", "narrow", "wide>narrow"]
    assert found["wide/teacher/0"] == ["teacher", "wide", "none", "none"]
    assert found["narrow/student/1"] == ["student", "none", "narrow", "none"]
    teacher = run_of(mirror, "wide/teacher/0").data.params
    assert (teacher["method"], teacher["teacher"]) == ("teacher", "wide")


def test_gain_and_cost_are_added_when_they_are_known(sent):
    """Paired by seed: 0.73 of rkd against 0.70 of the plain student, both with seed 0."""
    mirror, store = sent
    numbers = numbers_of_cells(plan(), records(), Costs())
    rkd = run_of(mirror, "wide>narrow/rkd/0").data.tags["cell_id"]
    assert mirror.send(plan(), store, {**numbers, rkd: numbers[rkd] | {"cost": 1.5}}) == 0
    assert run_of(mirror, "narrow/student/0").data.metrics["final/gain"] == 0
    assert "final/gain" not in run_of(mirror, "wide/teacher/0").data.metrics
    metrics = run_of(mirror, "wide>narrow/rkd/0").data.metrics
    assert metrics["final/cost"] == 1.5
    student = run_of(mirror, "narrow/student/0").data.metrics["final/last_accuracy"]
    assert metrics["final/gain"] == pytest.approx(metrics["final/last_accuracy"] - student)


def test_the_list_of_runs_opens_with_columns_that_the_runs_have(sent):
    mirror, store = sent
    mirror.send(plan(), store, numbers_of_cells(plan(), records(), Costs()))
    tags = mirror.client.get_experiment(mirror.id).tags
    view = json.loads(tags["mlflow.sharedViewState.kd-bench"])
    run = run_of(mirror, "wide>narrow/rkd/0").data
    known = {f"tags.`{tag}`" for tag in run.tags} | {f"metrics.`{key}`" for key in run.metrics}
    assert {view["orderByKey"], *view["selectedColumns"]} - known <= {"metrics.`final/cost`"}


def test_a_run_can_be_filtered_by_category_axes_and_pair(sent):
    mirror, _ = sent
    text = "tags.category = 'response' and tags.fraction = '0.5' and tags.pair = 'wide>narrow'"
    assert {run.info.run_name for run in mirror.search(text)} == {
        "wide>narrow/soft_logits/0", "wide>narrow/soft_logits/1",
    }  # fmt: skip


def test_a_run_says_what_it_is_and_took_what_it_took(sent):
    mirror, _ = sent
    run = next(r for r in runs(mirror, "cell") if r.info.run_name == "wide>narrow/rkd/0")
    note = run.data.tags["mlflow.note.content"]
    assert "**wide>narrow/rkd/0**" in note
    assert run.data.metrics["final/last_accuracy"] == 0.73
    assert all(name.startswith("final/") for name in run.data.metrics)  # it has no curves
    assert run.info.end_time - run.info.start_time == 15_000  # 12.5 s + 2.5 s, in ms
    assert run.data.params["fingerprint"] == "0123456789abcdef"


def test_a_failed_cell_is_a_failed_run(sent):
    mirror, _ = sent
    run = next(r for r in runs(mirror, "cell") if r.info.run_name == "wide>narrow/fitnet/1")
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("FloatingPointError")
    assert "record.json" in {file.path for file in mirror.client.list_artifacts(run.info.run_id)}


def test_a_file_of_the_summary_run_is_read_back_and_the_latest_wins(work):
    folder = work / "summarised"
    mirror = Mirror(work, folder.name)
    assert mirror.read_file("cost.json") is None  # no summary run
    for text in ('{"schema": 1}\n', '{"schema": "ü"}\n'):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text(text, encoding="utf-8")
        (folder / "figures" / "cost.svg").write_text("<svg/>")
        mirror.send_files(folder, [folder / "cost.json", folder / "figures" / "cost.svg"])
        assert Mirror(work, folder.name).read_file("cost.json") == text
    assert mirror.read_file("figures/cost.svg") == "<svg/>"
    assert mirror.read_file("cost") is None
    assert mirror.read_file("figures") is None


def test_what_killed_senders_left_is_mended_by_the_next(sent, work):
    """A run that was cut off, one without a record, and two of one result and of the summary."""
    _, store = sent
    mirror = Mirror(work, "cut_off")
    tags = {"kd_bench.kind": "cell", "status": "finished"}
    cut, twice = plan().cell_ids()[:2]
    for cell_id in (cut, "gone"):
        mirror.client.create_run(mirror.id, tags={**tags, "cell_id": cell_id})
    for _ in range(2):
        left = mirror.client.create_run(mirror.id, tags={**tags, "cell_id": twice})
        mirror.client.set_terminated(left.info.run_id)
        mirror.client.create_run(mirror.id, tags={"kd_bench.kind": "summary"})
    assert Mirror(work, "cut_off").send(plan(), store) == len(records()) - 1
    found = {run.data.tags["cell_id"]: run.info.status for run in runs(mirror, "cell")}
    assert len(runs(mirror, "cell")) == len(found)
    assert found.pop("gone") == "KILLED"
    assert set(found.values()) == {"FINISHED", "FAILED"}
    assert found.keys() == records().keys()
    assert len(runs(mirror, "summary")) == 1
    assert Mirror(work, "cut_off").send(plan(), store) == 0
