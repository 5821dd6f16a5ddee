"""One HTML file a grid: opens offline, asks nothing of any server, reads on a phone and on paper.

Styles, scripts and figures lie inside. Whatever comes from a grid or a record is escaped.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from bench.report.card import SYMBOLS, PairLine, Sentence
from bench.report.figures import Curves, Dumbbell, Forest, GainCost
from bench.report.results import Line
from bench.report.tables import Entry, Section, csv_value, notes_once, show
from bench.report.wording import points
from bench.statistics import Interval

FOLDER = Path(__file__).parent / "template"

MOST_BYTES, MOST_WORDS = 600_000, 8_000
"""Of one page; sections beyond go to `details.html`."""

MOST_ROWS = 200
"""Rows of all panels of the page; further pairs go to `details.html`."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The figures of one pair, or of the mean over pairs, and what they show in words.

    `sample` is over how many seeds, after a comma; `gain_cost` is None where no cost is known.
    """

    title: str
    sample: str
    finding: str
    forest: Forest
    gain_cost: GainCost | None


@dataclass(frozen=True, kw_only=True)
class PageSection(Section):
    """A section as the page shows it, closed: lines of text and figures of each pair, then tables.

    A pair's curves have its title and a finding in words, its dumbbells have its title.
    """

    lines: Sequence[str] = ()
    curves: Sequence[tuple[str, str, Curves]] = ()
    dumbbells: Sequence[tuple[str, list[Dumbbell]]] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows.

    Attributes:
        name: the grid's.
        facts: what holds for the whole grid.
        test_set: what accuracies are of.
        sample: size of the test set; begins with a blank.
        measured: where costs were measured; begins with a blank.
        sentences: the answer.
        caution: what to know before it.
        pairs: the answer for each pair.
        panels: the figures, the first one shown.
        sections: closed.
        links: text and address.
        details: whether this is the page of what the report has no room for.
    """

    name: str
    facts: Sequence[str]
    test_set: str
    sample: str
    measured: str
    sentences: Sequence[Sentence]
    caution: Sequence[str]
    pairs: Sequence[PairLine]
    panels: Sequence[Panel]
    sections: Sequence[PageSection]
    links: Sequence[tuple[str, str]]
    details: bool = False

    @property
    def verdict(self) -> str:
        """What the answer begins with; empty without one."""
        return next((part.verdict for s in self.sentences for part in s if part.verdict), "")


def render_pages(page: Page) -> dict[str, str]:
    """File name -> its content: `report.html`, and `details.html` where one has not enough room.

    Equal input gives equal bytes.
    """
    rows, shown = 0, 0
    for panel in page.panels:
        rows += len(panel.forest.rows)
        shown += rows <= MOST_ROWS or shown == 0
    panels, more = page.panels[:shown], page.panels[shown:]
    bare = replace(page, panels=panels, sections=[])
    sections, rest = _that_fit(bare, page.sections)
    beyond = [("more numbers", "details.html")] if more or rest else []
    inside = [(s.title.lower(), f"#all-{s.name}") for s in sections[:2]]
    report = _render(replace(bare, sections=sections, links=[*inside, *page.links, *beyond]))
    if not beyond:
        return {"report.html": report}
    links = [("the answer", "report.html"), *page.links]
    details = replace(page, panels=more, sections=rest, links=links, details=True)
    return {"report.html": report, "details.html": _render(details)}


def _that_fit(
    page: Page, sections: Sequence[PageSection]
) -> tuple[list[PageSection], list[PageSection]]:
    """The sections that the page has room for, and the longest ones, that it has not."""
    length = {s.name: words(_render(replace(page, panels=(), sections=[s]))) for s in sections}
    kept: list[PageSection] = []
    for section in sorted(sections, key=lambda section: length[section.name]):
        text = _render(replace(page, sections=[*kept, section]))
        # Some room is left for the links.
        if words(text) < MOST_WORDS - 100 and len(text.encode()) < MOST_BYTES - 1000:
            kept.append(section)
    return [s for s in sections if s in kept], [s for s in sections if s not in kept]


def words(text: str) -> int:
    """Words of a page that a reader sees."""
    body = re.sub(r"<(style|script|head)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return len(re.sub(r"<[^>]*>", " ", body).split())


def figure_file(kind: str, plot: GainCost | Curves, alt: str, title: str, measured: str) -> str:
    """A figure, of the kind "gain_cost" or "curves", as an SVG file of its own.

    `alt` is what it shows, in words; `measured` is what accuracies are of.
    """
    module = _environment().get_template("figures.html").make_module({"style": _style("figure")})
    options = {"file": True, "title": title}
    if kind == "curves":
        return str(module.curves(plot, alt, measured, **options))  # pyright: ignore
    return str(module.gain_cost(plot, alt, **options))  # pyright: ignore


def _render(page: Page) -> str:
    sections = [replace(s, tables=tuple(notes_once(s.tables))) for s in page.sections]
    return _environment().get_template("page.html").render(
        page=replace(page, sections=sections),
        style=_style("figure"),
        page_style=_style("page"),
        script=Markup(_text("page.js")),
        symbols=SYMBOLS,
    )  # fmt: skip


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["show"] = show
    environment.filters["raw"] = _raw
    environment.filters["gain"] = lambda line: points(line.gain.mean)
    environment.filters["cost"] = _cost
    return environment


def _cost(line: Line) -> str:
    return "–" if line.cost is None else f"×{line.cost:.1f}"


def _raw(entry: Entry) -> str:
    """What to sort a number by; empty for text."""
    value = entry.value.mean if isinstance(entry.value, Interval) else entry.value
    return csv_value(value) if isinstance(value, (int, float)) else ""


def _style(name: str) -> Markup:
    return Markup(_text(f"{name}.css"))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").rstrip("\n")
