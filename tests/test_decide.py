"""The decision: each rule against a published example, an oracle written out, or a hand's count."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench.decide.best_bet import (
    PRIOR_DEVIATION,
    TAUS,
    Chance,
    Posterior,
    chances,
    posterior,
    row_variances,
    still_in_the_race,
)
from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED, Question, decide
from bench.decide.evidence import Pair, Row
from bench.decide.finalists import choose_finalists
from bench.decide.proof import FIRST_LOOK, SECOND_LOOK, Family, prove, within_margin
from bench.faults import UserError
from bench.statistics import ALPHA, between_groups, holm, power, seeds_needed

# Hours of sleep gained with two drugs, ten patients (Student 1908). R's t.test(extra ~ group,
# paired = TRUE) prints p-value = 0.002833 and the interval 0.7001142 2.4598858 of the difference.
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

# Yield of dyestuff from six batches (Davies 1947).
DYESTUFF = {
    "A": (1545, 1440, 1440, 1520, 1580), "B": (1540, 1555, 1490, 1560, 1495),
    "C": (1595, 1550, 1605, 1510, 1560), "D": (1445, 1440, 1595, 1465, 1545),
    "E": (1595, 1630, 1515, 1635, 1625), "F": (1520, 1455, 1450, 1480, 1445),
}  # fmt: skip


def row(name: str, values: list[float], kind: str = "method", **fields) -> Row:
    """A finalist with confirmation seeds 0, 1, ..."""
    return Row(
        name=name, kind=kind, finalist=kind != "reference",
        confirmation=dict(enumerate(values)), **fields,
    )  # fmt: skip


def student(values: list[float], **fields) -> Row:
    return row("student", values, "reference", cost=1.0, **fields)


def pair(*rows: Row, **fields) -> Pair:
    return Pair(**{"name": "p", "test_images": 500, "rows": rows, **fields})


def screened(name: str, values: list[float], kind: str = "method", cost: float | None = 1.2) -> Row:
    return Row(name=name, kind=kind, screening=dict(enumerate(values, 100)), cost=cost)


NOISE = [0.004, -0.002, 0.006, -0.004, 0.002, -0.006, 0.0, 0.004, -0.004, 0.0]
BASE = [0.80 + 3 * e for e in reversed(NOISE)]


def above(gain: float, spread: float = 1.0) -> list[float]:
    return [base + gain + spread * e for base, e in zip(BASE, NOISE, strict=True)]


# --- effects over pairs -----------------------------------------------------------------------


def test_the_deviation_between_teachers_is_what_lme4_prints() -> None:
    # lme4: lmer(Yield ~ 1 + (1 | Batch), Dyestuff) prints Std.Dev. 42.00 for the batches; of
    # equal sizes, REML and the analysis of variance agree.
    groups = [[float(value) for value in group] for group in DYESTUFF.values()]
    assert between_groups(groups) == pytest.approx(42.00, abs=0.005)
    assert between_groups([[1.0, 2.0]]) is None
    assert between_groups([[1.0], [2.0]]) is None


# --- power and margins -----------------------------------------------------------------------


def test_power_is_that_of_statsmodels() -> None:
    # statsmodels 0.14: TTestPower().power(0.6, 10, 0.00625, alternative="larger"), and
    # solve_power(d, alpha=alpha, power=0.8, alternative="larger"), rounded up.
    assert power(0.6, 10, 0.00625) == pytest.approx(0.18055018945329238, rel=1e-9)
    expected = {(0.2, 0.05): 156, (0.3, 0.0125): 109, (0.5, 0.00625): 48, (1.2, 0.025): 8}
    assert {(d, alpha): seeds_needed(d, alpha) for d, alpha in expected} == expected


def test_non_inferiority_is_a_one_sided_t_test_with_holm() -> None:
    rows = {"a": [0.001, -0.002, 0.003, 0.0], "b": [0.004, 0.001, 0.009, 0.002]}
    found = within_margin([rows, {}], [0.01, 0.01], alpha=0.05)
    raw = [stats.ttest_1samp(d, 0.01, alternative="less").pvalue for d in rows.values()]
    assert [w.p for w in found[0]] == pytest.approx(holm([float(p) for p in raw]), rel=1e-9)
    assert found[1] == ()
    assert [w.shown for w in found[0]] == [True, True]
    strict = within_margin([rows], [0.01], alpha=0.02)[0]
    assert [w.shown for w in strict] == [True, False]


def test_no_row_helps_by_more_than_the_margin_when_the_worst_test_shows_it() -> None:
    def shown(*gains: float) -> bool:
        rows = [row(name, above(gain, 0.2)) for name, gain in zip("ab", gains, strict=True)]
        return decide([pair(student(BASE), *rows)]).answers[0].no_help

    assert shown(-0.02, 0.0)
    assert not shown(-0.02, 0.02)
    untested = pair(student(BASE), row("a", above(-0.02, 0.2)), row("b", [0.99]))
    assert not decide([untested]).answers[0].no_help


def test_too_few_seeds_for_a_margin_are_named() -> None:
    wide = [0.05, -0.05, 0.02, -0.02]
    found = within_margin([{"a": wide}], [0.005], alpha=0.05)[0][0]
    assert found.too_few
    assert found.needed == seeds_needed(0.005 / float(np.std(wide, ddof=1)), 0.05)
    equal = within_margin([{"a": [0.002] * 4}], [0.005], alpha=0.05)[0][0]
    assert (equal.p, equal.shown, equal.needed) == (1.0, False, None)


# --- proven ----------------------------------------------------------------------------------


def test_a_claim_is_students_paired_test_of_1908() -> None:
    scaled = [[(hours + 2) / 10 for hours in drug] for drug in (FIRST_DRUG, SECOND_DRUG)]
    claim = prove([Family(student(scaled[0]), (row("a", scaled[1]),))], [ALPHA])[0][0]
    assert claim.p == pytest.approx(0.002833, abs=5e-7)
    assert [10 * bound for bound in claim.gain[:3]] == pytest.approx(
        [1.58, 0.7001142, 2.4598858], abs=5e-8
    )
    assert claim.proven


def test_holm_is_over_all_pairs_and_an_interval_over_the_rows_of_one() -> None:
    rows = (row("a", above(0.01)), row("b", above(0.001, 3)))
    one = prove([Family(student(BASE), rows)], [ALPHA])[0]
    two = prove([Family(student(BASE), rows)] * 2, [ALPHA])[0]
    d = np.array([0.01 + e for e in NOISE])
    p = stats.ttest_1samp(d, 0).pvalue
    assert (one[0].p, two[0].p) == pytest.approx((2 * p, 4 * p), rel=1e-6)
    assert one[0].gain == two[0].gain
    expected = stats.t.interval(1 - 0.05 / 2, 9, d.mean(), stats.sem(d))
    assert one[0].gain[1:3] == pytest.approx(expected, rel=1e-6)


def test_equal_differences_a_single_seed_and_a_loss_prove_nothing() -> None:
    rows = (row("equal", [b + 0.02 for b in BASE]), row("one", [0.9]), row("none", []))
    found = prove([Family(student(BASE), (*rows, row("worse", above(-0.02))))], [ALPHA])[0]
    assert [claim.p is None for claim in found] == [True, True, True, False]
    assert not any(claim.proven for claim in found)
    assert (found[0].gain.low, found[2].gain) == (None, None)


def test_the_second_look_has_its_own_alpha_and_keeps_what_the_first_one_proved() -> None:
    first = student(BASE, extension=dict(zip(range(10, 20), BASE, strict=True)))
    again, lost = (
        dict(zip(range(10, 20), above(gain, 5), strict=True)) for gain in (-0.015, -0.03)
    )
    rows = (
        row("a", above(0.02), extension=again),
        row("b", above(0.004, 4)),
        row("c", above(0.02), extension=lost),
    )
    early, late, turned = prove([Family(first, rows)], [FIRST_LOOK, SECOND_LOOK])[0]
    assert early.proven  # at the first look
    assert early.p > 0.01
    assert not late.proven
    assert not turned.proven  # all its seeds together lose
    assert pytest.approx(ALPHA) == FIRST_LOOK + SECOND_LOOK


# --- best bet --------------------------------------------------------------------------------


def test_the_posterior_is_that_of_the_model_written_out() -> None:
    # Oracle: y ~ N(0, C), with flat priors as variances of 1e4 and each tau's likelihood as it is.
    rng = np.random.default_rng(0)
    y = rng.normal(0.8, 0.02, (5, 6))
    y[3:, 4:] = np.nan
    methods = np.array([False, True, True, True])
    seen = np.argwhere(np.isfinite(y))
    r, s = seen[:, 0], seen[:, 1]
    noise = np.diag(row_variances(y)[r])
    seeds = 1e4 * (s[:, None] == s)
    member = np.array([False, *methods])[r]
    gains, logs = [], []
    for tau in TAUS:
        same = r[:, None] == r
        flat = 1e4 * same * (~member & (r > 0))
        shared = (tau**2 * same + 1e4) * np.outer(member, member)
        whole = noise + seeds + flat + shared
        logs.append(stats.multivariate_normal.logpdf(y[r, s] - 0.8, np.zeros(len(r)), whole))
        own = [r == i for i in range(1, 5)]
        cross = [
            (tau**2 * o + 1e4) * member if m else 1e4 * o for o, m in zip(own, methods, strict=True)
        ]
        gains.append(cross @ np.linalg.solve(whole, y[r, s] - 0.8))
    logs += stats.halfnorm.logpdf(TAUS, scale=PRIOR_DEVIATION) + np.log(TAUS)
    weights = np.exp(logs - np.max(logs))
    found = posterior(y, methods)
    assert found.weights == pytest.approx(weights / weights.sum(), rel=1e-3)
    assert found.means == pytest.approx(np.array(gains), abs=1e-6)


def test_variances_are_shrunken_to_the_pooled_one() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(0.8, [[0.01]] * 8 + [[0.04]], (9, 40)) + rng.normal(0, 0.1, 40)
    found = np.sqrt(row_variances(y))
    assert np.all(abs(found[:8] - 0.01) < 0.006)
    assert 0.025 < found[8] < 0.04
    assert np.all(row_variances(np.full((3, 4), 0.5)) > 0)


def test_methods_shrink_to_their_mean_and_longer_students_do_not() -> None:
    rows: dict[str, Mapping[int, float]] = {"student": dict(enumerate(BASE))}
    for name, gain in {"a": 0.03, "b": 0.0, "c": 0.002, "d": -0.002, "long": 0.03}.items():
        rows[name] = dict(enumerate(above(gain, 8 if name in "ab" else 1)))
    found = {c.row: c for c in chances(rows, "abcd", [*"abcd", "long"])}
    assert found["a"].gain < 0.029
    assert found["long"].gain == pytest.approx(0.03, abs=2e-3)
    assert sum(c.best for c in found.values()) == pytest.approx(1)
    assert found["long"].better > 0.99


def test_equal_rows_are_the_best_with_equal_chances() -> None:
    means, covariance = np.zeros((1, 3)), np.eye(3)[None] * 1e-4
    best = Posterior(np.ones(1), means, covariance).best(np.array([True, True, False]), 20_000)
    # Two rows and the reference at 0: both below it in a quarter of the cases.
    assert best == pytest.approx([0.25, 0.375, 0.375, 0.0], abs=0.01)


def test_the_race_is_the_fewest_rows_that_sum_to_95_percent() -> None:
    found = [Chance(n, 0, 0, p) for n, p in {"a": 0.03, "b": 0.6, "c": 0.35, "d": 0.02}.items()]
    assert still_in_the_race(found) == ("b", "c")


# --- finalists -------------------------------------------------------------------------------


def grid_pair(*longer: tuple[float, float], **methods: float) -> Pair:
    rows = [screened(name, [a, a + 0.02]) for name, a in methods.items()]
    rows += [screened(f"x{f:g}", [a, a + 0.02], "longer", cost=f) for f, a in longer]
    return pair(screened("student", [0.8, 0.82], "reference", cost=1.0), *rows)


def test_one_longer_student_and_the_best_methods_are_confirmed() -> None:
    found = grid_pair((2.0, 0.7), (4.0, 0.6), a=0.85, b=0.9, c=0.86, d=0.9, e=0.8)
    assert choose_finalists(found, 4) == ("b", "c", "d", "x2")
    assert choose_finalists(grid_pair(a=0.8, b=0.9, c=0.8), 2) == ("a", "b")  # the grid's order


def test_of_longer_students_within_one_standard_error_the_longest_is_confirmed() -> None:
    noisy = [screened(n, [0.85 - e, 0.85 + e]) for n, e in (("a", 0.03), ("b", -0.03), ("c", 0.03))]
    near = (screened("x2", [0.9, 0.93], "longer", 2.0), screened("x4", [0.89, 0.92], "longer", 4.0))
    far = (near[0], screened("x4", [0.79, 0.82], "longer", 4.0))
    first = screened("student", [0.8, 0.86], "reference", 1.0)
    assert choose_finalists(pair(first, *noisy, *near), 2) == ("a", "x4")
    assert choose_finalists(pair(first, *noisy, *far), 2) == ("a", "x2")


def test_controls_and_rows_beyond_the_cost_limit_are_not_confirmed() -> None:
    found = grid_pair((2.0, 0.7), (4.0, 0.9), a=0.85, b=0.9, c=0.86)
    control = screened("control", [0.99, 0.99], "ablation")
    unknown = screened("unknown", [0.99, 0.99], cost=None)
    found = replace(found, rows=(*found.rows, control, unknown))
    assert choose_finalists(found, 3, max_cost=2.0) == ("b", "c", "x2")
    assert choose_finalists(found, 9) == ("a", "b", "c", "x2", "x4", "unknown")


# --- the answer ------------------------------------------------------------------------------


def test_a_proven_row_is_named_before_a_better_looking_one() -> None:
    rows = (student(BASE), row("sure", above(0.02), cost=1.1), row("wild", above(0.03, 15)))
    answer = decide([pair(*rows)]).answers[0]
    assert (answer.verdict, answer.named) == (PROVEN, "sure")
    assert answer.settle is None
    assert not answer.claim("wild").proven
    assert "wild" in answer.in_the_race


def test_nothing_proven_names_the_best_bet_and_what_would_settle_it() -> None:
    found = pair(student(BASE), row("a", above(0.006, 4)), row("b", above(-0.02)))
    answer = decide([found], Question(extend=10)).answers[0]
    assert (answer.verdict, answer.named) == (BEST_BET, "a")
    assert 0 < answer.settle.chance < 1
    assert answer.settle.seeds > 10
    plain = decide([found]).answers[0].settle
    assert plain.chance is None
    assert answer.settle.seeds > plain.seeds  # the first look has less than the whole level


def test_a_best_bet_that_may_well_be_worse_is_undecided() -> None:
    answer = decide([pair(student(BASE), row("a", above(0.0001, 4)))]).answers[0]
    assert (answer.verdict, answer.named) == (UNDECIDED, "a")
    assert set(answer.in_the_race) == {"student", "a"}


def test_a_cost_limit_changes_the_name_and_not_the_proof() -> None:
    found = pair(
        student(BASE), row("dear", above(0.03), cost=3.0), row("cheap", above(0.02), cost=1.1),
        row("unknown", above(0.04)),
    )  # fmt: skip
    free, limited = (decide([found], Question(max_cost=c)).answers[0] for c in (None, 2.0))
    assert (free.named, limited.named) == ("unknown", "cheap")
    assert free.claims == limited.claims
    assert limited.excluded == {"dear": "cost ×3.00 above ×2", "unknown": "cost not measured"}
    assert "dear" not in limited.in_the_race
    none = decide([found], Question(max_cost=1.05)).answers[0]
    assert none.named is None
    assert none.problem.startswith("no finalist is within the limit; the nearest is cheap: cost")


def test_a_cheaper_row_is_as_good_only_within_the_margin() -> None:
    found = pair(
        student(BASE), row("dear", above(0.03), cost=3.0), row("same", above(0.029, 0.5), cost=1.1),
        row("less", above(0.015), cost=1.1),
    )  # fmt: skip
    answer = decide([found]).answers[0]
    assert answer.margin == 0.01
    assert {w.row: w.shown for w in answer.as_good} == {"same": True, "less": False}


def test_what_a_recipe_or_a_teacher_lacks_is_said() -> None:
    found = pair(
        student(BASE), row("x2", above(0.02), "longer", cost=2.0), row("a", above(0.03, 2)),
        teacher_accuracy=0.8, teachers={seed: f"t{seed % 2}" for seed in range(10)},
    )  # fmt: skip
    answer = decide([found]).answers[0]
    assert answer.recipe_too_short
    assert found.teacher_fault == "the teacher is no better than the student."
    assert "guesses" in replace(found, teacher_accuracy=0.52, classes=2).teacher_fault
    assert [claim.row for claim in answer.against_longer] == ["a"]
    assert answer.against_longer[0].proven
    assert answer.teachers.count == 2
    alone = decide([replace(found, rows=found.rows[:2])]).answers[0]
    assert (alone.named, alone.teachers) == ("x2", None)


def test_another_reference_has_a_family_of_its_own() -> None:
    found = pair(student(BASE), row("a", above(0.02)), row("b", above(0.04, 2)))
    answer = decide([found], Question(against="a")).answers[0]
    assert (answer.pair.reference.name, answer.named) == ("a", "b")
    assert {claim.row: claim.proven for claim in answer.claims} == {"student": False, "b": True}
    without = replace(found, name="q", rows=(student(BASE), row("b", above(0.04, 2))))
    some = decide([without, found], Question(against="a")).answers
    assert [(one.pair.name, one.claims) for one in some] == [("p", answer.claims)]
    with pytest.raises(UserError, match=r"got 'c' .*: student, a, b"):
        decide([found], Question(against="c"))


def test_the_best_bet_may_be_another_row_than_the_proven_one() -> None:
    found = pair(student(BASE), row("sure", above(0.02)), row("equal", [b + 0.05 for b in BASE]))
    (answer,) = decide([found]).answers
    assert (answer.verdict, answer.named, answer.best_bet) == (PROVEN, "sure", "equal")


def test_equal_seeds_are_decided_over_pairs() -> None:
    pairs = [
        pair(student(above(x, 0)), row("a", above(0.02 + 3 * x)), row("b", above(x, 3)))
        for x in (0, 0.001, 0.002, 0.003)
    ]
    pairs = [replace(one, alone=(f"cell {number}",)) for number, one in enumerate(pairs)]
    found = decide(pairs, Question(equal_seeds=True))
    assert [(o.row, o.proven) for o in found.overall] == [("a", True), ("b", False)]
    error = stats.sem([0.020, 0.022, 0.024, 0.026])  # of what a gains for each student
    expected = (0.023, *stats.t.interval(0.95, 3, 0.023, error))
    assert found.overall[0].gain[:3] == pytest.approx(expected)
    # Pairs of one student are one piece of evidence, averaged by seed; equal ones may be two.
    two = [replace(pairs[0], alone=(name,)) for name in "ab"]
    assert {o.gain.n for o in decide(two, Question(equal_seeds=True)).overall} == {2}
    again = decide(pairs * 2, Question(equal_seeds=True))
    assert [o.gain for o in again.overall] == [o.gain for o in found.overall]
    assert {(o.pairs, o.gain.n) for o in again.overall} == {(8, 4)}
    assert decide(pairs[:1] * 6, Question(equal_seeds=True)).overall == ()
    assert all(answer.exploratory for answer in found.answers)
    assert decide(pairs).overall == ()
    assert not decide(pairs[:1], Question(equal_seeds=True)).answers[0].exploratory


def test_an_answer_waits_for_two_seeds_in_common() -> None:
    one = decide([pair(student([0.8]), row("a", [0.9]))]).answers[0]
    assert (one.verdict, one.problem) == (
        None,
        "seeds in common with student: 1; two are the least",
    )
    none = decide([pair(student(BASE))]).answers[0]
    assert none.problem.startswith("no row has confirmation seeds")
    alone = decide([pair(student(BASE), row("a", above(0.02)))], Question(against="a")).answers[0]
    assert alone.problem == "no other finalist can be held against a"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: row("a", [93.0]), "row a: accuracy 93.0, wanted one in"),
        (lambda: Row(name="a", kind="method", screening={1: 0.5}, confirmation={1: 0.5}),
         "row a: seed 1 is a screening seed and a confirmation seed"),
        (lambda: pair(row("a", BASE)), "p: 0 plain students, wanted one"),
        (lambda: pair(student(BASE), row("a", BASE), row("a", BASE)), "p: two rows are called 'a'"),
    ],
)  # fmt: skip
def test_evidence_that_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):  # UserError is one
        make()
