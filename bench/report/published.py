"""Published accuracies next to ours, where pair and recipe are the same; nowhere else.

The numbers and what they hold for are data: `published/<name>.yaml`. A cell is compared only if
every field of its data, recipe, precision and hyper-parameters equals the published setting, and
its teacher's as well.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.cell import DataSpec, Recipe, Spec
from bench.decide.evidence import row_title
from bench.decide.records import group_by_pair
from bench.record import FINISHED, Plan, Record, Row
from bench.report.tables import Column, Table, Value
from bench.statistics import mean_interval

FOLDER = Path(__file__).parent / "published"
MEASURES = {"last_accuracy": "last epoch", "best_accuracy": "best epoch, test-selected"}

COLUMNS = (
    Column("published_method", "published as", align="left"),
    Column("label", "our row", align="left"),
    Column("measure", "measured at", align="left"),
    Column("published", "published", "%", digits=1),
    Column("ours", "ours", "%", digits=1, interval=True),
    Column("n", "our n"),
    Column("difference", "ours - published", "points", digits=1, signed=True, interval=True),
)

NOTES = (
    "Shown are the rows whose data, recipe, hyper-parameters and precision equal the published "
    "ones field by field, the teacher's too.",
    "± is half of the 95 % Student t interval over our seeds; the published number's deviation is "
    "not known.",
)


@functools.cache
def load_published() -> tuple[Mapping[str, Any], ...]:
    """All published settings and numbers that come with the harness, by file name.

    One mapping a source: name, title, runs, remarks, data, recipe, recipe_for, precision, ignored,
    methods, and accuracy: measure -> "teacher:student" -> method -> percent. What a source leaves
    out is that of the source that it is `like`.
    """
    texts = (path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml")))
    found = {source["name"]: source for source in map(yaml.safe_load, texts)}
    return tuple({**found.get(source.get("like"), {}), **source} for source in found.values())


def published_tables(plan: Plan, records: Mapping[str, Record]) -> list[Table]:
    """A table for each pair and source that has any row under the same conditions."""
    finished = {i: record for i, record in records.items() if record.status == FINISHED}
    made = []
    for key, rows in group_by_pair(plan).items():
        for source in load_published():
            runs = f"means of {source['runs']} runs" if source["runs"] else "unknown number of runs"
            notes = f"Published: {source['title']} ({runs}).", *source["remarks"], *NOTES
            if lines := list(_lines(source, f"{key.teacher}:{key.student}", rows, finished)):
                made.append(Table(f"{key.title}: published and ours", COLUMNS, lines, notes))
    return made


def _lines(
    source: Mapping[str, Any], pair: str, rows: Iterable[Row], records: Mapping[str, Record]
) -> Iterable[dict[str, Value]]:
    rows = [row for row in rows if row.role != "source" and row.cell_id in records]
    for measure, pairs in source["accuracy"].items():
        for name, percent in pairs.get(pair, {}).items():
            labels = defaultdict[str, dict[str, float]](dict)
            for row in rows:
                value = records[row.cell_id].final.get(measure)
                if value is not None and _equals(source, name, row, records):
                    labels[row.label][row.cell_id] = value  # a teacher of all seeds counts once
            for label, cells in labels.items():
                yield {
                    "published_method": name,
                    "label": row_title(label),
                    "measure": MEASURES[measure],
                    "published": percent / 100,
                    "ours": mean_interval(list(cells.values())),
                    "n": len(cells),
                    "difference": mean_interval([x - percent / 100 for x in cells.values()]),
                }


def _equals(source: Mapping[str, Any], name: str, row: Row, records: Mapping[str, Record]) -> bool:
    """Whether the row's cell, and its teacher's, are the published setting of that method."""
    method, cell = source["methods"][name], records[row.cell_id].cell
    if row.role in ("teacher", "student"):
        model = row.teacher if row.role == "teacher" else row.student
        return method.get("role") == row.role and _same_setting(source, cell, model)
    if method.get("method") != row.method or not _same_setting(source, cell, row.student):
        return False
    teacher = records.get(row.teacher_id)
    return (
        teacher is not None
        and _same_setting(source, teacher.cell, row.teacher)
        and _same(cell.get("hyperparameters"), method["hyperparameters"], method.get("ignored", ()))
    )


def _same_setting(source: Mapping[str, Any], cell: Mapping[str, Any], model: str) -> bool:
    recipe = {**source["recipe"], **source["recipe_for"].get(model, {})}
    ignored = source["ignored"]
    return (
        cell.get("model") == model  # one of the grid's own models is a mapping: never equal
        and cell.get("source") is None
        and cell.get("precision") == source["precision"]
        and _same(cell.get("data"), source["data"], ignored["data"], DataSpec)
        and _same(cell.get("recipe"), recipe, ignored["recipe"], Recipe)
    )


def _same(
    found: Any, wanted: Mapping[str, Any], ignored: Iterable[str], spec: type[Spec] | None = None
) -> bool:
    """Whether all fields but the ignored ones are equal; one left out is at its spec's default."""
    if not isinstance(found, Mapping):
        return False
    fields = spec.model_fields.items() if spec else ()
    defaults = {name: field.default for name, field in fields if not field.is_required()}
    sides = ({**defaults, **given} for given in (found, wanted))
    first, second = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in side.items() if k not in ignored}
        for side in sides
    )
    return first == second
