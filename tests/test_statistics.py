"""Each statistic against SciPy, a published worked example, or its definition written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.statistics import (
    Interval,
    holm,
    mean_interval,
    paired_differences,
    paired_p,
    seeds_needed,
)

# Hours of sleep gained with two drugs, ten patients: Student, The Probable Error of a Mean,
# Biometrika 6 (1908). R's t.test(extra ~ group, sleep, paired = TRUE) prints t = -4.0621, df = 9,
# p-value = 0.002833, 95 percent confidence interval -2.4598858 -0.7001142, mean -1.58.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [a - b for a, b in zip(FIRST_DRUG, SECOND_DRUG, strict=True)]


def test_mean_interval_is_students_of_1908() -> None:
    interval = mean_interval(SLEEP)
    assert interval == pytest.approx((-1.58, -2.4598858, -0.7001142, 10), abs=5e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_mean_interval_is_scipys(n: int, level: float) -> None:
    values = list(np.random.default_rng(n).normal(0.7, 0.01, n))
    expected = stats.t.interval(level, n - 1, np.mean(values), stats.sem(values))
    interval = mean_interval(values, level)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)


def test_one_value_has_no_interval_and_so_no_evidence() -> None:
    assert mean_interval([0.7]) == Interval(0.7, None, None, 1)


def test_equal_values_estimate_no_spread_and_have_no_interval() -> None:
    assert mean_interval([0.1] * 3) == Interval(0.1, None, None, 3)


def test_differences_are_over_common_seeds_alone() -> None:
    method, student = {0: 0.74, 1: 0.78, 5: 0.1}, {1: 0.75, 0: 0.70, 7: 0.9}
    assert paired_differences(method, student) == pytest.approx([0.04, 0.03])
    assert paired_differences({0: 0.76, 1: 0.73}, {0: 0.74, 1: 0.71}) == [0.02, 0.02]  # no spread


def test_paired_t_is_students_of_1908() -> None:
    p = paired_p(SLEEP)
    assert p == pytest.approx(0.002833, abs=5e-7)
    assert p == pytest.approx(stats.ttest_rel(FIRST_DRUG, SECOND_DRUG).pvalue, rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.5, 0.5], None), ([-0.5, -0.5], None), ([0.0, 0.0], 1.0), ([0.5], None), ([], None)],
)
def test_differences_without_spread_have_a_defined_answer(
    differences: list[float], p: float | None
) -> None:
    assert paired_p(differences) == p


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_g_power(effect: float, n: int) -> None:
    # Two-sided paired t test, alpha 0.05, power 0.80, for Cohen's small, medium and large effect:
    # G*Power 3.1 gives 199, 34 and 15 pairs.
    assert seeds_needed(effect, alpha=0.025) == n


def test_seeds_needed_give_the_power_asked_for() -> None:
    differences = [0.01, 0.02, 0.04]
    size = np.mean(differences) / np.std(differences, ddof=1)  # Cohen's d_z
    n = seeds_needed(size, alpha=0.005, wanted=0.9)
    assert n is not None
    draws = np.random.default_rng(0).normal(0, 1, (20_000, n))
    p = stats.ttest_1samp(draws + size, 0, axis=1).pvalue
    assert 0.9 <= np.mean(p <= 0.01) < 0.97


def test_no_number_of_seeds_tells_what_does_not_differ() -> None:
    assert seeds_needed(0.0, alpha=0.025) is None
    assert seeds_needed(0.04, alpha=0.025, most=10) is None
    assert seeds_needed(math.inf, alpha=0.025) == 3


def test_holm_on_the_textbook_example() -> None:
    # The worked example of Wikipedia's "Holm-Bonferroni method": at 0.05 the first and the last
    # are rejected, since 0.005 < 0.05 / 4 and 0.01 < 0.05 / 3 but 0.03 > 0.05 / 2.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    # Independent oracle: reject i if Bonferroni rejects every set of hypotheses that holds i.
    places = range(len(p_values))
    sets = [s for size in places for s in itertools.combinations(places, size + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in places
    ]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "mean_interval: 0 values, wanted at least 1"),
        (lambda: mean_interval([0.7, math.nan]), "not all finite; leave out what is missing"),
        (lambda: mean_interval([0.7], level=95), "level 95, wanted one in"),
        (lambda: paired_p([0.1, math.inf]), "paired_p: .* not all finite"),
        (lambda: seeds_needed(0.1, alpha=0.025, wanted=1), "power 1"),
        (lambda: holm([0.1, 1.1]), "wanted each in"),
        (lambda: holm([math.nan]), "wanted each in"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
