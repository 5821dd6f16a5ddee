"""Rows compared within a pair and ranked over pairs, on records whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import scikit_posthocs
import summary_grid as grid
from scipy import stats
from statsmodels.stats.multitest import multipletests
from test_statistics import DEMSAR_RANKS

from bench.record import Plan
from bench.report.comparison import (
    BETTER,
    UNDECIDED,
    WORSE,
    compare,
    comparison_tables,
)
from bench.report.ranking import Blocks, blocks_of, rank
from bench.report.summary import PairKey
from bench.report.tables import to_csv


def key(number: int, student: str = "") -> PairKey:
    return PairKey("d", (), f"t{number}", student or f"s{number}")


def blocks(matrix: list[list[float]], **changes: object) -> Blocks:
    names = tuple(f"row{place}" for place in range(len(matrix[0])))
    pairs = tuple(key(number) for number in range(len(matrix)))
    values = {
        "labels": names, "pairs": pairs, "matrix": tuple(map(tuple, matrix)),
        "seeds": (1,) * len(pairs), "left_out": {},
    }  # fmt: skip
    return Blocks(**{**values, **changes})


# --- within a pair ---------------------------------------------------------------------------


def made(rows: int, seeds: int = 5) -> tuple[dict[str, dict[int, float]], dict[int, float]]:
    """Rows of rising gain, 0 to 8 points, with noise of one point."""
    generator = np.random.default_rng(3)
    reference = {seed: 0.7 + float(generator.normal(0, 0.01)) for seed in range(seeds)}
    found = {
        f"row{i}": {
            s: x + 0.02 * i + float(generator.normal(0, 0.01)) for s, x in reference.items()
        }
        for i in range(rows)
    }
    return found, reference


def test_p_is_scipys_and_its_correction_statsmodels() -> None:
    rows, reference = made(5)
    found = compare(rows, reference)
    raw = [
        stats.ttest_rel([row[s] for s in reference], list(reference.values())).pvalue
        for row in rows.values()
    ]
    assert [c.p for c in found.values()] == pytest.approx(raw, rel=1e-6)
    corrected = multipletests(raw, method="holm")[1]
    assert [c.holm_p for c in found.values()] == pytest.approx(corrected.tolist(), rel=1e-6)
    assert found["row0"].verdict == UNDECIDED
    assert found["row4"].verdict == BETTER


def test_a_verdict_has_a_direction_and_minds_how_many_rows_were_looked_at() -> None:
    row = {0: 0.65, 1: 0.655, 2: 0.645}  # t = -17.3 with 2 degrees of freedom: p = 0.0033
    reference = {0: 0.70, 1: 0.70, 2: 0.70}
    assert compare({"a": row}, reference)["a"].verdict == WORSE
    noise = {f"n{i}": {0: 0.70, 1: 0.71, 2: 0.69} for i in range(60)}
    among = compare({"a": row, **noise}, reference)["a"]
    assert among.p == compare({"a": row}, reference)["a"].p
    assert among.verdict == UNDECIDED


def test_a_margin_moves_what_is_tested_and_not_the_gain() -> None:
    row, reference = {0: 0.74, 1: 0.75, 2: 0.76}, {0: 0.70, 1: 0.70, 2: 0.70}
    plain, demanding = (compare({"a": row}, reference, margin=m)["a"] for m in (0.0, 0.05))
    assert plain.gain == demanding.gain
    assert (plain.verdict, demanding.verdict) == (BETTER, UNDECIDED)
    assert compare({"a": row}, reference, margin=0.2)["a"].verdict == WORSE


@pytest.mark.parametrize(
    "row",
    [
        {},
        {7: 0.9},
        {0: 0.9},
        # One image more right at every seed; in binary the three differences are not equal.
        {0: 0.73, 1: 0.74, 2: 0.75},
        {0: 0.70, 1: 0.71, 2: 0.72},
    ],
)
def test_without_seeds_or_spread_nothing_is_told(row: dict[int, float]) -> None:
    compared = compare({"a": row}, {0: 0.70, 1: 0.71, 2: 0.72})["a"]
    assert compared.verdict == UNDECIDED
    assert compared.p in (None, 1.0)


def test_a_row_that_cannot_be_tested_counts_among_the_tests() -> None:
    row, reference = {0: 0.74, 1: 0.75, 2: 0.76}, {0: 0.70, 1: 0.70, 2: 0.70}
    found = compare({"a": row, "once": {0: 0.9}}, reference)
    assert found["a"].p is not None
    assert found["a"].holm_p == pytest.approx(2 * found["a"].p)
    assert found["once"].holm_p is None


# --- over pairs ------------------------------------------------------------------------------


def test_ranks_of_demsars_example_and_what_they_tell() -> None:
    ranks = rank(blocks([[-place for place in row] for row in DEMSAR_RANKS]))
    assert ranks.mean_ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    # His chi-square, 9.28 without a correction for ties, has p = 0.026; CD = 1.25 joins all four.
    assert ranks.told_apart
    assert ranks.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert ranks.groups == ("a",) * 4
    assert ranks.order() == [3, 1, 2, 0]


def test_groups_are_those_of_nemenyis_p_values_in_scikit_posthocs() -> None:
    generator = np.random.default_rng(1)
    matrix = (np.arange(5) + generator.normal(0, 1.2, (12, 5))).round(3)
    ranks = rank(blocks(matrix.tolist()))
    p = scikit_posthocs.posthoc_nemenyi_friedman(matrix).to_numpy()
    apart = [[not set(first) & set(second) for second in ranks.groups] for first in ranks.groups]
    assert apart == (p < 0.05).tolist()
    assert 0 < np.sum(apart) < 20  # or the example would show nothing


def test_nemenyi_counts_only_after_friedman() -> None:
    # The first of 80 rows always wins, the last always loses, and the others take turns, so that
    # their mean ranks are equal: chi-square is 12 * 10 * 2 * 39.5^2 / (80 * 81) = 57.8 with 79
    # degrees of freedom, nothing at all, though the two extremes are 79 ranks apart.
    up = [100.0, *range(78), -100.0]
    down = [100.0, *reversed(range(78)), -100.0]
    ranks = rank(blocks([up, down] * 5))
    assert ranks.test.statistic == pytest.approx(57.79, abs=5e-3)
    assert ranks.critical_difference < 79
    assert not ranks.told_apart
    assert ranks.groups == ("a",) * 80


def test_fewer_than_ten_pairs_are_not_ranked() -> None:
    for pairs, ranked in ((9, False), (10, True)):
        tables = comparison_tables(*evidence(tuple(f"small{i}" for i in range(pairs))))
        assert any(table.title.startswith("Ranks") for table in tables) == ranked


def test_a_pair_is_one_block_however_many_seeds_it_has() -> None:
    pairs = {
        key(0): {"a": {s: 0.7 + s / 100 for s in range(50)}, "b": {s: 0.6 for s in range(50)}},
        key(1): {"a": {0: 0.5, 1: 0.6}, "b": {1: 0.4, 2: 0.9}},
    }
    found = blocks_of(pairs)
    assert found.matrix == ((0.945, 0.6), (0.6, 0.4))  # of the second pair seed 1 alone
    assert found.seeds == (50, 1)


def test_rows_missing_in_some_pairs_and_pairs_without_a_common_seed_are_named() -> None:
    pairs = {
        key(0): {"a": {0: 0.5}, "b": {0: 0.4}, "c": {0: 0.1}},
        key(1): {"a": {0: 0.5}, "b": {0: 0.6}, "c": {}},
        key(2): {"a": {0: 0.5}, "b": {1: 0.6}, "c": {1: 0.6}},
    }
    found = blocks_of(pairs)
    assert found.labels == ("a", "b")
    assert found.left_out == {"c": (key(1),)}
    assert found.pairs == (key(0), key(1))
    assert found.without_seeds == (key(2),)


def test_means_that_are_equal_but_for_the_last_bit_tie() -> None:
    pairs = {key(i): {"a": {0: 0.1, 1: 0.3}, "b": {0: 0.2, 1: 0.2}} for i in range(10)}
    assert rank(blocks_of(pairs)).mean_ranks == (1.5, 1.5)


# --- tables ----------------------------------------------------------------------------------


TEN = tuple(f"small{i}" for i in range(10))


def evidence(students: tuple[str, ...] = ("small1", "small2")) -> tuple[Plan, dict]:
    """Two pairs, three seeds; soft_logits is 5 points above the student, fitnet as good."""
    offsets = {"student": 0.0, "soft_logits": 0.05, "fitnet": 0.0, "teacher": 0.2}
    rows, records = [], {}
    for place, student in enumerate(students):
        for label, offset in offsets.items():
            for seed in range(3):
                row = grid.row(label, seed, f"big{place}", student)
                last = 0.6 + 0.01 * seed + offset + 0.001 * ((seed * 7 + len(label)) % 3)
                rows.append(row)
                records[row.cell_id] = grid.finished(row, last, last, None)
    return Plan(name="made", description="", config={}, rows=rows), records


def test_tables_are_per_pair_and_reference_and_then_over_pairs() -> None:
    tables = comparison_tables(*evidence(TEN))
    assert [table.title.partition(",")[0] for table in tables] == [
        *["Gain over student", "Gain over soft_logits"] * 10,
        "Ranks over 10 pairs of 3 rows",
    ]
    over_student = {row[0].value: row[-1].value for row in tables[0].rows}
    assert over_student == {"soft_logits": BETTER, "fitnet": UNDECIDED}
    over_soft_logits = {row[0].value: row[-1].value for row in tables[1].rows}
    assert over_soft_logits == {"fitnet": WORSE}
    (ranks,) = [
        {column.key: entry.value for column, entry in row}
        for row in tables[-1].pairs()
        if row[0][1].value == "soft_logits"
    ]
    assert (ranks["mean_rank"], ranks["group"]) == (1.0, "a")
    assert (ranks["better"], ranks["undecided"], ranks["worse"]) == (10, 0, 0)


def test_shared_networks_and_missing_rows_are_said() -> None:
    plan, records = evidence(("same",) * 10)
    for seed in range(3):
        del records[grid.row("fitnet", seed, "big1", "same").cell_id]
    # The plan names fitnet's cells by student alone, so all pairs lost it.
    (notes,) = [table.notes for table in comparison_tables(plan, records) if "Ranks" in table.title]
    assert any("share 1 data set, 1 student" in note for note in notes)
    assert any(note.startswith("Not ranked: fitnet") for note in notes)


def test_equal_records_give_equal_bytes_whatever_their_order() -> None:
    plan, records = evidence()
    backwards = dict(reversed(records.items()))
    texts = [[to_csv(t) for t in comparison_tables(plan, r)] for r in (records, backwards)]
    assert texts[0] == texts[1]


def test_nothing_finished_gives_no_table() -> None:
    plan, _ = evidence()
    assert comparison_tables(plan, {}) == ()
