"""What diagnostics and the profiler measured, by pair, category and seed, for the claims."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.cost.costs import Costs, Quartiles
from bench.record import FINISHED, Record
from bench.report.groups import Group, Pairs

CATEGORIES = RESPONSE, CONNECTED, SHARED = "response", "multi-connection", "shared-representation"

Value = Callable[[Record], float | None]
"""A number of a finished record, None where it was not measured."""


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


def read(group: Group, value: Value) -> dict[int, float]:
    """Seed -> the number of the group's finished records."""
    found = {}
    for seed, cell in group.cells.items():
        record = group.records.get(cell)
        number = value(record) if record is not None and record.status == FINISHED else None
        if number is not None:
            found[seed] = number
    return found


def category_means(groups: Sequence[Group], category: str, value: Value) -> dict[int, float]:
    """Seed -> mean over the category's methods, each the mean over its rows.

    Only over seeds at which every row has the number that any of its seeds has: a failed
    cell must not change what a mean is made of.
    """
    methods: dict[str, list[dict[int, float]]] = {}
    for group in groups:
        chosen = group.role == "method" and group.category == category
        if chosen and (series := read(group, value)):
            methods.setdefault(group.method, []).append(series)
    rows = [series for own in methods.values() for series in own]
    seeds = set.intersection(*map(set, rows)) if rows else set()
    return {
        seed: statistics.fmean(
            statistics.fmean(series[seed] for series in own) for own in methods.values()
        )
        for seed in sorted(seeds)
    }


class Differences(NamedTuple):
    """Differences by seed, the means over pairs, empty without any; and each pair's mean."""

    values: tuple[float, ...] = ()
    by_pair: tuple[float, ...] = ()


def differences(pairs: Pairs, value: Value, first: str, second: str) -> Differences:
    """Mean of a category - that of another one, by seed, over the pairs where both are there."""
    both = (
        (category_means(groups, first, value), category_means(groups, second, value))
        for groups in pairs.values()
    )
    return over_pairs({s: a[s] - b[s] for s in a.keys() & b.keys()} for a, b in both if a and b)


def teachers(pairs: Pairs, value: Value) -> Differences:
    """A number that is the teacher's alone: every method of a pair has the same."""
    found: list[dict[int, float]] = []
    for groups in pairs.values():
        series: dict[int, float] = {}
        for group in groups:
            if group.role == "method":
                series = {**read(group, value), **series}
        found += [series] * bool(series)
    return over_pairs(found)


def over_pairs(series: Iterable[Mapping[int, float]]) -> Differences:
    """The mean over pairs at every seed that all of them have."""
    # The last bits of a sum are no spread.
    pairs = [{seed: round(x, 12) for seed, x in pair.items()} for pair in series]
    seeds = sorted(set.intersection(*map(set, pairs))) if pairs else []
    if not seeds:
        return Differences()
    return Differences(
        tuple(round(statistics.fmean(pair[seed] for pair in pairs), 12) for seed in seeds),
        tuple(statistics.fmean(pair[seed] for seed in seeds) for pair in pairs),
    )


def scalars_by_category(pairs: Pairs) -> list[dict[str, Quartiles]]:
    """For every pair: category -> elements of the teacher's tensors that it reads per sample."""
    found = []
    for groups in pairs.values():
        means = {x: category_means(groups, x, final("knowledge_scalars")) for x in CATEGORIES}
        # Seeds do not differ in it: the networks' shapes decide.
        sizes = {x: statistics.fmean(series.values()) for x, series in means.items() if series}
        found.append({x: Quartiles(size, size, size, 1) for x, size in sizes.items()})
    return found


def loss_ms_by_category(costs: Costs) -> list[dict[str, Quartiles]]:
    """For every profiled pair: category -> milliseconds of a step's transfer loss.

    Forward and backward, of a row's costliest stage; the mean over methods, each the mean over
    its rows.
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, list[Quartiles]]]] = {}
    for record in costs.records:
        stage = record.costliest
        if stage is not None and stage.loss_ms is not None:
            methods = groups.setdefault(record.place, {}).setdefault(record.category, {})
            methods.setdefault(record.method, []).append(stage.loss_ms)
    return [
        {category: _mean_of(map(_mean_of, methods.values())) for category, methods in pair.items()}
        for pair in groups.values()
    ]


def _mean_of(several: Iterable[Quartiles]) -> Quartiles:
    found = list(several)
    median, q1, q3 = (statistics.fmean(each[i] for each in found) for i in range(3))
    return Quartiles(median, q1, q3, min(each.n for each in found))
