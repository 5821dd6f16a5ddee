"""How plans and records look in MLflow: parent runs, notes, tags, parameters, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.record import Plan, Record, Row
from bench.tracking.experiment import KIND, NOTE


@dataclass(frozen=True)
class ParentRun:
    """A run without numbers, under which the UI lists others.

    Attributes:
        name: of the run.
        pair: its tag `pair`, the same as that of the runs under it; "none" without a teacher.
        note: its description, Markdown.
    """

    name: str
    pair: str
    note: str


def parent_run_of(row: Row) -> ParentRun:
    """The run under which a row's run is listed: its pair's, or that of all teachers and baselines.

    A teacher or a baseline belongs to several pairs, and a run can have one parent only.
    """
    if row.role != "method":
        return ParentRun(
            "teachers and plain students",
            "none",
            "Networks trained without a teacher, one run each: every pair is compared with them.",
        )
    axes = "".join(f" {name}={value:g}" for name, value in row.axes.items() if value != 1)
    return ParentRun(
        f"{row.teacher}>{row.student}{axes}",
        f"{row.teacher}>{row.student}",
        f"All methods and seeds by which `{row.teacher}` taught `{row.student}` on `{row.data}`"
        f"{axes}. Select runs below and press *Compare*, or filter the list, for example by "
        f"`tags.category = 'response' and tags.pair = '{row.teacher}>{row.student}'`. Means, "
        "intervals and figures are on the run `summary`.",
    )


def describe(plan: Plan) -> str:
    """The experiment's note: what the grid is, and how to read its runs."""
    pairs = dict.fromkeys(f"`{row.teacher}` → `{row.student}`" for row in plan.rows)
    seeds = len({row.seed for row in plan.rows})
    lines = [
        f"**{plan.name}**: {' '.join(plan.description.split())}",  # all that a folded note shows
        f"Pairs: {', '.join(pairs)}. Seeds: {seeds}. Cells: {len(plan.cell_ids())}.",
        "**Where to look.** The run `summary` holds tables and figures under *Artifacts*. One run "
        "per cell, named teacher>student/method/seed, is listed under its pair: press + to unfold, "
        "*Load more* if a pair has no + (the list loads 100 runs at a time). To see some only, "
        "type for example `tags.category = 'response'` or `tags.pair = '...'` into the search; the "
        "tags `role`, `pair`, `method`, `label`, `category`, `seed`, `status` also group (*Group "
        "by*). *Columns* adds accuracies: `final/last_accuracy` is the last epoch's on the test "
        "set, in [0, 1]; `final/best_accuracy` is selected on the test set and so too high; "
        "`epoch/...` are curves.",
    ]
    return "\n\n".join(lines)


def started_at(record: Record) -> int | None:
    """When the training started, in milliseconds since 1970; None if the record does not say."""
    from datetime import datetime

    started = record.conditions.get("started")
    return int(datetime.fromisoformat(started).timestamp() * 1000) if started else None


def tags_of(record: Record, row: Row) -> dict[str, str]:
    """What runs can be filtered and grouped by, and the run's note."""
    paired = row.role == "method" and row.method != "student"
    tags = {
        KIND: "cell",
        "cell_id": record.cell_id,
        "status": record.status,
        "role": row.role,
        "method": row.method,
        "label": row.label,
        "category": record.category,
        "teacher": row.teacher if paired else "none",
        "seed": row.seed,
        "data": row.data,
        "student": row.teacher if row.role == "teacher" else row.student,
        "pair": f"{row.teacher}>{row.student}" if paired else "none",
        "error": record.error,
    }
    tags |= row.axes | {NOTE: _describe_run(record, row)}
    for name in ("commit", "dirty", "torch", "device"):
        tags[name] = record.conditions.get(name, "")
    return {name: str(value)[:5000] for name, value in tags.items() if value != ""}


def _describe_run(record: Record, row: Row) -> str:
    """What the run trained, Markdown."""
    taught = f"`{row.teacher}` teaches `{row.student}` by " if row.role == "method" else ""
    what = f"{taught}**{row.label}** ({record.category}), seed {row.seed}, on `{row.data}`."
    failure = f"{record.status}: {record.error}" if record.error else ""
    return "\n\n".join(filter(None, (what, failure, record.source)))


def params_of(record: Record) -> list[Any]:
    """All fields that decide the cell's numbers; nested ones as `outer.inner`."""
    from mlflow.entities import Param

    flat: dict[str, object] = {}
    for name, value in record.cell.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    flat |= {"category": record.category, "student": flat.get("model")}
    flat["teacher"] = flat.get("teacher.model", "none")
    return [Param(name, str(value)[:6000]) for name, value in flat.items()]


def metrics_of(record: Record, started: int) -> list[Any]:
    """The curves, an epoch a step, and the final numbers.

    Args:
        record: of the cell.
        started: in milliseconds since 1970; the time of every point.
    """
    from mlflow.entities import Metric

    # The UI draws a section for each prefix, in this order: curves first, single points apart.
    curves = [
        Metric(metric_key(f"epoch/{name}"), value, started, epoch)
        for name, curve in record.curves.items()
        for epoch, value in enumerate(curve, start=1)
        if value is not None
    ]
    last = int(record.final.get("epochs", 0))
    final = [
        Metric(metric_key(f"final/{name}"), v, started, last) for name, v in record.final.items()
    ]
    return curves + final


def metric_key(name: str) -> str:
    """A metric's key as MLflow allows it: letters, digits, _ - . space : /."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
