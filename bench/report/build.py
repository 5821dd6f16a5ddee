"""Everything that is rendered of one grid: tables, figures and the report, from records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.cost.costs import Costs
from bench.record import Plan, Record, write_atomically
from bench.report.claims import claims_section
from bench.report.conditions import conditions_table, faults_table
from bench.report.cost import CAPTION, FIGURE, cost_section, write_costs
from bench.report.grid_figures import Picture, write_grid_figures
from bench.report.measured import other_code
from bench.report.overview import overview_tables
from bench.report.page import PageSection, render_page
from bench.report.published import published_tables
from bench.report.reasons import ACCURACY, COST, GAIN
from bench.report.recommend import Choice, cost_value, recommend
from bench.report.selection import write_selection_figures
from bench.report.summary import cells_csv, summarise
from bench.report.tables import Column, Entry, Section, Table, Value, write_section

NO_COSTS = (
    "Nothing was profiled: `run_all.py profile` measures what each method costs, and gain against "
    "cost is drawn then."
)

LAST = ("published", "claims", "conditions")
"""Parts of the report that come after the pairs and the costs."""


def build(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None, store: Path, folder: Path
) -> list[Path]:
    """Writes all tables, figures and the report of a grid; equal input gives equal bytes.

    Args:
        plan: what was asked for.
        records: by cell id.
        costs: what the profiler measured; None or empty if it did not run.
        store: the folder of the cells' folders, for what lies beside their records.
        folder: the grid's; made if it is not there.

    Returns:
        The files, all inside `folder`.

    Raises:
        ValueError: two cells answer for one row, or a file beside a record is damaged.
    """
    summary = summarise(plan, records)
    paths = [*write_section(summary, folder), folder / "cells.csv"]
    write_atomically(paths[-1], cells_csv(plan, records))
    choices = recommend(plan, records, costs)
    made = sections(plan, records, costs, choices)
    for section in made:
        paths += write_section(section, folder)
    pictures = write_grid_figures(plan, records, costs, folder / "figures")
    if costs:
        written = write_costs(costs, folder)
        paths += written
        pictures += [
            Picture("cost", path, CAPTION) for path in written if path.name.startswith(FIGURE)
        ]
    paths += [picture.path for picture in pictures if picture.path not in paths]
    # Drawn from files beside the records, which MLflow's copy lacks: no part of the report.
    paths += write_selection_figures(plan, records, store, folder / "figures")
    parts = _parts(made, summary, costs, choices, pictures)
    report = render_page(plan.name, summary.text, parts)
    write_atomically(folder / "report.html", report)
    return [*paths, folder / "report.html"]


def sections(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None, choices: Sequence[Choice]
) -> list[Section]:
    """The tables beyond summary and costs, in the order of the report; empty ones left out.

    Each becomes `<name>.md`, `.csv` and `.tex`, and a part of the report.
    """
    conditions = (conditions_table(plan, records), faults_table(plan, records))
    version = other_code(costs.records if costs else (), records.values())
    made = [
        _section("choice", "The choice", [_noted(choice_table(choices), version)]),
        _section("candidates", "Candidates", [_noted(c.to_table(), version) for c in choices]),
        _section("overview", "Accuracy and gain", overview_tables(plan, records)),
        _section("published", "Published and ours", published_tables(plan, records)),
        claims_section(plan, records, costs),
        _section("conditions", "Conditions", [table for table in conditions if table]),
    ]
    return [section for section in made if section.tables]


CHOICE_COLUMNS = (
    Column(key="pair", name="pair", align="left"),
    Column(key="label", name="choice", align="left"),
    ACCURACY,
    GAIN,
    COST,
    Column(key="reference", name="reference", align="left"),
    Column(key="ties", name="rows not told from the reference"),
)

CHOICE_NOTES = (
    "A row is chosen only if it is better than the plain student beyond doubt; else the plain "
    "student stands.",
    "Reference: of the allowed rows better than the plain student beyond doubt the one of the "
    "highest mean, else the plain student itself. Rows not told from it, the choice left out: "
    "their difference by seed is not above 0 by an interval that holds for all allowed rows "
    "together; rows that are not better than the student beyond doubt count too, and may lie above "
    "the reference.",
)


def choice_table(choices: Sequence[Choice]) -> Table:
    """The choice for each pair in one line; a dash where the evidence does not cover it."""
    rows = []
    for choice in choices:
        row: dict[str, Entry | Value] = {
            "pair": choice.key.title,
            "label": Entry(choice.label, instead="no answer"),
            "reference": choice.reference,
        }
        if (chosen := choice.chosen) is not None:
            row |= {
                "accuracy": chosen.mean,
                "gain": chosen.gained.gain if chosen.gained else None,
                "cost": cost_value(chosen.cost),
                "ties": len(choice.ties),
            }
        rows.append(row)
    return Table.by_name("The choice for each pair", CHOICE_COLUMNS, rows, CHOICE_NOTES)


def _noted(table: Table, note: str) -> Table:
    return replace(table, notes=(*table.notes, note)) if note else table


def _section(name: str, title: str, tables: Iterable[Table]) -> Section:
    return Section(name=name, title=title, tables=tuple(tables))


# --- the report --------------------------------------------------------------------------------


def _parts(
    made: Sequence[Section],
    summary: Section,
    costs: Costs | None,
    choices: Sequence[Choice],
    pictures: Sequence[Picture],
) -> list[PageSection]:
    """The sections with their figures, the pairs' summaries and the costs among them."""
    found = {section.name: section for section in made}
    found.pop("candidates", None)  # each choice shows its own
    measured = cost_section(costs or Costs())
    more = {
        "pairs": Section(name="pairs", title="Every pair", tables=summary.tables),
        "cost": replace(measured, text="" if measured.tables else NO_COSTS),
    }
    last = {name: found.pop(name) for name in LAST if name in found}
    return [
        PageSection(
            **vars(section),
            choices=choices if section.name == "choice" else (),
            pictures=[picture for picture in pictures if picture.part == section.name],
        )
        for section in {**found, **more, **last}.values()
    ]
