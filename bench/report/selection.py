"""Pictures of a selection: which training images were kept, which were dropped, and why.

Drawn from what a cell wrote beside its record: `selection_<stage>.json` and, where there are
examples, `selection_<stage>_images.safetensors`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.record import FINISHED, Plan, Record, Row, write_atomically
from bench.report.summary import PairKey, group_by_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Evidence = Mapping[str, Any]
Images = Mapping[str, np.ndarray]

# Okabe and Ito: five hues that stay apart without red-green vision; each with a form of its own.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
FORMS = ("o", "s", "^", "D", "v")
KEPT, DROPPED, INK = "#BBBBBB", "#D55E00", "#222222"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "svg.hashsalt": "kd-bench", "svg.fonttype": "path",
}  # fmt: skip
NEEDED = (
    "images", "kept", "indices", "tau", "keep_costs", "keep_cost_histogram", "shown_classes", "map",
)  # fmt: skip
"""What evidence must hold for a figure of it."""

EACH = 6
VECTORS = 2000
"""Points beyond this number are drawn as one bitmap inside an SVG."""


# --- one figure ------------------------------------------------------------------------------


def draw_selection(evidence: Evidence, images: Images | None, title: str) -> Figure:
    """Embedding before and after, the costs' histogram, and examples of kept and dropped images.

    Args:
        evidence: what the selection left; `NEEDED` names what must be in it.
        images: "<label>.kept" and "<label>.dropped", (M, C, H, W) uint8, with their positions,
            (M,), under "<name>.index"; None for no examples.
        title: over all.

    Raises:
        ValueError: the evidence lacks a part.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if missing := [key for key in NEEDED if key not in evidence]:
        raise ValueError(
            f"draw_selection: the evidence has no {', '.join(missing)}; train the cell again"
        )
    images = images or {}
    labels = [k for k in evidence["shown_classes"] if {f"{k}.kept", f"{k}.dropped"} & {*images}]
    heights = [4.9, *([0.4 + 0.82 * len(labels)] if labels else [])]
    with rc_context(STYLE):
        figure = Figure(figsize=(13, sum(heights) + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}\n{_caption(evidence)}", fontsize=11, x=0.01, ha="left")
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        upper = grid[0].subgridspec(1, 3)
        before, after, costs = (figure.add_subplot(upper[0, i]) for i in range(3))
        _draw_maps(before, after, evidence)
        _draw_costs(costs, evidence)
        if labels:
            lower = grid[1].subgridspec(1, 2)
            for place, side in enumerate(("kept", "dropped")):
                axes = figure.add_subplot(lower[0, place])
                _draw_examples(axes, evidence, images, labels, side)
    return figure


def _caption(evidence: Evidence) -> str:
    kept, images = evidence["kept"], evidence["images"]
    words = [f"kept {kept:,} of {images:,} images ({kept / images:.1%})"]
    if evidence.get("selection") == "random":
        words.append("drawn at random, as many of each class as the graph cut keeps")
    for key, name in (("energy", "lowest energy"), ("energy_of_kept", "energy of what is kept")):
        if evidence.get(key) is not None:
            words.append(f"{name} {evidence[key]:.5g}")
    return "; ".join(words)


def _draw_maps(before: Axes, after: Axes, evidence: Evidence) -> None:
    """All images of the classes shown, dropped ones as crosses; beside it the kept ones alone."""
    plane = evidence["map"]
    x, y, labels = (np.array(plane[key]) for key in ("x", "y", "labels"))
    kept = np.isin(plane["images"], evidence["indices"])
    # Fewer, larger marks; many, smaller ones that do not hide each other.
    size = float(np.clip(9000 / max(len(x), 1), 5, 26))
    large = float(np.clip(5000 / max((~kept).sum(), 1), 12, 50))
    shared: dict[str, Any] = {"rasterized": len(x) > VECTORS, "alpha": 0.8}
    crosses: dict[str, Any] = {"marker": "X", "edgecolors": INK, "linewidths": large**0.5 / 10}
    for label, colour, form in zip(evidence["shown_classes"], COLOURS, FORMS, strict=False):
        own = labels == label
        points: dict[str, Any] = {"color": colour, "marker": form, "s": size, "linewidths": 0}
        for axes in (before, after):
            axes.scatter(x[own & kept], y[own & kept], label=f"class {label}", **points, **shared)
        gone = x[own & ~kept], y[own & ~kept]
        before.scatter(*gone, color=colour, zorder=3, s=large, **crosses, **shared)
    before.scatter([], [], color="none", label="dropped", s=40, **crosses)
    of = "" if len(x) == plane["of"] else f" (a sample, {len(x):,} of {plane['of']:,})"
    before.set_title(f"Teacher's embedding{of}", loc="left")
    after.set_title("The same, kept images alone", loc="left")
    for axes in (before, after):
        _frame(axes, x, y, plane["variance"])
    before.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", handletextpad=0.2,
                  columnspacing=1.0, bbox_to_anchor=(0.5, -0.13))  # fmt: skip


def _frame(axes: Axes, x: np.ndarray, y: np.ndarray, variance: list[float]) -> None:
    """Equal limits and labels for both maps; one unit is as long across as it is up."""
    reach = 0.54 * max(np.ptp(x), np.ptp(y)) or 1.0
    middles = [(values.min() + values.max()) / 2 for values in (x, y)]
    axes.set_box_aspect(1)
    axes.set(
        xlim=(middles[0] - reach, middles[0] + reach),
        ylim=(middles[1] - reach, middles[1] + reach),
        xlabel=f"principal axis 1 ({variance[0]:.0%} of the variance of these classes)",
        ylabel=f"principal axis 2 ({variance[1]:.0%})",
    )


def _draw_costs(axes: Axes, evidence: Evidence) -> None:
    """Stacked bars of kept and dropped images over their keep cost, and the cost of dropping."""
    found, tau = evidence["keep_cost_histogram"], evidence["tau"]
    borders, kept, dropped = (np.array(found[key]) for key in ("borders", "kept", "dropped"))
    bars: dict[str, Any] = {
        "width": np.diff(borders),
        "align": "edge",
        "edgecolor": "white",
        "linewidth": 0.4,
    }
    axes.bar(borders[:-1], kept, color=KEPT, label=f"kept ({kept.sum():,})", **bars)
    axes.bar(
        borders[:-1], dropped, bottom=kept, color=DROPPED, hatch="////",
        label=f"dropped ({dropped.sum():,})", **bars,
    )  # fmt: skip
    axes.axvline(
        tau, color=INK, linestyle="--", linewidth=1.3, label=f"cost of dropping, τ = {tau:.3g}"
    )
    tallest = max((kept + dropped).max(), 1)
    last = borders[1:][kept + dropped > 0].max(initial=tau)
    right = min(borders[-1], 1.06 * last) if tau < borders[-1] else 1.06 * tau
    beyond = f"; the last bin holds all above {borders[-2]:g}" if kept[-1] + dropped[-1] else ""
    axes.set(xlim=(borders[0], right), ylim=(0, 1.05 * tallest),
             xlabel=f"cost of keeping, U1{beyond}", ylabel="images")  # fmt: skip
    axes.set_box_aspect(1)
    axes.set_title("Cost of keeping an image, all classes", loc="left")
    axes.legend(fontsize=8, frameon=False)


def _draw_examples(
    axes: Axes, evidence: Evidence, images: Images, labels: list[int], side: str
) -> None:
    """A row of images for each class, with their keep costs."""
    axes.set(xlim=(0, EACH), ylim=(len(labels), 0), aspect="equal", xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([row + 0.42 for row in range(len(labels))], [f"class {k}" for k in labels])
    axes.set_autoscale_on(False)
    order = "lowest" if side == "kept" else "highest"
    axes.set_title(f"{side.capitalize()}: {order} cost (below each image) first", loc="left")
    for row, label in enumerate(labels):
        pictures = images.get(f"{label}.{side}", ())
        positions = images.get(f"{label}.{side}.index", ())
        for column, picture in enumerate(pictures[:EACH]):
            _draw_image(axes, picture, column, row)
            if column < len(positions):
                cost = evidence["keep_costs"][positions[column]]
                axes.text(column + 0.5, row + 0.98, f"{cost:.2f}", ha="center", va="bottom",
                          fontsize=6.5, color=INK)  # fmt: skip
        if not len(pictures):
            axes.text(0.1, row + 0.42, f"none {side}", va="center", fontsize=8, color="#666666")


def _draw_image(axes: Axes, picture: np.ndarray, column: int, row: int) -> None:
    """One (C, H, W) uint8 image in the cell of a unit grid, its shape kept."""
    height, width = picture.shape[1:]
    tall, wide = (0.8 * side / max(height, width) for side in (height, width))
    left, top = column + (1 - wide) / 2, row + 0.02 + (0.8 - tall) / 2
    colours = picture[0] if len(picture) < 3 else picture[:3].transpose(1, 2, 0)
    axes.imshow(
        colours, cmap="gray", vmin=0, vmax=255, interpolation="nearest",
        extent=(left, left + wide, top + tall, top), aspect="equal",
    )  # fmt: skip


# --- files -----------------------------------------------------------------------------------


class _Drawing(NamedTuple):
    name: str
    title: str
    evidence: Path
    images: Path | None


def write_selection_figures(
    plan: Plan, records: Mapping[str, Record], store_root: Path, folder: Path
) -> list[Path]:
    """Draws the selections of every teacher and row, each at the first pair and seed with one.

    A cell whose files are not in the store (results read from MLflow alone, say) and evidence
    without what a figure needs (`NEEDED`) have no figure.

    Args:
        plan: what was asked for.
        records: by cell id.
        store_root: the folder of the cells' folders.
        folder: made if there is anything to write.

    Returns:
        `selection_<pair>_<label>_seed<k>.svg` and `.png` of each, in the plan's order. Equal
        evidence gives equal bytes under one version of matplotlib.

    Raises:
        ValueError: a file of evidence is damaged.
    """
    paths: list[Path] = []
    for drawing in _drawings(plan, records, store_root):
        evidence = _read_evidence(drawing.evidence)
        if all(key in evidence for key in NEEDED):
            images = _read_images(drawing.images)
            figure = draw_selection(evidence, images, drawing.title)
            for kind in ("svg", "png"):
                paths.append(folder / f"{drawing.name}.{kind}")
                write_atomically(paths[-1], _rendered(figure, kind))
    return paths


def _drawings(plan: Plan, records: Mapping[str, Record], root: Path) -> Iterator[_Drawing]:
    done: set[tuple[str, str, str, str]] = set()
    for key, rows in group_by_pair(plan).items():
        for row in rows:
            record = records.get(row.cell_id)
            # What is dropped depends on the teacher alone: its other students drop the same.
            drawn = (row.data, str(row.axes), row.teacher, row.label)
            if drawn in done or record is None or record.status != FINISHED:
                continue
            for drawing in _of_cell(key, row, record, root / row.cell_id):
                done.add(drawn)
                yield drawing


def _of_cell(key: PairKey, row: Row, record: Record, folder: Path) -> Iterator[_Drawing]:
    """One for each stage that selected; the stage is named where there are several."""
    names = [n for n in record.files if n.startswith("selection_") and not n.endswith("_images")]
    for name in names:
        stage = name.removeprefix("selection_")
        words = [key.title, row.label, f"seed{row.seed}", *([stage] if len(names) > 1 else [])]
        images = record.files.get(f"{name}_images")
        if (folder / record.files[name]).is_file():
            yield _Drawing(
                name="_".join(["selection", *map(file_name, words)]),
                title=f"{key.title}, {row.label}, seed {row.seed}, stage {stage}",
                evidence=folder / record.files[name],
                images=folder / images if images else None,
            )


def file_name(text: str) -> str:
    """Text as a part of a file's name.

    Example:
        >>> file_name("selective (keep=0.8, selection=random)")
        'selective-keep=0.8-selection=random'
    """
    return re.sub(r"[^\w.=+-]+", "-", text.replace("->", "to")).strip("-")


def _read_evidence(path: Path) -> dict[str, Any]:
    try:
        evidence = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); train its cell again") from None
    return evidence if isinstance(evidence, dict) else {}


def _read_images(path: Path | None) -> Images | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if path is None or not path.is_file():
        return None
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); train its cell again") from None


def _rendered(figure: Figure, kind: str) -> bytes:
    """The figure's bytes, without the date and the program that made them."""
    from matplotlib import rc_context

    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    memory = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(memory, format=kind, dpi=130, metadata=metadata)
    return memory.getvalue()
