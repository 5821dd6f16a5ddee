"""Figures that come out byte-equal for equal numbers: no global state, no date, no random ids.

Text in an SVG stays text: a fifth of the size, and it can be searched.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.record import write_atomically


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which lays itself out."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))


def save_figure(figure: Figure, stem: Path) -> Path:
    """Writes `<stem>.svg`; returns its path."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "kd-bench", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    path = stem.with_name(f"{stem.name}.svg")
    # Where the font is missing one of nearly the same widths comes next.
    text = content.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    write_atomically(path, text)
    return path


def file_name(text: str) -> str:
    """Text as a part of a file's name.

    Example:
        >>> file_name("selective (keep=0.8, selection=random)")
        'selective-keep=0.8-selection=random'
    """
    return re.sub(r"[^\w.=+-]+", "-", text.replace("->", "to")).strip("-")
