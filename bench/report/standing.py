"""The rows of a pair that may be chosen, held against one of them: the best proven one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.candidates import Candidate
from bench.report.comparison import BETTER, STUDENT, told
from bench.statistics import ALPHA, Interval, mean_interval, paired_differences


@dataclass(frozen=True)
class Standing:
    """The allowed rows of a pair against a reference among them.

    Attributes:
        allowed: the candidates that no limit rules out.
        proven: those better than the plain student beyond doubt.
        reference: the proven one of the highest gain; the plain student if none is proven. Rows
            that are not proven may lie above it.
        behind: label -> reference - row with an interval that holds for all rows together.
        tied: the reference, and the allowed rows that cannot be told from it, by falling gain.
            The plain student is none of them where a row is better than it beyond doubt.
    """

    allowed: tuple[Candidate, ...]
    proven: tuple[Candidate, ...]
    reference: Candidate
    behind: dict[str, Interval]
    tied: tuple[Candidate, ...]

    @property
    def equals(self) -> tuple[Candidate, ...]:
        """What is chosen from; the plain student alone if nothing is proven."""
        return tuple(c for c in self.tied if c in self.proven) or (self.reference,)

    @property
    def level(self) -> float:
        """Of intervals of one allowed row against each of the others, see `joint_level`."""
        return joint_level(len(self.allowed) - 1)

    @classmethod
    def of(cls, allowed: Sequence[Candidate]) -> Standing:
        """Ranks candidates, the plain student among them."""
        proven = sorted(
            (c for c in allowed if c.gained is not None and c.gained.verdict == BETTER),
            key=lambda c: -c.gain,
        )
        student = next(c for c in allowed if c.label == STUDENT)
        reference = proven[0] if proven else student
        level = joint_level(len(allowed) - 1)
        behind = {}
        for other in allowed:
            differences = paired_differences(reference.accuracy, other.accuracy)
            if other is not reference and differences:
                behind[other.label] = mean_interval(differences, level)
        beaten = {c.label for c in allowed if _behind(behind.get(c.label))}
        if proven:
            beaten.add(STUDENT)
        tied = sorted((c for c in allowed if c.label not in beaten), key=lambda c: -c.gain)
        return cls(tuple(allowed), tuple(proven), reference, behind, tuple(tied))

    def choose(self) -> Candidate:
        """The cheapest of the equals, of equal costs the best; the reference if one is missing."""
        costs = [c.cost for c in self.equals]
        if any(cost is None for cost in costs):
            return self.reference
        least = min((cost for cost in costs if cost is not None), key=lambda cost: cost.median)
        # Costs whose middle halves overlap are the same cost: then the higher accuracy decides.
        return next(c for c in self.equals if c.cost is not None and c.cost.q1 <= least.q3)


def joint_level(comparisons: int) -> float:
    """Of each interval, so that all hold together with 95 % (Bonferroni)."""
    return 1 - ALPHA / max(1, comparisons)


def _behind(difference: Interval | None) -> bool:
    return difference is not None and told(difference) and difference.mean > 0
