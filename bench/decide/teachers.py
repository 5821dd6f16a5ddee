"""How much a gain depends on the teacher."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bench.statistics import Interval, between_groups, mean_interval

LEAST_TEACHERS = 8  # fewer say nothing about teachers that were not tried


@dataclass(frozen=True)
class Teachers:
    """What is known of a row's gain over different teachers.

    Attributes:
        count: how many teachers the gain was measured with: the claim is about these.
        deviation: of the true gain between teachers, in accuracy; None with one teacher, or with
            one seed for each, where it cannot be separated from the seeds'.
        interval: of the mean gain over teachers in general, 95 %; None below `LEAST_TEACHERS`.
    """

    count: int
    deviation: float | None
    interval: Interval | None


def between_teachers(gains: Mapping[int, float], teachers: Mapping[int, str]) -> Teachers:
    """Groups gains (seed -> row - student) by the teacher (seed -> its name)."""
    groups: dict[str, list[float]] = {}
    for seed in sorted(gains.keys() & teachers.keys()):
        groups.setdefault(teachers[seed], []).append(gains[seed])
    means = [statistics.fmean(group) for group in groups.values()]
    interval = mean_interval(means) if len(means) >= LEAST_TEACHERS else None
    return Teachers(len(groups), between_groups(list(groups.values())), interval)
