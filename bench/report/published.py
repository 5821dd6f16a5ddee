"""Published accuracies next to ours, where pair and recipe are the same; nowhere else.

The numbers and what they hold for are data: `published/<name>.yaml`. A cell is compared only if
every field of its data, recipe, precision and hyper-parameters equals the published setting, and
its teacher's as well. What is not known to be equal is not shown.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from bench.cell import DataSpec, Recipe, Spec
from bench.design import PairId
from bench.evidence import group_by_pair
from bench.record import FINISHED, Plan, Record, Row
from bench.report.tables import Column, Table, Value
from bench.report.wording import row_title
from bench.statistics import mean_interval

FOLDER = Path(__file__).parent / "published"
MEASURES = {"last_accuracy": "last epoch", "best_accuracy": "best epoch, test-selected"}

COLUMNS = (
    Column(key="published_method", name="published as", align="left"),
    Column(key="label", name="our row", align="left"),
    Column(key="measure", name="measured at", align="left"),
    Column(key="published", name="published", unit="%", digits=1),
    Column(key="ours", name="ours", unit="%", digits=1, interval=True),
    Column(key="n", name="our n"),
    Column(
        key="difference", name="ours - published", unit="points", digits=1, signed=True,
        interval=True,
    ),
)  # fmt: skip

NOTES = (
    "Shown are the rows whose data, recipe, hyper-parameters and precision equal the published "
    "ones field by field, the teacher's too.",
    "± is the half-width of the 95 % Student t interval over our seeds; the published number is "
    "taken as it stands, for its own deviation is not known.",
)


@functools.cache
def load_published() -> tuple[Mapping[str, Any], ...]:
    """All published settings and numbers that come with the harness, by file name.

    Returns:
        One mapping a source: name, title, runs, remarks, data, recipe, recipe_for, precision,
        ignored, methods, and accuracy: measure -> "teacher:student" -> method -> percent.
    """
    texts = (path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml")))
    return tuple(yaml.safe_load(text) for text in texts)


def published_tables(plan: Plan, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """A table for each pair and source that has any row under the same conditions."""
    made = (
        _pair_table(source, key, rows, records)
        for key, rows in group_by_pair(plan).items()
        for source in load_published()
    )
    return tuple(table for table in made if table.rows)


def _pair_table(
    source: Mapping[str, Any], key: PairId, rows: Iterable[Row], records: Mapping[str, Record]
) -> Table:
    same = [row for row in rows if row.role != "source" and _finished(records, row.cell_id)]
    by_method = {
        name: [row for row in same if _equals(source, name, row, records)]
        for name in source["methods"]
    }
    lines = []
    for measure, pairs in source["accuracy"].items():
        for name, percent in pairs.get(f"{key.teacher}:{key.student}", {}).items():
            lines += _lines(name, measure, percent / 100, by_method[name], records)
    return Table(
        title=f"{key.title}: published and ours",
        columns=COLUMNS,
        rows=lines,
        notes=(*_about(source, key), *NOTES),
    )


def _about(source: Mapping[str, Any], key: PairId) -> Iterable[str]:
    """Where the numbers are from, and which of them are not compared for what reason."""
    runs = f"means of {source['runs']} runs" if source["runs"] else "number of runs not stated"
    yield f"Published: {source['title']} ({runs})."
    yield from source["remarks"]
    pair = f"{key.teacher}:{key.student}"
    shown = {name for pairs in source["accuracy"].values() for name in pairs.get(pair, {})}
    for name, method in source["methods"].items():
        if name in shown and "differs" in method:
            yield f"Published as well, and not compared: {name} ({method['differs']})."


def _lines(
    name: str, measure: str, published: float, rows: Iterable[Row], records: Mapping[str, Record]
) -> Iterable[dict[str, Value]]:
    labels: dict[str, dict[str, float]] = {}
    for row in rows:
        value = records[row.cell_id].final.get(measure)
        if value is not None:
            labels.setdefault(row.label, {})[row.cell_id] = value  # a shared teacher counts once
    for label, cells in labels.items():
        values = list(cells.values())
        ours = mean_interval(values)
        yield {
            "published_method": name,
            "label": row_title(label),
            "measure": MEASURES[measure],
            "published": published,
            "ours": ours,
            "n": len(values),
            "difference": mean_interval([value - published for value in values]),
        }


def _finished(records: Mapping[str, Record], cell_id: str) -> bool:
    return cell_id in records and records[cell_id].status == FINISHED


def _equals(source: Mapping[str, Any], name: str, row: Row, records: Mapping[str, Record]) -> bool:
    """Whether the row's cell, and its teacher's, are the published setting of that method."""
    method = source["methods"][name]
    cell = records[row.cell_id].cell
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
        and _same(cell.get("data"), source["data"], ignored["data"], _defaults(DataSpec))
        and _same(cell.get("recipe"), recipe, ignored["recipe"], _defaults(Recipe))
    )


def _defaults(spec: type[Spec]) -> dict[str, Any]:
    """A field that neither a record nor a published setting names is at its default in both."""
    fields = spec.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


def _same(
    found: Any,
    wanted: Mapping[str, Any],
    ignored: Iterable[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Whether all fields but the ignored ones are equal."""
    if not isinstance(found, Mapping):
        return False
    sides = ({**defaults, **fields} for fields in (found, wanted))
    first, second = ({k: v for k, v in side.items() if k not in ignored} for side in sides)
    return first == second
