"""A figure of each selection: which training images were kept, which were dropped, and their graph.

Drawn from `selection_<stage>.json`, which a cell writes next to its record.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import networkx as nx
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.decide.evidence import row_title
from bench.decide.records import group_by_pair
from bench.faults import DamagedError
from bench.record import FINISHED, Plan, Record, Store, write_atomically
from bench.report.figures import file_name

# Okabe and Ito: five hues that can be told apart without red-green vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
EDGE, SEVERED = "#CCCCCC", "#D55E00"


def write_selection_figures(
    plan: Plan, records: Mapping[str, Record], store_root: Path, folder: Path
) -> list[Path]:
    """Draws one selection for each teacher and row: that of the first pair and seed that has one.

    A cell without its files in the store has no figure. Returns the files; equal selections give
    equal bytes under one version of matplotlib. DamagedError if a selection's file is damaged.
    """
    drawn: dict[tuple[str, ...], Path] = {}
    for key, rows in group_by_pair(plan).items():
        for row in rows:
            record = records.get(row.cell_id)
            # What is dropped depends on the teacher alone: its other students drop the same.
            choice = (row.data, str(row.axes), row.teacher, row.label)
            if choice in drawn or record is None or record.status != FINISHED:
                continue
            names = [name for name in record.files if name.startswith("selection_")]
            found = _read(Store(store_root), record, names[0]) if names else {}
            if "drawing" in found:
                title = f"{key.title}, {row_title(row.label)}, seed {row.seed}"
                figure = draw_selection(found, title)
                stem = "_".join(map(file_name, (key.title, row.label, f"seed{row.seed}")))
                drawn[choice] = folder / f"selection_{stem}.svg"
                write_atomically(drawn[choice], _svg(figure))
    return list(drawn.values())


def draw_selection(selection: Mapping[str, Any], title: str) -> Figure:
    """The graph on two axes: kept images as dots, dropped ones as crosses, severed edges in red."""
    drawing = selection["drawing"]
    items = drawing["items"]
    place = dict(zip(items, zip(drawing["x"], drawing["y"], strict=True), strict=True))
    kept = dict(zip(items, drawing["kept"], strict=True))
    label = dict(zip(items, drawing["labels"], strict=True))
    graph = nx.Graph(drawing["edges"])
    severed = [(i, j) for i, j in graph.edges if kept[i] != kept[j]]
    figure = Figure(figsize=(7.1, 5.2), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.add_subplot(aspect="equal")
    nx.draw_networkx_edges(graph, place, ax=axes, width=0.4, edge_color=EDGE)
    nx.draw_networkx_edges(graph, place, severed, ax=axes, width=0.5, edge_color=SEVERED)
    cross: dict[str, Any] = {"s": 40, "marker": "X", "edgecolors": "black", "linewidths": 0.6}
    for name, colour in zip(sorted(set(label.values())), COLOURS, strict=False):
        dots, crosses = (
            [place[i] for i in items if label[i] == name and kept[i] == side]
            for side in (True, False)
        )
        axes.scatter([x for x, _ in dots], [y for _, y in dots], 10, colour, label=f"class {name}")
        axes.scatter([x for x, _ in crosses], [y for _, y in crosses], color=colour, **cross)
    axes.scatter([], [], color="white", label="dropped", **cross)
    axes.plot([], [], color=SEVERED, linewidth=0.8, label="edge severed")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    counts = f"kept {selection['kept']:,} of {selection['images']:,} images"
    shown = f"shown: the {len(set(label.values()))} classes that lost most"
    axes.set_title(f"{title}\n{counts}; {shown}", fontsize=8, loc="left", parse_math=False)
    axes.tick_params(left=True, bottom=True, labelleft=True, labelbottom=True, labelsize=7)
    axes.set_xlabel("principal axis 1 of the teacher's embeddings", fontsize=7)
    axes.set_ylabel("principal axis 2", fontsize=7)
    return figure


def _svg(figure: Figure) -> str:
    """The figure's text, equal for equal figures: no date, no random ids, text as text."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "kd-bench", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    # Where the font is missing one of nearly the same widths comes next.
    return content.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def _read(store: Store, record: Record, name: str) -> dict[str, Any]:
    """A recorded selection; {} without the file."""
    path = store.folder(record.cell_id) / record.files[name]
    try:
        return json.loads(store.file(record, name).read_bytes()) if path.is_file() else {}
    except (json.JSONDecodeError, RecursionError) as error:  # of an earlier version: no checksum
        raise DamagedError(f"damaged: {path} ({error})") from None
