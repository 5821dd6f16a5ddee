"""What `recommend` says of a grid, and of a CSV file from anywhere; what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from summary_grid import finished, row

from bench.cli import main
from bench.cost.costs import FILE, CostRecord, Costs, Quartiles
from bench.decide.csv_file import read_csv
from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED, decide
from bench.decide.records import pairs_of, question_of
from bench.design import CONFIRMATION, SCREENING
from bench.record import FAILED, Plan, Record, Row, WorkDir, write_atomically
from bench.report.answers import answer_lines, asked_of
from bench.report.card import pair_lines
from bench.report.paper import paper_table
from bench.report.results import findings

DECISION = Path(__file__).parent / "benchmarks" / "decision"
SPREAD = (0.0, 0.005, -0.005, 0.002, -0.002, 0.004)
LONGER = "student (epochs_factor=2)"
Grid = tuple[Plan, dict[str, Record]]


def grid(gains: dict[str, float], screened: dict[str, float] | None = None, **config) -> Grid:
    """Rows with a confirmation seed for each of `SPREAD`, and rows that were screened only.

    Every row jitters its own way around the student's 0.8 plus its gain.
    """
    rows: list[Row] = []
    records: dict[str, Record] = {}
    for shift, (label, gain) in enumerate({"student": 0.0, **gains, **(screened or {})}.items()):
        only_screened = label in (screened or {})
        seeds = [0, 1] if only_screened else [0, 1, *range(2, 2 + len(SPREAD))]
        for seed in seeds:
            method = "student" if label.startswith("student") else label
            one = replace(row(method, seed), label=label)
            one = replace(one, role=one.role if label == method else "method")
            phase = SCREENING if seed < 2 else CONFIRMATION
            one = replace(one, phase=phase, cell_id=f"{label}-{seed}")
            accuracy = 0.8 + gain + SPREAD[(seed + shift) % len(SPREAD)]
            record = replace(finished(one, accuracy, accuracy, None), cell_id=one.cell_id)
            final = {**record.final, "epochs": 8 if label == LONGER else 4, "test_images": 500}
            rows.append(one)
            records[one.cell_id] = replace(record, final=final)
    design = {"seeds": {"screen": 2, "finalists": 2, "confirm": 6, **config}}
    return Plan(name="won", description="", config=design, rows=rows), records


def said(found: Grid, **limits) -> str:
    plan, records = found
    pairs = pairs_of(plan, records, Costs())
    answers = decide(list(pairs.values()), question_of(plan, **limits)).answers
    return "\n".join(line for a in answers for line in answer_lines(a, asked_of(plan, records)))


def verdict(found: Grid, **limits) -> tuple[str | None, str | None]:
    plan, records = found
    pairs = pairs_of(plan, records, Costs())
    (answer,) = decide(list(pairs.values()), question_of(plan, **limits)).answers
    return answer.verdict, answer.named


def test_a_proven_row_is_named_with_gain_interval_seeds_and_cost():
    found = grid({"fsp": 0.06, LONGER: 0.01}, {"rkd": -0.02})
    assert verdict(found) == (PROVEN, "fsp")
    (line,) = [line for line in said(found).splitlines() if "proven: fsp" in line]
    for words in ("+6.", "6 seeds", "cost not measured", "on this test set"):
        assert words in line


def test_without_proof_there_is_a_best_bet_and_never_the_student_for_want_of_evidence():
    found = grid({"fsp": 0.004, LONGER: 0.0}, {"rkd": -0.02})
    label, named = verdict(found)
    assert label in (BEST_BET, UNDECIDED)
    assert named == "fsp"
    assert "proven: nothing (2 rows against the student alone, 6 seeds)" in said(found)
    assert "nothing within the limits; beyond" in said(grid({"fsp": 0.06, LONGER: 0}), max_cost=2)


def test_what_could_settle_it_is_one_command():
    open_grid = {"fsp": 0.004, LONGER: 0.0}
    assert "run_all.py run --grid won seeds.first=100 seeds.confirm=" in said(grid(open_grid))
    assert "run_all.py run --grid won --extend" in said(grid(open_grid, extend=6))
    plan, records = grid(open_grid)
    rows = [replace(row, phase="") for row in plan.rows]
    equal = replace(plan, config={"seeds": [*range(8)]}, rows=rows), records
    assert "run_all.py run --grid won --seeds 100-" in said(equal)
    later = [replace(row, seed=row.seed + 100) for row in rows]
    assert "--seeds 200-" in said((replace(equal[0], rows=later), records))
    assert "settle" not in said(grid({"fsp": -0.02, LONGER: -0.01}))
    part = replace(plan, config={**plan.config, "narrowed": True, "part_of": "whole"})
    assert "note: only these rows took part" in said((part, records))
    assert "settle" not in said((part, records))


def test_cells_without_a_result_are_counted_with_the_cure():
    plan, records = grid({"fsp": 0.004, LONGER: 0.0}, extend=6)
    del records["fsp-7"]
    lines = said((plan, records))
    assert "without a result: 1 of 24 cells; run the grid again." in lines
    assert "run --grid won (it has" in lines
    records["fsp-6"] = replace(records["fsp-6"], status=FAILED, error="boom", final={})
    assert "2 of 24 cells (1 failed); run the grid again with --retry" in said((plan, records))
    killed = {i: replace(r, error="KilledError: died") for i, r in records.items()}
    assert "2 of 24 cells (1 failed); run the grid again." in said((plan, killed))
    few = {i: r for i, r in records.items() if i[:3] != "fsp" or i in ("fsp-0", "fsp-1")}
    assert "nothing is claimed of fsp" in said((plan, few))
    (rows,) = findings(plan, few, None).lines.values()
    assert "not proven" not in [row.verdict for row in rows if row.label == "fsp"]


def test_a_student_that_gains_by_training_longer_is_said_before_the_answer():
    lines = said(grid({"fsp": 0.0, LONGER: 0.05})).splitlines()
    notes = [n for n, line in enumerate(lines) if "recipe is too short" in line]
    assert notes
    assert notes[0] < next(n for n, line in enumerate(lines) if "proven:" in line)
    assert "too short" not in said(grid({"fsp": 0.0, "student (learning_rate=0.2)": 0.05}))


def test_a_loss_that_reached_few_samples_is_said_before_the_answer():
    plan, records = grid({"fsp": 0.06, LONGER: 0.01})
    stage = {"name": "distil", "reached_samples": 40, "skipped_samples": 50, "masked_samples": 10}
    few = {i: replace(r, stages=[stage]) if i.startswith("fsp") else r for i, r in records.items()}
    assert "note: the loss of fsp reached 40% of the samples" in said((plan, few))
    assert "reached" not in said((plan, records))


def test_what_a_row_deploys_on_top_of_the_student_is_said_wherever_its_gain_is():
    plan, records = grid({"fsp": 0.06, LONGER: 0.0})
    sizes = {"parameters": 1170, "student_parameters": 1000}
    larger = {
        i: replace(r, final={**r.final, **sizes}) if i.startswith("fsp") else r
        for i, r in records.items()
    }
    assert "note: with fsp, more than the student is deployed: +17 %" in said((plan, larger))
    found = findings(plan, larger, None)
    titles = [line.title for lines in found.lines.values() for line in lines]
    assert "fsp (+17 % parameters)" in titles
    assert "fsp (+17 % parameters)" in [line.row for line in pair_lines(found)]
    assert r"fsp (+17 \% parameters)" in paper_table(found)
    assert "deployed" not in said((plan, records))


def test_the_price_of_a_teacher_is_held_against_training_longer():
    assert "against longer training without a teacher: +5." in said(
        grid({"fsp": 0.06, LONGER: 0.01})
    )


def test_rows_without_a_finished_cell_are_no_evidence():
    plan, records = grid({"fsp": 0.06, "rkd": 0.05, LONGER: 0.0})
    broken = {
        i: replace(r, status=FAILED, error="boom", final={}) if i.startswith("fsp") else r
        for i, r in records.items()
    }
    assert verdict((plan, broken)) == (PROVEN, "rkd")


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Path:
    plan, records = grid({"fsp": 0.06, LONGER: 0.01}, {"rkd": -0.02})
    folder = WorkDir(tmp_path)
    write_atomically(folder.plan("won"), plan.to_json())
    for record in records.values():
        folder.store.write(record)
    ratio = Quartiles(1.5, 1.4, 1.6, 9)
    cost = CostRecord(data="birds", teacher="wide", student="narrow", label="fsp", method="fsp",
                      category="", training_cost_ratio=ratio, stages=[])  # fmt: skip
    where = next(iter(pairs_of(plan, records, Costs())))
    write_atomically(folder.grid("won") / FILE, Costs([replace(cost, data=where.data)]).to_json())
    return tmp_path


def recommend(work: Path, *words: str) -> int:
    return main(["recommend", "--grid", "won", "--work-dir", str(work), *words])


def test_the_command_answers_within_a_limit(work, capsys):
    assert recommend(work, "--max-cost", "1.6") == 0
    assert "cost ×1.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-cost", "1.2"], "the nearest is fsp: cost ×1.50"),
        (["--max-cost", "0.5"], "of at least 1"),
        (["--pair", "wide:broad"], "wide:narrow"),
        (["--against", "rkd"], "fsp"),
        (["--grid", "lost"], "no results of grid 'lost'"),
        (["--baseline", "fsp"], "--against"),
    ],
)
def test_the_command_refuses_in_one_line(work, capsys, words, said):
    assert recommend(work, *words) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not shown.out


def test_a_pair_without_a_finished_student_is_named_with_the_cure(work, capsys):
    path = WorkDir(work).plan("won")
    plan = Plan.read(path)
    more = [replace(row, student="tiny", cell_id=f"tiny-{row.cell_id}") for row in plan.rows]
    write_atomically(path, replace(plan, rows=[*plan.rows, *more]).to_json())
    assert recommend(work) == 0
    assert "wide → tiny: no plain student has finished" in capsys.readouterr().out
    assert recommend(work, "--pair", "wide:tiny") == 2
    assert "without a result: 26 of 52 cells; run the grid again" in capsys.readouterr().err


# --- a CSV file from anywhere -------------------------------------------------------------------


def csv_of(path: Path, lines: list[str], header: str = "row,seed,accuracy") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def from_csv(path: Path, *words: str) -> int:
    return main(["recommend", "--csv", str(path), *words])


def test_a_csv_file_gets_the_same_answers_as_a_grid(tmp_path, capsys):
    plan, records = grid({"fsp": 0.06, LONGER: 0.01}, {"rkd": -0.02})
    lines = [
        f"{r.label},{r.seed},{records[r.cell_id].final['last_accuracy']},{r.phase}"
        for r in plan.rows
    ]
    path = csv_of(tmp_path / "mine.csv", lines, "row,seed,accuracy,phase")
    assert from_csv(path) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "proven: fsp" in x]
    assert line.split(" over ")[0] in said((plan, records))


def test_another_baseline_and_other_pairs(tmp_path, capsys):
    lines = [
        f"{pair},{name},{seed},{own + gain + SPREAD[(seed + shift) % 6]}"
        for pair, own in (("x", 0.7), ("y", 0.71))
        for shift, (name, gain) in enumerate({"vanilla": 0.0, "KD": 0.05}.items())
        for seed in range(6)
    ]
    path = csv_of(tmp_path / "mine.csv", lines, "pair,row,seed,accuracy")
    assert from_csv(path) == 2
    assert "no row 'student'" in capsys.readouterr().err
    assert from_csv(path, "--baseline", "vanilla") == 0
    out = capsys.readouterr().out
    assert "mean gain over 2 pairs" in out
    assert "KD: +5.0 points, not proven" in out  # without a spread, and over students
    assert from_csv(path, "--baseline", "vanilla", "--pair", "y") == 0
    assert "x" not in capsys.readouterr().out.split()


@pytest.mark.parametrize(("apart", "students"), [(0.0004, 1), (0.0005, 1), (0.01, 2)])
def test_pairs_with_nearly_the_same_baselines_are_of_one_student(tmp_path, apart, students):
    lines = [
        f"{pair},{name},{seed},{0.7 + apart * number + gain + SPREAD[seed]}"
        for number, pair in enumerate("xy")
        for name, gain in (("student", 0.0), ("KD", 0.05))
        for seed in range(6 - number)  # one line of the second is missing
    ]
    path = csv_of(tmp_path / "mine.csv", lines, "pair,row,seed,accuracy")
    assert len({pair.alone for pair in read_csv(path, "student")}) == students


@pytest.mark.parametrize(
    ("lines", "header", "said"),
    [
        (["a,0,0.5"], "name,seed,accuracy", "no column 'row'"),
        (["student,0,93"], "row,seed,accuracy", "line 2: accuracy is '93'; wanted a number"),
        (["student,0,0.9", "a,x,0.9"], "row,seed,accuracy", "line 3: seed"),
        (["student,0,0.9", "student,0,0.8"], "row,seed,accuracy", "line 3: row student has"),
        (["student,0.5,0.9"], "row,seed,accuracy", "line 2: seed is '0.5'"),
        (["student,0,0.9,final"], "row,seed,accuracy,phase", "should be '', 'screening'"),
        (["student,0,1,", "a,0,1,1.5", "a,1,1,2"], "row,seed,accuracy,cost", "wanted the same in"),
        ([",0,0.9"], "row,seed,accuracy", "line 2: row"),
        ([], "row,seed,accuracy", "no line of results"),
        (["student,0,0.9,100", "a,0,0.9,150"], "row,seed,accuracy,cost", "student costs 100"),
        (["student,0,0.9,", "a,0,0.9,-1"], "row,seed,accuracy,cost", "line 3: cost is '-1'"),
        (["student,0,0.9", "", "a,0,nan"], "row,seed,accuracy", "line 4: accuracy is 'nan'"),
        (["student;0;0.9"], "row;seed;accuracy", "between commas"),
        (["student,0,0.9", '"a"b,0,0.9'], "row,seed,accuracy", "line 3: not CSV"),
        (["student,0,0.9,old"], "row,seed,accuracy", "line 2: 'old' is under no column"),
        (["student,0,0.9,1"], "row,Seed,accuracy,seed", "two columns 'seed'"),
        (["student,0,0.9", "student,1,0.8"], "row,seed,accuracy", "no row to hold against"),
    ],
)
def test_a_wrong_csv_file_is_one_line(tmp_path, capsys, lines, header, said):
    assert from_csv(csv_of(tmp_path / "mine.csv", lines, header)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_what_a_csv_file_cannot_show_is_said(tmp_path, capsys):
    alone = [f"student,{seed},0.{70 + seed}" for seed in range(5)]
    lines = [f"a\x1b[31m,{seed},0.{75 + seed}" for seed in range(5)] + ["late,9,0.9", "late,8,0.9"]
    path = csv_of(tmp_path / "mine.csv", alone + lines)
    assert from_csv(path) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "\x1b" not in out
    assert "nothing is claimed of late" in out
    assert "at every seed is no evidence: a [31m." in out
    for file, words, error in (
        (path, ["--max-cost", "2"], "in the column cost"),
        (path, ["--methods", "kd"], "are for grids"),
        (tmp_path / "lost.csv", [], "no file"),
    ):
        assert from_csv(file, *words) == 2
        assert error in capsys.readouterr().err
