"""The survey's summary sentences, each with one measure, a verdict and the evidence.

The claims are those of the deck "Knowledge distillation in deep neural network" (S. Lee), which
sorts methods into the categories of this harness and sums them up in five sentences.

How a verdict comes about:

- A measure with a spread over seeds is a difference (or ratio) paired by seed: the mean over a
  category's methods, minus the same of another category, averaged over the pairs of networks.
  Paired t test, Holm's correction over the table. The claim is supported if the corrected p is at
  most 0.05 and the sign is the claim's, not supported if the sign is the other, and undecided
  otherwise: also with fewer than 3 seeds, and where all differences are equal.
- A measure without such a spread (sizes, which architectures decide; costs, of which quartiles are
  known) supports a claim if it holds on every pair of networks, speaks against it if the opposite
  holds on every pair, and leaves it undecided otherwise. Costs differ if their quartiles do not
  overlap.
- "Nothing is completely superior" is supported if every method's row is significantly beaten on
  some pair by another row; not supported if one row beats all others on every pair; undecided
  otherwise, and with fewer than two pairs or three seeds. Not finding a best row is no evidence.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.cost.costs import Costs, Quartiles
from bench.record import Plan, Record
from bench.report.measures import (
    CATEGORIES,
    CONNECTED,
    LEAST_SEEDS,
    NOT_SUPPORTED,
    RESPONSE,
    SHARED,
    SUPPORTED,
    UNDECIDED,
    Contrast,
    Finding,
    Pairs,
    Value,
    category_means,
    contrast,
    final,
    gradient_cosine,
    log_directions,
    log_variation,
    loss_ms_by_category,
    read,
    teacher_values,
)
from bench.report.summary import measured_groups
from bench.report.superiority import superiority
from bench.report.tables import Column, Section, Table
from bench.report.tables import Value as Shown
from bench.statistics import ALPHA, holm, mean_interval

EXAMINED = "not measured: that takes diagnostics: true in the grid, and rows of {}"
PROFILED = "not measured: that takes run_all.py profile, and rows of {}"

CLAIM_COLUMNS = (
    Column(key="claim", name="claim", align="left"),
    Column(key="measure", name="measure", align="left"),
    Column(key="verdict", name="verdict", align="left"),
    Column(key="evidence", name="evidence", align="left"),
)

CLAIM_NOTES = (
    "Measures compare means over a category's methods, paired by seed and averaged over the pairs "
    "of networks; p of the paired t test, Holm over the table; [95 % t interval], n seeds. Fewer "
    f"than {LEAST_SEEDS} seeds decide nothing.",
    "Costs too are means over a category's methods: one costly method can carry its category.",
    "Never beaten significantly: by no other row on any pair, with Holm's correction over all "
    "those comparisons of the row.",
)

ROW_COLUMNS = (
    Column(key="label", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="n", name="n"),
    Column(key="knowledge_scalars", name="scalars of knowledge per sample"),
    Column(key="knowledge_directions", name="directions held fast", digits=1, interval=True),
    Column(key="cosine", name="gradient cosine", digits=3, signed=True, interval=True),
)

ROW_NOTES = (
    "n: finished cells, one a seed; ± is the half-width of the 95 % t interval over seeds.",
    "Knowledge: the teacher's tensors that the method's first stage with a transfer loss reads.",
    "Directions held fast: participation ratio of the curvature of the transfer loss in the "
    "teacher's own tensors, per sample; the fewer, the softer.",
    "Gradient cosine: between cross-entropy and transfer loss over the student's trunk, on the "
    "first batch of every epoch of that stage; '-' in a stage that does not train on labels.",
)


class Claim(NamedTuple):
    """One sentence, what it is measured by, and what was found."""

    text: str
    measure: str
    found: Contrast | Finding


def claims_section(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> Section:
    """The table of claims, and the diagnostics of every pair's rows."""
    return Section(
        name="claims",
        title="The survey's claims, measured",
        tables=(claim_table(plan, records, costs), *diagnostics_tables(plan, records)),
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
    claims = _claims(measured_groups(plan, records), costs)
    adjusted = _adjusted(claims)
    rows = []
    for claim in claims:
        verdict, evidence = _judged(claim, adjusted.get(claim.text))
        rows.append(
            {
                "claim": claim.text,
                "measure": claim.measure,
                "verdict": verdict,
                "evidence": evidence,
            }
        )
    return Table.by_name("Claims", CLAIM_COLUMNS, rows, CLAIM_NOTES)


def diagnostics_tables(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """One table for each pair that was examined; none for a grid without diagnostics."""
    tables = []
    for key, groups in measured_groups(plan, records).items():
        rows: list[dict[str, Shown]] = []
        for group in groups:
            if scalars := read(group, final("knowledge_scalars")):
                rows.append(
                    {
                        "label": group.label,
                        "category": group.category,
                        "n": len(scalars),
                        "knowledge_scalars": int(next(iter(scalars.values()))),
                        "knowledge_directions": _mean(read(group, final("knowledge_directions"))),
                        "cosine": _mean(read(group, gradient_cosine)),
                    }
                )
        if rows:
            tables.append(Table.by_name(key.title, ROW_COLUMNS, rows, ROW_NOTES))
    return tables


def _mean(series: Mapping[int, float]) -> Shown:
    return mean_interval(list(series.values())) if series else None


# --- the claims -------------------------------------------------------------------------------


def _claims(pairs: Pairs, costs: Costs | None) -> list[Claim]:
    losses = loss_ms_by_category(costs)
    return [
        Claim(
            "Response-based knowledge is small",
            "scalars of the teacher that the method reads per sample",
            _ordered(_scalars(pairs), RESPONSE, (CONNECTED, SHARED), missing=EXAMINED),
        ),
        Claim(
            "Response-based knowledge is cheap",
            "transfer loss of a step, ms",
            _ordered(losses, RESPONSE, (CONNECTED, SHARED), missing=PROFILED),
        ),
        Claim(
            "Multi-connection knowledge is large",
            "directions held fast, multi-connection / response",
            _between(pairs, log_directions, CONNECTED, RESPONSE, wanted=1, ratio=True),
        ),
        Claim(
            "Multi-connection knowledge may over-constrain",
            "cosine between the gradients of task and transfer loss, multi-connection - response",
            _between(pairs, gradient_cosine, CONNECTED, RESPONSE, wanted=-1, ratio=False),
        ),
        Claim(
            "Attention maps are smoother than features",
            "total variation, the teacher's attention maps / the channels under them",
            _smoothness(pairs),
        ),
        Claim(
            "Shared-representation knowledge is softer",
            "directions held fast, shared-representation / multi-connection",
            _between(pairs, log_directions, SHARED, CONNECTED, wanted=-1, ratio=True),
        ),
        Claim(
            "Shared-representation knowledge costs more",
            "transfer loss of a step, ms",
            _ordered(losses, SHARED, (RESPONSE, CONNECTED), missing=PROFILED, less=False),
        ),
        Claim(
            "Nothing is completely superior",
            "last accuracy, every row against every other by seed, on every pair",
            superiority(pairs),
        ),
    ]


def _between(
    pairs: Pairs, value: Value, first: str, second: str, *, wanted: int, ratio: bool
) -> Contrast:
    about = Contrast(wanted=wanted, ratio=ratio, missing=EXAMINED.format(f"{first} and {second}"))
    sides = (
        {key: category_means(groups, category, value) for key, groups in pairs.items()}
        for category in (first, second)
    )
    return contrast(about, *sides)


def _smoothness(pairs: Pairs) -> Contrast:
    about = Contrast(wanted=-1, ratio=True, missing=EXAMINED.format("any method"))
    ratios = {key: teacher_values(groups, log_variation) for key, groups in pairs.items()}
    return contrast(about, ratios, None)


def _scalars(pairs: Pairs) -> list[dict[str, Quartiles]]:
    """For every pair: category -> elements of the teacher's tensors that it reads per sample."""
    found = []
    for groups in pairs.values():
        means = {x: category_means(groups, x, final("knowledge_scalars")) for x in CATEGORIES}
        # Seeds do not differ in it: the networks' shapes decide.
        sizes = {x: statistics.fmean(series.values()) for x, series in means.items() if series}
        found.append({x: Quartiles(size, size, size, 1) for x, size in sizes.items()})
    return found


def _ordered(
    pairs: Sequence[Mapping[str, Quartiles]],
    category: str,
    others: Sequence[str],
    *,
    missing: str,
    less: bool = True,
) -> Finding:
    """Whether a category has less (or more) than the others, on every pair of networks."""
    shown: dict[str, list[float]] = {}
    holds: list[bool | None] = []
    for pair in pairs:
        for each in (category, *others):
            if each in pair:
                shown.setdefault(each, []).append(pair[each].median)
        for other in others:
            if category in pair and other in pair:
                low, high = (category, other) if less else (other, category)
                holds.append(_is_less(pair[low], pair[high]))
    if not holds:
        return Finding(UNDECIDED, missing.format(f"{category} and {' or '.join(others)}"))
    verdict = UNDECIDED
    if len(set(holds)) == 1 and holds[0] is not None:
        verdict = SUPPORTED if holds[0] else NOT_SUPPORTED
    right = sum(outcome is True for outcome in holds)
    return Finding(verdict, f"{_spans(shown)}: so in {right} of {len(holds)} comparisons")


def _is_less(first: Quartiles, second: Quartiles) -> bool | None:
    """None where the quartiles overlap."""
    if first.q3 < second.q1:
        return True
    return False if first.q1 > second.q3 else None


def _spans(found: Mapping[str, Sequence[float]]) -> str:
    """Every category with its least and greatest number over the pairs."""
    parts = []
    for category, values in found.items():
        low, high = f"{min(values):.4g}", f"{max(values):.4g}"
        parts.append(f"{category} {low if low == high else f'{low} to {high}'}")
    return ", ".join(parts)


# --- verdicts and what is said of them --------------------------------------------------------


def _adjusted(claims: Sequence[Claim]) -> dict[str, float]:
    """Claim -> its p, with Holm's correction over all of the table."""
    tested = {
        claim.text: claim.found.p
        for claim in claims
        if isinstance(claim.found, Contrast) and not claim.found.missing
    }
    # What has no spread to judge by was looked at all the same.
    corrected = holm([1.0 if p is None else p for p in tested.values()])
    pairs = zip(tested.items(), corrected, strict=True)
    return {text: found for (text, p), found in pairs if p is not None}


def _judged(claim: Claim, p: float | None) -> Finding:
    found = claim.found
    if isinstance(found, Finding):
        return found
    if found.missing:
        return Finding(UNDECIDED, found.missing)
    return Finding(_contrast_verdict(found, p), _contrast_evidence(found, p))


def _contrast_verdict(found: Contrast, p: float | None) -> str:
    if p is None or p > ALPHA:
        return UNDECIDED
    return SUPPORTED if statistics.fmean(found.differences) * found.wanted > 0 else NOT_SUPPORTED


def _contrast_evidence(found: Contrast, p: float | None) -> str:
    mean, low, high, n = found.interval
    sign = "" if found.ratio else "+"
    ends = "" if low is None or high is None else f" [{low:{sign}.3g}, {high:{sign}.3g}]"
    why = "no spread over seeds to judge by"
    if p is not None:
        why = "p<0.001" if p < 0.001 else f"p={p:.3f}"
    elif n < LEAST_SEEDS:
        why = f"too few seeds to tell, wanted {LEAST_SEEDS}"
    return f"{mean:{sign}.3g}{ends}, n={n}, so on {found.agreeing} of {found.pairs} pairs, {why}"
