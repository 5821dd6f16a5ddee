"""The recommendation on constructed records where the right answer is known."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import summary_grid as grid
from processes import ROOT

from bench.cost.costs import CostRecord, Costs
from bench.record import FAILED, NOT_APPLICABLE, Plan, Record, Row, Store, write_atomically
from bench.report.build import sections
from bench.report.candidates import Candidate
from bench.report.comparison import compare
from bench.report.recommend import Choice, NotCovered, Question, answer, recommend
from bench.report.standing import Standing

CATEGORIES = {"student": "baseline", "a": "response", "b": "multi-connection", "c": "response"}
LONGER = "student (epochs_factor=2)"
# Half a point of noise around a row's gain, a sign pattern of its own for each row.
NOISE = {"a": (1, -1, 1, -1, 0), "b": (1, 1, -1, -1, 0), "c": (0, 1, -1, 1, -1)}
NOISE[LONGER] = (-1, 0, 1, -1, 1)


def evidence(
    gains: dict[str, float], seeds: int = 5, fraction: float = 1.0
) -> tuple[Plan, dict[str, Record]]:
    """Rows whose accuracy is the student's plus their gain and half a point of noise."""
    rows, records = [], {}
    for label, gain in {"student": 0.0, **gains}.items():
        for seed in range(seeds):
            row = Row(
                role="student" if label == "student" else "method", data="digits",
                axes={"fraction": fraction}, teacher="big", student="small", label=label, seed=seed,
                method="student" if label.startswith("student") else label,
                category=CATEGORIES.get(label, "baseline"), cell_id=f"{fraction}-{label}-{seed}",
            )  # fmt: skip
            noise = 0.005 * NOISE[label][seed % 5] if label != "student" else 0.0
            rows.append(row)
            last = 0.70 + 0.01 * seed + gain + noise
            records[row.cell_id] = grid.record(row, last_accuracy=last)
    return Plan(name="made", description="", config={}, rows=rows), records


cost = partial(grid.cost, teacher="big", student="small")


def choose(
    gains: dict[str, float], costs: list[CostRecord] | None = None, seeds: int = 5, **asked: object
) -> Choice:
    plan, records = evidence(gains, seeds)
    (choice,) = recommend(plan, records, Costs(costs or []), Question(**asked))
    return choice


def said(choice: Choice) -> str:
    return " ".join(choice.to_text().split())


TIE = {"a": 0.052, "b": 0.050}


@pytest.mark.parametrize(
    ("gains", "costs", "asked", "label", "ties"),
    [
        pytest.param(TIE, {"a": 1.8, "b": 1.2}, {}, "b", ("a",), id="tie: the cheapest"),
        pytest.param(TIE, {"b": 1.2}, {}, "a", ("b",), id="tie without all costs: the best"),
        pytest.param({"a": 0.08, "b": 0.03}, {"a": 1.2, "b": 1.8}, {}, "a", (), id="dominated"),
        pytest.param({"a": 0.05, LONGER: 0.08}, {"a": 1.5}, {}, LONGER, (), id="longer training"),
        pytest.param({"a": 0.05}, {}, {"min_gain": 0.03}, "a", (), id="above the least gain"),
        pytest.param({"a": 0.05}, {}, {"min_gain": 0.049}, "student", ("a",), id="not surely"),
    ],
)
def test_the_choice_follows_gains_and_costs(gains, costs, asked, label, ties) -> None:
    choice = choose(gains, [cost(name, ratio) for name, ratio in costs.items()], **asked)
    assert (choice.label, choice.ties) == (label, ties)


def test_one_seed_is_no_evidence() -> None:
    choice = choose({"a": 0.3}, seeds=1)
    assert choice.label is None
    assert "one seed" in choice.problem


def test_a_row_with_the_highest_mean_but_without_proof_is_not_chosen() -> None:
    plan, records = evidence({"a": 0.05, "b": 0.03})
    for row in plan.rows:  # a: half of its seeds great, half of them poor
        if row.label == "a":
            shift = 0.15 if row.seed % 2 else -0.08
            records[row.cell_id].final["last_accuracy"] += shift
    (choice,) = recommend(plan, records)
    assert (choice.label, choice.ties) == ("b", ("a",))


def test_equal_gains_at_every_seed_have_no_spread_and_prove_nothing() -> None:
    plan, records = evidence({"a": 0.0})
    for row in plan.rows:
        number = round(500 * (0.70 + 0.01 * row.seed)) + (row.label == "a")
        records[row.cell_id].final["last_accuracy"] = number / 500
    (choice,) = recommend(plan, records)
    assert choice.label == "student"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [({"max_memory_mib": 10}, "memory 20.0 MiB"), ({"max_cost": 1.4}, "x1.50 above x1.4")],
)
def test_each_limit_rules_out_with_a_reason(asked: dict[str, object], reason: str) -> None:
    costs = [cost("a", 1.5, mib=20), cost("b", 1.2, mib=5)]
    choice = choose({"a": 0.08, "b": 0.03}, costs, **asked)
    assert choice.label == "b"
    (ruled_out,) = [c.excluded for c in choice.candidates if c.label == "a"]
    assert reason in ruled_out
    assert "a is ruled out" in said(choice)
    assert "+8.00" in said(choice)  # what the limit costs


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


def simulated(gains: list[float], generator: np.random.Generator) -> Standing:
    """Five seeds of the student and of rows with these true gains, one point of noise each."""
    student = {seed: float(x) for seed, x in enumerate(generator.normal(0.7, 0.01, 5))}
    rows = {
        f"row{i}": {s: x + gain + float(generator.normal(0, 0.01)) for s, x in student.items()}
        for i, gain in enumerate(gains)
    }
    gained = compare(rows, student)
    plain = Candidate(label="student", category="baseline", accuracy=student)
    return Standing.of([plain] + [
        Candidate(label=label, category="response", accuracy=row, gained=gained[label])
        for label, row in rows.items()
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


def test_a_pair_that_the_grid_lacks_is_refused_with_those_it_has(work, refused) -> None:
    words = ["recommend", "--grid", "made", "--work-dir", str(work), "--pair", "big:tiny"]
    assert "big:small" in refused(*words)


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
