"""tests/gpu/run.sh, which is for a GPU, on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.hyperparameters import build_method
from bench.record import FINISHED, Record, WorkDir
from tests.gpu import training
from tests.gpu.plain_script import PlainScript, PlainTeacher
from tests.gpu.speed import TINY, forms_of
from tests.lessons import plain_cell

SCRIPT = Path(__file__).parent / "gpu" / "run.sh"
ROWS = ("soft_logits", "attention_transfer", "rkd")  # they train nothing but the student
EVERY_CELL = r"\b(\d+) of \1 cells have a record"


def run(out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    command = [str(SCRIPT), str(out), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_it_says_what_the_interpreter_lacks_and_where_its_wheels_belong(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = run(tmp_path / "out", PYTHON=str(bare), PYTHONPATH="", WHEELS=str(tmp_path))
    assert done.returncode == 2
    assert "pydantic, pydantic_core" in done.stderr
    assert str(tmp_path) in done.stderr


def test_without_time_every_part_is_named_as_left_out(tmp_path):
    done = run(tmp_path / "out", "0.5", "--tiny")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["parts"] == dict.fromkeys(("tests", "speed", "training"), "no time was left")


def test_a_plain_script_has_the_losses_of_the_harness():
    (setting,) = TINY
    phases, (teacher, student) = forms_of(setting, ROWS, plain=False)[1], setting.pair.split(":")
    plain = PlainTeacher(teacher, setting.workload())
    for row, harness in phases["first"].items():
        method, losses = build_method(row), []
        script = PlainScript(plain, student, method, stage := method.plan[0])
        script.backward = losses.extend  # pyright: ignore[reportAttributeAccessIssue]
        script.step()
        harness.step()
        sums = harness.student.sums
        terms = [stage.task_weight * sums.mean("task")] if stage.task_weight else []
        terms.append(stage.weight_at(0.0) * sums.mean("transfer"))
        assert [x.item() for x in losses] == pytest.approx(terms, rel=1e-4), row


def test_the_state_has_what_a_later_call_needs_as_far_as_it_fits(tmp_path, monkeypatch):
    work, later, out = WorkDir(tmp_path / "work"), WorkDir(tmp_path / "later"), tmp_path / "out"
    teacher, done, *unfinished = (plain_cell(f"cnn{width}") for width in (2, 3, 4, 5))
    for cell in (teacher, done):
        about = {"cell": cell.resolved(), "category": "baseline", "source": "test"}
        work.store.write(Record(cell_id=cell.id, status=FINISHED, **about))
        training.weights_of(work, cell).write_bytes(b"weights")
    for epochs, cell in zip((3, 7), unfinished, strict=True):
        for epoch in (epochs - 1, epochs):
            path = work.checkpoints / cell.id / f"{epoch:06d}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(200_000))
    out.mkdir()
    monkeypatch.setattr(training, "PART_BYTES", 110_000)  # room for one checkpoint
    training.pack(work, out, [teacher])
    training.unpack(out, later)
    assert set(later.store.read_all([teacher.id, done.id])) == {teacher.id, done.id}
    assert training.weights_of(later, teacher).read_bytes() == b"weights"
    assert not training.weights_of(later, done).exists()
    kept = [str(path.relative_to(later.checkpoints)) for path in later.checkpoints.glob("*/*")]
    assert kept == [f"{unfinished[1].id}/000007.safetensors"]


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path):
    """About 80 s of one core; SECONDS is a bound, and more than a busy machine needs."""
    out = tmp_path / "out"
    assert run(out, "1500", "--tiny").returncode == 0
    assert set(json.loads((out / "summary.json").read_text())["parts"].values()) == {"exit code 0"}
    assert "skipped" in (out / "tests.txt").read_text()
    found = [json.loads(line) for line in (out / "speed.jsonl").read_text().splitlines()]
    assert [one["kind"] for one in found] == [
        *("device", "setting", "trace", "every row", "1 workers", "2 workers")
    ]
    assert not any(one.get("error") or one.get("left_out") for one in found)
    assert re.search(EVERY_CELL, (out / "training.txt").read_text())
    assert len(files := list(out.iterdir())) <= 8
    assert max(file.stat().st_size for file in files) < 16e6
    again = tmp_path / "again"
    run(again, "600", "--parts", "training", "--tiny", STATE=str(out))
    log = (again / "training.txt").read_text()
    assert re.search(EVERY_CELL, log)
    assert "done:" not in log
