"""One HTML file a grid, with styles, scripts and figures inside: it asks nothing of any server."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from bench.faults import counted
from bench.report.card import SYMBOLS, caution, pair_lines, sentences
from bench.report.figures import Forest, GainCost, curves, file_name, finding, forest, gain_cost
from bench.report.results import Findings, cost_groups, facts, measured_on
from bench.report.tables import Section, Value, csv_value, notes_once, show
from bench.report.wording import mean_over, points, range_text
from bench.statistics import Interval

FOLDER = Path(__file__).parent / "template"

MOST_BYTES, MOST_WORDS = 600_000, 8_000  # the longest sections beyond have links to CSV files alone
MOST_ROWS = 200  # of all panels; further pairs have their figures in files alone

Link = tuple[str, str]
LINKS = (("summary.csv", "summary.csv"), ("cells.csv", "cells.csv"), ("LaTeX", "summary.tex"))


class Panel(NamedTuple):
    """The figures of one pair or of a mean; `sample`: how many seeds, `device`: of the costs."""

    title: str
    sample: str
    finding: str
    device: str
    forest: Forest
    gain_cost: GainCost | None


def render_page(found: Findings, sections: Sequence[Section]) -> str:
    """The answer, its figures and the closed sections that there is room for, in HTML."""
    panels = _panels(found)
    rows = accumulate(len(panel.forest.rows) for panel in panels)
    shown = [p for p, n in zip(panels, rows, strict=True) if n <= MOST_ROWS or p is panels[0]]
    images = {answer.pair.test_images for answer in found.answers.values()} - {0}
    measured = next((answer.pair.measured_on for answer in found.answers.values()), "")
    said = sentences(found)
    parts = {
        "name": found.plan.name,
        "description": found.plan.description,
        "facts": facts(found.plan, found.groups),
        "test_set": measured_on(found.plan, "set"),
        "measured_on": f"{measured} of {min(images):,} images" if len(images) == 1 else measured,
        "sentences": said,
        "decided": next((part.verdict for s in said for part in s if part.verdict), ""),
        "caution": caution(found),
        "pairs": pair_lines(found),
        "panels": shown,
        "symbols": SYMBOLS,
    }
    files = [*LINKS, *[("figures of all pairs", "figures/")][: len(panels) - len(shown)]]
    kept = list(sections)
    while True:
        inside = [(s.title.lower(), f"#all-{s.name}") for s in kept[:2]]
        text = _render(parts, kept, [*inside, *files])
        if not kept or (words(text) <= MOST_WORDS and len(text.encode()) <= MOST_BYTES):
            return text
        longest = max(kept, key=lambda section: len(_render(parts, [section], [])))
        kept.remove(longest)
        files += [(longest.title.lower(), f"{longest.name}.csv")][: len(longest.tables)]


def _panels(found: Findings) -> list[Panel]:
    """The mean over pairs where that is the answer, then every pair."""
    title, every = f"mean over {mean_over(found.overall)}", [*chain(*cost_groups(found))]
    panels, shown = [], [(title, found.overall_lines, "", every)]
    for key, answer in found.answers.items():
        lines = found.lines[key]
        seeds = range_text([claim.gain.n for claim in answer.claims if claim.gain] or [0], str)
        few = [x.gain.n for x in lines if x.gain is not None and answer.claim(x.label) is None]
        more = f" (screened only: {range_text(few, str)})" if few and found.screened else ""
        sample = f", n = {counted(seeds, 'seed')}{more}"
        costs = found.costs.of_pair(key.data, key.teacher, key.student)
        shown.append((found.titles[key], lines, sample, costs))
    for title, lines, sample, costs in shown:
        if (plot := forest(lines)) is not None:
            said = f"{title}: {finding(lines)}"
            devices = dict.fromkeys(str(r.conditions.get("device")) for r in costs)
            panels.append(Panel(title, sample, said, " or ".join(devices), plot, gain_cost(lines)))
    return panels


def words(text: str) -> int:
    """Words of a page that a reader sees."""
    body = re.sub(r"<(style|script|head)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return len(re.sub(r"<[^>]*>", " ", body).split())


def figure_files(found: Findings) -> dict[str, str]:
    """File name -> SVG of every pair's figures, for readers of other documents."""
    draw: Any = _environment().get_template("figures.html").module
    made, test_set = {}, measured_on(found.plan, "set")
    for key, groups in found.groups.items():
        lines, name, title = found.lines[key], file_name(key.title), key.title
        said = f"{title}: {finding(lines)}"
        if (plot := gain_cost(lines)) is not None:
            text = draw.gain_cost(plot, said, file=True, title=title)
            made[f"gain_cost_{name}.svg"] = str(text)
        if (plot := curves(groups, lines)) is not None:
            text = draw.curves(plot, said, test_set, file=True, title=title)
            made[f"curves_{name}.svg"] = str(text)
    return made


def _render(parts: Mapping[str, Any], sections: Iterable[Section], links: Sequence[Link]) -> str:
    page = _environment().get_template("page.html")
    shown = [section._replace(tables=notes_once(section.tables)) for section in sections]
    return page.render(parts, sections=shown, links=links)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"show": show, "raw": _raw, "percent": _percent, "points": points}
    return environment


def _percent(value: float, signed: bool = True) -> str:
    text = f"{100 * value:{'+' if signed else ''}.10g}"
    return "0" if text in ("+0", "-0") else text


def _raw(value: Value) -> str:
    """What to sort a number by; empty for text."""
    number = value.mean if isinstance(value, Interval) else value
    return csv_value(number) if isinstance(number, (int, float)) else ""
