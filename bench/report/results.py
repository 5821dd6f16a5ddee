"""What was found of every row of a grid: the numbers and verdicts that tables and figures show."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.cost.costs import CostRecord, Costs
from bench.decide.decision import PROVEN, Answer
from bench.decide.evidence import ABLATION, LONGER, METHOD, row_title
from bench.decide.evidence import Row as Evidence
from bench.decide.proof import FIRST_LOOK, SECOND_LOOK, Overall
from bench.decide.records import decide_plan, question_of
from bench.design import PairId
from bench.faults import counted
from bench.record import Plan, Record, weights_text
from bench.report.groups import ROLES, Group, Pairs, measured_groups, whole
from bench.report.tables import Column, Section, Table, text_columns
from bench.report.wording import mean_over, range_text, seeds_text
from bench.statistics import ALPHA, Interval, mean_interval, paired_differences, paired_p

IN_THE_RACE, NOT_PROVEN, CONTROL, SCREENED = "in the race", "not proven", "control", "screened only"

COLUMNS = (
    *text_columns("label", "verdict"),
    Column("gain", "gain", "points", digits=1, signed=True, interval=True, best="high"),
    Column("cost", "cost", "× student", digits=1, best="low"),
    Column("accuracy", "accuracy", "%", digits=1, interval=True, best="high"),
    Column("best_accuracy", "best epoch", "%", digits=1, interval=True, best="high", detail=True),
    Column("agreement", "agreement", "%", digits=1, interval=True, best="high", detail=True),
    Column("epochs", "epochs", detail=True),
    Column("n", "n"),
)

KEYS = [column.key for column in COLUMNS if column.key != "label"]
SCREENED_NOTE = "Screened only: not confirmed, a gain over few seeds, no claim."
HOLM_NOTE = "; it goes by steps, so that the interval of a proven row may hold 0"
COST_NOTE = (
    "Cost: time of the whole training over the plain student's, the teacher's own training left "
    "out."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a pair, or its mean over pairs; `COLUMNS` and results/README.md have its numbers.

    Attributes:
        role: "teacher", "student" or "method".
        kind: see `bench.decide.evidence.Row`; empty for the teacher, and without a result.
        variant: 0 for the first row of its method, 1 for the next one.
        gain: over the student; of a finalist, with an interval that holds for all of them.
        added: see `bench.decide.evidence.Row`.
    """

    label: str
    role: str = "method"
    kind: str = ""
    category: str = ""
    variant: int = 0
    verdict: str = ""
    proven: bool = False
    gain: Interval | None = None
    cost: float | None = None
    accuracy: Interval | None = None
    best_accuracy: Interval | None = None
    agreement: Interval | None = None
    epochs: float | None = None
    n: int = 0
    added: str = ""

    @property
    def title(self) -> str:
        """The row as people say it, with what it deploys on top of the student."""
        title = "teacher" if self.role == "teacher" else row_title(self.label)
        return f"{title} ({self.added})" if self.added else title


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A grid with what was decided of it.

    Attributes:
        groups, titles, lines: of every pair with any record; lines are teacher, student, then the
            best first, screened ones after these.
        answers: of those with a plain student.
        overall, overall_lines: mean gains over pairs, the best first; of a grid of equal seeds.
        screened: whether the grid screens rows and confirms the finalists.
    """

    plan: Plan
    records: Mapping[str, Record]
    costs: Costs
    groups: Mapping[PairId, list[Group]]
    titles: Mapping[PairId, str]
    lines: Mapping[PairId, list[Line]]
    answers: Mapping[PairId, Answer]
    overall: Sequence[Overall]
    overall_lines: Sequence[Line]
    screened: bool


def findings(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> Findings:
    """Decides a grid; UserError if two cells answer for one row and seed."""
    groups, costs = measured_groups(plan, records), costs or Costs()
    answers, overall = decide_plan(plan, records, costs)
    screened = isinstance(plan.config.get("seeds"), Mapping)
    lines = {key: _lines(own, answers.get(key), screened) for key, own in groups.items()}
    shown = [line for key in answers for line in lines[key]]
    return Findings(
        plan=plan,
        records=records,
        costs=costs,
        groups=groups,
        titles=pair_titles(groups),
        lines=lines,
        answers=answers,
        overall=overall,
        overall_lines=[_mean_line(row, shown) for row in overall],
        screened=screened,
    )


def _lines(groups: Iterable[Group], answer: Answer | None, screened: bool) -> list[Line]:
    rows = {row.name: row for row in answer.pair.rows} if answer else {}
    seen, lines = Counter[str](), []
    for group in groups:
        row = rows.get(group.label) if group.role != "teacher" else None
        lines.append(_line(group, row, answer, seen[group.method]))
        seen[group.method] += group.role == "method"

    def place(line: Line) -> tuple[int, bool, bool, float]:
        behind = screened and line.verdict in (SCREENED, CONTROL)
        gain = line.gain.mean if line.gain else 0.0
        return ROLES.index(line.role), line.gain is None, behind, -gain

    return sorted(lines, key=place)


def _mean_line(row: Overall, lines: Iterable[Line]) -> Line:
    mine = [line for line in lines if line.label == row.row]
    costs = [line.cost for line in mine if line.cost is not None]
    return replace(
        Line(label=row.row, kind=mine[0].kind, category=mine[0].category, variant=mine[0].variant),
        verdict=PROVEN if row.proven else NOT_PROVEN,
        proven=row.proven,
        gain=row.gain,
        n=row.gain.n,
        cost=fmean(costs) if costs else None,
    )


def _line(group: Group, row: Evidence | None, answer: Answer | None, variant: int) -> Line:
    epochs, accuracies = group.by_cell("epochs"), group.by_cell("last_accuracy")
    claim = answer.claim(group.label) if answer else None
    return Line(
        label=group.label,
        role=group.role,
        kind=row.kind if row else "",
        category=group.category,
        variant=variant,
        verdict=_verdict(group, row, answer),
        proven=claim is not None and claim.proven,
        gain=_gain(row, answer),
        cost=row.cost if row else None,
        added=row.added if row else "",
        accuracy=_mean(accuracies),
        best_accuracy=_mean(group.by_cell("best_accuracy")),
        agreement=_mean(group.by_cell("agreement")),
        epochs=whole(fmean(epochs)) if epochs else None,
        n=len(accuracies),
    )


def _verdict(group: Group, row: Evidence | None, answer: Answer | None) -> str:
    if group.role != "method":
        return group.role if group.by_cell("last_accuracy") else group.why_empty()
    if row is None or answer is None:
        return group.why_empty() if not group.by_cell("last_accuracy") else "no student"
    claim = answer.claim(row.name)
    if claim is not None and claim.proven:
        return PROVEN
    if row.name == answer.named and answer.verdict is not None:
        return answer.verdict
    if row.kind == ABLATION:
        return CONTROL
    if row.name in answer.in_the_race:
        return IN_THE_RACE
    untested = claim is None or (claim.gain is None and row.screening)
    return SCREENED if untested else NOT_PROVEN


def _gain(row: Evidence | None, answer: Answer | None) -> Interval | None:
    """As claimed; of a row without a claim over all seeds, without an interval from two."""
    if row is None or answer is None or row.kind not in (LONGER, METHOD, ABLATION):
        return None
    claim = answer.claim(row.name)
    if claim is not None and claim.gain is not None:
        return claim.gain
    differences = paired_differences(row.every_seed, answer.pair.student.every_seed)
    found, shown = _mean(differences), len(differences) > 2 and paired_p(differences) is not None
    return found if found is None or shown else found._replace(low=None, high=None)


def _mean(values: list[float]) -> Interval | None:
    return mean_interval(values) if values else None


def summary_section(found: Findings) -> Section:
    """All numbers: the mean over pairs where that is the answer, then a table for each pair."""
    tables, pairs, measured = [], mean_over(found.overall), measured_on(found.plan, "set")
    level = level_text(found.plan)
    if found.overall_lines:
        note = (
            f"Mean gain over {pairs} with its 95 % interval; proven: t test over students, Holm "
            f"over all rows, level 5 %. n: students, whose pairs are averaged by seed. {COST_NOTE}"
        )
        table = _table(f"Mean over {pairs}", found.overall_lines, [note])
        tables.append(table.only(("label", "verdict", "gain", "cost", "n")))
    for key, title in found.titles.items():
        lines = found.lines[key]
        rows = len(found.answers[key].claims) if key in found.answers else 0
        whom = f"all {rows} rows" if rows > 1 else "the row"
        hold = f"hold for {whom} that claims are made about at once, of others 95 %"
        steps = any(line.proven and line.gain and (line.gain.low or 0) <= 0 for line in lines)
        notes = [
            *remarks(found, key),
            f"Accuracy: last epoch, {measured}, ± half of the 95 % Student t interval over n "
            "seeds; best epoch: chosen on the same images, so too high; agreement: with the "
            "teacher.",
            f"Gain over the student, paired by seed; intervals {hold if rows else 'of 95 %'}. "
            f"Proven: Holm over all pairs, {level}{HOLM_NOTE if steps else ''}.",
            SCREENED_NOTE if found.screened else "",
            COST_NOTE,
        ]
        tables.append(_table(title, lines, [note for note in notes if note]))
    return Section(name="summary", title=f"All numbers of {found.plan.name}", tables=tables)


def _table(title: str, lines: Iterable[Line], notes: Sequence[str]) -> Table:
    rows = [{"label": line.title, **{key: getattr(line, key) for key in KEYS}} for line in lines]
    return Table(title, COLUMNS, rows, notes)


def remarks(found: Findings, key: PairId) -> list[str]:
    """What has to be said of single rows of a pair, each in a line.

    Every error, refusal and note of a stage, with its seeds; losses that did not reach all samples;
    and whether the rows were trained by different code.
    """
    groups, answer = found.groups[key], found.answers.get(key)
    met = defaultdict[tuple[str, str], list[int]](list)
    for group in groups:
        for seed, cell in group.cells.items():
            if (record := group.records.get(cell)) is not None:
                notes = [stage.get("note") for stage in record.stages]
                for text in filter(None, (*notes, record.error, weights_text(record))):
                    met[row_title(group.label), text].append(seed)
    lines = [
        f"{label}, seed{'s' if len(seeds) > 1 else ''} {seeds_text(seeds)}: {text}"
        for (label, text), seeds in met.items()
    ]
    lines += [
        f"{row_title(row.name)}: loss on {math.floor(100 * row.reached)} % of the samples."
        for row in (answer.pair.rows if answer else ())
        if row.reached is not None and row.reached < 1
    ]
    finished = {r.cell_id: r for group in groups for r in group.finished()}
    counts = Counter(str(r.conditions.get("code") or "unknown") for r in finished.values())
    cells = ", ".join(f"{code} ({counted(n, 'cell')})" for code, n in sorted(counts.items()))
    said = "Rows were trained by different code, by the digest of what decides numbers"
    return [*lines, f"{said}: {cells}."] if len(counts) > 1 else lines


# --- what is equal for all pairs, and what tells them apart --------------------------------------


def pair_titles(pairs: Pairs) -> dict[PairId, str]:
    """Each pair by its networks, with data set and axes only where pairs differ in them."""
    where = {key: (key.data, *_axes(key, groups)) for key, groups in pairs.items()}
    common = set.intersection(*map(set, where.values())) if where else set()
    return {
        key: ", ".join([f"{key.teacher} → {key.student}", *(x for x in parts if x not in common)])
        for key, parts in where.items()
    }


def facts(plan: Plan, pairs: Pairs) -> list[str]:
    """What was trained on what, as short phrases; none before a student has finished."""
    students, teachers = (
        [r for groups in pairs.values() for g in groups if g.role == role for r in g.finished()]
        for role in ("student", "teacher")
    )
    seen, taught = (_range(found, "train_images") for found in (students, teachers))
    images = f"{seen} training images" if seen == taught or not taught else ""
    epochs, axes = _range(students, "epochs"), [_axes(*pair) for pair in pairs.items()]
    parts = [
        ", ".join(dict.fromkeys(key.data for key in pairs)),
        # Of all pairs; the images of a fraction are counted below.
        *(x for x in axes[:1] and axes[0] if all(x in y for y in axes) and "images" not in x),
        images or f"teachers saw {taught} images, students {seen}",
        counted(epochs, "epoch"),
        f"seeds {seeds_text(row.seed for row in plan.rows)}",
        f"{_range(students, 'test_images')} {measured_on(plan, 'images')}",
    ]
    return [part for part in parts if students and part and not part.startswith(" ")]


def cost_groups(found: Findings) -> list[list[CostRecord]]:
    """The costs that answers rest on, of every data set and pair of networks that has a record."""
    pairs = dict.fromkeys((key.data, key.teacher, key.student) for key in found.groups)
    return [found.costs.of_pair(*pair) for pair in pairs]


def level_text(plan: Plan) -> str:
    """The level of a grid's claims, which a design with a second look divides."""
    if not question_of(plan).extend:
        return f"level {100 * ALPHA:.0f} %"
    return f"level {100 * FIRST_LOOK:.0f} %, at a second look {100 * SECOND_LOOK:.0f} %"


def measured_on(plan: Plan, what: str) -> str:
    """What accuracies are of: the test `what`, "set" or "images", or images held out."""
    if plan.config.get("data", {}).get("validation"):
        return "held-out training images"
    return f"test {what}"


def _axes(key: PairId, groups: Iterable[Group]) -> list[str]:
    """The axes of a pair that are not at their neutral 1, as people say them."""
    finished = {group.role: record for group in groups for record in group.finished()[:1]}
    student, teacher = finished.get("student"), finished.get("teacher")
    seen, all_data = ((r.cell.get("data") or {}) if r else {} for r in (student, teacher))
    found = []
    for name, value in json.loads(key.axes).items():
        text = f"{name} {value:g}"
        if name == "resolution" and (size := seen.get("size")):
            text = f"{size / value:g}×{size / value:g}"
        elif name == "labels":
            text = f"{100 * value:.0f} % of the labels"
        elif name == "fraction" and student and "train_images" in student.final:
            text = f"{student.final['train_images']:,.0f} images"
            if teacher and all_data.get("fraction") == 1:
                text = text.replace("images", f"of {teacher.final['train_images']:,.0f} images")
        found += [text] if value != 1 else []
    return found


def _range(records: Iterable[Record], key: str) -> str:
    """The values of a count, the least and the greatest."""
    values = [record.final[key] for record in records if record.final.get(key) is not None]
    return range_text(values, "{:,.0f}".format) if values else ""
