"""The rows of one pair as candidates for a choice: accuracy, gain, cost, what rules them out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.cost.costs import CostRecord, Costs, Quartiles
from bench.faults import UserError
from bench.record import FAILED, FINISHED, NOT_APPLICABLE, Record, Row
from bench.report.comparison import STUDENT, Compared, Series, compare
from bench.report.summary import NOT_RUN, Group, PairKey, group_by_label
from bench.statistics import Interval, mean_interval

MIB = 2**20
LONGER = re.compile(r"student \(epochs_factor=(?P<factor>[0-9.e+]+)\)")
"""The label of the plain student trained longer, see the grid's `epochs_factor`."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: for which pair, and what a row must not exceed and must gain.

    Attributes:
        pair: teacher:student; None for every pair of the grid.
        max_cost: whole training over the plain student's.
        max_memory_mib: peak memory of a step above the plain student's.
        min_gain: accuracy over the plain student, in [0, 1].
    """

    pair: str | None = None
    max_cost: float | None = None
    max_memory_mib: float | None = None
    min_gain: float | None = None

    def __post_init__(self) -> None:
        """Refuses limits that nothing could meet or miss."""
        if self.max_cost is not None and not self.max_cost >= 1:
            raise UserError(
                f"max cost: got {self.max_cost:g}, wanted 1 or more: the plain student costs 1"
            )
        if self.max_memory_mib is not None and not self.max_memory_mib >= 0:
            raise UserError(f"max memory: got {self.max_memory_mib:g} MiB, wanted 0 or more")
        if self.min_gain is not None and not 0 <= self.min_gain < 1:
            raise UserError(
                f"min gain: got {self.min_gain:g}, wanted an accuracy in [0, 1): 0.01 is one "
                "percentage point"
            )

    @property
    def needs_costs(self) -> bool:
        """Whether any limit is on what only the profiler knows."""
        return self.max_cost is not None or self.max_memory_mib is not None


ANYTHING = Question()
"""Every pair of the grid, without limits."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row that could be chosen.

    Attributes:
        label: the row's.
        category: the method's.
        accuracy: seed -> accuracy of the last epoch, in [0, 1].
        planned: how many seeds the grid asks for.
        gained: against the plain student, tested against the least gain asked for; None for the
            plain student itself.
        cost: whole training over the plain student's; None where not measured.
        extra_mib: peak memory of a step above the plain student's; None where not measured.
        extra_parameters: trained with the student; None where not measured.
        excluded: why it may not be chosen; empty if it may.
    """

    label: str
    category: str
    accuracy: Series = field(default_factory=dict)
    planned: int = 0
    gained: Compared | None = None
    cost: Quartiles | None = None
    extra_mib: float | None = None
    extra_parameters: int | None = None
    excluded: str = ""

    @property
    def is_student(self) -> bool:
        """Whether it is plain training, of whatever length."""
        return plain_factor(self.label) is not None

    @property
    def factor(self) -> float | None:
        """How much longer than the others it trained; None if it is no longer-trained student."""
        return None if self.label == STUDENT else plain_factor(self.label)

    @property
    def mean(self) -> Interval | None:
        """Its accuracy with the 95 % t interval."""
        return mean_interval(list(self.accuracy.values())) if self.accuracy else None

    @property
    def gain(self) -> float:
        """Mean over the seeds that the plain student has too; 0 for that student itself."""
        return self.gained.gain.mean if self.gained and self.gained.gain else 0.0


def candidates_of(
    key: PairKey,
    rows: Iterable[Row],
    records: Mapping[str, Record],
    costs: Sequence[CostRecord],
    limits: Question,
) -> list[Candidate]:
    """The plain student, then all methods in the plan's order, those ruled out with the reason.

    Args:
        key: the pair.
        rows: of the plan, all of this pair.
        records: by cell id.
        costs: of this pair, see `costs_of`.
        limits: what rules a row out. The correction for many tests is over all rows, whatever
            the limits, so that a verdict does not depend on the question.
    """
    groups = [g for g in group_by_label(key, rows, records) if g.role != "teacher"]
    measured = {group.label: group.by_seed("last_accuracy") for group in groups}
    methods = {label: series for label, series in measured.items() if label != STUDENT}
    gained = compare(methods, measured.get(STUDENT, {}), margin=limits.min_gain or 0.0)
    known = {record.label: record for record in costs}
    found = []
    for group in groups:
        candidate = Candidate(
            label=group.label, category=group.category, accuracy=measured[group.label],
            planned=len(group.cells), gained=gained.get(group.label),
        )  # fmt: skip
        candidate = _with_cost(candidate, known.get(group.label))
        reason = _why_not(group, candidate) or _beyond(candidate, limits, known.get(group.label))
        found.append(replace(candidate, excluded=reason))
    return found


def _with_cost(candidate: Candidate, cost: CostRecord | None) -> Candidate:
    ratio = cost_ratio(candidate.label, cost)
    if candidate.is_student:
        return replace(candidate, cost=ratio, extra_mib=0.0, extra_parameters=0)
    if cost is None or cost.status != FINISHED:
        return candidate
    return replace(
        candidate,
        cost=ratio,
        extra_mib=cost.extra_peak_bytes / MIB,
        extra_parameters=cost.extra_parameters,
    )


def _why_not(group: Group, candidate: Candidate) -> str:
    """Why there is too little to judge the row by; empty if there is enough."""
    if not candidate.accuracy:
        for status, text in ((FAILED, "failed"), (NOT_APPLICABLE, "not applicable")):
            if cells := group.with_status(status):
                return f"{text}: {group.records[cells[0]].error or 'no reason given'}"
        return "not run" if group.with_status(NOT_RUN) else "no accuracy measured"
    if candidate.gained is not None and candidate.gained.n < 2:
        seeds = f"{candidate.gained.n} seed{'' if candidate.gained.n == 1 else 's'}"
        return f"not enough seeds: {seeds} in common with the student, 2 are the least"
    return ""


def _beyond(candidate: Candidate, limits: Question, cost: CostRecord | None) -> str:
    """Which limit the row exceeds; empty if none."""
    if limits.needs_costs and candidate.cost is None:
        why = f" ({cost.status.replace('_', ' ')}: {cost.error})" if cost is not None else ""
        return f"cost not measured{why}"
    if limits.max_cost is not None and candidate.cost and candidate.cost.median > limits.max_cost:
        return f"cost x{candidate.cost.median:.2f} above x{limits.max_cost:g}"
    memory, most = candidate.extra_mib, limits.max_memory_mib
    if most is not None and memory is not None and memory > most:
        return f"memory {memory:.1f} MiB above the plain step's, limit {most:g} MiB"
    return ""


# --- costs -----------------------------------------------------------------------------------


def plain_factor(label: str) -> float | None:
    """Epochs of a row of plain training over the student's; None for every other row.

    Example:
        >>> [plain_factor(x) for x in ("student", "student (epochs_factor=1.5)", "fitnet")]
        [1.0, 1.5, None]
    """
    found = LONGER.fullmatch(label)
    return 1.0 if label == STUDENT else float(found["factor"]) if found else None


def cost_ratio(label: str, cost: CostRecord | None) -> Quartiles | None:
    """A row's whole training over the plain student's; None where it was not measured.

    Plain training costs by definition as many times as it is longer: its step is the same.
    """
    if (factor := plain_factor(label)) is not None:
        return Quartiles(factor, factor, factor, 1)
    return cost.training_cost_ratio if cost is not None and cost.status == FINISHED else None


def costs_of(costs: Costs | None, key: PairKey) -> tuple[list[CostRecord], str]:
    """What was profiled of a pair, under one set of conditions, and those conditions in words.

    Args:
        costs: of the grid; None for none.
        key: the pair; its axes do not matter to a cost.

    Returns:
        The records, by row; empty, with no words, if the pair was not profiled.
    """
    records = costs.of_pair(key.data, key.teacher, key.student) if costs is not None else []
    if not records:
        return [], ""
    device, threads, precision, batch = records[0].place[3:]
    return records, f"on {device}, threads {threads}, {precision}, batch {batch}"
