"""One HTML file a grid: opens offline, asks nothing of any server, reads on a phone.

Styles, the script that sorts tables and all figures lie inside. Whatever comes from a grid or a
record is escaped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from bench.report.grid_figures import Picture
from bench.report.recommend import Choice
from bench.report.tables import Table, to_html

FOLDER = Path(__file__).parent / "template"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One section of the page.

    Attributes:
        id: of the section, for links.
        title: one line.
        text: a paragraph under it; empty for none.
        choices: recommendations, one a pair.
        tables: in order.
        pictures: in order.
    """

    id: str
    title: str
    text: str = ""
    choices: Sequence[Choice] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands under every table, if there are several: said once, under the last."""
        if len(self.tables) < 2:
            return ()
        first, *others = (table.notes for table in self.tables)
        return tuple(note for note in first if all(note in notes for notes in others))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.text or self.choices or self.tables or self.pictures)


def render_page(name: str, description: str, coverage: str, parts: Sequence[Part]) -> str:
    """The page; equal input gives equal bytes.

    Args:
        name: the grid's.
        description: the grid's.
        coverage: one line of what is shown and what is left out.
        parts: in order; empty ones are left out.
    """
    template = _environment().get_template("report.html")
    shown = [part for part in parts if not part.is_empty]
    return template.render(
        name=name,
        description=description,
        coverage=coverage,
        parts=[_without_shared_notes(part) for part in shown],
        style=Markup(_text("report.css")),
        script=Markup(_text("report.js")),
    )


def _without_shared_notes(part: Part) -> Mapping[str, object]:
    shared = part.notes
    tables = [
        Table(
            title=table.title, columns=table.columns, rows=table.rows,
            notes=tuple(note for note in table.notes if note not in shared),
        )
        for table in part.tables
    ]  # fmt: skip
    names = ("id", "title", "text", "choices", "pictures")
    return {**{name: getattr(part, name) for name in names}, "tables": tables, "notes": shared}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["table"] = lambda table: Markup(to_html(table).rstrip("\n"))
    environment.filters["svg"] = _inline
    return environment


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").rstrip("\n")


def _inline(picture: Picture, place: int, part: str) -> Markup:
    """A figure's SVG as a part of the page.

    Ids get a prefix, for those of several figures would clash; the size is the page's to choose.
    """
    text = picture.path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :].rstrip()
    prefix = f"{part}-{place}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head, tail = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    caption = Markup.escape(picture.caption)
    return Markup(f'{head} role="img" aria-label="{caption}">{tail}')
