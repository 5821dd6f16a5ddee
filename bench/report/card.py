"""The answer in at most three sentences, then a line for each pair: on the page, in a terminal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED, Answer
from bench.decide.evidence import LONGER, METHOD
from bench.design import PairId
from bench.report.answers import asked_of, cautions, cost_of
from bench.report.results import Findings, Line, remarks, summary_section
from bench.report.tables import Table, to_text
from bench.report.wording import LONGER as FACTOR
from bench.report.wording import (
    chance_text,
    cost_text,
    gain_text,
    points,
    range_text,
    row_title,
)

SYMBOLS = {PROVEN: "✓", BEST_BET: "◐", UNDECIDED: "?"}
"""One mark for one decision; `template/page.css` has a colour for each."""

STUDENTS = 2
"""Students with a sentence each, at most."""


class Part(NamedTuple):
    """A piece of a sentence; `verdict` is empty but for the name of a row that was decided on."""

    text: str
    verdict: str = ""


Sentence = list[Part]


class PairLine(NamedTuple):
    """One pair's answer in words; without an answer the verdict is empty, and `row` says why."""

    title: str
    verdict: str
    row: str
    gain: str
    cost: str
    race: str


def pair_lines(found: Findings) -> list[PairLine]:
    """One line for each pair with an answer."""
    return [_pair_line(found, key) for key in found.answers]


def _pair_line(found: Findings, key: PairId) -> PairLine:
    answer, title = found.answers[key], found.titles[key]
    if answer.named is None or answer.verdict is None:
        return PairLine(title, "", answer.problem, "", "", "")
    others = [row_title(row) for row in answer.in_the_race if row != answer.named]
    race = "; ".join(others[:2]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")
    cost = cost_text(cost_of(found.pairs[key], answer.named))
    return PairLine(
        title, answer.verdict, row_title(answer.named), _gain(answer), cost, race or "no other row"
    )


def _gain(answer: Answer) -> str:
    if (gain := answer.proven_gain) is not None:
        return gain_text(gain)
    chance = answer.chance(answer.named)
    assert chance is not None  # a named row has one
    return f"probably {points(chance.gain)} points; better with {chance_text(chance.better)}"


def caution(found: Findings) -> list[str]:
    """What puts the answers in doubt, one sentence each, with the pairs that it holds for."""
    asked = asked_of(found.plan)
    held: dict[str, list[str]] = {}
    for key, answer in found.answers.items():
        for text in cautions(answer, found.pairs[key], asked):
            held.setdefault(text, []).append(found.titles[key])
    return [
        text[:1].upper() + text[1:]
        if len(pairs) == len(found.answers)
        else f"{'; '.join(pairs)}: {text}"
        for text, pairs in held.items()
    ]


def sentences(found: Findings) -> list[Sentence]:
    """The answer; with several pairs of equal seeds, of the mean over pairs first."""
    answers = {key: answer for key, answer in found.answers.items() if answer.named}
    if not answers:
        reasons = dict.fromkeys(answer.problem for answer in found.answers.values())
        why = "; ".join(reasons) or "no plain student has finished, and gains are over it"
        return [[Part(f"No answer yet: {why}.")]]
    order = list(SYMBOLS)
    sure = sorted(answers, key=lambda key: order.index(answers[key].verdict or UNDECIDED))
    students = list(dict.fromkeys(key.student for key in sure))
    if found.overall:
        said = [_overall(found), _exploratory(found, answers, students)]
    elif len(students) <= STUDENTS:
        said = [_of_student(found, answers, student) for student in students]
    else:
        said = [_counted(answers)]
    return [*said[:STUDENTS], _before_you_pay(found, answers)]


def _overall(found: Findings) -> Sentence:
    lines = found.overall_lines
    best = next((line for line in lines if line.proven), lines[0])
    assert best.gain is not None  # a mean over pairs has one
    verdict, said = (PROVEN, "") if best.proven else (BEST_BET, ", not proven")
    costs = [c for pair in found.pairs.values() if (c := cost_of(pair, best.label)) is not None]
    return [
        Part(f"On average over {best.n} pairs: "),
        Part(best.title, verdict),
        Part(f", {gain_text(best.gain)} over the student alone{_at(costs)}{said}."),
    ]


def _at(costs: Sequence[float]) -> str:
    shown = range_text(costs, "{:.1f}".format) if costs else ""
    return f", at {shown} times its training cost" if costs else ""


def _exploratory(
    found: Findings, answers: dict[PairId, Answer], students: Sequence[str]
) -> Sentence:
    if len(students) > STUDENTS:
        return [Part("Single pairs, exploratory: "), *_counted(answers)]
    parts: Sentence = []
    for place, student in enumerate(students):
        parts.append(Part(f"{'; for' if place else 'For'} a {student} student "))
        parts += _named(_of(answers, student), found)
    return [*parts, Part(" (single pairs are exploratory).")]


def _of(answers: dict[PairId, Answer], student: str) -> dict[PairId, Answer]:
    return {key: answer for key, answer in answers.items() if key.student == student}


def _named(answers: dict[PairId, Answer], found: Findings) -> Sentence:
    """Which row is named for these pairs, and how sure that is, without gain and cost."""
    choices: dict[tuple[str, str], list[PairId]] = {}
    for key, answer in answers.items():
        choices.setdefault((answer.named or "", answer.verdict or ""), []).append(key)
    parts: Sentence = []
    for (row, verdict), keys in choices.items():
        where = "" if len(choices) == 1 else f" ({', '.join(found.titles[key] for key in keys)})"
        parts += [Part(" and ")] * bool(parts)
        if verdict == UNDECIDED:
            parts += [Part("it is "), Part("undecided", verdict), Part(f", {row_title(row)} leads")]
        else:
            said = " is proven" if verdict == PROVEN else " is the best bet, not proven"
            parts += [Part(row_title(row), verdict), Part(said)]
        parts += [Part(where)] * bool(where)
    return parts


def _of_student(found: Findings, answers: dict[PairId, Answer], student: str) -> Sentence:
    """One student's answer with gain and cost, over its teachers and data."""
    mine = _of(answers, student)
    parts = [Part(f"For a {student} student "), *_named(mine, found)]
    named = {answer.named for answer in mine.values()}
    # What was measured if it is proven, else what is believed.
    both = [(a.proven_gain, a.chance(a.named)) for a in mine.values()]
    gains = [gain.mean if gain else chance.gain for gain, chance in both if chance is not None]
    priced = (cost_of(found.pairs[key], answer.named) for key, answer in mine.items())
    costs = [cost for cost in priced if cost is not None]
    if len(named) > 1 or not gains:
        return [*parts, Part(".")]
    sure = "" if all(answer.verdict == PROVEN for answer in mine.values()) else "probably "
    gain = f"{sure}{range_text(gains, points)} points"
    return [*parts, Part(f": {gain} over the student alone{_at(costs)}.")]


def _counted(answers: dict[PairId, Answer]) -> Sentence:
    """Which rows are named how often, where a sentence a student would be too many."""
    counts = Counter((a.named or "", a.verdict or "") for a in answers.values())
    order = list(SYMBOLS)
    ranked = sorted(counts, key=lambda choice: (order.index(choice[1]), -counts[choice]))
    parts: Sentence = []
    for row, verdict in ranked[:3]:
        parts += [Part("; ")] * bool(parts)
        parts += [Part(row_title(row), verdict)]
        parts += [Part(f" is {verdict} for {counts[row, verdict]} of {len(answers)} pairs")]
    return [*parts, Part("; other rows for the rest." if len(ranked) > 3 else ".")]


def _before_you_pay(found: Findings, answers: dict[PairId, Answer]) -> Sentence:
    """What the same time buys without a teacher, and whether a method is proven to beat that."""
    lead = "Before you pay for a teacher: "
    longer = _longer(found)
    if longer is None or longer.gain is None:
        return [Part(f"{lead}no row trains the student alone for longer, so its worth is open.")]
    factor = FACTOR.fullmatch(longer.label)
    factor_text = f"{float(factor['factor']):g}" if factor else ""
    times = {"": "longer", "2": "twice as long"}.get(factor_text, f"{factor_text} times as long")
    gains = [longer.gain.mean]
    if not found.overall:
        claims = [c for a in answers.values() if (c := a.claim(longer.label)) is not None]
        gains = [claim.gain.mean for claim in claims if claim.gain is not None]
    low, high = points(min(gains)), points(max(gains))
    bought = f"{low} points" if low == high else f"{low} to {high} points, depending on the pair"
    text = f"{lead}training the student alone for {times} gives {bought}"
    beaten = []
    for key, answer in answers.items():
        # The finalist of the highest gain that needs a teacher.
        methods = [x.label for x in found.lines[key] if x.kind == METHOD and x.gain is not None]
        beaten += [c.proven for c in answer.against_longer if c.row in methods[:1]]
    if not beaten:
        return [Part(f"{text}.")]
    if not any(beaten):
        return [Part(f"{text}, and no method is proven to beat that.")]
    where = f" for {sum(beaten)} of {len(beaten)} pairs" if len(beaten) > 1 else ""
    return [Part(f"{text}; the best method is proven to beat that{where}.")]


def _longer(found: Findings) -> Line | None:
    """The longer-trained student of the highest mean gain, over all pairs or of the first one."""
    for lines in (found.overall_lines, *(found.lines[key] for key in found.answers)):
        rows = [line for line in lines if line.kind == LONGER and line.gain is not None]
        if rows:
            return max(rows, key=lambda line: line.gain.mean if line.gain else 0.0)
    return None


# --- the same for a terminal -------------------------------------------------------------------

WIDE = 110
"""Columns of a terminal from which on tables show accuracies and seeds too."""

NARROW = ("label", "gain", "cost", "verdict")
REFERENCES = ("teacher", "student")


def result_tables(found: Findings, width: int) -> list[str]:
    """The tables of the summary for a terminal of so many columns, without notes, best first."""
    return [to_text(_shown(table, width)) for table in summary_section(found).tables]


def _shown(table: Table, width: int) -> Table:
    if width >= WIDE:
        keys = [column.key for column in table.columns if not column.detail]
        return replace(table.only(keys), notes=())
    narrow = table.only(NARROW)
    # Neither has a gain: it would be their accuracy that counts.
    rows = [row for row in narrow.rows if row["verdict"] not in REFERENCES]
    return replace(narrow, rows=rows, notes=())


def result_lines(found: Findings) -> list[str]:
    """What has to be said of single rows, then the answer, and for each pair if there are more."""
    lines = [
        f"{title}: {remark}"
        for key, title in found.titles.items()
        for remark in remarks(found, key)
    ]
    lines += ["".join(part.text for part in sentence) for sentence in sentences(found)]
    for pair in pair_lines(found) if len(found.answers) > 1 else ():
        answer = f"{pair.verdict}: {pair.row}, {pair.gain}, {pair.cost}"
        lines.append(f"{pair.title}: {answer if pair.verdict else f'no answer: {pair.row}'}")
    return lines
