"""Which student of a grid `export --winner` takes, on records with a known winner."""

from dataclasses import replace

from summary_grid import finished, row

from bench.cost.costs import Costs
from bench.record import Plan, Record, Row
from bench.report.answers import winner

# Five seeds with a spread of half a point: 4 points are beyond doubt, 0.1 are not.
SPREAD = (0.0, 0.005, -0.005, 0.002, -0.002)
Grid = tuple[Plan, dict[str, Record]]


def grid(means: dict[tuple[str, str, str], float]) -> Grid:
    """Rows of (teacher, student, label) around these means; every label jitters its own way."""
    rows: list[Row] = []
    records: dict[str, Record] = {}
    for shift, ((teacher, student, label), mean) in enumerate(means.items()):
        for seed in range(5):
            one = row(label, seed, teacher, student)
            # A method's cell is its pair's own; baselines are shared.
            name = one.cell_id if one.role != "method" else f"{teacher}>{one.cell_id}"
            rows.append(replace(one, cell_id=name))
            accuracy = mean + SPREAD[(seed + shift) % 5]
            records[name] = replace(finished(one, accuracy, accuracy, None), cell_id=name)
    return Plan(name="won", description="", config={}, rows=rows), records


def pair(teacher: str, model: str, **means: float) -> dict[tuple[str, str, str], float]:
    return {(teacher, model, label): mean for label, mean in means.items()}


def won(means: dict[tuple[str, str, str], float]) -> tuple[Row, str] | None:
    return winner(*grid(means), Costs())


def test_the_recommended_row_of_the_highest_mean_wins_with_its_first_seed():
    row, why = won(
        pair("wide", "narrow", student=0.70, fitnet=0.74, rkd=0.70)
        | pair("wide", "broad", student=0.80, fitnet=0.80, soft_logits=0.86)
    )
    assert (row.student, row.label, row.seed) == ("broad", "soft_logits", 0)
    assert why.startswith("proven")
    assert "+6.0 points" in why


def test_a_pair_of_higher_accuracy_without_proof_does_not_win():
    row, _ = won(
        pair("wide", "narrow", student=0.70, fitnet=0.74)
        | pair("wide", "broad", student=0.95, fitnet=0.951)
    )
    assert row.student == "narrow"


def test_a_failed_first_seed_is_passed_over():
    plan, records = grid(pair("wide", "narrow", student=0.70, fitnet=0.76))
    first = next(r.cell_id for r in plan.rows if r.label == "fitnet" and r.seed == 0)
    records[first] = replace(records[first], status="failed", error="boom", final={})
    row, why = winner(plan, records, Costs())
    assert row.seed == 1
    assert "4 seeds" in why


def test_without_proof_the_highest_believed_gain_is_taken():
    row, why = won(
        pair("wide", "narrow", student=0.70, fitnet=0.702, rkd=0.60)
        | pair("wide", "broad", student=0.80, fitnet=0.801)
    )
    assert (row.student, row.label, row.seed) == ("narrow", "fitnet", 0)
    assert why.startswith("undecided, not proven")
    assert "+0.2" in why


def test_nothing_wins_below_the_plain_student_or_without_evidence():
    worse = pair("wide", "narrow", student=0.70, fitnet=0.699, rkd=0.60)
    assert won(worse) is None
    assert winner(grid(worse)[0], {}, Costs()) is None
