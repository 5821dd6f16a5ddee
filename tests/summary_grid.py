"""A hand-written grid of two seeds; tests/golden/summary/README.md does its arithmetic by hand."""

from bench.cost.costs import CostRecord, Quartiles, StageCost
from bench.record import FAILED, FINISHED, NOT_APPLICABLE, Plan, Record, Row

AXES = {"fraction": 0.5, "labels": 1.0, "resolution": 1.0}
CATEGORIES = {
    "teacher": "baseline",
    "student": "baseline",
    "soft_logits": "response",
    "fitnet": "multi-connection",
    "attention_transfer": "multi-connection",
    "fsp": "multi-connection",
    "kd_svd": "shared-representation",
    "rkd": "shared-representation",
}

# label -> seed -> (last accuracy, best accuracy, agreement)
MEASURED = {
    "teacher": {0: (0.805, 0.81, None), 1: (0.815, 0.83, None)},
    "student": {0: (0.70, 0.71, None), 1: (0.72, 0.73, None)},
    "soft_logits": {0: (0.74, 0.75, 0.90), 1: (0.765, 0.765, 0.92)},
    "attention_transfer": {0: (0.715, 0.72, 0.80), 1: (0.715, 0.73, 0.84)},
    "fitnet": {0: (0.71, 0.72, 0.85)},
    "rkd": {0: (0.73, 0.74, 0.88)},
}
REFUSAL = "FSP: widths (8, 16) and (16, 32) differ"
FAILURE = "FloatingPointError: hint loss is not finite in epoch 3"


def row(label: str, seed: int, teacher: str = "wide", student: str = "narrow") -> Row:
    """A row of the plan; its cell is named after what it trains."""
    method = "student" if label in ("teacher", "student") else label
    model = teacher if label == "teacher" else student
    return Row(
        role=label if method == "student" else "method",
        data="digits", axes=AXES, teacher=teacher, student=student, label=label, method=method,
        category=CATEGORIES[label], seed=seed, cell_id=f"{model}-{method}-{seed}",
        teacher_id=f"{teacher}-student-{seed}",
    )  # fmt: skip


def record(row: Row, status: str = FINISHED, error: str = "", **final: float | None) -> Record:
    """What the row's cell produced."""
    values = {key: value for key, value in final.items() if value is not None}
    return Record(
        cell_id=row.cell_id, cell={}, category=row.category, source="written by hand",
        status=status, error=error, final=values,
    )  # fmt: skip


def finished(row: Row, last: float, best: float, agreement: float | None) -> Record:
    """A finished cell of 30 epochs over 1000 images."""
    return record(
        row, last_accuracy=last, best_accuracy=best, best_epoch=28, agreement=agreement,
        epochs=30.0, train_images=1000, parameters=5130, train_seconds=12.5,
    )  # fmt: skip


def plan() -> Plan:
    """Eight labels of one pair, and two of a pair that never ran."""
    rows = [row(label, seed) for seed in (0, 1) for label in CATEGORIES]
    rows += [row(label, 0, "deep", "tiny") for label in ("teacher", "student")]
    return Plan(name="by_hand", description="Two seeds, by hand.", config={}, rows=rows)


def records() -> dict[str, Record]:
    """Finished, one failed, two not applicable; one rkd and both kd_svd are missing."""
    done = [
        finished(row(label, seed), *values)
        for label, seeds in MEASURED.items()
        for seed, values in seeds.items()
    ]
    done.append(record(row("fitnet", 1), FAILED, FAILURE))
    done += [record(row("fsp", seed), NOT_APPLICABLE, REFUSAL) for seed in (0, 1)]
    return {one.cell_id: one for one in done}


def cost(
    label: str, ratio: float, *, loss: float = 0.5, spread: float = 0.01, mib: int = 0, **changes
) -> CostRecord:
    """A profiled row of one stage: its training costs `ratio` of the student's."""

    def around(x: float) -> Quartiles:
        return Quartiles(x, x - spread, x + spread, 20)

    stage = StageCost(
        name="distil", epochs=1, kept=1.0, step_ms=around(1.0),
        loss_ms=around(2 * loss), peak_bytes=mib * 2**20,
    )  # fmt: skip
    values = {
        "data": "digits", "teacher": "wide", "student": "narrow", "label": label, "method": label,
        "category": CATEGORIES.get(label, "response"), "stages": [stage],
        "training_cost_ratio": around(ratio),
        "conditions": {"device": "cpu", "threads": 1, "precision": "fp32", "batch": 50},
    }  # fmt: skip
    return CostRecord(**{**values, **changes})
