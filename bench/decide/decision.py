"""The decision: for each pair which row, how sure, and what would settle it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from bench.decide.best_bet import DRAWS, Chance, chances, still_in_the_race
from bench.decide.evidence import METHOD, Pair, Row, row_title
from bench.decide.proof import (
    FIRST_LOOK,
    SECOND_LOOK,
    Claim,
    Family,
    Overall,
    Within,
    all_within_margin,
    over_pairs,
    prove,
    within_margin,
)
from bench.statistics import (
    ALPHA,
    Interval,
    between_groups,
    mean_and_deviation,
    paired_differences,
    power,
    seeds_needed,
)

PROVEN, BEST_BET, UNDECIDED = "proven", "best bet", "undecided"
SURE_ENOUGH = 0.90  # P(better) of a best bet, below which nothing is decided
MARGIN, COARSE_MARGIN, FEW_IMAGES = 0.005, 0.01, 1000
"""Accuracy that does not matter; the coarse one on a test set of few images."""


class Question(NamedTuple):
    """What is asked of the evidence.

    Attributes:
        against: the row that the others are held against; empty for the plain student.
        max_cost: whole training over the plain student's; dearer rows are not named.
        extend: confirmation seeds that the design may add once; 0 for a design of one look.
        equal_seeds: whether every row has the same seeds, without screening.
        draws: Monte-Carlo draws behind P(best).
    """

    against: str = ""
    max_cost: float | None = None
    extend: int = 0
    equal_seeds: bool = False
    draws: int = DRAWS


class Settle(NamedTuple):
    """What could turn a best bet into a proof, if its true gain is what is believed.

    `chance` is the probability that the design's extension proves it; None if none is left. With
    `seeds` a new experiment proves it with probability 0.8; None if more than 1,000.
    """

    chance: float | None
    seeds: int | None


class Teachers(NamedTuple):
    """How many teachers a gain was measured with, and the true gain's deviation between them.

    It is None where it cannot be separated from the seeds': one teacher, or one seed for each.
    """

    count: int
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer for one pair, on this test set.

    Attributes:
        margin: accuracy that does not matter.
        claims: of every finalist against the reference.
        against_longer: of every method against the longer-trained student, the teacher's price.
        excluded: row -> why it may not be named.
        exploratory: whether these are claims of one pair among several of equal seeds.
        recipe_too_short: whether the student is proven to gain by longer training.
        problem: why no row is named, in one line.
        verdict: `PROVEN`; else `BEST_BET`, or `UNDECIDED` if P(better) of that bet is below
            `SURE_ENOUGH`; None where no row is named.
        named: of the allowed finalists that are proven, the one of the highest mean gain over all
            its seeds; if there is none, the best bet.
        chances: of the reference and every allowed row, finalist or not, by falling gain.
        in_the_race: the fewest rows whose P(best) sums to 95 %.
        as_good: whether the named row leads cheaper allowed finalists by less than the margin.
        no_help: whether it is shown that no finalist gains more than the margin.
        settle: what could prove the best bet; None if a row is proven, or none is believed to gain.
        teachers: how the named row's gain depends on the teacher; None where that is unknown.
    """

    pair: Pair
    margin: float
    claims: tuple[Claim, ...]
    against_longer: tuple[Claim, ...]
    excluded: Mapping[str, str]
    exploratory: bool
    recipe_too_short: bool
    problem: str = ""
    verdict: str | None = None
    named: str | None = None
    chances: tuple[Chance, ...] = ()
    in_the_race: tuple[str, ...] = ()
    as_good: tuple[Within, ...] = ()
    no_help: bool = False
    settle: Settle | None = None
    teachers: Teachers | None = None

    def claim(self, row: str | None) -> Claim | None:
        """What is claimed of a row; None if it is no finalist."""
        return next((claim for claim in self.claims if claim.row == row), None)

    def cost(self, row: str | None) -> float | None:
        """A row's whole training over the plain student's; None where it was not measured."""
        return next((each.cost for each in self.pair.rows if each.name == row), None)

    @property
    def allowed(self) -> dict[str, Row]:
        """The finalists that may be named, by name."""
        rows = (row for row in self.pair.finalists if row.nameable)
        return {row.name: row for row in rows if row.name not in self.excluded}

    @property
    def best_bet(self) -> str | None:
        """The allowed finalist of the highest believed gain, proven or not."""
        allowed = self.allowed
        return next((chance.row for chance in self.chances if chance.row in allowed), None)

    @property
    def proven_gain(self) -> Interval | None:
        """The named row's measured gain; None unless it is proven."""
        claim = self.claim(self.named)
        return claim.gain if self.verdict == PROVEN and claim is not None else None

    def chance(self, row: str | None) -> Chance | None:
        """What is believed of a row; None if it may not be named."""
        return next((chance for chance in self.chances if chance.row == row), None)


class Decision(NamedTuple):
    """The answers, one a pair, and of a grid of equal seeds each row's mean gain over students."""

    answers: tuple[Answer, ...]
    overall: tuple[Overall, ...] = ()


def decide(pairs: Sequence[Pair], question: Question | None = None) -> Decision:
    """One answer for every pair of a grid, in their order, but for those without row `against`.

    All claims rest on the confirmation seeds; what is believed, on all seeds. The families of
    tests span the whole grid, so leave out no pair that was trained. A limit on cost changes which
    row is named, never what is proven. UserError if `against` names no finalist.
    """
    asked = question or Question()
    able = [p for p in pairs if asked.against in ("", *(row.name for row in p.confirmed))]
    pairs = [replace(pair, against=asked.against) for pair in able or pairs]
    twice = asked.extend or any(pair.look == 2 for pair in pairs)
    alphas = (FIRST_LOOK, SECOND_LOOK) if twice else (ALPHA,)
    families = [Family(pair.reference, pair.finalists) for pair in pairs]
    claims = prove(families, alphas)
    longer = prove([_longer_family(pair) for pair in pairs], alphas)
    answers = [
        _answer(pair, found, priced, asked, len(pairs))
        for pair, found, priced in zip(pairs, claims, longer, strict=True)
    ]
    alpha = alphas[max((pair.look for pair in pairs), default=1) - 1]
    as_good = within_margin(map(_behind, answers), [answer.margin for answer in answers], alpha)
    count = sum(map(len, claims))
    finished = []
    for family, answer, cheaper in zip(families, answers, as_good, strict=True):
        gains = family.differences(answer.pair.look)
        answer = replace(
            answer,
            as_good=cheaper,
            no_help=all_within_margin(gains.values(), answer.margin, alpha, len(pairs)),
            settle=_settle(answer, gains.get(answer.named or "", ()), asked.extend, count),
            teachers=_teachers(answer.pair, answer.named),
        )
        finished.append(answer)
    if not asked.equal_seeds:
        return Decision(tuple(finished))
    return Decision(tuple(finished), over_pairs(pairs))


def _longer_family(pair: Pair) -> Family:
    """Methods against the student trained longer; of several, the best one confirmed."""
    longer = [row for row in pair.finalists if row.longer and row.confirmation]
    if not longer:
        return Family(pair.student, ())
    best = max(longer, key=lambda row: fmean(row.confirmation.values()))
    return Family(best, tuple(row for row in pair.finalists if row.kind == METHOD))


def _behind(answer: Answer) -> dict[str, list[float]]:
    """Named row - finalist by seed, of each allowed finalist that costs less."""
    rows = {row.name: row for row in answer.pair.finalists if row.name not in answer.excluded}
    named = rows.get(answer.named or "")
    if named is None or named.cost is None:
        return {}
    cheaper = [row for row in rows.values() if row.cost is not None and row.cost < named.cost]
    found = Family(named, tuple(cheaper)).differences(answer.pair.look)
    return {row: [-d for d in differences] for row, differences in found.items() if differences[1:]}


def _answer(
    pair: Pair,
    claims: tuple[Claim, ...],
    against_longer: tuple[Claim, ...],
    asked: Question,
    pairs: int,
) -> Answer:
    """Names a row, from what is proven, from what is believed, and within the limits."""
    proven = {claim.row for claim in claims if claim.proven}
    limits = {row.name: row.too_dear(asked.max_cost) for row in pair.rows if row.nameable}
    answer = Answer(
        pair=pair,
        margin=COARSE_MARGIN if pair.test_images < FEW_IMAGES else MARGIN,
        claims=claims,
        against_longer=against_longer,
        excluded={row: why for row, why in limits.items() if why},
        exploratory=asked.equal_seeds and pairs > 1,
        recipe_too_short=pair.reference is pair.student
        and any(row.longer and row.name in proven for row in pair.finalists),
    )
    if problem := _problem(answer):
        return replace(answer, problem=problem)
    believed = chances(
        {row.name: row.every_seed for row in (pair.reference, *pair.rows)},
        methods=[row.name for row in pair.rows if row.kind == METHOD],
        competing=[row for row, why in limits.items() if not why],
        draws=asked.draws,
    )
    bet = next(chance for chance in believed if chance.row in answer.allowed)
    gains = {
        name: fmean(paired_differences(row.every_seed, pair.reference.every_seed))
        for name, row in answer.allowed.items()
        if name in proven
    }
    verdict = BEST_BET if bet.better >= SURE_ENOUGH else UNDECIDED
    return replace(
        answer,
        verdict=PROVEN if gains else verdict,
        named=max(gains, key=lambda row: gains[row], default=bet.row),
        chances=believed,
        in_the_race=still_in_the_race(believed),
    )


def _problem(answer: Answer) -> str:
    """Why no row can be named, in one line; empty if one can."""
    finalists, reference = answer.pair.finalists, answer.pair.reference
    if not finalists:
        return "no row has confirmation seeds; run the grid to its end"
    if not any(row.nameable for row in finalists):
        return f"no other finalist can be held against {row_title(reference.name)}"
    costs = {r.name: r.cost for r in finalists if r.nameable and r.cost is not None}
    if not answer.allowed and not costs:
        cure = "run_all.py profile measures it, a CSV file has it in the column cost"
        return f"cost is limited, and that of no finalist is known: {cure}"
    if not answer.allowed:
        nearest = min(costs, key=lambda row: costs[row])
        why = f"{row_title(nearest)}: {answer.excluded[nearest]}"
        return f"no finalist is within the limit; the nearest is {why}"
    alone = reference.every_seed.keys()
    shared = max(len(row.every_seed.keys() & alone) for row in answer.allowed.values())
    few = f"seeds in common with {reference.name}: {shared}; two are the least"
    return few if shared < 2 else ""


def _settle(answer: Answer, gains: Sequence[float], extend: int, count: int) -> Settle | None:
    """What could prove the named row, at Holm's first step over so many claims."""
    chance = answer.chance(answer.named)
    if answer.verdict == PROVEN or chance is None or chance.gain <= 0 or len(gains) < 2:
        return None
    deviation = mean_and_deviation(gains)[1]
    effect = chance.gain / deviation if deviation else 0.0
    left = extend if answer.pair.look == 1 else 0
    return Settle(
        chance=power(effect, len(gains) + left, SECOND_LOOK / 2 / count) if left else None,
        seeds=seeds_needed(effect, (FIRST_LOOK if extend else ALPHA) / 2 / count),
    )


def _teachers(pair: Pair, named: str | None) -> Teachers | None:
    """How the named row's gain on confirmation seeds depends on the teacher."""
    row = next((row for row in pair.finalists if row.name == named), None)
    if row is None or row.kind != METHOD or pair.teachers is None:
        return None
    accuracies, alone = row.at_look(2), pair.reference.at_look(2)
    gains = defaultdict[str, list[float]](list)
    for seed in sorted(accuracies.keys() & alone.keys() & pair.teachers.keys()):
        gains[pair.teachers[seed]].append(accuracies[seed] - alone[seed])
    return Teachers(len(gains), between_groups(list(gains.values()))) if gains else None
