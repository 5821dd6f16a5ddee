"""Everything that is rendered of one grid: tables, figures and the page, from records alone."""

from pathlib import Path

from bench.record import write_atomically
from bench.report.answers import answer_lines, asked_of, overall_lines
from bench.report.claims import claim_table
from bench.report.cost import cost_section
from bench.report.figures import curves
from bench.report.groups import cells_csv, conditions_table, faults_table
from bench.report.page import figure_files, render_page
from bench.report.paper import paper_table
from bench.report.published import published_tables
from bench.report.results import Findings, summary_section
from bench.report.selection import write_selection_figures
from bench.report.tables import Section, write_csv, write_markdown

MARKDOWN = ("summary", "cost")  # sections that are a Markdown file too
TABLES = {*MARKDOWN, "published", "claims", "conditions", "faults"}  # those that are a CSV file


def build(found: Findings, store: Path, folder: Path) -> list[Path]:
    """Writes all tables, figures and the page of a grid; equal input gives equal bytes.

    `store` is the folder of the cells' folders, for what lies next to their records. Returns the
    files, all inside `folder`. UserError if a file next to a record is damaged.
    """
    made, figures = sections(found), folder / "figures"
    contents = {
        folder / "report.html": render_page(found, made),
        folder / "cells.csv": cells_csv(found.plan, found.records),
        folder / "summary.tex": paper_table(found),
        **{figures / name: text for name, text in figure_files(found).items()},
    }
    for path, text in contents.items():
        write_atomically(path, text)
    tables = [section for section in made if section.tables]
    for name in TABLES - {section.name for section in tables}:  # of an earlier state
        for suffix in (".csv", ".md"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    for path in [*figures.glob("curves_*.svg"), *figures.glob("gain_cost_*.svg")]:
        if path not in contents:
            path.unlink()
    paths = [write_csv(section, folder) for section in tables]
    paths += [write_markdown(section, folder) for section in tables if section.name in MARKDOWN]
    # Drawn from files next to the records, which MLflow's copy lacks: no part of the page.
    drawn = write_selection_figures(found.plan, found.records, store, figures)
    return [*contents, *paths, *drawn]


def sections(found: Findings) -> list[Section]:
    """The closed sections in the page's order, empty ones left out; each is a CSV file as well."""
    plan, records = found.plan, found.records
    answers = overall_lines(found.overall)
    for answer in found.answers.values():
        answers += answer_lines(answer, asked_of(plan, records))
    drawn = []
    for key, title in found.titles.items():
        if (plot := curves(found.groups[key], found.lines[key])) is not None:
            best = f"{plot.rows[0].title}, {plot.rows[0].last} %"
            drawn.append((title, f"{title}: accuracy over epochs. Best at the end: {best}.", plot))
    made = [
        Section("answers", "Every answer in full", lines=answers),
        summary_section(found),
        Section("curves", "Learning curves", curves=drawn),
        cost_section(found.costs),
        Section("published", "Published and ours", published_tables(plan, records)),
        Section("claims", "The survey's claims, measured", [claim_table(found)]),
        Section("conditions", "Conditions", conditions_table(plan, records)),
        Section("faults", "Cells without a result", faults_table(plan, records)),
    ]
    return [s for s in made if s.tables or s.lines or s.curves]
