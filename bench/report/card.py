"""The answer in at most three sentences, then a line for each pair: on the page, in a terminal."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from bench.decide.decision import BEST_BET, PROVEN, UNDECIDED, Answer
from bench.decide.evidence import reference_title, row_title
from bench.design import PairId
from bench.report.answers import NO_STUDENT, asked_of, cautions, no_help_text
from bench.report.results import Findings, remarks, summary_section
from bench.report.tables import to_text
from bench.report.wording import chance_text, cost_text, gain_text, mean_over, points, range_text

SYMBOLS = {PROVEN: "✓", BEST_BET: "◐", UNDECIDED: "?"}
"""One mark for one decision; `template/page.css` has a colour for each."""

STUDENTS = 2  # with a sentence each, at most


class Part(NamedTuple):
    """A piece of a sentence; `verdict` is empty but for the name of a row that was decided on."""

    text: str
    verdict: str = ""


Sentence = list[Part]
Choice = tuple[str, Part, str]  # the words before a part, and those after it
Answers = Mapping[PairId, Answer]


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
    lines = []
    for key, answer in found.answers.items():
        title, chance, gain = found.titles[key], answer.chance(answer.named), answer.proven_gain
        if answer.named is None or answer.verdict is None or chance is None:
            lines.append(PairLine(title, "", answer.problem, "", "", ""))
            continue
        others = [row_title(row) for row in answer.in_the_race if row != answer.named]
        race = "; ".join(others[:2]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")
        bet = f"probably {points(chance.gain)} points; better with {chance_text(chance.better)}"
        bet += f"; {no_help_text(answer)}" if answer.no_help else ""
        said = gain_text(gain) if gain is not None else bet
        cost = cost_text(answer.cost(answer.named))
        name = next(line.title for line in found.lines[key] if line.label == answer.named)
        lines.append(PairLine(title, answer.verdict, name, said, cost, race or "no other row"))
    return lines


def caution(found: Findings) -> list[str]:
    """What puts the answers in doubt, one sentence each, with the pairs that it holds for."""
    asked, held = asked_of(found.plan, found.records), defaultdict[str, list[str]](list)
    held |= {asked.lacks: []} if asked.lacks else {}  # without an answer, too
    for key, answer in found.answers.items():
        for text in cautions(answer, asked):
            held[text].append(found.titles[key])
    everywhere = len(found.answers)
    return [
        text[:1].upper() + text[1:] if len(pairs) == everywhere else f"{'; '.join(pairs)}: {text}"
        for text, pairs in held.items()
    ]


def sentences(found: Findings) -> list[Sentence]:
    """The answer; with several pairs of equal seeds, of the mean over pairs first."""
    answers = {key: answer for key, answer in found.answers.items() if answer.named}
    if not answers:
        reasons = dict.fromkeys(answer.problem for answer in found.answers.values())
        why = "; ".join(reasons) or NO_STUDENT
        return [[Part(f"No answer yet: {why}.")]]
    order = list(SYMBOLS)
    sure = sorted(answers, key=lambda key: order.index(answers[key].verdict or UNDECIDED))
    students = {
        key.student: {k: a for k, a in answers.items() if k.student == key.student} for key in sure
    }
    if found.overall:
        said = [_overall(found), [Part("Single pairs, exploratory: "), *_counted(answers)]]
    elif len(students) <= STUDENTS:
        said = [_of_student(found, student, mine) for student, mine in students.items()]
    else:
        said = [[Part("By pair: "), *_counted(answers)]]
    return [*said, _before_you_pay(found, answers)]


def _overall(found: Findings) -> Sentence:
    lines = found.overall_lines
    best = next((line for line in lines if line.proven), lines[0])
    assert best.gain is not None  # a mean over pairs has one
    verdict, said = (PROVEN, "") if best.proven else (UNDECIDED, ", not proven")
    costs = [answer.cost(best.label) for answer in found.answers.values()]
    over = mean_over(row for row in found.overall if row.row == best.label)
    return [
        Part(f"On average over {over}: "),
        Part(best.title, verdict),
        Part(f", {gain_text(best.gain)} over the student alone{_at(costs)}{said}."),
    ]


def _at(costs: Iterable[float | None]) -> str:
    known = [cost for cost in costs if cost is not None]
    return f", at {range_text(known, '{:.1f}'.format)} times its training cost" if known else ""


def _named(answers: Answers, found: Findings) -> Sentence:
    """Which row is named for these pairs, and how sure that is, without gain and cost."""
    choices = defaultdict[Choice, list[PairId]](list)
    for key, answer in answers.items():
        choices[_choice(answer)].append(key)
    parts: Sentence = []
    for (before, named, said), keys in choices.items():
        where = "" if len(choices) == 1 else f" ({', '.join(found.titles[key] for key in keys)})"
        parts += [Part((" and " if parts else "") + before), named, Part(said + where)]
    return parts


def _choice(answer: Answer) -> Choice:
    """Which row is named for a pair, or what is shown or open instead."""
    row, verdict = row_title(answer.named or ""), answer.verdict or ""
    if verdict == PROVEN:
        return "", Part(row, verdict), " is proven"
    if answer.no_help:
        return "it is shown that ", Part(no_help_text(answer), UNDECIDED), ""
    if verdict == UNDECIDED:
        leads = row if _gains(answer) else reference_title(answer.pair.reference.name)
        return "it is ", Part("undecided", verdict), f", {leads} leads"
    return "", Part(row, verdict), " is the best bet, not proven"


def _gains(answer: Answer) -> bool:
    """Whether the named row is proven, or believed to gain something and not shown not to."""
    chance = answer.chance(answer.named)
    believed = chance is not None and chance.gain > 0 and not answer.no_help
    return believed or answer.verdict == PROVEN


def _of_student(found: Findings, student: str, mine: Answers) -> Sentence:
    """One student's answer with gain and cost, over its teachers and data."""
    parts = [Part(f"For a {student} student "), *_named(mine, found)]
    if not all(map(_gains, mine.values())) or len({answer.named for answer in mine.values()}) > 1:
        return [*parts, Part(".")]
    # What was measured if it is proven, else what is believed.
    both = [(a.proven_gain, a.chance(a.named)) for a in mine.values()]
    gains = [gain.mean if gain else chance.gain for gain, chance in both if chance]
    sure = "" if all(answer.verdict == PROVEN for answer in mine.values()) else "probably "
    gain = f"{sure}{range_text(gains, points)} points"
    cost = _at(answer.cost(answer.named) for answer in mine.values())
    return [*parts, Part(f": {gain} over the student alone{cost}.")]


def _counted(answers: Answers) -> Sentence:
    """What is said of how many pairs, where a sentence a student would be too many."""
    counts, order = Counter(map(_choice, answers.values())), list(SYMBOLS)
    ranked = sorted(counts.items(), key=lambda item: (order.index(item[0][1].verdict), -item[1]))
    parts: Sentence = []
    for (before, named, said), count in ranked[:3]:
        often = f"{',' * (',' in said)} for {count} of {len(answers)} pairs"
        parts += [Part(("; " if parts else "") + before), named, Part(said + often)]
    return [*parts, Part("; other answers for the rest." if len(ranked) > 3 else ".")]


def _before_you_pay(found: Findings, answers: Answers) -> Sentence:
    """What the same time buys without a teacher, and whether a method is proven to beat that."""
    lead, lines = "Before you pay for a teacher: ", found.overall_lines
    rows = [(a, row.name) for a in answers.values() for row in a.pair.rows if row.longer]
    names = {row for _, row in rows}
    gains = [(line.gain.mean, line.label) for line in lines if line.gain and line.label in names]
    claims = [answer.claim(row) for answer, row in rows]
    gains = gains or [(claim.gain.mean, claim.row) for claim in claims if claim and claim.gain]
    if not gains:
        why = "longer training of the student alone is not confirmed"
        why = why if rows else "no row trains the student alone for longer"
        return [Part(f"{lead}{why}, so its worth is open.")]
    best = max(gains)[1]
    bought = range_text((gain for gain, row in gains if row == best), points)
    how = f"{'changes by' if '-' in bought else 'gains'} {bought} points"
    text = f"{lead}the student alone trained for longer ({row_title(best)}) {how}"
    beaten = []
    for answer in answers.values():  # of the method of the highest gain
        priced = [(claim.gain.mean, claim.proven) for claim in answer.against_longer if claim.gain]
        beaten += [proven for _, proven in sorted(priced)[-1:]]
    said = ", and no method is proven to beat that" if beaten else ""
    if any(beaten):
        where = f" for {sum(beaten)} of {len(beaten)} pairs" if len(beaten) > 1 else ""
        said = f"; the best method is proven to beat that{where}"
    return [Part(f"{text}{said}.")]


# --- the same for a terminal -------------------------------------------------------------------

WIDE = 110  # columns of a terminal from which on tables show accuracies and seeds too
NARROW = ("label", "gain", "cost", "verdict")


def result_tables(found: Findings, width: int) -> list[str]:
    """The tables of the summary for a terminal of so many columns, without notes, best first."""
    shown = []
    for table in summary_section(found).tables:
        made, rows = table.without_details(), table.rows
        if width < WIDE:
            # Teacher and student have no gain: it would be their accuracy that counts.
            rows = [row for row in rows if row["verdict"] not in ("teacher", "student")]
            made = replace(table, rows=rows).only(NARROW)
        shown.append(to_text(replace(made, notes=())))
    return shown


def result_lines(found: Findings) -> list[str]:
    """What has to be said of single rows, then the answer, and for each pair if there are more."""
    titles = found.titles.items()
    lines = [f"{title}: {text}" for key, title in titles for text in remarks(found, key)]
    lines += caution(found)
    lines += ["".join(part.text for part in sentence) for sentence in sentences(found)]
    for pair in pair_lines(found) if len(found.answers) > 1 else ():
        said = f"{pair.verdict}: {pair.row}, {pair.gain}, {pair.cost}"
        lines.append(f"{pair.title}: {said if pair.verdict else f'no answer: {pair.row}'}")
    return lines
