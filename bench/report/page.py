"""One HTML file a grid: opens offline, asks nothing of any server, reads on a phone.

Styles, the script that sorts tables and all figures lie inside. Whatever comes from a grid or a
record is escaped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from bench.report.grid_figures import Picture
from bench.report.recommend import Choice
from bench.report.tables import Section, notes_once, to_html

FOLDER = Path(__file__).parent / "template"


@dataclass(frozen=True, kw_only=True)
class PageSection(Section):
    """A section as the page shows it.

    Attributes:
        choices: recommendations, one a pair.
        pictures: figures, under the tables.
    """

    choices: Sequence[Choice] = ()
    pictures: Sequence[Picture] = ()


def render_page(name: str, text: str, sections: Sequence[PageSection]) -> str:
    """The page; equal input gives equal bytes.

    Args:
        name: the grid's.
        text: the grid's description, and what is shown and left out.
        sections: in order; empty ones are left out.
    """
    template = _environment().get_template("report.html")
    return template.render(
        name=name,
        text=text,
        parts=[
            replace(section, tables=tuple(notes_once(section.tables)))
            for section in sections
            if section.text or section.choices or section.tables or section.pictures
        ],
        style=Markup(_text("report.css")),
        script=Markup(_text("report.js")),
    )


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
