"""The answer in sentences, and the paper's table, on grids whose answers are known."""

import shutil
import subprocess
from dataclasses import replace

import pytest
import summary_grid as grid

from bench.design import CONFIRMATION, SCREENING
from bench.record import Plan
from bench.report.card import STUDENTS, caution, pair_lines, sentences
from bench.report.paper import paper_table
from bench.report.results import findings

HOSTILE = "=cmd|' /C calc'!A0 <b>$x_1$</b> \\input{x} 100 % #&~^"
SPREAD = (0.0, 0.006, -0.005, 0.003, -0.002, 0.001)
LONGER = "student (epochs_factor=2)"


def made(means: dict[tuple[str, str, str], float], screened: bool = False, few: str = "fsp"):
    """Six seeds around these means of (teacher, student, label); screened rows have two alone."""
    rows, records = [], {}
    for shift, ((teacher, student, label), mean) in enumerate(means.items()):
        alone = label.startswith("student")
        for seed in range(2 if label == few and screened else 6):
            row = replace(
                grid.row("rkd", seed, teacher, student), label=label, cell_id=f"{shift}-{seed}",
                role="student" if label == "student" else "method",
                method="student" if alone else label, category="baseline" if alone else "response",
                phase="" if not screened else SCREENING if seed < 2 else CONFIRMATION,
            )  # fmt: skip
            accuracy = mean + SPREAD[(seed + shift) % len(SPREAD)]
            rows.append(row)
            record = grid.finished(row, accuracy, accuracy, None)
            epochs = record.final["epochs"] * (2 if label == LONGER else 1)
            records[row.cell_id] = replace(record, final={**record.final, "epochs": epochs})
    config = {"seeds": {"screen": 2, "finalists": 2, "confirm": 4}} if screened else {}
    return findings(Plan(name="by_hand", description="", config=config, rows=rows), records, None)


def pair(model: str, teacher: str = "wide", /, **means: float):
    return {(teacher, model, label.replace("longer", LONGER)): x for label, x in means.items()}


def said(found) -> str:
    return "\n".join("".join(part.text for part in sentence) for sentence in sentences(found))


def test_each_student_has_a_sentence_and_longer_training_the_last():
    found = made(
        pair("tiny", student=0.7, longer=0.71, rkd=0.8, fsp=0.75)
        | pair("small", student=0.8, longer=0.805, rkd=0.801, fsp=0.799),
        screened=True,
    )
    first, second, last = said(found).splitlines()
    assert first.startswith("For a tiny student rkd is proven: +10.")
    assert second.startswith("For a small student")
    assert "not proven" in second or "undecided" in second
    assert "2× epochs" in last
    worse = made(pair("tiny", student=0.8, rkd=0.795, fsp=0.797), screened=True)
    assert "it is shown that no finalist gains more than 1.0 points." in said(worse)
    ((key, answer),) = worse.answers.items()
    worse = replace(worse, answers={key: replace(answer, no_help=False)})
    assert said(worse).startswith("For a tiny student it is undecided, the student alone leads.")
    assert pair_lines(found)[0].verdict == "proven"
    screened = [line for line in found.lines[next(iter(found.answers))] if line.label == "fsp"]
    assert screened[0].verdict in ("screened only", "in the race")
    assert screened[0].gain is not None
    assert (screened[0].gain.low, screened[0].gain.n) == (None, 2)
    assert "n = 4 seeds" in paper_table(found)  # those of the claims


def test_what_longer_training_buys_is_said_of_claims_alone():
    # A screened row leads; what is held against longer training is the best method confirmed.
    rows = pair("tiny", student=0.7, longer=0.71, rkd=0.8, fsp=0.85)
    assert "the best method is proven to beat that" in said(made(rows, screened=True))
    assert "is not confirmed" in said(made(rows, screened=True, few=LONGER))
    worse = said(made(pair("tiny", student=0.7, longer=0.6, rkd=0.75)))
    assert "2× epochs) changes by -" in worse
    # A student of another recipe is no method: it does not beat longer training for one.
    other = pair("tiny", student=0.7, longer=0.8, rkd=0.75, **{"student (learning_rate=0.2)": 0.9})
    assert "no method is proven to beat that" in said(made(other, screened=True))


def test_where_every_row_loses_none_is_recommended():
    one, two = (pair(name, student=0.7, rkd=mean) for name, mean in (("a", 0.5), ("b", 0.46)))
    assert "shown that no finalist gains more than" in said(made(one))
    parts = [part for sentence in sentences(made(one | two)) for part in sentence]
    assert {part.verdict for part in parts if part.verdict} == {"undecided"}


def test_with_equal_seeds_the_mean_over_pairs_comes_first():
    found = made(pair("tiny", student=0.7, rkd=0.8) | pair("small", student=0.8, rkd=0.9))
    first, second, _ = said(found).splitlines()
    assert first.startswith("On average over 2 pairs: rkd, +10.0 points")
    assert "exploratory" in second


def test_claims_of_equal_seeds_are_exploratory_without_a_mean_over_pairs_too():
    found = made(pair("tiny", student=0.7, rkd=0.8) | pair("tiny", "deep", student=0.7, fsp=0.8))
    assert not found.overall
    assert any("exploratory" in text for text in caution(found))


def test_of_many_students_rows_are_counted():
    many = {}
    for name in "abcd":
        many |= pair(name, student=0.7, rkd=0.8)
    lines = said(made(many, screened=True)).splitlines()
    assert len(lines) <= STUDENTS + 1
    assert "rkd is proven for 4 of 4 pairs" in lines[0]
    lost = {key: 0.6 if key[2] == "rkd" else mean for key, mean in many.items()}
    text = "it is shown that no finalist gains more than 1.0 points for 4 of 4 pairs."
    assert text in said(made(lost, screened=True))


@pytest.mark.parametrize("means", [{}, {"rkd": 0.7}])
def test_without_a_student_there_is_no_answer(means):
    found = made(pair("tiny", **means))
    assert said(found).startswith("No answer yet")
    lacks = caution(replace(found, records={}))
    assert [text[:16] for text in lacks] == ["Without a result"] * len(means)


def test_a_recipe_that_is_too_short_is_said():
    found = made(pair("tiny", student=0.7, longer=0.8, rkd=0.75))
    assert any("recipe is too short" in line for line in caution(found))


WIDE = {
    key: mean
    for number in range(13)
    for key, mean in pair(
        f"resnet8x4_{number}", "resnet32x4", student=0.7, rkd=0.8, fsp=0.71, longer=0.72
    ).items()
}


@pytest.mark.parametrize(
    "means",
    [pair("tiny", **{"student": 0.7, HOSTILE: 0.8}), WIDE, {}],
    ids=["hostile", "wide", "0"],
)
def test_the_paper_s_table_fits_the_page(means, tmp_path):
    table = paper_table(made(means))
    assert table.count("{") - table.count(r"\{") == table.count("}") - table.count(r"\}")
    if means:
        assert r"\textbf{+10.0 $\pm$ " in table
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed: whether the table fits was not tried")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}x {table}"
    (tmp_path / "t.tex").write_text(rf"{document}\end{{document}}", encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout
