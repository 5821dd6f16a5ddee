"""What diagnostics and the profiler measured, by pair, category and seed, for the claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.cost.costs import Costs, Quartiles
from bench.record import FINISHED, Record
from bench.report.summary import Group, PairKey
from bench.statistics import Interval, mean_interval, paired_p

LEAST_SEEDS = 3
"""Fewer seeds are no evidence, whatever their p: two agree by chance too often."""

CATEGORIES = RESPONSE, CONNECTED, SHARED = "response", "multi-connection", "shared-representation"

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"


class Finding(NamedTuple):
    """A verdict on a claim, and the numbers that it rests on."""

    verdict: str
    evidence: str


Value = Callable[[Record], float | None]
"""A number of a finished record, None where it was not measured."""


# --- numbers of one record --------------------------------------------------------------------


def final(key: str) -> Value:
    """The number called `key` among a record's final ones."""

    def value(record: Record) -> float | None:
        found = record.final.get(key)
        return float(found) if found is not None and math.isfinite(found) else None

    return value


def gradient_cosine(record: Record) -> float | None:
    """Mean cosine between the gradients of task and transfer loss, in the method's own stage.

    That stage is the first one that reads the teacher. Only epochs that train on labels count:
    where the head is untrained, its task gradient is close to a random one.
    """
    first = 0
    for stage in record.stages:
        epochs = range(first, first + stage["epochs"])
        first = epochs.stop
        if stage["taps"]:
            curve, task = (record.curves.get(x, []) for x in ("gradient_cosine", "task_loss"))
            points = [(curve[i], task[i]) for i in epochs if i < min(len(curve), len(task))]
            cosines = [x for x, loss in points if x is not None and loss is not None]
            return statistics.fmean(cosines) if cosines else None
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


# --- by category ------------------------------------------------------------------------------

Pairs = Mapping[PairKey, Sequence[Group]]
"""The rows of every pair that has any record, see `bench.report.summary.measured_groups`."""


def category_means(groups: Sequence[Group], category: str, value: Value) -> dict[int, float]:
    """Seed -> mean over the category's methods, each the mean over its rows.

    Only over seeds at which every row has the number that any of its seeds has: a failed
    cell must not change what a mean is made of.
    """
    methods: dict[str, list[dict[int, float]]] = {}
    for group in groups:
        chosen = group.role == "method" and group.category == category
        if chosen and (series := read(group, value)):
            methods.setdefault(group.label.split(" ")[0], []).append(series)  # with variants
    rows = [series for own in methods.values() for series in own]
    seeds = set.intersection(*map(set, rows)) if rows else set()
    return {
        seed: statistics.fmean(
            statistics.fmean(series[seed] for series in own) for own in methods.values()
        )
        for seed in sorted(seeds)
    }


def teacher_values(groups: Sequence[Group], value: Value) -> dict[int, float]:
    """Seed -> a number that is the teacher's alone: every method of the pair has the same."""
    found: dict[int, float] = {}
    for group in groups:
        if group.role == "method":
            found = {**read(group, value), **found}
    return dict(sorted(found.items()))


def read(group: Group, value: Value) -> dict[int, float]:
    """Seed -> the number of the group's finished records."""
    found = {}
    for seed, cell in group.cells.items():
        record = group.records.get(cell)
        number = value(record) if record is not None and record.status == FINISHED else None
        if number is not None:
            found[seed] = number
    return found


# --- a difference with its spread --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Differences paired by seed, each the mean over pairs; or why there are none.

    Attributes:
        wanted: -1 if the claim says below 0, 1 if above.
        differences: one a seed.
        pairs: over how many pairs.
        agreeing: pairs whose mean has the wanted sign.
        ratio: whether differences are logarithms, shown as ratios.
        missing: what is needed where nothing could be compared; empty if something was.
    """

    wanted: int
    differences: tuple[float, ...] = ()
    pairs: int = 0
    agreeing: int = 0
    ratio: bool = False
    missing: str = ""

    @property
    def p(self) -> float | None:
        """Of the paired t test that the mean is 0; None where there is no spread to judge by."""
        return paired_p(self.differences) if len(self.differences) >= LEAST_SEEDS else None

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % t interval, as a ratio if it is one."""
        found = mean_interval(self.differences)
        if not self.ratio:
            return found
        low, high = (None if end is None else _exp(end) for end in (found.low, found.high))
        return Interval(_exp(found.mean), low, high, found.n)


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))  # the interval of two seeds can be wider than a float


Series = Mapping[PairKey, Mapping[int, float]]
"""Pair -> seed -> number."""


def contrast(about: Contrast, first: Series, second: Series | None) -> Contrast:
    """first - second by seed, averaged over the pairs where both are there.

    Args:
        about: what is compared; the differences are filled in.
        first: one side.
        second: the other; None for 0.
    """
    by_pair: list[dict[int, float]] = []
    for key, series in first.items():
        other = {seed: 0.0 for seed in series} if second is None else second.get(key, {})
        if series and other:
            common = series.keys() & other.keys()
            # The last bits of a sum are no spread.
            by_pair.append({seed: round(series[seed] - other[seed], 12) for seed in common})
    if not by_pair:
        return about
    seeds = sorted(set.intersection(*map(set, by_pair)))
    if not seeds:
        return replace(about, missing="no seed at which every pair has both")
    means = [statistics.fmean(series[seed] for seed in seeds) for series in by_pair]
    differences = [statistics.fmean(series[seed] for series in by_pair) for seed in seeds]
    return replace(
        about,
        differences=tuple(round(difference, 12) for difference in differences),
        pairs=len(by_pair),
        agreeing=sum(mean * about.wanted > 0 for mean in means),
        missing="",
    )


# --- costs -------------------------------------------------------------------------------------


def loss_ms_by_category(costs: Costs | None) -> list[dict[str, Quartiles]]:
    """For every profiled pair: category -> milliseconds of a step's transfer loss.

    Forward and backward, of a row's costliest stage; the mean over methods, each the mean over
    its rows.
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, list[Quartiles]]]] = {}
    for record in costs.records if costs is not None else ():
        if record.status == FINISHED and record.loss is not None:
            methods = groups.setdefault(record.place, {}).setdefault(record.category, {})
            methods.setdefault(record.method, []).append(record.loss.ms)
    return [
        {category: _mean_of(map(_mean_of, methods.values())) for category, methods in pair.items()}
        for pair in groups.values()
    ]


def _mean_of(several: Iterable[Quartiles]) -> Quartiles:
    found = list(several)
    median, q1, q3 = (statistics.fmean(each[i] for each in found) for i in range(3))
    return Quartiles(median, q1, q3, min(each.n for each in found))
