"""Everything that is rendered of one grid: tables, figures and the page, from records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.cost.costs import Costs
from bench.record import Plan, Record, write_atomically
from bench.report.answers import answer_lines, asked_of, overall_lines
from bench.report.card import caution, pair_lines, sentences
from bench.report.claims import claims_section
from bench.report.conditions import conditions_table, faults_table
from bench.report.cost import cost_section, measured_at, other_code, pair_dumbbells
from bench.report.facts import facts, measured_on
from bench.report.figures import curves, file_name, finding, forest, gain_cost
from bench.report.groups import cells_csv
from bench.report.page import Page, PageSection, Panel, figure_file, render_pages
from bench.report.paper import paper_table
from bench.report.published import published_tables
from bench.report.results import Findings, Line, findings, summary_section
from bench.report.selection import write_selection_figures
from bench.report.tables import Section, Table, write_csv, write_markdown

MARKDOWN = ("summary", "cost")
"""Sections that are a Markdown file too."""

NO_COSTS = "Nothing was profiled: `run_all.py profile` measures what each method costs."


def build(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None, store: Path, folder: Path
) -> list[Path]:
    """Writes all tables, figures and the page of a grid; equal input gives equal bytes.

    `store` is the folder of the cells' folders, for what lies next to their records; the files, all
    inside `folder`, are returned.

    Raises:
        UserError: two cells answer for one row, or a file next to a record is damaged.
    """
    found = findings(plan, records, costs)
    made = sections(found)
    figures = folder / "figures"
    contents = {folder / "cells.csv": cells_csv(plan, records)}
    contents |= {folder / "summary.tex": paper_table(found)}
    contents |= {figures / name: text for name, text in _figures(found).items()}
    pages = render_pages(_page(found, made))
    contents |= {folder / name: text for name, text in pages.items()}
    for path, text in contents.items():
        write_atomically(path, text)
    if "details.html" not in pages:
        (folder / "details.html").unlink(missing_ok=True)
    paths = [path for section in made for path in write_csv(section, folder)]
    paths += [write_markdown(s, folder) for s in made if s.name in MARKDOWN and s.tables]
    # Drawn from files next to the records, which MLflow's copy lacks: no part of the page.
    return [*contents, *paths, *write_selection_figures(plan, records, store, figures)]


def sections(found: Findings) -> list[PageSection]:
    """The closed sections in the page's order, empty ones left out; each is a CSV file as well."""
    plan, records = found.plan, found.records
    version = other_code(found.costs.records, records.values())
    measured = cost_section(found.costs)
    made = [
        PageSection(name="answers", title="Every answer in full", lines=_answer_lines(found)),
        PageSection(**vars(summary_section(found))),
        PageSection(name="curves", title="Learning curves", curves=_curves(found)),
        PageSection(
            **vars(replace(measured, text=version if found.costs else NO_COSTS)),
            dumbbells=pair_dumbbells(found.costs),
        ),
        _section("published", "Published and ours", published_tables(plan, records)),
        PageSection(**vars(claims_section(found))),
        _section("conditions", "Conditions", [conditions_table(plan, records)]),
        _section("faults", "Cells without a result", [faults_table(plan, records)]),
    ]
    return [s for s in made if s.tables or s.lines or s.curves or s.text]


def _section(name: str, title: str, tables: Sequence[Table | None]) -> PageSection:
    shown = tuple(table for table in tables if table is not None)
    return PageSection(**vars(Section(name=name, title=title, tables=shown)))


def _answer_lines(found: Findings) -> list[str]:
    asked = asked_of(found.plan)
    answers = found.answers.items()
    lines = [line for key, a in answers for line in answer_lines(a, found.pairs[key], asked)]
    return [*overall_lines(found.overall), *lines]


def _page(found: Findings, made: Sequence[PageSection]) -> Page:
    images = {pair.test_images for pair in found.pairs.values()} - {0}
    return Page(
        name=found.plan.name,
        facts=facts(found.plan, found.groups, found.records) or [found.plan.description],
        test_set=measured_on(found.plan, "set"),
        sample=f" of {min(images):,} images" if len(images) == 1 else "",
        measured=measured_at(found.costs),
        sentences=sentences(found),
        caution=caution(found),
        pairs=pair_lines(found),
        panels=_panels(found),
        sections=made,
        links=[("summary.csv", "summary.csv"), ("cells.csv", "cells.csv"),
               ("LaTeX", "summary.tex")],
    )  # fmt: skip


def _panels(found: Findings) -> list[Panel]:
    """The mean over pairs where that is the answer, then every pair."""
    shown: list[tuple[str, str, list[Line]]] = []
    if overall := found.overall_lines():
        shown.append((f"mean over {len(found.pairs)} pairs", "", overall))
    for key in found.answers:
        shown.append((found.titles[key], _sample(found, found.lines(key)), found.lines(key)))
    return [
        Panel(
            title=title, sample=sample, finding=f"{title}: {finding(lines)}", forest=plot,
            gain_cost=gain_cost(lines),
        )
        for title, sample, lines in shown
        if (plot := forest(lines)) is not None
    ]  # fmt: skip


def _sample(found: Findings, lines: Sequence[Line]) -> str:
    seeds = [line.gain.n for line in lines if line.gain is not None]
    if not seeds:
        return ""
    most = max(seeds)
    few = [n for n in seeds if n < most]
    screened = f" (screened only: {max(few)})" if found.screened and few else ""
    return f", n = {most} seeds{screened}"


def _curves(found: Findings) -> list:
    drawn = ((key, curves(groups, found.lines(key))) for key, groups in found.groups.items())
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
        lines, name = found.lines(key), file_name(key.title)
        said = f"{key.title}: {finding(lines)}"
        for kind, plot in (("gain_cost", gain_cost(lines)), ("curves", curves(groups, lines))):
            if plot is not None:
                made[f"{kind}_{name}.svg"] = figure_file(kind, plot, said, key.title, on)
    return made
