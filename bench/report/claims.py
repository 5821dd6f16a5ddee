"""The survey's summary sentences, each with one measure, a verdict and a sentence of evidence.

They are those of the deck "Knowledge distillation in deep neural network" (S. Lee), which sorts
methods into the categories of this harness.

- A measure with a spread over seeds is the mean over a category's methods, minus the same of
  another category (or their ratio), paired by seed and averaged over the pairs of networks. Paired
  t test, Holm over the table. Supported: corrected p at most 0.05 and the claim's sign; not
  supported: the other sign; undecided otherwise, with fewer than 3 seeds, and without a spread.
- Sizes and costs have no such spread: supported if it holds on every pair of networks, not
  supported if the opposite does, undecided otherwise. Costs differ if their quartiles do not
  overlap.
- "Nothing is completely superior": supported if every method's row is significantly beaten on some
  pair by another row; not supported if one row beats all others on every pair; undecided
  otherwise, and with fewer than two pairs or three seeds.
"""

import math
import statistics
from collections import ChainMap, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.cost.costs import CostRecord, Quartiles
from bench.decide.evidence import row_title
from bench.faults import counted
from bench.record import Record
from bench.report.groups import Group, Measure, Pairs, final
from bench.report.results import Findings, cost_groups
from bench.report.tables import Table, Value, text_columns
from bench.report.wording import range_text
from bench.statistics import (
    ALPHA,
    holm,
    holm_of_tested,
    mean_interval,
    means_by_seed,
    paired_differences,
    paired_p,
)

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"

RESPONSE, CONNECTED, SHARED = "response", "multi-connection", "shared-representation"
CATEGORIES = (RESPONSE, CONNECTED, SHARED)

# Fewer are no evidence, whatever their p: two seeds agree by chance too often, and on a single pair
# some row is always the best.
LEAST_SEEDS, LEAST_PAIRS = 3, 2

EXAMINED = "Not measured: that takes diagnostics: true in the grid, and rows of both categories."
PROFILED = "Not measured: that takes run_all.py profile, and rows of both categories."

CLAIM_COLUMNS = text_columns("claim", "verdict", "measure", "evidence")
CLAIM_NOTES = (
    "Means over a category's methods, paired by seed and averaged over pairs; paired t test, Holm "
    f"over the table, 95 % intervals. Fewer than {LEAST_SEEDS} seeds decide nothing.",
)


class Claim(NamedTuple):
    """One sentence, what it is measured by and what was found.

    A test decides where there are differences `tested`, one a seed; `wanted` is -1 if the claim
    says below 0, 1 if above.
    """

    text: str
    measure: str
    verdict: str = UNDECIDED
    evidence: str = EXAMINED
    tested: Sequence[float] = ()
    wanted: int = 1


def claim_table(found: Findings) -> Table:
    """One row a claim; see the head of this module for how verdicts come about."""
    claims = _claims(found)
    corrected = iter(holm_of_tested([_p(claim.tested) for claim in claims if claim.tested]))
    rows = [_row(claim, next(corrected) if claim.tested else None) for claim in claims]
    return Table("Claims", CLAIM_COLUMNS, rows, CLAIM_NOTES)


def _claims(found: Findings) -> list[Claim]:
    pairs, losses = found.groups, _loss_ms(cost_groups(found))
    held = "directions held fast, "
    return [
        Claim(
            "Response-based knowledge is small", "scalars that the method reads per sample",
            *_ordered(_scalars(pairs), RESPONSE, -1, EXAMINED),
        ),
        Claim(
            "Response-based knowledge is cheap", "transfer loss of a step, ms",
            *_ordered(losses, RESPONSE, -1, PROFILED),
        ),
        Claim(
            "Multi-connection knowledge is large", f"{held}multi-connection / response",
            tested=_differences(pairs, log_directions, CONNECTED, RESPONSE),
        ),
        Claim(
            "Multi-connection knowledge may over-constrain",
            "cosine of task and transfer gradients, multi-connection - response",
            evidence=f"{EXAMINED[:-1]} whose first transfer stage trains on labels, too.",
            tested=_differences(pairs, gradient_cosine, CONNECTED, RESPONSE), wanted=-1,
        ),
        Claim(
            "Attention maps are smoother than features",
            "total variation, the teacher's attention maps / the channels under them",
            tested=_of_teachers(pairs, log_variation), wanted=-1,
        ),
        Claim(
            "Shared-representation knowledge is softer",
            f"{held}shared-representation / multi-connection",
            tested=_differences(pairs, log_directions, SHARED, CONNECTED), wanted=-1,
        ),
        Claim(
            "Shared-representation knowledge costs more", "transfer loss of a step, ms",
            *_ordered(losses, SHARED, 1, PROFILED),
        ),
        Claim(
            "Nothing is completely superior", "accuracy, every row against every other",
            *_superiority(pairs),
        ),
    ]  # fmt: skip


def _row(claim: Claim, p: float | None) -> dict[str, Value]:
    verdict, evidence = claim.verdict, _evidence(claim, p) if claim.tested else claim.evidence
    if p is not None and p <= ALPHA:
        right = statistics.fmean(claim.tested) * claim.wanted > 0
        verdict = SUPPORTED if right else NOT_SUPPORTED
    return {"claim": claim.text, "verdict": verdict, "measure": claim.measure, "evidence": evidence}


def _evidence(claim: Claim, p: float | None) -> str:
    found, ratio = mean_interval(claim.tested), " / " in claim.measure
    numbers = [x for x in found[:3] if x is not None]
    # The interval of two seeds can be wider than a float.
    shown = [f"{math.exp(min(x, 700)):.3g}" if ratio else f"{x:+.3g}" for x in numbers]
    ends = f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""
    why = "no spread over seeds to judge by"
    if p is not None:
        why = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    elif found.n < LEAST_SEEDS:
        why = f"too few seeds, wanted {LEAST_SEEDS}"
    return f"{shown[0]}{ends}, {counted(found.n, 'seed')}, {why}."


def _p(values: Sequence[float]) -> float | None:
    return paired_p(values) if len(values) >= LEAST_SEEDS else None


def _ordered(
    pairs: Sequence[Mapping[str, Quartiles]], category: str, sign: int, missing: str
) -> tuple[str, str]:
    """Whether a category has less (-1) or more (1) than the others, on every pair: see `Claim`."""
    others = [x for x in CATEGORIES if x != category]
    both = [(p[category], p[x]) for p in pairs for x in others if category in p and x in p]
    # -1 for less, 1 for more, 0 where the quartiles overlap.
    holds = [(first.q1 > second.q3) - (first.q3 < second.q1) for first, second in both]
    if not holds:
        return UNDECIDED, missing
    parts = []
    for each in (category, *others):
        values = [pair[each].median for pair in pairs if each in pair]
        parts += [f"{each} {range_text(values, '{:.4g}'.format)}"] if values else []
    common = holds[0] if len(set(holds)) == 1 else 0
    verdict = {sign: SUPPORTED, -sign: NOT_SUPPORTED}.get(common, UNDECIDED)
    right = f"so in {holds.count(sign)} of {len(holds)} comparisons"
    return verdict, f"{', '.join(parts)}: {right}."


def _superiority(pairs: Pairs) -> tuple[str, str]:
    """Holds every method's row against every other row of its pair, by seed.

    A row is beaten if another one is significantly better on some pair: paired t tests, Holm over
    all its comparisons. That every row is beaten is an intersection of such findings and needs no
    further correction. That one row beats all others everywhere is one as well, asked of every row,
    with Holm over them.

    Source:
        Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982.
    """
    # Row -> other - row, by seed, of every comparison.
    rivals, total, shown = defaultdict[str, list[list[float]]](list), 0, 0
    for groups in pairs.values():
        rows = {g.label: g.by_seed(final("last_accuracy")) for g in groups if g.role != "teacher"}
        rows = {label: series for label, series in rows.items() if series}
        if len(rows) < 2:
            continue
        total, shown = total + len(rows) - 1, shown + 1
        methods = [g.label for g in groups if g.role == "method" and g.category != "baseline"]
        for label in filter(rows.__contains__, methods):
            others = (paired_differences(rows[x], rows[label]) for x in rows if x != label)
            rivals[label] += filter(None, others)
    found = [(label, values) for label, values in rivals.items() if values]
    if not found:
        return UNDECIDED, "No two rows have a seed in common."
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
    evidence = f"{said}; at least {counted(seeds, 'seed')}, {counted(shown, 'pair')}{few}."
    return UNDECIDED if few else verdict, evidence


def _one_sided(values: Sequence[float], sign: int) -> float:
    """Two-sided p of a mean difference of that sign; 1 where there is nothing to judge by."""
    p = _p(values)
    return 1.0 if p is None or statistics.fmean(values) * sign <= 0 else p


# --- measures --------------------------------------------------------------------------------


def gradient_cosine(record: Record) -> float | None:
    """Mean cosine between the gradients of task and transfer loss, in the method's own stage.

    That is the first one that reads the teacher. Only epochs that train on labels count: the task
    gradient of an untrained head is close to a random one.
    """
    first = 0
    for stage in record.stages:
        last = first + stage["epochs"]
        if stage["taps"]:
            curve, task = (record.curves.get(x, []) for x in ("gradient_cosine", "task_loss"))
            points = zip(curve[first:last], task[first:last], strict=False)
            cosines = [x for x, loss in points if x is not None and loss is not None]
            return statistics.fmean(cosines) if cosines else None
        first = last
    return None


def log_variation(record: Record) -> float | None:
    """Mean over taps of ln(total variation of attention maps over that of features)."""
    ratios = [x for key, x in sorted(record.final.items()) if key.startswith("attention_variation")]
    if not ratios or not all(math.isfinite(x) and x > 0 for x in ratios):
        return None
    return statistics.fmean(map(math.log, ratios))


def log_directions(record: Record) -> float | None:
    """ln of the directions that the transfer loss holds fast."""
    found = final("knowledge_directions")(record)
    return math.log(found) if found is not None and found > 0 else None


def _category_means(groups: Iterable[Group], category: str, measure: Measure) -> dict[int, float]:
    """Seed -> mean over the category's methods, each the mean over its rows.

    Only over seeds that every row has: a failed cell must not change what a mean is made of.
    """
    methods = defaultdict[str, list[dict[int, float]]](list)
    for group in groups:
        chosen = group.role == "method" and group.category == category
        if chosen and (series := group.by_seed(measure)):
            methods[group.method].append(series)
    rows = [set(series) for own in methods.values() for series in own]
    return {
        seed: statistics.fmean(statistics.fmean(x[seed] for x in own) for own in methods.values())
        for seed in sorted(set.intersection(*rows) if rows else ())
    }


def _differences(pairs: Pairs, measure: Measure, first: str, second: str) -> list[float]:
    """Mean of a category - that of another one, by seed, over the pairs with both."""
    both = [[_category_means(x, c, measure) for c in (first, second)] for x in pairs.values()]
    return means_by_seed([{s: a[s] - b[s] for s in a.keys() & b} for a, b in both if a and b])


def _of_teachers(pairs: Pairs, measure: Measure) -> list[float]:
    """A number that is the teacher's alone, by seed: every method of a pair has the same."""
    found = (
        ChainMap(*(group.by_seed(measure) for group in groups if group.role == "method"))
        for groups in pairs.values()
    )
    return means_by_seed([series for series in found if series])


def _scalars(pairs: Pairs) -> list[dict[str, Quartiles]]:
    """For every pair: category -> elements of the teacher's tensors that it reads per sample."""
    found, measure = [], final("knowledge_scalars")
    for groups in pairs.values():
        means = {x: _category_means(groups, x, measure).values() for x in CATEGORIES}
        # Seeds do not differ in it: the networks' shapes decide.
        found.append({x: Quartiles.of([statistics.fmean(s)]) for x, s in means.items() if s})
    return found


def _loss_ms(pairs: Iterable[Iterable[CostRecord]]) -> list[dict[str, Quartiles]]:
    """For every pair: category -> ms of the costliest transfer loss, mean over methods."""
    found = []
    for records in pairs:
        losses = defaultdict[str, dict[str, list[Quartiles]]](dict)
        for record in records:
            if (stage := record.costliest) is not None and stage.loss_ms is not None:
                losses[record.category].setdefault(record.method, []).append(stage.loss_ms)
        found.append({c: _mean_of(map(_mean_of, own.values())) for c, own in losses.items()})
    return found


def _mean_of(several: Iterable[Quartiles]) -> Quartiles:
    median, q1, q3, _ = map(statistics.fmean, zip(*several, strict=True))
    return Quartiles(median, q1, q3, 1)
