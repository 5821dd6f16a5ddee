"""The estimate of time and memory, and the dry run that prints it."""

import re

import pytest
from lessons import CPU, cell, dataset, plain_cell, recipe
from test_cost import HOW, tiny
from test_readme import EXAMPLE

from bench.cli import main
from bench.cost.counting import bytes_of
from bench.cost.estimate import Estimate
from bench.cost.profiler import MethodRow, profile
from bench.plugin import Plugin, plugged
from bench.train.engine import Student
from bench.train.weights import build_network


@pytest.fixture(scope="module")
def estimate() -> Estimate:
    return Estimate(lambda spec: dataset(), CPU)


def test_time_grows_with_epochs_and_a_cohort_shares_its_teacher(estimate):
    short, long = cell("rkd"), cell("rkd", recipe=recipe(epochs=400))
    assert estimate.seconds([long]) > 5 * estimate.seconds([short])
    apart = estimate.seconds([short]) + estimate.seconds([cell("soft_logits")])
    together = estimate.seconds([short, cell("soft_logits")])
    assert together == pytest.approx(apart - estimate.shared_seconds([short]))


def test_seeds_of_one_row_are_measured_once(estimate):
    assert estimate.student(cell("rkd", seed=1)) is estimate.student(cell("rkd", seed=2))


def test_memory_is_the_teachers_all_students_and_one_step(estimate):
    students = [estimate.student(cell(name)) for name in ("rkd", "fitnet")]
    whole = estimate.bytes([cell("rkd"), cell("fitnet")])
    parts = sum(s.held_bytes for s in students) + max(s.step_bytes for s in students)
    assert whole > parts
    assert estimate.bytes([cell("rkd")]) < whole
    network = build_network(plain_cell("cnn2"), 4, (1, 8, 8))
    parameters = bytes_of(network.parameters())
    assert estimate.student(plain_cell("cnn2")).held_bytes >= 2 * parameters


def test_what_a_stage_reads_of_its_teacher_is_known(estimate):
    assert estimate.student(cell("soft_logits")).taught == 4 * 4  # epochs, batches
    assert estimate.student(plain_cell("cnn2")).taught == 0
    assert estimate.student(cell("selective")).taught == 4  # once, of the clean images
    held, plain = (estimate.student(cell(name)).held_bytes for name in ("selective", "soft_logits"))
    assert held > plain + 40 * 12 * 4  # embeddings
    halves = [plain_cell("cnn2", recipe=recipe(batch_size=30, drop_last=d)) for d in (True, False)]
    assert [estimate.student(one).batches for one in halves] == [4, 8]


def test_a_pair_that_a_method_cannot_serve_has_a_reason_and_no_time(estimate):
    refused = estimate.student(cell("fsp", hyperparameters={"connectors": False}))
    assert "widths differ" in refused.refused
    assert refused.seconds == 0


def test_what_mixed_images_lack_is_a_reason_before_anything_trains(estimate):
    text = EXAMPLE.replace("teacher.logits)\n", "teacher.logits) * (pair.labels >= 0)\n")
    assert text != EXAMPLE
    with plugged([Plugin("/anywhere/logit_matching.py", text)]):
        for name in ("logit_matching", "selective"):
            assert not estimate.student(cell(name)).refused
            assert "mixup" in estimate.student(cell(name, recipe=recipe(mixup=0.2))).refused


@pytest.mark.parametrize("fault", ["next(iter(()))", "open('/gone')", "exit(3)"])
def test_any_error_of_a_loss_is_that_of_its_row(fault):
    text = EXAMPLE.replace("return logit_matching_loss(", f"{fault}\n        return (")
    with plugged([Plugin("/anywhere/logit_matching.py", text)]):
        assert Estimate(lambda spec: dataset(), CPU).student(cell("logit_matching")).refused
        row = MethodRow("logit_matching", "logit_matching")
        assert profile("cnn3", "cnn2", [row], tiny(), HOW).records[-1].status == "failed"


def test_a_first_step_that_loads_libraries_does_not_count(monkeypatch):
    step, sizes = Student.step, iter([10**8])  # the sum takes a second or two
    monkeypatch.setattr(Student, "step", lambda *given: (sum(range(next(sizes, 0))), step(*given)))
    assert Estimate(lambda spec: dataset(), CPU).student(plain_cell("cnn2")).seconds < 8


def test_a_dry_run_says_time_and_memory_first_and_then_the_rows(tmp_path, capsys):
    words = ["--grid", "smoke", "--methods", "soft_logits", "--seeds", "0", "--dry-run"]
    assert main([*words, "--workers", "2", "--work-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"time: about .+ on 2 workers \(cpu\)", lines[0])
    assert re.match(r"memory: at most \d+ MiB for a worker", lines[1])
    assert lines[2] == "cells: 3, done already: 0, to train: 3 (12 epochs in all)"
    assert any(re.match(r" +soft_logits +1 +0 +4 +\d", line) for line in lines[3:])
    assert not (tmp_path / "smoke").exists()
    assert not list(tmp_path.glob("mlflow.db"))


def test_a_dry_run_names_what_cannot_run(tmp_path, capsys):
    grid = tmp_path / "refused.yaml"
    grid.write_text(
        "description: test\ndata: {source: digits, fraction: 0.1}\npairs: ['cnn8:cnn4']\nseeds: 2\n"
        "methods: [{fsp: {connectors: false}}]\n"
        "recipe: {epochs: 2, batch_size: 32, learning_rate: 0.05}\n"
    )
    assert main(["--grid", str(grid), "--dry-run", "--work-dir", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot run: cnn8 > cnn4, fsp (connectors=False) (2 cells): " in said
    assert "widths differ" in said
