"""The recommendation on constructed records where the right answer is known."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import summary_grid as grid

from bench.cli import main
from bench.cost.costs import CostRecord, Costs, Quartiles, StageCost
from bench.record import (
    FAILED,
    NOT_APPLICABLE,
    Plan,
    Record,
    Row,
    Store,
    write_atomically,
)
from bench.report.build import choice_table, sections
from bench.report.candidates import Candidate
from bench.report.comparison import compare
from bench.report.recommend import Choice, NotCovered, Question, answer, recommend
from bench.report.standing import Standing
from bench.report.tables import to_csv, to_text

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = {"student": "baseline", "a": "response", "b": "multi-connection", "c": "response"}
LONGER = "student (epochs_factor=2)"
SHORTER = "student (epochs_factor=1.25)"
# Half a point of noise around a row's gain, a sign pattern of its own for each row.
NOISE = {
    "a": (1, -1, 1, -1, 0),
    "b": (1, 1, -1, -1, 0),
    "c": (0, 1, -1, 1, -1),
    LONGER: (-1, 0, 1, -1, 1),
    SHORTER: (1, 0, -1, -1, 1),
}


def evidence(
    gains: dict[str, float], seeds: int = 5, fraction: float = 1.0
) -> tuple[Plan, dict[str, Record]]:
    """Rows whose accuracy is the student's plus their gain and half a point of noise."""
    rows, records = [], {}
    for label, gain in {"student": 0.0, **gains}.items():
        for seed in range(seeds):
            row = Row(
                role="student" if label == "student" else "method",
                data="digits",
                axes={"fraction": fraction},
                teacher="big",
                student="small",
                label=label,
                method="student" if label.startswith("student") else label,
                seed=seed,
                category=CATEGORIES.get(label, "baseline"),
                cell_id=f"{fraction}-{label}-{seed}",
            )
            noise = 0.005 * NOISE[label][seed % 5] if label != "student" else 0.0
            rows.append(row)
            last = 0.70 + 0.01 * seed + gain + noise
            records[row.cell_id] = grid.record(row, last_accuracy=last)
    return Plan(name="made", description="", config={}, rows=rows), records


def cost(label: str, ratio: float, mib: int = 0, **changes: object) -> CostRecord:
    ms = Quartiles(1.0, 1.0, 1.0, 3)
    stage = StageCost(
        name="distil", epochs=1, kept=1.0, step_ms=ms, ratio=ms,
        peak_bytes=mib * 2**20,
    )  # fmt: skip
    values = {
        "data": "digits", "teacher": "big", "student": "small", "label": label, "method": label,
        "category": "response", "stages": [stage], "extra_parameters": 0,
        "training_cost_ratio": Quartiles(ratio, ratio - 0.01, ratio + 0.01, 9),
        "conditions": {"device": "cpu", "threads": 1, "precision": "fp32", "batch": 50},
    }  # fmt: skip
    return CostRecord(**{**values, **changes})


def choose(
    gains: dict[str, float], costs: list[CostRecord] | None = None, seeds: int = 5, **asked: object
) -> Choice:
    plan, records = evidence(gains, seeds)
    (choice,) = recommend(plan, records, Costs(costs or []), Question(**asked))
    return choice


def said(choice: Choice) -> str:
    return " ".join(choice.to_text().split())


# --- what is chosen --------------------------------------------------------------------------

TIE = {"a": 0.052, "b": 0.050}


@pytest.mark.parametrize(
    ("gains", "costs", "asked", "label", "ties"),
    [
        pytest.param(TIE, {"a": 1.8, "b": 1.2}, {}, "b", ("a",), id="tie: the cheapest"),
        pytest.param(TIE, {"a": 1.21, "b": 1.20}, {}, "a", ("b",), id="tie at one cost: the best"),
        pytest.param(TIE, {}, {}, "a", ("b",), id="tie without costs: the best"),
        pytest.param(TIE, {"b": 1.2}, {}, "a", ("b",), id="tie without all costs: the best"),
        pytest.param({"a": 0.08, "b": 0.03}, {"a": 1.2, "b": 1.8}, {}, "a", (), id="dominated"),
        pytest.param(
            {"a": 0.10, "b": 0.05}, {"a": 3.0, "b": 1.2}, {"max_cost": 1.3}, "b", (), id="limited"
        ),
        pytest.param({"a": 0.05, LONGER: 0.08}, {"a": 1.5}, {}, LONGER, (), id="longer training"),
        pytest.param(
            {"a": 0.05, LONGER: 0.08}, {"a": 1.5}, {"max_cost": 1.6}, "a", (), id="too long"
        ),
        pytest.param(
            {"a": 0.052, SHORTER: 0.050}, {"a": 1.8}, {}, SHORTER, ("a",), id="as good, cheaper"
        ),
        pytest.param({"a": 0.05}, {}, {"min_gain": 0.03}, "a", (), id="above the least gain"),
        pytest.param({"a": 0.05}, {}, {"min_gain": 0.049}, "student", ("a",), id="not surely"),
    ],
)
def test_the_cheapest_of_the_rows_that_cannot_be_told_from_the_best_is_chosen(
    gains, costs, asked, label, ties
) -> None:
    choice = choose(gains, [cost(name, ratio) for name, ratio in costs.items()], **asked)
    assert (choice.label, choice.ties) == (label, ties)


def test_too_few_seeds_leave_the_student_and_say_how_many_would_do() -> None:
    choice = choose({"a": 0.02, "b": 0.0}, seeds=2)
    assert choice.label == "student"
    # d_z = 0.02 / 0.00707 = 2.83; two rows are tested, so alpha is 0.025: four seeds.
    assert "a 4" in said(choice)
    assert "b 3" not in said(choice)  # both its differences are equal: no spread to plan with


def test_one_seed_is_no_evidence() -> None:
    choice = choose({"a": 0.3}, seeds=1)
    assert choice.label is None
    assert "one seed" in choice.problem


def test_a_better_row_beyond_a_limit_is_named_with_its_gain() -> None:
    limited = choose({"a": 0.10, "b": 0.05}, [cost("a", 3.0), cost("b", 1.2)], max_cost=1.3)
    assert "a is ruled out" in said(limited)
    assert "+10.00" in said(limited)
    assert "cost x3.00 above x1.3" in said(limited)


def test_the_choice_is_held_against_training_longer() -> None:
    text = said(choose({"a": 0.08, SHORTER: 0.01, LONGER: 0.02}, [cost("a", 1.5)]))
    assert f"against {SHORTER}, plain training at cost x1.25: +7.00" in text
    assert f"against {LONGER}, plain training at cost x2.00: +6.00" in text


def test_the_choice_is_told_from_a_row_by_the_interval_that_called_it_tied(monkeypatch) -> None:
    # It lies 1.5 points behind a. By itself that is told apart, t = 5.5 and p = 0.005; among 60
    # rows it is not. The row and the choice must have one answer, not two.
    noise = {f"n{i}": 0.0 for i in range(58)}
    for label in noise:
        monkeypatch.setitem(NOISE, label, NOISE["b"])
    choice = choose({"a": 0.05, SHORTER: 0.035, **noise}, [cost("a", 1.2)])
    assert choice.label == "a"
    assert choice.behind is not None
    assert SHORTER in choice.ties
    _, low, high, _ = choice.behind[SHORTER]
    assert low is not None
    assert high is not None
    assert low < 0 < high
    assert f"+1.50 ± {100 * high - 1.5:.2f} pp, not told apart" in said(choice)


@pytest.mark.parametrize(
    ("gains", "reference"), [({"a": 0.001, "b": -0.05}, "student"), (TIE, "a")]
)
def test_what_rows_are_held_against_is_named(gains: dict[str, float], reference: str) -> None:
    choice = choose(gains, [cost("a", 1.8), cost("b", 1.2)])
    assert choice.reference == reference
    assert any(n.startswith(f"Reference: {reference} ") for n in choice.to_table().notes)
    labels = [row[0].value for row in choice.to_table().rows]
    assert [label for label in labels if label not in (choice.behind or {})] == [reference]
    (row,) = csv.DictReader(to_csv(choice_table([choice])).splitlines())
    assert (row["reference"], row["ties"]) == (reference, str(len(choice.ties)))


def test_a_row_with_the_highest_mean_but_without_proof_is_not_chosen() -> None:
    plan, records = evidence({"a": 0.05, "b": 0.03})
    for row in plan.rows:  # a: half of its seeds great, half of them poor
        if row.label == "a":
            shift = 0.15 if row.seed % 2 else -0.08
            records[row.cell_id].final["last_accuracy"] += shift
    (choice,) = recommend(plan, records)
    assert (choice.label, choice.ties) == ("b", ("a",))


def test_a_gain_of_so_many_images_at_every_seed_has_no_spread_and_proves_nothing() -> None:
    plan, records = evidence({"a": 0.0})
    for row in plan.rows:
        number = round(500 * (0.70 + 0.01 * row.seed)) + (row.label == "a")
        records[row.cell_id].final["last_accuracy"] = number / 500
    (choice,) = recommend(plan, records)
    assert choice.label == "student"


# --- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"max_memory_mib": 10}, "memory 20.0 MiB"),
        ({"max_cost": 1.4}, "x1.50 above x1.4"),
    ],
)
def test_each_limit_rules_out_with_a_reason(asked: dict[str, object], reason: str) -> None:
    costs = [cost("a", 1.5, mib=20), cost("b", 1.2, mib=5)]
    choice = choose({"a": 0.08, "b": 0.03}, costs, **asked)
    assert choice.label == "b"
    (ruled_out,) = [c.excluded for c in choice.candidates if c.label == "a"]
    assert reason in ruled_out


def test_a_row_without_a_cost_is_ruled_out_where_costs_are_limited() -> None:
    broken = cost("a", 1.0, status=FAILED, error="out of memory")
    choice = choose({"a": 0.08, "b": 0.03}, [broken, cost("b", 1.2)], max_cost=2)
    assert choice.label == "b"
    assert "(failed: out of memory)" in said(choice)


def test_costs_of_another_device_are_not_mixed_in() -> None:
    other = {"device": "cuda", "threads": 1, "precision": "fp32", "batch": 50}
    costs = [cost("a", 1.8), cost("b", 1.2), cost("a", 1.1, conditions=other)]
    choice = choose(TIE, costs)
    assert choice.label == "b"
    assert choice.costs.startswith("on cpu")


def test_rows_without_evidence_are_ruled_out_with_the_reason() -> None:
    plan, records = evidence({"a": 0.05, "b": 0.08, "c": 0.08, LONGER: 0.09})
    for row in plan.rows:
        if row.label in "bc":
            status, error = (FAILED, "loss is nan") if row.label == "b" else (NOT_APPLICABLE, "odd")
            records[row.cell_id] = grid.record(row, status, error)
        if row.label == LONGER and row.seed > 0:
            del records[row.cell_id]
    (choice,) = recommend(plan, records)
    assert choice.label == "a"
    reasons = {c.label: c.excluded for c in choice.candidates if c.excluded}
    assert reasons["b"] == "failed: loss is nan"
    assert reasons["c"] == "not applicable: odd"
    assert "1 seed in common" in reasons[LONGER]


# --- what the evidence does not cover --------------------------------------------------------


@pytest.mark.parametrize("asked", [{"max_cost": 1.3}, {"max_memory_mib": 5}])
def test_a_limit_on_costs_without_costs_is_not_covered(asked: dict[str, object]) -> None:
    choice = choose({"a": 0.05, LONGER: 0.02}, **asked)
    assert choice.label is None
    with pytest.raises(NotCovered, match="profile"):
        answer([choice])


@pytest.mark.parametrize("lost", ["student", "a"])
def test_without_a_student_or_any_row_there_is_no_answer(lost: str) -> None:
    plan, records = evidence({"a": 0.05})
    kept = {k: r for k, r in records.items() if f"-{lost}-" not in k}
    (choice,) = recommend(plan, kept)
    assert choice.label is None
    assert choice.problem


def two_pairs() -> tuple[Plan, dict[str, Record]]:
    first, records = evidence({"a": 0.05, "b": 0.0}, fraction=1.0)
    second, more = evidence({"a": 0.05, "b": 0.0}, fraction=0.5)
    plan = Plan(name="made", description="", config={}, rows=first.rows + second.rows)
    return plan, {**records, **more}


def test_a_pair_without_an_answer_is_named_with_those_that_have_one() -> None:
    plan, records = two_pairs()
    kept = {k: r for k, r in records.items() if not k.startswith("0.5-")}
    choices = recommend(plan, kept)
    assert [choice.label for choice in choices] == ["a", None]
    assert "digits, fraction 0.5: big -> small\n  no answer" in answer(choices)


# --- how often it errs -----------------------------------------------------------------------


def simulated(gains: list[float], generator: np.random.Generator) -> Standing:
    """Five seeds of the student and of rows with these true gains, one point of noise each."""
    student = {seed: float(x) for seed, x in enumerate(generator.normal(0.7, 0.01, 5))}
    rows = {
        f"row{i}": {s: x + gain + float(generator.normal(0, 0.01)) for s, x in student.items()}
        for i, gain in enumerate(gains)
    }
    gained = compare(rows, student)
    return Standing.of([
        Candidate(label="student", category="baseline", accuracy=student),
        *(
            Candidate(label=label, category="response", accuracy=row, gained=gained[label])
            for label, row in rows.items()
        ),
    ])  # fmt: skip


def test_where_no_row_is_better_one_is_chosen_in_at_most_five_of_a_hundred_grids() -> None:
    generator = np.random.default_rng(0)
    wrong = sum(simulated([0.0] * 6, generator).choose().label != "student" for _ in range(300))
    # Holm bounds both directions together by 0.05; one of them by half of that. 300 draws of a
    # chance of 0.025 give 18 or more once in about 1,500 times.
    assert wrong < 18


def test_the_truly_best_row_is_the_chosen_one_or_tied_with_it() -> None:
    generator = np.random.default_rng(1)
    found = [simulated([0.02, 0.03, 0.03, 0.035], generator) for _ in range(150)]
    held = sum("row3" in {c.label for c in standing.tied} for standing in found if standing.proven)
    proven = sum(bool(standing.proven) for standing in found)
    assert proven > 75  # or there was nothing to choose
    assert held / proven >= 0.95


# --- rendering and the command ---------------------------------------------------------------


def test_the_table_holds_every_row_the_chosen_one_first() -> None:
    choice = choose({"a": 0.08, "b": 0.03, LONGER: 0.01}, [cost("a", 3.0)], max_cost=4)
    table = choice.to_table()
    assert [row[0].value for row in table.rows] == ["a", "student", LONGER, "b"]
    standing = {row[0].value: row[-1].value for row in table.rows}
    assert standing["a"] == "chosen"
    assert standing["student"] == "the baseline"
    assert standing["b"] == "ruled out: cost not measured"
    assert "chosen" in to_text(table)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    plan, records = two_pairs()
    write_atomically(tmp_path / "made" / "plan.json", plan.to_json())
    for record in records.values():
        Store(tmp_path / "store" / "cells").write(record)
    costs = Costs([cost("a", 1.5), cost("b", 1.2)])
    write_atomically(tmp_path / "made" / "cost.json", costs.to_json())
    return tmp_path


def test_the_command_answers_without_torch(work: Path) -> None:
    code = (
        "import sys; from bench.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "recommend", "--grid", "made", "--work-dir", str(work),
         "--pair", "big:small", "--max-cost", "1.6"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digits: big -> small\n  choose: a\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pair", "big:tiny"], "big:small"),
        (["--max-cost", "0.5"], "wanted 1 or more"),
        (["--max-memory-mib", "-1"], "wanted 0 or more"),
        (["--min-gain", "2"], "percentage point"),
        (["--max-cost", "cheap"], "cheap"),
    ],
)
def test_the_command_refuses_in_one_line(work, capsys, words: list[str], said: str) -> None:
    assert main(["recommend", "--grid", "made", "--work-dir", str(work), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_costs_of_other_code_than_the_accuracies_are_said_under_choice_and_candidates() -> None:
    plan, records = evidence({"a": 0.08})
    for record in records.values():
        record.conditions["commit"] = "1" * 40
    for commit, said_so in (("1" * 40, False), ("2" * 40, True)):
        at = {"device": "cpu", "threads": 1, "precision": "fp32", "batch": 50, "commit": commit}
        costs = Costs([cost("a", 1.2, conditions=at)])
        made = sections(plan, records, costs, recommend(plan, records, costs))
        notes = {s.name: " ".join(n for t in s.tables for n in t.notes) for s in made}
        for name in ("choice", "candidates"):
            assert (f"(commit {'2' * 10}) than accuracies ({'1' * 10})" in notes[name]) == said_so
