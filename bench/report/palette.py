"""The colour, marker and hatch of everything that figures show: one place for all of them.

Colours are Paul Tol's "muted" and "bright" schemes, which stay apart for colour-blind readers.
Methods of one category have neighbouring hues; markers tell lines apart without any colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Style(NamedTuple):
    """How one thing looks.

    Attributes:
        colour: "#rrggbb".
        marker: of matplotlib, for lines and points.
        hatch: of matplotlib, for areas; empty for none.
        dash: of matplotlib, for lines.
        filled: whether markers are; hollow ones are variants.
    """

    colour: str
    marker: str = "o"
    hatch: str = ""
    dash: str = "-"
    filled: bool = True


DASHES = ("-", "--", ":", "-.")
"""A method's own line, then those of its variants; a fifth begins again."""

TEACHER = Style("#000000", ".", dash="--")
METHODS: Mapping[str, Style] = {
    "student": Style("#555555", "x"),
    "transfer": Style("#999999", "+"),
    "soft_logits": Style("#332288", "o"),
    "selective": Style("#88CCEE", "s"),
    "fitnet": Style("#CC6677", "^"),
    "attention_transfer": Style("#882255", "v"),
    "activation_boundary": Style("#DDCC77", "D"),
    "fsp": Style("#117733", "P"),
    "kd_svd": Style("#44AA99", "X"),
    "rkd": Style("#999933", "*"),
}
OTHER_METHOD = Style("#AA4499", "h")

CATEGORIES: Mapping[str, Style] = {
    "baseline": Style("#777777", "x"),
    "response": Style("#4477AA", "o", "//"),
    "multi-connection": Style("#CC6677", "^", "\\\\"),
    "shared-representation": Style("#228833", "P", "xx"),
}
OTHER_CATEGORY = Style("#AA3377", "h", "--")


def row_styles(rows: Mapping[str, str]) -> dict[str, Style]:
    """The styles of a grid's rows: a method's colour and marker, and a dash for each variant.

    Args:
        rows: label -> method's name, in the grid's order; the label "teacher" is the teacher's.

    Example:
        >>> styles = row_styles({"rkd": "rkd", "fsp": "fsp", "rkd (tap=logits)": "rkd"})
        >>> [(style.colour, style.dash, style.filled) for style in styles.values()]
        [('#999933', '-', True), ('#117733', '-', True), ('#999933', '--', False)]
    """
    styles, seen = {}, dict[str, int]()
    for label, method in rows.items():
        if label == "teacher":
            styles[label] = TEACHER
            continue
        variant = seen[method] = seen.get(method, -1) + 1
        dash = DASHES[variant % len(DASHES)]
        styles[label] = METHODS.get(method, OTHER_METHOD)._replace(dash=dash, filled=not variant)
    return styles


def category_style(name: str) -> Style:
    """A category's style."""
    return CATEGORIES.get(name, OTHER_CATEGORY)
