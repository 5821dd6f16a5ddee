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
    """

    colour: str
    marker: str = "o"
    hatch: str = ""


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

STEP_PARTS: Mapping[str, Style] = {
    "teacher": Style("#BBBBBB"),
    "student": Style("#4477AA"),
    "loss": Style("#EE6677", hatch="//"),
    "second backward": Style("#AA3377", hatch="xx"),
}


def method_style(name: str) -> Style:
    """A method's style by its name (not its label: variants look alike).

    Example:
        >>> method_style("fsp").colour, method_style("my_own") == OTHER_METHOD
        ('#117733', True)
    """
    return METHODS.get(name, OTHER_METHOD)


def category_style(name: str) -> Style:
    """A category's style."""
    return CATEGORIES.get(name, OTHER_CATEGORY)
