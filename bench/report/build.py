"""Everything that is rendered of one grid: tables, figures and the report, from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.cost.record import Costs
from bench.record import Plan, Record
from bench.report.claims import claims_section
from bench.report.comparison import comparison_tables
from bench.report.cost import write_costs
from bench.report.grid_figures import write_grid_figures
from bench.report.overview import AXES, axis_tables, overview_tables
from bench.report.published import published_tables
from bench.report.selection import write_selection_figures
from bench.report.summary import write_summary
from bench.report.tables import Section, write_section


def build(
    plan: Plan, records: Mapping[str, Record], costs: Costs | None, store: Path, folder: Path
) -> list[Path]:
    """Writes all tables and figures of a grid; equal input gives equal bytes.

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
    figures = folder / "figures"
    paths = write_summary(plan, records, folder)
    for section in sections(plan, records, costs):
        paths += write_section(section, folder)
    if costs is not None and (costs.records or costs.scaling):
        paths += write_costs(costs, folder)
    for picture in write_grid_figures(plan, records, costs, figures):
        paths += picture.paths
    paths += write_selection_figures(plan, records, store, figures)
    return paths


def sections(plan: Plan, records: Mapping[str, Record], costs: Costs | None) -> list[Section]:
    """The tables beyond the summary, in the order of the report; those without rows left out.

    Each becomes `<name>.md`, `.csv` and `.tex`, and a part of the report.
    """
    made = [
        Section(
            name="overview",
            title="Accuracy and gain over all pairs",
            tables=overview_tables(plan, records),
        ),
        *(
            Section(name=axis, title=f"By {AXES[axis]}", tables=tables)
            for axis, tables in axis_tables(plan, records).items()
        ),
        Section(
            name="comparison",
            title="Rows compared, by seed within a pair and by rank over pairs",
            tables=comparison_tables(plan, records),
        ),
        Section(
            name="published",
            title="Published numbers beside ours",
            tables=published_tables(plan, records),
        ),
        claims_section(plan, records, costs),
    ]
    return [section for section in made if section.tables]
