"""Figures that come out byte-equal for equal numbers: no global state, no date, no random ids.

Text in an SVG stays text: a fifth of the size, and it can be searched.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.record import write_atomically

DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, which lays itself out."""
    # Letters are a little wider in one format than in the other, and one layout serves both.
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes `<stem>.svg` and `<stem>.png`; returns both paths."""
    paths = []
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "kd-bench", "svg.fonttype": "none"}):
            figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        figure.set_layout_engine(
            "none"
        )  # laid out by the first: the second is the same, and faster
        path = stem.with_name(f"{stem.name}.{kind}")
        # Where the font is missing one of nearly the same widths comes next.
        found = content.getvalue().replace(b"'DejaVu Sans'", b"'DejaVu Sans', Verdana, sans-serif")
        write_atomically(path, found if kind == "svg" else content.getvalue())
        paths.append(path)
    return paths
