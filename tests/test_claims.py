"""The table of claims on constructed records whose right verdicts are known."""

from dataclasses import replace

import pytest
import summary_grid

from bench.cost.costs import Costs
from bench.record import Plan, Record, Row
from bench.report.claims import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    claim_table,
    gradient_cosine,
)
from bench.report.results import findings

CATEGORIES = {
    "soft_logits": "response",
    "fitnet": "multi-connection",
    "rkd": "shared-representation",
}
PAIRS = (("wide", "narrow"), ("deep", "narrow"))
NOISE = (0.0, 0.011, -0.007, 0.004, -0.009)
"""What seeds differ by: small beside the effects below, and not the same for two rows."""


def noise(label: str, seed: int) -> float:
    place = ("student", *CATEGORIES).index(label)
    return NOISE[(seed * (place + 1) + place) % len(NOISE)]


# Mean over seeds; `numbers` adds the noise. As the deck has it in every respect.
DECK = {
    "soft_logits": {"scalars": 10, "held": 4.0, "cosine": 0.7},
    "fitnet": {"scalars": 900, "held": 300.0, "cosine": -0.2},
    "rkd": {"scalars": 64, "held": 20.0, "cosine": 0.4},
}
ACCURACY = {"student": 0.70, "soft_logits": 0.80, "fitnet": 0.75, "rkd": 0.72}
SWAPPED = {"student": 0.70, "soft_logits": 0.75, "fitnet": 0.90, "rkd": 0.95}


def measured(label: str, seed: int, values: dict[str, float], smooth: float) -> dict[str, float]:
    more = 1 + noise(label, seed)
    return {
        "knowledge_scalars": values["scalars"],
        "knowledge_directions": values["held"] * more,
        "attention_variation_stage1": smooth * (1 + NOISE[seed % 5]),
    }


def record(
    row: Row, accuracy: float, values: dict[str, float] | None, smooth: float, examined: bool
) -> Record:
    final = {"last_accuracy": accuracy + noise(row.label, row.seed), "epochs": 6}
    stages, curves = [], {}
    if values is not None and examined:
        final |= measured(row.label, row.seed, values, smooth)
        stages = [
            {"name": "hint", "epochs": 4, "taps": ["stage1"]},
            {"name": "finetune", "epochs": 2, "taps": ["logits"]},
        ]
        cosine = values["cosine"] + noise(row.label, row.seed)
        curves = {"gradient_cosine": [cosine] * 4 + [-1.0] * 2, "task_loss": [1.0] * 6}
    return replace(summary_grid.record(row, **final), stages=stages, curves=curves)


def grid(
    seeds: int = 5,
    numbers: dict[str, dict[str, float]] | None = None,
    accuracies: tuple[dict[str, float], ...] = (ACCURACY, SWAPPED),
    smooth: float = 0.6,
    examined: bool = True,
) -> tuple[Plan, dict[str, Record]]:
    """Rows of student, soft_logits, fitnet and rkd on as many pairs as there are accuracies."""
    rows, records = [], {}
    for (teacher, student), accuracy in zip(PAIRS, accuracies, strict=False):
        for seed in range(seeds):
            for label in ("student", *CATEGORIES):
                row = summary_grid.row(label, seed, teacher, student)
                row = replace(row, cell_id=f"{teacher}-{label}-{seed}")
                rows.append(row)
                values = (numbers or DECK).get(label)
                records[row.cell_id] = record(row, accuracy[label], values, smooth, examined)
    return Plan(name="constructed", description="", config={}, rows=rows), records


def costs(loss: dict[str, float], ratio: dict[str, float], spread: float = 0.01) -> Costs:
    return Costs([
        summary_grid.cost(x, ratio[x], loss=loss[x], spread=spread, category=CATEGORIES[x])
        for x in CATEGORIES
    ])  # fmt: skip


DEAR = costs(
    {"soft_logits": 0.1, "fitnet": 0.5, "rkd": 2.0}, {"soft_logits": 1.2, "fitnet": 1.4, "rkd": 2.5}
)


def verdicts(plan, records, costs=None) -> dict:
    rows = claim_table(findings(plan, records, costs)).rows
    return {row["claim"]: row["verdict"] for row in rows}


def evidence(plan, records, costs=None) -> dict:
    rows = claim_table(findings(plan, records, costs)).rows
    return {row["claim"]: row["evidence"] for row in rows}


SMALL = "Response-based knowledge is small"
CHEAP = "Response-based knowledge is cheap"
LARGE = "Multi-connection knowledge is large"
BINDS = "Multi-connection knowledge may over-constrain"
SMOOTH = "Attention maps are smoother than features"
SOFTER = "Shared-representation knowledge is softer"
DEARER = "Shared-representation knowledge costs more"
NONE_BEST = "Nothing is completely superior"


def test_a_world_as_the_deck_says_supports_every_claim():
    assert verdicts(*grid(), DEAR) == dict.fromkeys(
        (SMALL, CHEAP, LARGE, BINDS, SMOOTH, SOFTER, DEARER, NONE_BEST), SUPPORTED
    )
    old = [replace(r, conditions={**r.conditions, "device": "old"}) for r in DEAR.records]
    twice = Costs([*old, *DEAR.records])  # of one pair on two machines
    assert "2 of 2 comparisons" in evidence(*grid(), twice)[CHEAP]


def test_the_opposite_world_supports_none():
    turned = {"soft_logits": DECK["fitnet"], "fitnet": DECK["soft_logits"], "rkd": DECK["fitnet"]}
    # Shared representation binds more than multi-connection; response is the largest.
    turned["rkd"] = {"scalars": 8, "held": 500.0, "cosine": -0.3}
    turned_costs = {"soft_logits": 3.0, "fitnet": 2.0, "rkd": 1.1}
    superior = ({"student": 0.6, "soft_logits": 0.9, "fitnet": 0.7, "rkd": 0.65},) * 2
    found = verdicts(
        *grid(numbers=turned, accuracies=superior, smooth=1.5), costs(turned_costs, turned_costs)
    )
    assert found == dict.fromkeys(found, NOT_SUPPORTED)


def test_two_seeds_decide_nothing_that_needs_seeds():
    found = grid(seeds=2)
    assert {claim: v for claim, v in verdicts(*found).items() if v != UNDECIDED} == {
        SMALL: SUPPORTED  # shapes decide it
    }
    said = evidence(*found)
    assert "too few seeds" in said[SMOOTH]
    assert "response 10, multi-connection 900, shared-representation 64" in said[SMALL]


def test_without_diagnostics_or_costs_the_reason_is_said():
    found = grid(examined=False)
    said = evidence(*found)
    for claim in (SMALL, LARGE, BINDS, SMOOTH, SOFTER):
        assert "diagnostics: true" in said[claim]
    assert "trains on labels" in said[BINDS]
    near = {x: 1 + 0.001 * place for place, x in enumerate(CATEGORIES)}
    overlapping = costs(near, dict.fromkeys(near, 1.0), spread=0.1)
    for claim in (CHEAP, DEARER):
        assert "run_all.py profile" in said[claim]
        assert verdicts(*grid(), overlapping)[claim] == UNDECIDED
    assert verdicts(*found)[NONE_BEST] == SUPPORTED  # needs accuracies alone


def test_a_category_that_the_grid_lacks_and_a_failed_seed_are_named():
    plan, records = grid()
    del records["wide-fitnet-3"]
    said = evidence(plan, records)
    assert "4 seeds" in said[LARGE]
    assert "5 seeds" in said[SMOOTH]
    plan = replace(plan, rows=[row for row in plan.rows if row.label != "rkd"])
    assert verdicts(plan, records)[SOFTER] == UNDECIDED
    assert "rows of both categories" in evidence(plan, records)[SOFTER]


NEAR = {**ACCURACY, "fitnet": ACCURACY["soft_logits"] - 0.0005}


@pytest.mark.parametrize(
    ("accuracies", "verdict", "said"),
    [
        ((ACCURACY, SWAPPED), SUPPORTED, "Each of 3 rows"),
        ((ACCURACY, ACCURACY), NOT_SUPPORTED, "everywhere: soft_logits"),
        ((NEAR, NEAR), UNDECIDED, "significantly: soft_logits, fitnet"),
        ((ACCURACY,), UNDECIDED, "1 pair, too few"),  # of one pair some row is always the best
    ],
)
def test_nothing_is_superior_if_every_row_is_beaten_somewhere(accuracies, verdict, said):
    found = grid(accuracies=accuracies)
    assert verdicts(*found)[NONE_BEST] == verdict
    assert said in evidence(*found)[NONE_BEST]


def test_a_teacher_shared_by_all_seeds_is_no_spread():
    plan, records = grid()
    for each in records.values():
        each.final.update({k: 0.6 for k in each.final if k.startswith("attention")})
    assert verdicts(plan, records)[SMOOTH] == UNDECIDED
    assert "no spread over seeds to judge by" in evidence(plan, records)[SMOOTH]


def test_many_tests_are_corrected_for():
    # Alone at p = 0.02, the smoothness would be supported; among four tests it is not.
    plan, records = grid()
    wobble = (0.94, 0.98, 0.95, 0.99, 0.93)
    for each in records.values():
        seed = int(each.cell_id[-1])
        each.final.update({k: wobble[seed] for k in each.final if k.startswith("attention")})
    flat = {label: {**DECK["fitnet"], "cosine": 0.5} for label in CATEGORIES}
    _, weak = grid(numbers=flat)
    for cell, each in weak.items():
        each.final.update({k: v for k, v in records[cell].final.items() if k.startswith("att")})
    text = evidence(plan, weak)[SMOOTH]
    assert verdicts(plan, weak)[SMOOTH] == UNDECIDED, text


def test_cosines_are_of_the_first_stage_that_reads_the_teacher_and_only_under_labels():
    plan, records = grid()
    fitnet = records["wide-fitnet-0"]
    curve = fitnet.curves["gradient_cosine"][:4]
    assert gradient_cosine(fitnet) == pytest.approx(sum(x for x in curve if x is not None) / 4)
    for each in records.values():
        if "fitnet" in each.cell_id:
            each.curves["task_loss"][:4] = [None] * 4  # its own stage has no labels
    assert gradient_cosine(fitnet) is None
    assert verdicts(plan, records)[BINDS] == UNDECIDED
    assert verdicts(plan, records)[LARGE] == SUPPORTED
