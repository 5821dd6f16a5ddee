"""The survey's summary sentences, each with a measure, a verdict and the evidence.

The claims are those of the deck "Knowledge distillation in deep neural network" (S. Lee), which
sorts methods into the categories of this harness and sums them up in five sentences.

How a verdict comes about:

- A measure that has a spread over seeds is a difference (or ratio) paired by seed: the mean over
  a category's methods, minus the same of another category, averaged over the pairs of networks.
  Paired t test; Holm's correction over all such measures of the table. It speaks for the claim if
  the corrected p is at most 0.05 and the sign is the claim's, against it if the sign is the other,
  and is open otherwise: also with fewer than 3 seeds, and where all differences are equal.
- A measure without a spread (sizes, which architectures decide; costs, of which quartiles are
  known) speaks for or against if every pair of networks does, and is open otherwise. Costs of a
  pair speak if not even the quartiles overlap.
- A claim is supported if all its deciding measures speak for it; not supported if one speaks
  against it and none for it; undecided otherwise: open, missing or contradictory measures.
- "Nothing is completely superior" is supported if every method's row is significantly beaten on
  some pair by another row; not supported if one row beats all others on every pair; undecided
  otherwise, and with fewer than two pairs or three seeds. Not finding a best row is no evidence.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bench.cost.record import Costs, Quartiles
from bench.record import Plan, Record
from bench.report.knowledge import diagnostics_tables
from bench.report.measures import (
    CONNECTED,
    LEAST_SEEDS,
    RESPONSE,
    SHARED,
    Contrast,
    Observed,
    Value,
    conflict_share,
    contrast,
    cost_by_category,
    cost_ratio,
    final,
    log_smoothness,
    logarithm,
    loss_ms,
    mean_cosine,
    train_test_gap,
)
from bench.report.statistics import ALPHA, Interval, holm
from bench.report.superiority import LEAST_PAIRS, Superiority, superiority
from bench.report.tables import Column, Entry, Section, Table

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
FOR, AGAINST, OPEN = "for", "against", "open"

UNMEASURED = "no diagnostics; the grid's diagnostics: true measures them"
UNPROFILED = "no cost profile; run_all.py profile measures it"

CLAIM_COLUMNS = (
    Column(key="claim", name="claim", align="left"),
    Column(key="measure", name="measure", align="left"),
    Column(key="verdict", name="verdict", align="left"),
    Column(key="evidence", name="evidence", align="left"),
)

MEASURE_COLUMNS = (
    Column(key="claim", name="claim", align="left"),
    Column(key="measure", name="measure", align="left"),
    Column(key="unit", name="unit", align="left"),
    Column(key="estimate", name="estimate", digits=3, interval=True),
    Column(key="p", name="p (Holm)", digits=4, p_value=True),
    Column(key="pairs", name="pairs"),
    Column(key="agreeing", name="pairs that agree"),
    Column(key="speaks", name="speaks", align="left"),
)

CLAIM_NOTES = (
    "Measures compare means over a category's methods, paired by seed and averaged over the pairs "
    "of networks; p of the paired t test, Holm over the table; [95 % t interval], n seeds.",
    "Supported: all deciding measures speak for the claim. Not supported: one speaks against it "
    f"and none for it. Undecided: the rest; fewer than {LEAST_SEEDS} seeds decide nothing.",
    "Costs too are means over a category's methods, so one costly method can carry its category: "
    "the claimed order of cost compares every row with every row, and its verdict can be weaker.",
    "Knowledge: the teacher's tensors that the method's first stage with a transfer loss reads.",
    "Gradient cosine: between cross-entropy and transfer loss over the student's trunk, on the "
    "first batch of every epoch of that stage; a step conflicts if it is below 0. Only stages "
    "that train on labels too decide: where the head is untrained, so is the task's gradient.",
    "Never beaten significantly: by no other row on any pair, with Holm's correction over all "
    "those comparisons of the row; the tables of rows compared correct over one pair and one "
    'reference alone, so a row may be "worse" there and not beaten here.',
)


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """A comparison without a spread over seeds: how it comes out on every pair.

    Attributes:
        name: what is compared.
        outcomes: `FOR`, `AGAINST` or `OPEN`, one a pair.
        ratio: mean over pairs of first over second.
        figures: the numbers, in words.
        missing: why nothing could be compared; empty if something was.
    """

    name: str
    outcomes: tuple[str, ...] = ()
    ratio: float | None = None
    figures: str = ""
    missing: str = ""

    @property
    def speaks(self) -> str:
        """All pairs together."""
        same = set(self.outcomes)
        return same.pop() if len(same) == 1 else OPEN


Measure = Contrast | Ordered


@dataclass(frozen=True)
class Claim:
    """One sentence, what is measured in short, and the measures that judge it."""

    text: str
    measured: str
    measures: tuple[Measure, ...]


def claims_section(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> Section:
    """The table of claims, its measures as numbers, and the diagnostics of every pair's rows."""
    return Section(
        name="claims",
        title="The survey's claims, measured",
        tables=(
            claim_table(plan, records, costs),
            measure_table(plan, records, costs),
            *diagnostics_tables(plan, records),
        ),
    )


def claim_table(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> Table:
    """One row a claim: what it is measured by, the verdict, and the numbers with n and intervals.

    Args:
        plan: what was asked for.
        records: by cell id.
        costs: of the profiler; None or empty if it did not run.

    Returns:
        See the head of this module for how verdicts come about.
    """
    observed = Observed.of(plan, records)
    claims = _claims(observed, costs)
    adjusted = _adjusted(claims)
    rows = [
        (
            Entry(claim.text),
            Entry(claim.measured),
            Entry(verdict([_speaks(m, adjusted) for m in claim.measures if _decides(m)])),
            Entry(_evidence_of(claim, adjusted)),
        )
        for claim in claims
    ]
    return Table(
        title="Claims",
        columns=CLAIM_COLUMNS,
        rows=(*rows, _superiority_row(superiority(observed))),
        notes=CLAIM_NOTES,
    )


def measure_table(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> Table:
    """The numbers behind the claims, one row a measure."""
    claims = _claims(Observed.of(plan, records), costs)
    adjusted = _adjusted(claims)
    return Table(
        title="Measures behind the claims",
        columns=MEASURE_COLUMNS,
        rows=tuple(
            _measure_row(claim, measure, adjusted) for claim in claims for measure in claim.measures
        ),
        notes=(
            "A ratio is first over second and 1 if they are equal; without an interval it is a "
            "mean over n pairs. Of differences and of ratios with an interval, n counts seeds.",
        ),
    )


def verdict(speaking: Sequence[str]) -> str:
    """What measures that speak for, against or not at all come to.

    Example:
        >>> verdict([FOR, FOR]), verdict([AGAINST, OPEN]), verdict([FOR, AGAINST]), verdict([])
        ('supported', 'not supported', 'undecided', 'undecided')
    """
    if speaking and set(speaking) == {FOR}:
        return SUPPORTED
    return NOT_SUPPORTED if AGAINST in speaking and FOR not in speaking else UNDECIDED


# --- the claims -------------------------------------------------------------------------------


def _claims(observed: Observed, costs: Costs | None) -> list[Claim]:
    size, compare = partial(_sizes, observed), partial(_between, observed)
    return [
        Claim(
            "Response-based knowledge is small",
            "what the method reads of its teacher, response-based against the others",
            (
                *(size(RESPONSE, other) for other in (CONNECTED, SHARED)),
                *(compare(RANK, RESPONSE, other, -1) for other in (CONNECTED, SHARED)),
            ),
        ),
        Claim(
            "Response-based knowledge is cheap",
            "time by the profiler, response-based against the others",
            tuple(
                _costs(costs, kind, RESPONSE, other)
                for kind in COSTS
                for other in (CONNECTED, SHARED)
            ),
        ),
        Claim(
            "Multi-connection knowledge is large",
            "what the method reads of its teacher and what it holds fast, against response-based",
            (
                size(RESPONSE, CONNECTED),
                compare(RANK, RESPONSE, CONNECTED, -1),
                compare(HELD, RESPONSE, CONNECTED, -1),
            ),
        ),
        Claim(
            "Multi-connection knowledge may over-constrain",
            "angle between the gradients of task and transfer loss on the student's trunk, "
            "against response-based; train - test gap beside it",
            (
                compare(CONFLICT, CONNECTED, RESPONSE, 1),
                compare(COSINE, CONNECTED, RESPONSE, -1),
                _gap_of_connected(observed),
            ),
        ),
        Claim(
            "Attention maps are smoother than features",
            "roughness of the teacher's attention maps over that of the channels under them",
            _smoothness(observed),
        ),
        Claim(
            "Shared-representation knowledge is softer",
            "directions that the loss holds fast and conflicts with the task, against "
            "multi-connection",
            (compare(HELD, SHARED, CONNECTED, -1), compare(CONFLICT, SHARED, CONNECTED, -1)),
        ),
        Claim(
            "Shared-representation knowledge costs more",
            "time by the profiler, shared-representation against the others",
            tuple(
                _costs(costs, kind, other, SHARED)
                for kind in COSTS
                for other in (RESPONSE, CONNECTED)
            ),
        ),
    ]


class _Kind(NamedTuple):
    """What is read of records, and how its difference is shown."""

    name: str
    value: Value
    unit: str


RATIO = "ratio"
RANK = _Kind("effective rank", logarithm(final("knowledge_rank")), RATIO)
HELD = _Kind("directions held fast", logarithm(final("knowledge_directions")), RATIO)
CONFLICT = _Kind("share of conflicting steps with labels", conflict_share(True), "difference")
COSINE = _Kind("gradient cosine with labels", mean_cosine(True), "difference")


def _between(observed: Observed, kind: _Kind, first: str, second: str, wanted: int) -> Contrast:
    sign = "/" if kind.unit == RATIO else "-"
    about = Contrast(
        name=f"{kind.name}, {first} {sign} {second}", wanted=wanted, unit=kind.unit,
        ratio=kind.unit == RATIO, missing=_absent(observed, first, second),
    )  # fmt: skip
    sides = (
        {key: observed.category(key, category, kind.value) for key in observed.groups}
        for category in (first, second)
    )
    return contrast(about, *sides)


def _absent(observed: Observed, *sides: str) -> str:
    return _no_pair(*sides) if observed.examined else UNMEASURED


def _no_pair(*sides: str) -> str:
    return f"no pair of networks with a measure of {' and '.join(sides)}"


def _gap_of_connected(observed: Observed) -> Contrast:
    """Said beside the verdict: what binds can lower the gap as well as the accuracy."""
    about = Contrast(
        name=f"train - test accuracy, {CONNECTED} - student", wanted=1, unit="difference",
        missing=_absent(observed, CONNECTED), decides=False,
    )  # fmt: skip
    pairs = observed.groups
    own = {key: observed.category(key, CONNECTED, train_test_gap) for key in pairs}
    return contrast(about, own, {key: observed.baseline(key, train_test_gap) for key in pairs})


def _smoothness(observed: Observed) -> tuple[Contrast, ...]:
    kinds = {"total variation": "variation", "energy in high frequencies": "high_frequency"}
    return tuple(
        contrast(
            Contrast(
                name=f"{name}, attention maps / features", wanted=-1, unit=RATIO, ratio=True,
                missing=_absent(observed, "a teacher's maps"),
            ),
            {key: observed.teacher(key, log_smoothness(kind)) for key in observed.groups},
            None,
        )
        for name, kind in kinds.items()
    )  # fmt: skip


def _sizes(observed: Observed, small: str, large: str) -> Ordered:
    """Elements of the teacher's tensors per sample: whether `small` has fewer than `large`."""
    name = f"scalars of knowledge per sample, {small} < {large}"
    value = final("knowledge_scalars")
    sides = []
    for key in observed.groups:
        both = [observed.category(key, category, value) for category in (small, large)]
        if all(both):
            # Seeds do not differ in it: the networks' shapes decide.
            sides.append(tuple(statistics.fmean(series.values()) for series in both))
    if not sides:
        return Ordered(name=name, missing=_absent(observed, small, large))
    return Ordered(
        name=name,
        outcomes=tuple(FOR if a < b else AGAINST for a, b in sides),
        ratio=statistics.fmean(a / b for a, b in sides),
        figures=f"{_span([a for a, _ in sides])} against {_span([b for _, b in sides])}",
    )


COSTS = {"transfer loss of a step, ms": loss_ms, "whole training over plain": cost_ratio}


def _costs(costs: Costs | None, kind: str, cheap: str, dear: str) -> Ordered:
    """Whether `cheap` costs less than `dear`, on every profiled pair."""
    name = f"{kind}, {cheap} < {dear}"
    sides = [
        (pair[cheap], pair[dear])
        for pair in cost_by_category(costs, COSTS[kind])
        if cheap in pair and dear in pair
    ]
    if not sides:
        profiled = costs is not None and costs.records
        return Ordered(name=name, missing=_no_pair(cheap, dear) if profiled else UNPROFILED)
    return Ordered(
        name=name,
        outcomes=tuple(_apart(a, b) for a, b in sides),
        ratio=statistics.fmean(a.median / b.median for a, b in sides),
        figures=(
            f"{_span([a.median for a, _ in sides])} against {_span([b.median for _, b in sides])}"
        ),
    )


def _apart(cheap: Quartiles, dear: Quartiles) -> str:
    if cheap.q3 < dear.q1:
        return FOR
    return AGAINST if cheap.q1 > dear.q3 else OPEN


def _span(values: Sequence[float]) -> str:
    """ "12" or "12 to 40"."""
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


# --- verdicts and what is said of them --------------------------------------------------------


def _decides(measure: Measure) -> bool:
    return not isinstance(measure, Contrast) or measure.decides


def _adjusted(claims: Sequence[Claim]) -> dict[str, float]:
    """Name of a deciding measure -> its p, with Holm's correction over all of the table."""
    tested = {
        measure.name: measure.p
        for claim in claims
        for measure in claim.measures
        if isinstance(measure, Contrast) and measure.decides and not measure.missing
    }
    # What has no spread to judge by was looked at all the same.
    corrected = holm([1.0 if p is None else p for p in tested.values()])
    return {
        name: found
        for (name, p), found in zip(tested.items(), corrected, strict=True)
        if p is not None
    }


def _speaks(measure: Measure, adjusted: Mapping[str, float]) -> str:
    if isinstance(measure, Ordered):
        return measure.speaks
    if adjusted.get(measure.name, 1.0) > ALPHA:
        return OPEN
    return FOR if statistics.fmean(measure.differences) * measure.wanted > 0 else AGAINST


def _evidence_of(claim: Claim, adjusted: Mapping[str, float]) -> str:
    if reasons := [measure.missing for measure in claim.measures if measure.missing]:
        measured = [measure for measure in claim.measures if not measure.missing]
        tail = [f"{UNDECIDED}: {reason}" for reason in dict.fromkeys(reasons)]
        return "; ".join([*(_evidence(measure, adjusted) for measure in measured), *tail])
    return "; ".join(_evidence(measure, adjusted) for measure in claim.measures)


def _evidence(measure: Measure, adjusted: Mapping[str, float]) -> str:
    if isinstance(measure, Ordered):
        right, pairs = measure.outcomes.count(FOR), len(measure.outcomes)
        return f"{measure.name}: {measure.figures}, so on {right} of {pairs} pairs"
    parts = [f"{measure.name}: {_interval(measure)}, n={len(measure.differences)}"]
    if measure.decides:
        parts += [f"so on {measure.agreeing} of {measure.pairs} pairs", _why(measure, adjusted)]
    return ", ".join(parts)


def _interval(measure: Contrast) -> str:
    assert measure.interval is not None
    mean, low, high, _ = measure.interval
    signed = "" if measure.ratio else "+"
    if low is None or high is None:
        return f"{mean:{signed}.3g}"
    return f"{mean:{signed}.3g} [{low:{signed}.3g}, {high:{signed}.3g}]"


def _why(measure: Contrast, adjusted: Mapping[str, float]) -> str:
    if (p := adjusted.get(measure.name)) is not None:
        return "p<0.001" if p < 0.001 else f"p={p:.3f}"
    if len(measure.differences) < LEAST_SEEDS:
        return f"too few seeds to tell, wanted {LEAST_SEEDS}"
    return "no spread over seeds to judge by"


def _measure_row(
    claim: Claim, measure: Measure, adjusted: Mapping[str, float]
) -> tuple[Entry, ...]:
    if isinstance(measure, Ordered):
        estimate = measure.ratio and Interval(measure.ratio, None, None, len(measure.outcomes))
        unit, pairs, agreeing = RATIO, len(measure.outcomes), measure.outcomes.count(FOR)
    else:
        estimate, unit = measure.interval, measure.unit
        pairs, agreeing = measure.pairs, measure.agreeing
    speaks = "-" if not _decides(measure) else _speaks(measure, adjusted)
    return (
        Entry(claim.text), Entry(measure.name), Entry(unit), Entry(estimate),
        Entry(adjusted.get(measure.name)), Entry(pairs), Entry(agreeing),
        Entry(measure.missing or speaks),
    )  # fmt: skip


def _superiority_row(found: Superiority) -> tuple[Entry, ...]:
    return (
        Entry("Nothing is completely superior"),
        Entry("last accuracy, every row against every other by seed, on every pair"),
        Entry(_superiority_verdict(found)),
        Entry(_superiority_evidence(found)),
    )


def _superiority_verdict(found: Superiority) -> str:
    if found.pairs < LEAST_PAIRS or not found.compared:
        return UNDECIDED
    if found.superior:
        return NOT_SUPPORTED
    return UNDECIDED if found.unbeaten else SUPPORTED


def _superiority_evidence(found: Superiority) -> str:
    if not found.compared:
        return f"{UNDECIDED}: no two rows with an accuracy at the same seed"
    parts = [f"one row beats all others on {found.best} of {found.pairs} pairs"]
    if found.superior:
        parts.append(f"superior everywhere: {', '.join(found.superior)}")
    elif found.unbeaten:
        parts.append(f"never beaten significantly: {', '.join(found.unbeaten)}")
    else:
        parts.append(f"each of {found.compared} rows is beaten on some pair (p<{ALPHA:g})")
    parts.append(f"n={found.seeds} seeds at least")
    if found.pairs < LEAST_PAIRS:
        parts.append(f"too few pairs to tell, wanted {LEAST_PAIRS}")
    return "; ".join(parts)
