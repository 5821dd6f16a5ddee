"""A small self-test of the decision; in full: python -m tests.benchmarks.decision_quality."""

import numpy as np
import pytest
from benchmarks.decision_quality import COVERAGE, FALSE_CLAIMS, TARGETS, fits, measure, summary

PAIRS = TARGETS["fresh subsets"]


@pytest.fixture(scope="module")
def counts():
    return measure(fits()["fresh subsets"], 120, follow=False)


def holds(values: list[float], limit: float, sign: int) -> bool:
    """Within three Monte-Carlo standard errors."""
    mean, two_errors = summary(values)
    return sign * (mean - limit) <= 1.5 * two_errors


def test_the_best_row_is_named_as_often_as_promised(counts) -> None:
    for pair, (best, regret) in PAIRS.items():
        assert holds(counts["shipped", pair, "best"], best, -1)
        assert holds(counts["shipped", pair, "regret"], regret, 1)
        assert holds(counts["shipped", pair, "best in race"], 0.95, -1)


def test_claims_and_intervals_keep_their_levels(counts) -> None:
    assert holds(counts["shipped", "grid", "false claims"], FALSE_CLAIMS, 1)
    assert all(holds(counts["shipped", pair, "covered"], COVERAGE, -1) for pair in PAIRS)


def test_finalists_drawn_at_random_name_the_best_row_far_less_often(counts) -> None:
    random = np.random.default_rng(0)

    def at_random(pair, count):
        return random.choice([row.name for row in pair.rows if row.nameable], count, replace=False)

    blind = measure(fits()["fresh subsets"], 40, choose=at_random, follow=False)
    for pair in PAIRS:
        shipped, lower = (np.mean(c["shipped", pair, "best"]) for c in (counts, blind))
        assert shipped - lower > 0.3
        assert shipped - np.mean(counts["first build's", pair, "best"]) > 0.4
