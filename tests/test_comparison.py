"""Rows compared within a pair, on records with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bench.report.comparison import BETTER, UNDECIDED, WORSE, compare


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
    corrected = multipletests(raw, method="holm")[1]
    assert [c.holm_p for c in found.values()] == pytest.approx(corrected.tolist(), rel=1e-6)
    assert found["row0"].verdict == UNDECIDED
    assert found["row4"].verdict == BETTER


def test_a_verdict_has_a_direction_and_minds_how_many_rows_were_looked_at() -> None:
    row = {0: 0.65, 1: 0.655, 2: 0.645}  # t = -17.3 with 2 degrees of freedom: p = 0.0033
    reference = {0: 0.70, 1: 0.70, 2: 0.70}
    assert compare({"a": row}, reference)["a"].verdict == WORSE
    noise = {f"n{i}": {0: 0.70, 1: 0.71, 2: 0.69} for i in range(60)}
    assert compare({"a": row, **noise}, reference)["a"].verdict == UNDECIDED


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
    assert compared.holm_p in (None, 1.0)


def test_a_row_that_cannot_be_tested_counts_among_the_tests() -> None:
    row, reference = {0: 0.74, 1: 0.75, 2: 0.76}, {0: 0.70, 1: 0.70, 2: 0.70}
    found = compare({"a": row, "once": {0: 0.9}}, reference)
    alone = compare({"a": row}, reference)["a"].holm_p
    assert alone is not None
    assert found["a"].holm_p == pytest.approx(2 * alone)
    assert found["once"].holm_p is None
