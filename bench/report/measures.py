"""What diagnostics measured, by pair, category and seed, and differences between categories."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.cost.record import CostRecord, Costs, Quartiles
from bench.record import FINISHED, Plan, Record
from bench.report.statistics import Interval, effect_size, mean_interval, paired_t_p
from bench.report.summary import Group, PairKey, group_by_label, group_by_pair

LEAST_SEEDS = 3
"""Fewer seeds are no evidence, whatever their p: two agree by chance too often."""

RESPONSE, CONNECTED, SHARED = "response", "multi-connection", "shared-representation"

Value = Callable[[Record], float | None]
"""A number of a finished record, None where it was not measured."""


# --- numbers of one record --------------------------------------------------------------------


def final(key: str) -> Value:
    """The number called `key` among a record's final ones."""

    def value(record: Record) -> float | None:
        found = record.final.get(key)
        return float(found) if found is not None and math.isfinite(found) else None

    return value


def own_cosines(record: Record, labelled: bool = False) -> list[float]:
    """Gradient cosines in the stage of the method's own knowledge, one an epoch.

    That stage is the first that reads the teacher: a later one with soft logits beside the labels
    says nothing about hints.

    Args:
        record: of a finished cell.
        labelled: only epochs whose task loss was trained too. Before the head has learned
            anything its task gradient is close to a random one, and so is the angle to it.
    """
    first = 0
    for stage in record.stages:
        epochs = range(first, first + stage["epochs"])
        if stage["taps"]:
            curve, task = (record.curves.get(x, []) for x in ("gradient_cosine", "task_loss"))
            cosines = [(curve[i], task[i]) for i in epochs if i < min(len(curve), len(task))]
            return [x for x, loss in cosines if x is not None and not (labelled and loss is None)]
        first = epochs.stop
    return []


def mean_cosine(labelled: bool = False) -> Value:
    """Mean of `own_cosines`."""

    def value(record: Record) -> float | None:
        cosines = own_cosines(record, labelled)
        return statistics.fmean(cosines) if cosines else None

    return value


def conflict_share(labelled: bool = False) -> Value:
    """Share of `own_cosines` below 0: measured steps on which the two losses conflict."""

    def value(record: Record) -> float | None:
        cosines = own_cosines(record, labelled)
        return sum(cosine < 0 for cosine in cosines) / len(cosines) if cosines else None

    return value


def train_test_gap(record: Record) -> float | None:
    """Accuracy on the training images without augmentation, minus that of the last epoch."""
    train, test = final("train_accuracy")(record), final("last_accuracy")(record)
    return None if train is None or test is None else train - test


def log_smoothness(kind: str) -> Value:
    """Mean over taps of ln(roughness of attention maps / that of features), 0 if equal.

    Args:
        kind: "variation" or "high_frequency".
    """

    def value(record: Record) -> float | None:
        prefix = f"attention_{kind}_"
        ratios = [x for name, x in sorted(record.final.items()) if name.startswith(prefix)]
        if not ratios or not all(math.isfinite(x) and x > 0 for x in ratios):
            return None
        return statistics.fmean(map(math.log, ratios))

    return value


def logarithm(value: Value) -> Value:
    """ln of a number above 0: differences of these are ratios."""

    def log(record: Record) -> float | None:
        found = value(record)
        return math.log(found) if found is not None and found > 0 else None

    return log


# --- by pair and category ---------------------------------------------------------------------


@dataclass(frozen=True)
class Observed:
    """All rows of a grid, and what to read of their records."""

    groups: Mapping[PairKey, Sequence[Group]]

    @classmethod
    def of(cls, plan: Plan, records: Mapping[str, Record]) -> Observed:
        """The rows of a plan with the records there are."""
        pairs = group_by_pair(plan)
        return cls({key: group_by_label(key, rows, records) for key, rows in pairs.items()})

    @property
    def examined(self) -> bool:
        """Whether any record has diagnostics."""
        value = final("train_accuracy")
        return any(read(group, value) for groups in self.groups.values() for group in groups)

    def category(self, key: PairKey, category: str, value: Value) -> dict[int, float]:
        """Seed -> mean over the category's methods, each the mean over its rows.

        Only over seeds at which every row has the number that any of its seeds has: a failed
        cell must not change what a mean is made of.
        """
        methods: dict[str, list[dict[int, float]]] = {}
        for group in self.groups[key]:
            chosen = group.role == "method" and group.category == category
            if chosen and (series := read(group, value)):
                methods.setdefault(method_of(group), []).append(series)
        rows = [series for group in methods.values() for series in group]
        seeds = set.intersection(*map(set, rows)) if rows else set()
        return {
            seed: statistics.fmean(
                statistics.fmean(series[seed] for series in own) for own in methods.values()
            )
            for seed in sorted(seeds)
        }

    def baseline(self, key: PairKey, value: Value) -> dict[int, float]:
        """Seed -> the number of the pair's plain student."""
        found = [group for group in self.groups[key] if group.role == "student"]
        return read(found[0], value) if found else {}

    def teacher(self, key: PairKey, value: Value) -> dict[int, float]:
        """Seed -> a number that is the teacher's alone: every row of the pair has the same."""
        found: dict[int, float] = {}
        for group in self.groups[key]:
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


def method_of(group: Group) -> str:
    """A row's method, by its label: variants are one method."""
    return group.label.split(" ")[0]


# --- a difference with its spread --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Differences paired by seed, each the mean over pairs; or why there are none.

    Attributes:
        name: what is compared.
        wanted: -1 if the claim says below 0, 1 if above.
        differences: one a seed.
        pairs: over how many pairs.
        agreeing: pairs whose mean has the wanted sign.
        unit: of the difference.
        ratio: whether differences are logarithms, shown as ratios.
        missing: why nothing could be compared; empty if something was.
        decides: whether the claim's verdict rests on it too; otherwise it is said beside it.
    """

    name: str
    wanted: int
    differences: tuple[float, ...] = ()
    pairs: int = 0
    agreeing: int = 0
    unit: str = ""
    ratio: bool = False
    missing: str = ""
    decides: bool = True

    @property
    def p(self) -> float | None:
        """Of the paired t test that the mean is 0; None where there is no spread to judge by."""
        if len(self.differences) < LEAST_SEEDS or math.isinf(effect_size(self.differences)):
            return None
        return paired_t_p(self.differences)

    @property
    def interval(self) -> Interval | None:
        """The mean with its 95 % t interval, as a ratio if it is one."""
        if not self.differences:
            return None
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
        return replace(about, missing=about.missing or "not measured")
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


def cost_ratio(record: CostRecord) -> Quartiles | None:
    """A method's whole training over the plain student's."""
    return record.training_cost_ratio


def loss_ms(record: CostRecord) -> Quartiles | None:
    """Milliseconds of its costliest stage's transfer loss alone, forward and backward."""
    return record.loss.ms if record.loss is not None else None


def cost_by_category(
    costs: Costs | None, value: Callable[[CostRecord], Quartiles | None]
) -> list[dict[str, Quartiles]]:
    """For every profiled pair: category -> quartiles, each the mean over methods and their rows."""
    groups: dict[tuple[str, ...], dict[str, dict[str, list[Quartiles]]]] = {}
    for record in costs.records if costs is not None else ():
        found = value(record) if record.status == FINISHED else None
        if found is not None:
            categories = groups.setdefault(record.place, {})
            categories.setdefault(record.category, {}).setdefault(record.method, []).append(found)
    return [
        {category: _mean_of(map(_mean_of, methods.values())) for category, methods in pair.items()}
        for pair in groups.values()
    ]


def _mean_of(several: Iterable[Quartiles]) -> Quartiles:
    found = list(several)
    median, q1, q3 = (statistics.fmean(each[i] for each in found) for i in range(3))
    return Quartiles(median, q1, q3, min(each.n for each in found))
