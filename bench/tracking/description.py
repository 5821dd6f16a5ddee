"""How plans and records look in MLflow: the list of runs, notes, tags, parameters, metrics."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bench.record import Plan, Record, Row
from bench.tracking.experiment import KIND, NOTE

IN_GRID = "in_grid"  # tag of a run: "false" where the plan has its cell no longer
FINAL = "final/"  # prefix of the metrics that are one number a run
LONGEST = 5000  # characters of a tag that every database takes
VIEW = "kd-bench"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment, from which the UI reads the view of this name."""

GAIN = f"metrics.`{FINAL}gain`"
COLUMNS = {
    "tags.`method`": 110,
    f"metrics.`{FINAL}last_accuracy`": 120,
    GAIN: 90,
    f"metrics.`{FINAL}cost`": 90,
}
"""Column of the list of runs -> pixels: next to the runs' names all fit a screen of 1440."""


def experiment_tags(plan: Plan) -> dict[str, str]:
    """The experiment's note, which says how to read its runs, and its list of runs by gain."""
    pairs = dict.fromkeys(f"`{row.teacher}` → `{row.student}`" for row in plan.rows)
    seeds = len({row.seed for row in plan.rows})
    note = (
        f"**{plan.name}**: {' '.join(plan.description.split())}\n\n"  # all that a folded note shows
        f"Pairs: {', '.join(pairs)}. Seeds: {seeds}. Cells: {len(plan.cell_ids())}.\n\n"
        "`final/gain` is the accuracy above the plain student's of the same pair and seed, "
        "`final/cost` the whole training over the plain student's, once profiled. Accuracies are "
        "of the last epoch on the test set, in [0, 1]; `final/best_accuracy` is selected on the "
        "test set and so too high. Search, for example: `tags.category = 'response'`; runs with "
        f"`tags.{IN_GRID} = 'false'` are of rows that the grid had before. Means and intervals are "
        "in the run `summary`, under *Artifacts*."
    )
    order = {"orderByKey": GAIN, "orderByAsc": False}
    columns = {"selectedColumns": [*COLUMNS], "columnOrder": [*COLUMNS], "columnWidths": COLUMNS}
    return {
        NOTE: note[:LONGEST],
        VIEW_TAG: json.dumps(order | columns),
        "mlflow.experimentKind": "custom_model_development",
    }


def started_at(record: Record) -> int | None:
    """When the training started, in milliseconds since 1970; None if the record does not say."""
    started = record.conditions.get("started")
    return int(datetime.fromisoformat(started).timestamp() * 1000) if started else None


def tags_of(record: Record, row: Row) -> dict[str, str]:
    """What runs can be filtered and grouped by, and the run's note."""
    networks = _networks(row)
    what = f"**{row.name}** ({record.category}) on `{row.data}`."
    tags = {
        KIND: "cell",
        IN_GRID: "true",
        "cell_id": record.cell_id,
        "status": record.status,
        "role": row.role,
        "method": row.label,
        "category": record.category,
        "seed": row.seed,
        "phase": row.phase,
        "data": row.data,
        "pair": "none" if "none" in networks.values() else ">".join(networks.values()),
        "error": record.error,
        NOTE: "\n\n".join(filter(None, (what, record.error, record.source))),
        **networks,
        **row.axes,
    }
    named = ("commit", "dirty", "torch", "device", "weights_file", "weights_sha256")
    tags |= {k: record.conditions.get(k, "") for k in named}
    return {name: str(value)[:LONGEST] for name, value in tags.items() if value != ""}


def _networks(row: Row) -> dict[str, str]:
    """The run's teacher and student; "none" for the one that it trains without."""
    taught = row.role == "teacher" or (row.role == "method" and row.method != "student")
    student = "none" if row.role == "teacher" else row.student
    return {"teacher": row.teacher if taught else "none", "student": student}


def params_of(record: Record, row: Row) -> list[Any]:
    """All fields that decide the cell's numbers; nested ones as `outer.inner`."""
    from mlflow.entities import Param

    flat: dict[str, object] = {}
    for name, value in record.cell.items():
        nested = isinstance(value, Mapping)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    flat |= {"category": record.category, **_networks(row)}
    if row.role == "teacher":  # its cell is trained as a plain student's is
        flat["method"] = row.role
    return [Param(name, str(value)[:6000]) for name, value in flat.items()]


def metrics_of(record: Record) -> list[Any]:
    """The curves, an epoch a step, and the final numbers."""
    from mlflow.entities import Metric

    started = started_at(record) or 0
    # The UI draws a section for each prefix, by name: accuracies first, single points last.
    curves = [
        Metric(_key(f"{section}/{name}"), value, started, epoch)
        for name, curve in record.curves.items()
        for section in ["accuracy" if "accuracy" in name else "epoch"]
        for epoch, value in enumerate(curve, start=1)
        if value is not None
    ]
    return curves + final_metrics(record, record.final, known={})


def final_metrics(
    record: Record, numbers: Mapping[str, float], known: Mapping[str, float]
) -> list[Any]:
    """Numbers of a whole training, at its last epoch; those that the run has are left out."""
    from mlflow.entities import Metric

    started, last = started_at(record) or 0, int(record.final.get("epochs", 0))
    keys = {_key(f"{FINAL}{name}"): value for name, value in numbers.items()}
    return [Metric(k, v, started, last) for k, v in keys.items() if known.get(k) != v]


def _key(name: str) -> str:
    """A metric's key as MLflow allows it."""
    return re.sub(r"[^\w\-. :/]", "_", name)
