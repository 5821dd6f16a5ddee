"""The survey's summary sentences, each with one measure, a verdict and a sentence of evidence.

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

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.cost.costs import Quartiles
from bench.report.groups import Pairs
from bench.report.measures import (
    CONNECTED,
    RESPONSE,
    SHARED,
    Differences,
    differences,
    gradient_cosine,
    log_directions,
    log_variation,
    loss_ms_by_category,
    scalars_by_category,
    teachers,
)
from bench.report.results import Findings
from bench.report.tables import Table, Value, text_columns
from bench.report.wording import row_title
from bench.statistics import ALPHA, holm, mean_interval, paired_differences, paired_p

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"

LEAST_SEEDS, LEAST_PAIRS = 3, 2
"""Fewer are no evidence, whatever their p: two seeds agree by chance too often, and on a single
pair some row is always the best."""

EXAMINED = "Not measured: that takes diagnostics: true in the grid, and rows of both categories."
PROFILED = "Not measured: that takes run_all.py profile, and rows of both categories."

CLAIM_COLUMNS = text_columns("claim", "verdict", "measure", "evidence")
CLAIM_NOTES = (
    "Means over a category's methods, paired by seed and averaged over pairs; paired t test, Holm "
    f"over the table, 95 % intervals. Fewer than {LEAST_SEEDS} seeds decide nothing.",
)


class Claim(NamedTuple):
    """One sentence, what it is measured by and what was found.

    The verdict is empty where a test over the whole table decides, of the differences `tested`;
    `wanted` is -1 if the claim says below 0, 1 if above.
    """

    text: str
    measure: str
    verdict: str = ""
    evidence: str = ""
    tested: Differences = Differences()
    wanted: int = 1


def claim_table(found: Findings) -> Table:
    """One row a claim; see the head of this module for how verdicts come about."""
    claims = _claims(found)
    tested = [claim for claim in claims if claim.tested.values]
    raw = [_p(claim.tested.values) for claim in tested]
    # What has no spread to judge by was looked at all the same.
    adjusted = holm([1.0 if p is None else p for p in raw])
    p_of = {c.text: None if r is None else p for c, r, p in zip(tested, raw, adjusted, strict=True)}
    rows = [_row(claim, p_of.get(claim.text)) for claim in claims]
    return Table("Claims", CLAIM_COLUMNS, rows, CLAIM_NOTES)


def _claims(found: Findings) -> list[Claim]:
    pairs, losses = found.groups, loss_ms_by_category(found.costs)
    held = "directions held fast, "
    return [
        _ordered(
            Claim("Response-based knowledge is small", "scalars that the method reads per sample"),
            scalars_by_category(pairs), RESPONSE, (CONNECTED, SHARED), -1, EXAMINED,
        ),
        _ordered(
            Claim("Response-based knowledge is cheap", "transfer loss of a step, ms"),
            losses, RESPONSE, (CONNECTED, SHARED), -1, PROFILED,
        ),
        Claim(
            "Multi-connection knowledge is large", f"{held}multi-connection / response",
            tested=differences(pairs, log_directions, CONNECTED, RESPONSE),
        ),
        Claim(
            "Multi-connection knowledge may over-constrain",
            "cosine of task and transfer gradients, multi-connection - response",
            tested=differences(pairs, gradient_cosine, CONNECTED, RESPONSE), wanted=-1,
        ),
        Claim(
            "Attention maps are smoother than features",
            "total variation, the teacher's attention maps / the channels under them",
            tested=teachers(pairs, log_variation), wanted=-1,
        ),
        Claim(
            "Shared-representation knowledge is softer",
            f"{held}shared-representation / multi-connection",
            tested=differences(pairs, log_directions, SHARED, CONNECTED), wanted=-1,
        ),
        _ordered(
            Claim("Shared-representation knowledge costs more", "transfer loss of a step, ms"),
            losses, SHARED, (RESPONSE, CONNECTED), 1, PROFILED,
        ),
        _superiority(
            Claim("Nothing is completely superior", "accuracy, every row against every other"),
            pairs,
        ),
    ]  # fmt: skip


def _row(claim: Claim, p: float | None) -> dict[str, Value]:
    verdict, evidence = claim.verdict, claim.evidence
    if not verdict:
        verdict, evidence = UNDECIDED, EXAMINED
        if claim.tested.values:
            evidence = _evidence(claim, p)
        if p is not None and p <= ALPHA:
            right = statistics.fmean(claim.tested.values) * claim.wanted > 0
            verdict = SUPPORTED if right else NOT_SUPPORTED
    said = {"measure": claim.measure, "evidence": evidence}
    return {"claim": claim.text, "verdict": verdict, **said}


def _evidence(claim: Claim, p: float | None) -> str:
    found, ratio = mean_interval(claim.tested.values), " / " in claim.measure
    numbers = [x for x in found[:3] if x is not None]
    # The interval of two seeds can be wider than a float.
    shown = [f"{math.exp(min(x, 700)):.3g}" if ratio else f"{x:+.3g}" for x in numbers]
    ends = f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""
    why = "no spread over seeds to judge by"
    if p is not None:
        why = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    elif found.n < LEAST_SEEDS:
        why = f"too few seeds, wanted {LEAST_SEEDS}"
    agreeing = sum(mean * claim.wanted > 0 for mean in claim.tested.by_pair)
    pairs = f"so on {agreeing} of {len(claim.tested.by_pair)} pairs"
    return f"{shown[0]}{ends}, {found.n} seeds, {pairs}, {why}."


def _p(values: Sequence[float]) -> float | None:
    return paired_p(values) if len(values) >= LEAST_SEEDS else None


def _ordered(
    claim: Claim,
    pairs: Sequence[Mapping[str, Quartiles]],
    category: str,
    others: Sequence[str],
    sign: int,
    missing: str,
) -> Claim:
    """Whether a category has less (-1) or more (1) than the others, on every pair."""
    both = ((pair, x) for pair in pairs for x in others if category in pair and x in pair)
    holds = [_compared(pair[category], pair[other]) for pair, other in both]
    if not holds:
        return claim._replace(verdict=UNDECIDED, evidence=missing)
    parts = []
    for each in (category, *others):
        values = [pair[each].median for pair in pairs if each in pair]
        ends = dict.fromkeys(f"{end:.4g}" for end in (min(values), max(values))) if values else ()
        parts += [f"{each} {' to '.join(ends)}"] * bool(values)
    verdict = {sign: SUPPORTED, -sign: NOT_SUPPORTED}.get(holds[0], UNDECIDED)
    right = f"so in {holds.count(sign)} of {len(holds)} comparisons"
    return claim._replace(
        verdict=verdict if len(set(holds)) == 1 else UNDECIDED,
        evidence=f"{', '.join(parts)}: {right}.",
    )


def _compared(first: Quartiles, second: Quartiles) -> int:
    """-1 for less, 1 for more, 0 where the quartiles overlap."""
    return (first.q1 > second.q3) - (first.q3 < second.q1)


def _superiority(claim: Claim, pairs: Pairs) -> Claim:
    """Holds every method's row against every other row of its pair, by seed.

    A row is beaten if another one is significantly better on some pair: paired t tests, Holm over
    all its comparisons on all pairs. That every row is beaten is an intersection of such findings
    and needs no further correction. That one row beats all others everywhere is an intersection as
    well; it is asked of every row, with Holm over them.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    rivals: dict[str, list[list[float]]] = {}  # row -> other - row, by seed, of every comparison
    total, shown = 0, 0
    for groups in pairs.values():
        rows = {g.label: g.by_seed("last_accuracy") for g in groups if g.role != "teacher"}
        rows = {label: series for label, series in rows.items() if series}
        if len(rows) < 2:
            continue
        total, shown = total + len(rows) - 1, shown + 1
        methods = {g.label for g in groups if g.role == "method" and g.category != "baseline"}
        for label in filter(methods.__contains__, rows):
            others = (paired_differences(rows[x], rows[label]) for x in rows if x != label)
            rivals.setdefault(label, []).extend(filter(None, others))
    found = [(label, values) for label, values in rivals.items() if values]
    if not found:
        return claim._replace(verdict=UNDECIDED, evidence="No two rows have a seed in common.")
    best = [(label, min(holm([_one_sided(v, 1) for v in values]))) for label, values in found]
    unbeaten = [row_title(label) for label, p in best if p > ALPHA]
    worst = holm([max(_one_sided(v, -1) for v in vs) if len(vs) == total else 1 for _, vs in found])
    superior = [row_title(row) for (row, _), p in zip(found, worst, strict=True) if p <= ALPHA]
    verdict, said = SUPPORTED, f"Each of {len(found)} rows is beaten on some pair"
    if superior:
        verdict, said = NOT_SUPPORTED, f"Superior everywhere: {', '.join(superior)}"
    elif unbeaten:
        verdict, said = UNDECIDED, f"Never beaten significantly: {', '.join(unbeaten)}"
    seeds = min(len(values) for _, several in found for values in several)
    few = f", too few, wanted {LEAST_PAIRS}" if shown < LEAST_PAIRS else ""
    evidence = f"{said}; at least {seeds} seeds, {shown} pairs{few}."
    return claim._replace(verdict=UNDECIDED if few else verdict, evidence=evidence)


def _one_sided(values: Sequence[float], sign: int) -> float:
    """Two-sided p of a mean difference of that sign; 1 where there is nothing to judge by."""
    if len(values) < LEAST_SEEDS or statistics.fmean(values) * sign <= 0:
        return 1.0
    p = paired_p(values)
    return 1.0 if p is None else p
