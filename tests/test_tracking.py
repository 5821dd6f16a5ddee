"""What MLflow is sent, and what comes back: names, numbers, inputs, files."""

import json
import os
import shutil
import sqlite3
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from summary_grid import plan, records

from bench.cost.costs import Costs
from bench.decide.records import numbers_of_cells
from bench.record import Store
from bench.tracking import Mirror, TrackingError, serve

BEGAN = 1_795_600_800_000  # in milliseconds since 1970


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work directory with an empty MLflow store, which takes seconds to make.

    Its path has all that an address gives a meaning to.
    """
    folder = tmp_path_factory.mktemp("tracking") / "a?b=c&d%20e#f 'g' \"h\"\ni"
    Mirror(folder, "made")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return folder


@pytest.fixture
def moved(sent, work, tmp_path) -> Path:
    """A copy of the work directory, at another place."""
    return shutil.copytree(work, tmp_path / "moved?")


def runs(mirror: Mirror, kind: str) -> list:
    return mirror.search(f"tags.`kd_bench.kind` = '{kind}'")


@pytest.fixture(scope="module")
def sent(work) -> tuple[Mirror, Store]:
    """The grid written by hand, sent once; its cells know their data and when they began."""
    store = Store(work / "cells")
    for record in records().values():
        cell = {"data": {"source": "digits", "size": 8}, "fingerprint": "0123456789abcdef"}
        began = {"started": datetime.fromtimestamp(BEGAN / 1000, UTC).isoformat()}
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
    found = {run.info.run_name for run in mirror.search(text)}
    assert found == {"wide>narrow/soft_logits/0", "wide>narrow/soft_logits/1"}


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
        left = mirror.client.create_run(mirror.id, BEGAN, {**tags, "cell_id": twice})
        mirror.client.log_text(left.info.run_id, "{}", "record.json")
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


def test_a_work_directory_that_was_moved_keeps_its_artifacts_inside(moved, work):
    before = sorted(work.rglob("*"))
    mirror = Mirror(moved, "by_hand")
    assert mirror.fetch()[1].keys() == records().keys()
    assert mirror.send(plan(), Store(moved / "cells")) == 0
    assert sorted(work.rglob("*")) == before
    assert {run.info.artifact_uri for run in mirror.search("")} == {
        (moved / "mlartifacts" / run.info.run_id / "artifacts").as_uri()
        for run in mirror.search("")
    }


def test_a_database_that_cannot_be_written_is_read(moved, monkeypatch):
    before = (moved / "mlflow.db").read_bytes()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).parent != moved)
    assert Mirror(moved, "by_hand").fetch()[1].keys() == records().keys()
    assert (moved / "mlflow.db").read_bytes() == before


def test_runs_of_rows_that_the_grid_has_no_longer_are_tagged(sent, work):
    mirror, store = sent
    for kept in (plan().rows[:-1], plan().rows):
        mirror.send(replace(plan(), rows=kept), store)
        found = mirror.search("tags.`kd_bench.kind` = 'cell' and tags.in_grid = 'true'")
        cells = {row.cell_id for row in kept} & records().keys()
        assert {run.data.tags["cell_id"] for run in found} == cells


def test_what_somebody_deleted_and_what_was_trained_again_is_sent_again(moved):
    """An experiment, a run, and artifacts that are gone; a record of a later training."""
    store, mirror = Store(moved / "cells"), Mirror(moved, "by_hand")
    first, second, third = runs(mirror, "cell")[:3]
    again = store.read(first.data.tags["cell_id"])
    store.write(replace(again, conditions={"started": "2026-11-24T10:00:00+00:00"}))
    mirror.client.delete_run(second.info.run_id)
    shutil.rmtree(moved / "mlartifacts" / third.info.run_id)
    mirror.client.delete_experiment(mirror.id)
    mirror = Mirror(moved, "by_hand")
    # To restore an experiment restores its runs, too.
    assert mirror.send(plan(), store) == 2
    assert mirror.fetch()[1] == store.read_all(plan().cell_ids())
    assert len(runs(mirror, "cell")) == len(records())


def test_no_run_is_left_running_by_a_sender_that_is_stopped(moved, monkeypatch):
    """In the midst of a record, or between two."""
    store, mirror = Store(moved / "cells"), Mirror(moved, "stopped")

    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    assert mirror.send(plan(), store, stopped=lambda: True) == 0
    monkeypatch.setattr(mirror.client, "log_artifacts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mirror.send(plan(), store)
    assert {run.info.status for run in runs(mirror, "cell")} == {"KILLED"}
    assert {run.info.status for run in runs(mirror, "summary")} == {"FINISHED"}


@pytest.mark.parametrize("damage", ["a folder", "noise", "empty", "of another version"])
def test_a_store_that_cannot_be_opened_says_so_at_once_and_stays_as_it_is(moved, damage):
    path = moved / "mlflow.db"
    if damage == "of another version":
        with sqlite3.connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = 'of the future'")
        database.close()
    else:
        path.unlink()
        noise = b"x" * 5000 * (damage == "noise")
        path.mkdir() if damage == "a folder" else path.write_bytes(noise)
    with pytest.raises(TrackingError, match=r"move it away: run_all.py sync"):
        Mirror(moved, "by_hand")
    assert path.exists()


def test_a_path_that_is_not_utf_8_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TrackingError, match="UTF-8"):
        Mirror(tmp_path / os.fsdecode(b"caf\xe9"), "grid")
    assert list(tmp_path.iterdir()) == []


def test_a_note_is_no_longer_than_every_database_takes(sent):
    mirror, store = sent
    mirror.send(replace(plan(), description="long " * 2000), store)
    tags = mirror.client.get_experiment(mirror.id).tags
    assert 4000 < max(map(len, tags.values())) <= 5000


@pytest.mark.parametrize(
    "address", ["http://me:se/cr@et@127.0.0.1:1", "no-such://127.0.0.1:1/x?password=se/cr@et"]
)
def test_a_password_in_an_address_is_shown_nowhere(tmp_path, monkeypatch, capfd, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        Mirror(tmp_path, "grid")
    said = [*traceback.format_exception(caught.value), *capfd.readouterr()]
    if address.startswith("http"):
        with pytest.raises(TrackingError, match="is a server") as caught:
            serve(tmp_path, 5000)
        said += traceback.format_exception(caught.value)
    assert "cr@et" not in "".join(said)


def test_records_of_an_archive_are_sent_without_their_folders(work, tmp_path):
    mirror = Mirror(work, "archive")
    assert mirror.send(plan(), Store(tmp_path), records=records()) == len(records())
    assert mirror.fetch() == (plan(), records())
