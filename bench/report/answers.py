"""The answer for each pair as lines of text: what is proven, the best bet, what is still open."""

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from bench.cost.costs import Costs
from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED, Answer
from bench.decide.evidence import reference_title, row_title
from bench.decide.proof import Overall
from bench.decide.records import decide_plan, group_by_pair, question_of
from bench.faults import counted
from bench.record import FAILED, FINISHED, Plan, Record
from bench.record import Row as PlanRow
from bench.report.wording import chance_text, cost_text, gain_text, mean_over, points

FEW_REACHED = 0.9
"""Share of the samples: a row whose losses reached fewer of them in whole is named first."""
NO_STUDENT = "no plain student has finished, and gains are over it"


class Asked(NamedTuple):
    """The grid that may settle answers, if any, and `narrowed`: the rows left by the command line.

    `equal_seeds`: whether no row is screened; `fresh`: from this seed on none was used;
    `not_run`: how many cells; `lacks`: how many have no result, in a sentence; `work_dir`: words
    that name one, or none.
    """

    grid: str = ""
    narrowed: Sequence[str] = ()
    equal_seeds: bool = False
    fresh: int = 100
    not_run: int = 0
    lacks: str = ""
    work_dir: Sequence[str] = ()


def asked_of(plan: Plan, records: Mapping[str, Record]) -> Asked:
    """What a plan's answers are of; where rows were left out, no command settles them."""
    rows = dict.fromkeys(row.label for row in plan.rows if row.role == "method")
    narrowed = list(rows) if plan.config.get("narrowed") else ()
    grid = "" if narrowed else plan.name
    fresh = 100 * (1 + max((row.seed for row in plan.rows), default=0) // 100)
    cells = [records.get(i) for i in plan.cell_ids()]
    not_run, failed = cells.count(None), [r for r in cells if r and r.status == FAILED]
    lacks = ""
    if lack := not_run + len(failed):
        why = f" ({len(failed)} failed)" if failed else ""
        how = "" if all(r.failed_from_outside for r in failed) else " with --retry-failed"
        of_all = f"{lack} of {counted(len(cells), 'cell')}{why}"
        lacks = f"without a result: {of_all}; run the grid again{how}."
    return Asked(grid, narrowed, question_of(plan).equal_seeds, fresh, not_run, lacks)


def answer_lines(answer: Answer, asked: Asked) -> list[str]:
    """One pair: its title, what to know first, and three lines of answer."""
    lines = [answer.pair.name, *(f"  note: {text}" for text in caveats(answer, asked))]
    if answer.named is None:
        return [*lines, f"  no answer: {answer.problem}"]
    bet = UNDECIDED if answer.verdict == UNDECIDED else BEST_BET
    lines += [f"  proven: {proven_text(answer)}", f"  {bet}: {bet_text(answer)}"]
    lines.append(f"  still in the race: {'; '.join(map(row_title, answer.in_the_race))}")
    if answer.no_help:
        lines.append(f"  shown: {no_help_text(answer)}")
    return [*lines, *_worth(answer), *_cheaper(answer), *_settled_by(answer, asked)]


def cautions(answer: Answer, asked: Asked) -> list[str]:
    """What puts an answer in doubt, each in one sentence."""
    found, pair = [asked.lacks] if asked.lacks else [], answer.pair
    alone = reference_title(pair.reference.name)
    if asked.narrowed:
        found.append(f"only these rows took part: {', '.join(map(row_title, asked.narrowed))}.")
    if answer.exploratory:
        found.append("every row has the same seeds: claims about a single pair are exploratory.")
    if pair.teacher_fault:
        found.append(pair.teacher_fault)
    if answer.recipe_too_short:
        found.append("the recipe is too short: the student still gains by longer training alone.")
    for row in pair.rows:
        name = row_title(row.name)
        if row.reached is not None and row.reached < FEW_REACHED:
            share = f"{row.reached:.0%} of the samples"
            found.append(f"the loss of {name} reached {share}; the others had no defined value.")
        if row.added:
            found.append(f"with {name}, more than the student is deployed: {row.added}.")
    untested = [row_title(claim.row) for claim in answer.claims if claim.gain is None]
    if untested:
        found.append(f"nothing is claimed of {', '.join(untested)}: no seed shared with {alone}.")
    equal = [c.row for c in answer.claims if c.p is None and c.gain is not None and c.gain.n > 1]
    if equal:
        rows = ", ".join(map(row_title, equal))
        found.append(f"the same difference from {alone} at every seed is no evidence: {rows}.")
    return found


def caveats(answer: Answer, asked: Asked) -> list[str]:
    """What a reader must know before the answer, each in one sentence."""
    found = cautions(answer, asked)
    if answer.pair.look == 2:
        found.append("second look: the first one had 4 % of the level, this one 1 %.")
    teachers = answer.teachers
    if teachers is not None and teachers.count > 1:
        text = f"the claim is for these {teachers.count} teachers"
        if teachers.deviation is not None:
            spread = f"{100 * teachers.deviation:.1f} points (standard deviation)"
            text += f"; the gain differs between them by {spread}"
        found.append(f"{text}.")
    return found


def proven_text(answer: Answer) -> str:
    """The proven rows with the named one first, and those that limits rule out."""
    proven, why = [claim.row for claim in answer.claims if claim.proven], answer.excluded
    left_out = [f"{row_title(row)} ({why[row]})" for row in proven if row in why]
    beyond = f"; beyond the limits: {', '.join(left_out)}" if left_out else ""
    reference, gain = reference_title(answer.pair.reference.name), answer.proven_gain
    if gain is None:
        seeds = max((claim.gain.n for claim in answer.claims if claim.gain), default=0)
        rows = f"{counted(len(answer.claims), 'row')} against {reference}"
        tried = f"nothing ({rows}, {counted(seeds, 'seed')})"
        return f"nothing within the limits{beyond}" if beyond else tried
    others = [row_title(row) for row in proven if row not in why and row != answer.named]
    also = f"; also {', '.join(others)}" if others else ""
    return (
        f"{row_title(answer.named or '')}, {gain_text(gain)} over {reference} on "
        f"{answer.pair.measured_on}, {counted(gain.n, 'seed')}, "
        f"{cost_text(answer.cost(answer.named))}{also}{beyond}"
    )


def no_help_text(answer: Answer) -> str:
    """What is shown where no finalist gains more than the margin."""
    return f"no finalist gains more than {100 * answer.margin:.1f} points"


def bet_text(answer: Answer) -> str:
    """What is believed of the row of the highest believed gain."""
    chance = next(chance for chance in answer.chances if chance.row == answer.best_bet)
    reference = reference_title(answer.pair.reference.name)
    return (
        f"{row_title(chance.row)}, probably {points(chance.gain)} points; better than {reference} "
        f"with {chance_text(chance.better)}, the best row with {chance_text(chance.best)}; "
        f"{cost_text(answer.cost(chance.row))}"
    )


def _worth(answer: Answer) -> list[str]:
    """Whether the named method is proven better than training the student alone for longer."""
    claim = next((c for c in answer.against_longer if c.row == answer.named), None)
    if claim is None or claim.gain is None:
        return []
    shown = "proven" if claim.proven else "not proven"
    return [f"  against longer training without a teacher: {gain_text(claim.gain)}, {shown}"]


def _cheaper(answer: Answer) -> list[str]:
    """Which cheaper finalists are as good, or why that could not be shown."""
    good = [within.row for within in answer.as_good if within.shown]
    said = "; ".join(f"{row_title(row)} ({cost_text(answer.cost(row))})" for row in good)
    few = [within for within in answer.as_good if within.too_few]
    if few and not good:
        nearest = min(few, key=lambda within: within.needed or math.inf)
        could = f"about {nearest.needed} seeds" if nearest.needed else "more than 1,000 seeds"
        said = f"{nearest.n} seeds cannot show it; {could} could"
    lead = f"  cheaper and as good, within {100 * answer.margin:.1f} points"
    return [f"{lead}: {said}"] if said else []


def _settled_by(answer: Answer, asked: Asked) -> list[str]:
    """The one command that could settle what is open; none if nothing could."""
    settle = answer.settle
    run = f"run_all.py {shlex.join(['run', '--grid', asked.grid, *asked.work_dir])}"
    if settle is None or not asked.grid:
        return []
    if asked.not_run:
        return [f"  to settle it: {run} (it has cells left to train)"]
    if settle.chance is not None:
        chance = chance_text(settle.chance)
        return [f"  to settle it: {run} --extend (proves it with a chance of {chance})"]
    if settle.seeds is None:
        return ["  to settle it: more than 1,000 seeds"]
    fresh = f"seeds.first={asked.fresh} seeds.confirm={settle.seeds}"
    if asked.equal_seeds:
        fresh = f"--seeds {asked.fresh}-{asked.fresh - 1 + settle.seeds}"
    return [f"  to settle it, on fresh seeds: {run} {fresh}"]


def winner(plan: Plan, records: Mapping[str, Record], costs: Costs) -> tuple[PlanRow, str] | None:
    """The network to take home from a grid, and why; None where no row is believed to be better.

    Of the rows that are proven better than the plain student, one a pair at most, the one of the
    highest mean accuracy. If there is none, the best bet of the highest believed gain. Of the
    row's seeds the first finished one, never the best seed: that would be chosen on the test set.
    """
    rank, found = (False, 0.0), None
    for key, answer in decide_plan(plan, records, costs)[0].items():
        if (chance := answer.chance(answer.named)) is not None:
            proven = answer.verdict == PROVEN
            seeds = next(row.every_seed for row in answer.pair.rows if row.name == answer.named)
            mine = proven, fmean(seeds.values()) if proven else chance.gain
            if mine > rank:  # the plan's first one of equals
                rank, found = mine, (key, answer)
    if found is None:
        return None
    key, answer = found
    rows = (row for row in group_by_pair(plan)[key] if row.label == answer.named)
    done = {i for i, record in records.items() if record.status == FINISHED}
    finished = [row for row in rows if row.cell_id in done]
    row = min(finished, key=lambda row: row.seed)
    text, sure = (proven_text, "") if rank[0] else (bet_text, ", not proven")
    why = f"{answer.verdict}{sure}: for {key.title}, {text(answer)}."
    return row, f"{why} Seed {row.seed} is the first of {len(finished)}, not the best."


def overall_lines(overall: Sequence[Overall], against: str = "student") -> list[str]:
    """The headline of a grid of equal seeds: each row's mean gain over the pairs, best first."""
    alike = len({mean_over([row]) for row in overall}) == 1
    over = "" if against == "student" else f" over {row_title(against)}"
    lead = f"mean gain{over} over {mean_over(overall)}, all rows tested together:"
    lines = [lead] if overall else []
    for row in overall:
        mark, size = "proven" if row.proven else "not proven", f", {mean_over([row])}"
        said = f"{gain_text(row.gain)}, {mark}{'' if alike else size}"
        lines.append(f"  {row_title(row.row)}: {said}")
    return lines
