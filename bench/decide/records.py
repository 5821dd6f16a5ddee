"""From a grid's plan, records and costs to the numbers that `bench.decide` works on."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.cost.costs import CostRecord, Costs
from bench.decide.decision import Answer, Question, decide
from bench.decide.evidence import ABLATION, LONGER, METHOD, REFERENCE, Pair, Row
from bench.decide.proof import Overall
from bench.design import CONFIRMATION, EQUAL, EXTENSION, SCREENING, PairId, pair_id
from bench.record import FINISHED, Plan, Record
from bench.record import Row as PlanRow

STUDENT = "student"


def group_by_pair(plan: Plan) -> dict[PairId, list[PlanRow]]:
    """The plan's rows by data set, axes, teacher and student, all in the plan's order."""
    pairs: dict[PairId, list[PlanRow]] = {}
    for row in plan.rows:
        pairs.setdefault(pair_id(row.data, row.axes, row.teacher, row.student), []).append(row)
    return pairs


def pairs_of(plan: Plan, records: Mapping[str, Record], costs: Costs) -> dict[PairId, Pair]:
    """The pairs of a plan that have a finished plain student, with the rows that finished."""
    rows = group_by_pair(plan).items()
    found = {pair: _pair(pair, mine, records, costs) for pair, mine in rows}
    return {pair: made for pair, made in found.items() if made is not None}


def decide_plan(
    plan: Plan, records: Mapping[str, Record], costs: Costs, **limits: Any
) -> tuple[dict[PairId, Answer], Sequence[Overall]]:
    """The answers of a grid by pair, and its rows over all pairs; see `question_of`."""
    pairs = pairs_of(plan, records, costs)
    found = decide(list(pairs.values()), question_of(plan, **limits))
    keys = {pair.name: key for key, pair in pairs.items()}
    return {keys[answer.pair.name]: answer for answer in found.answers}, found.overall


def question_of(plan: Plan, **limits: Any) -> Question:
    """The question that a grid's design asks, with the reader's limits as fields of `Question`."""
    seeds = plan.config.get("seeds")
    if not isinstance(seeds, Mapping):
        return Question(equal_seeds=True, **limits)
    return Question(extend=seeds.get("extend", 0), **limits)


def numbers_of_cells(
    plan: Plan, records: Mapping[str, Record], costs: Costs
) -> dict[str, dict[str, float]]:
    """Students' cell id -> "gain" over the student of its seed, and "cost" where measured."""
    found: dict[str, dict[str, float]] = {}
    pairs = pairs_of(plan, records, costs)
    rows = {(key, row.name): row for key, pair in pairs.items() for row in pair.rows}
    for key, planned in ((key, row) for key, mine in group_by_pair(plan).items() for row in mine):
        row, seed = rows.get((key, planned.label)), planned.seed
        if planned.role == "teacher" or row is None or seed not in row.every_seed:
            continue
        alone = pairs[key].student.every_seed
        # Rounded, for lists that show every digit.
        gain = {"gain": round(row.every_seed[seed] - alone[seed], 6)} if seed in alone else {}
        cost = {"cost": round(row.cost, 3)} if row.cost is not None else {}
        found.setdefault(planned.cell_id, gain | cost)
    return found


def _pair(
    pair: PairId, rows: Sequence[PlanRow], records: Mapping[str, Record], costs: Costs
) -> Pair | None:
    finished = [
        (row, record)
        for row in rows
        if (record := records.get(row.cell_id)) is not None
        and record.status == FINISHED
        and record.final.get("last_accuracy") is not None
    ]
    students = [record for row, record in finished if row.role == STUDENT]
    if not students:
        return None
    measured = costs.of_pair(pair.data, pair.teacher, pair.student)
    costs_of = {cost.label: cost for cost in measured}
    labels = dict.fromkeys(row.label for row, _ in finished if row.role in (STUDENT, "method"))
    confirmed = {row.label for row in rows if row.phase in (CONFIRMATION, EXTENSION, EQUAL)}
    made = []
    for label in labels:
        mine = [(row, record) for row, record in finished if row.label == label]
        found = costs_of.get(label)
        ratio = found.training_cost_ratio if found else None
        planned, cost = mine[0][0], None if ratio is None else ratio.median
        if planned.method == STUDENT:  # its step is the plain student's
            cost = _epochs(record for _, record in mine) / _epochs(students)
        kind = kind_of(planned)
        made.append(
            Row(
                name=label,
                kind=kind,
                screening=_series(mine, SCREENING),
                confirmation=_series(mine, EQUAL) or _series(mine, CONFIRMATION),
                extension=_series(mine, EXTENSION),
                cost=cost,
                finalist=kind in (LONGER, METHOD) and label in confirmed,
                reached=_reached(record for _, record in mine),
                added=_added(mine[0][1], found),
            )
        )
    teachers = {row.cell_id: record for row, record in finished if row.role == "teacher"}
    accuracies = [record.final["last_accuracy"] for record in teachers.values()]
    held_out = (students[0].cell.get("data") or {}).get("validation")
    return Pair(
        name=pair.title,
        rows=tuple(made),
        test_images=round(students[0].final.get("test_images", 0)),
        measured_on="a held-out set" if held_out else "this test set",
        teacher_accuracy=fmean(accuracies) if accuracies else None,
        classes=round(classes) if (classes := students[0].final.get("classes")) else None,
        teachers={row.seed: row.teacher_id for row, _ in finished if row.role == STUDENT},
        alone=tuple(row.cell_id for row in rows if row.role == STUDENT),
    )


def kind_of(row: PlanRow) -> str:
    """What an answer may make of a row but a teacher's; see `bench.decide.evidence.Row`."""
    if row.role == STUDENT:
        return REFERENCE
    if not row.finalist:
        return ABLATION
    return LONGER if row.method == STUDENT else METHOD


def _series(rows: Iterable[tuple[PlanRow, Record]], phase: str) -> dict[int, float]:
    return {row.seed: record.final["last_accuracy"] for row, record in rows if row.phase == phase}


def _epochs(records: Iterable[Record]) -> float:
    return fmean(record.final["epochs"] for record in records)


def _added(record: Record, cost: CostRecord | None) -> str:
    """What a method deploys on top of the student's own network; FLOP where they are measured."""
    if not (own := record.final.get("student_parameters")):
        return ""
    more = [f"{100 * (record.final['parameters'] / own - 1):+.0f} % parameters"]
    if cost is not None:
        more.append(f"{100 * (cost.deployed_flops - 1):+.0f} % FLOP")
    return ", ".join(more)


def _reached(records: Iterable[Record]) -> float | None:
    stages = [stage for record in records for stage in record.stages]
    reached, skipped, masked = (
        sum(stage.get(f"{what}_samples") or 0 for stage in stages)
        for what in ("reached", "skipped", "masked")
    )
    total = reached + skipped + masked
    return reached / total if total else None
