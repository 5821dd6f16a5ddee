"""Everything that is rendered of one grid: tables, figures and the page, from records alone."""

from pathlib import Path

from bench.record import write_atomically
from bench.report.answers import answer_lines, asked_of, overall_lines
from bench.report.claims import claim_table
from bench.report.cost import cost_section
from bench.report.figures import curves, file_name, finding, gain_cost
from bench.report.groups import cells_csv, conditions_table, faults_table
from bench.report.page import figure_file, render_page
from bench.report.paper import paper_table
from bench.report.published import published_tables
from bench.report.results import Findings, measured_on, summary_section
from bench.report.selection import write_selection_figures
from bench.report.tables import Section, write_csv, write_markdown

MARKDOWN = ("summary", "cost")
"""Sections that are a Markdown file too."""


def build(found: Findings, store: Path, folder: Path) -> list[Path]:
    """Writes all tables, figures and the page of a grid; equal input gives equal bytes.

    `store` is the folder of the cells' folders, for what lies next to their records. Returns the
    files, all inside `folder`. UserError if a file next to a record is damaged.
    """
    made = sections(found)
    figures = folder / "figures"
    contents = {
        folder / "report.html": render_page(found, made),
        folder / "cells.csv": cells_csv(found.plan, found.records),
        folder / "summary.tex": paper_table(found),
        **{figures / name: text for name, text in _figures(found).items()},
    }
    for path, text in contents.items():
        write_atomically(path, text)
    paths = [path for section in made for path in write_csv(section, folder)]
    paths += [write_markdown(s, folder) for s in made if s.name in MARKDOWN and s.tables]
    # Drawn from files next to the records, which MLflow's copy lacks: no part of the page.
    drawn = write_selection_figures(found.plan, found.records, store, figures)
    return [*contents, *paths, *drawn]


def sections(found: Findings) -> list[Section]:
    """The closed sections in the page's order, empty ones left out; each is a CSV file as well."""
    plan, records = found.plan, found.records
    conditions, faults = (table(plan, records) for table in (conditions_table, faults_table))
    made = [
        Section(name="answers", title="Every answer in full", lines=_answer_lines(found)),
        summary_section(found),
        Section(name="curves", title="Learning curves", curves=_curves(found)),
        cost_section(found.costs),
        Section(
            name="published", title="Published and ours", tables=published_tables(plan, records)
        ),
        Section(name="claims", title="The survey's claims, measured", tables=[claim_table(found)]),
        Section(name="conditions", title="Conditions", tables=conditions),
        Section(name="faults", title="Cells without a result", tables=faults),
    ]
    return [s for s in made if s.tables or s.lines or s.curves]


def _answer_lines(found: Findings) -> list[str]:
    asked = asked_of(found.plan)
    answers = found.answers.items()
    lines = [line for key, a in answers for line in answer_lines(a, found.pairs[key], asked)]
    return [*overall_lines(found.overall), *lines]


def _curves(found: Findings) -> list:
    drawn = ((key, curves(groups, found.lines[key])) for key, groups in found.groups.items())
    return [
        (found.titles[key], f"{found.titles[key]}: accuracy over epochs. Best at the end: "
         f"{plot.rows[0].title}, {plot.rows[0].last} %.", plot)
        for key, plot in drawn
        if plot is not None
    ]  # fmt: skip


def _figures(found: Findings) -> dict[str, str]:
    """File name -> SVG, for readers of other documents."""
    made, on = {}, measured_on(found.plan, "set")
    for key, groups in found.groups.items():
        lines, name = found.lines[key], file_name(key.title)
        said = f"{key.title}: {finding(lines)}"
        for kind, plot in (("gain_cost", gain_cost(lines)), ("curves", curves(groups, lines))):
            if plot is not None:
                made[f"{kind}_{name}.svg"] = figure_file(kind, plot, said, key.title, on)
    return made
