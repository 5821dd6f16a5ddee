"""What a selection records, and the figure that the report draws of it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lessons import cell, run
from matplotlib.collections import PathCollection

from bench.method import View
from bench.record import FAILED, Plan, Record, Row, Store, dump_json
from bench.report.selection import draw_selection, write_selection_figures
from methods import selective

STAGE = "selection_finetune"
PAIR = "selection_synthetic-fraction-0.5-cnn3-to-cnn2"


def clusters(each: int, classes: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, width) points about their class's centre, and labels; later classes spread wider."""
    generator = np.random.default_rng(0)
    labels = np.arange(each * classes) % classes
    centres = generator.normal(size=(classes, width))
    spread = 0.2 + 0.1 * labels[:, None]
    points = centres[labels] + spread * generator.normal(size=(len(labels), width))
    return torch.from_numpy(points), torch.from_numpy(labels)


def details(choice: str, each: int = 15) -> tuple[torch.Tensor, dict[str, Any]]:
    points, labels = clusters(each)
    keep = selective.method(keep=0.8, selection=choice).plan[1].keep
    kept, found, _ = keep(View({"embedding": points}), labels)
    return kept, dict(found)


@pytest.mark.parametrize("choice", ["graph_cut", "random"])
def test_counts_lists_and_drawing_describe_one_selection(choice):
    kept, found = details(choice)
    drawing = found["drawing"]
    assert found["indices"] == kept.nonzero().flatten().tolist()
    assert found["images"] == len(found["keep_costs"]) == 90
    totals = [sum(pair) for pair in zip(*found["kept_per_class"].values(), strict=True)]
    assert totals == [found["kept"], 90]
    assert len({len(drawing[key]) for key in ("items", "labels", "kept", "x", "y")}) == 1
    assert drawing["kept"] == kept[drawing["items"]].tolist()
    assert {i for edge in drawing["edges"] for i in edge} <= set(drawing["items"])
    assert json.loads(dump_json(found)) == found


def test_random_control_differs_from_the_cut_only_in_what_it_drops():
    cut, control = details("graph_cut")[1], details("random")[1]
    for key in ("tau", "lambda", "energy", "kept", "keep_costs"):
        assert cut[key] == control[key]
    assert cut["indices"] != control["indices"]
    assert cut["energy"] == cut["energy_of_kept"] < control["energy_of_kept"]


def test_the_five_classes_that_lost_most_are_drawn_and_large_ones_by_a_sample():
    points, labels = clusters(450)
    found = selective.select_by_graph_cut(points, labels, 0.6, neighbours=3)
    drawing: dict[str, Any] = found.details()["drawing"]  # pyright: ignore[reportAssignmentType]
    lost = {label: size - kept for label, (kept, size) in found.kept_per_class.items()}
    assert set(range(6)) - set(drawing["labels"]) == {min(lost, key=lambda k: (lost[k], -k))}
    assert [drawing["labels"].count(label) for label in set(drawing["labels"])] == [200] * 5
    for label in set(drawing["labels"]):
        side = [k for k, of in zip(drawing["kept"], drawing["labels"], strict=True) if of == label]
        kept, size = found.kept_per_class[label]
        assert np.mean(side) == pytest.approx(kept / size, abs=0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of the cut and of its control, trained for real: store, plan, records."""
    root = tmp_path_factory.mktemp("cells")
    changes = {"selective": {}, "selective (selection=random)": {"selection": "random"}}
    rows = []
    for seed in (0, 1):
        cells = {k: cell("selective", seed=seed, hyperparameters=h) for k, h in changes.items()}
        run(list(cells.values()), root)
        shared = {"role": "method", "data": "synthetic", "axes": {"fraction": 0.5}}
        pair = {"teacher": "cnn3", "student": "cnn2", "category": "response", "seed": seed}
        rows += [
            Row(label=label, method=one.method, cell_id=one.id, **shared, **pair)
            for label, one in cells.items()
        ]
    plan = Plan(name="figures", description="", config={}, rows=rows)
    return Store(root), plan, Store(root).read_all(plan.cell_ids())


def names(trained: tuple[Store, Plan, dict[str, Record]], folder) -> set[str]:
    store, plan, records = trained
    return {p.stem for p in write_selection_figures(plan, records, store.root, folder)}


def test_first_seed_of_each_row_is_drawn_with_equal_bytes(trained, tmp_path):
    wanted = {f"{PAIR}_selective_seed0", f"{PAIR}_selective-selection=random_seed0"}
    assert names(trained, tmp_path / "one") == names(trained, tmp_path / "two") == wanted
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_next_seed_is_drawn_where_the_first_failed(trained, tmp_path):
    store, plan, records = trained
    row = plan.rows[0]
    plan = replace(plan, rows=[one for one in plan.rows if one.label == row.label])
    broken = {**records, row.cell_id: replace(records[row.cell_id], status=FAILED)}
    assert names((store, plan, broken), tmp_path) == {f"{PAIR}_selective_seed1"}


def test_cells_without_files_have_no_figure_and_damaged_files_are_named(trained, tmp_path):
    _, plan, records = trained
    assert names((Store(tmp_path / "elsewhere"), plan, records), tmp_path) == set()
    path = tmp_path / plan.rows[0].cell_id / records[plan.rows[0].cell_id].files[STAGE]
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"damaged: .*checksum differs"):
        names((Store(tmp_path), plan, records), tmp_path)


def test_every_drawn_image_is_a_dot_or_a_cross_and_a_full_selection_has_no_cross():
    _, found = details("graph_cut")
    (axes,) = draw_selection(found, "by hand").axes
    marks = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert sum(len(c.get_offsets()) for c in marks) == len(found["drawing"]["items"])
    everything = selective.select_by_graph_cut(*clusters(4), 1.0).details()
    draw_selection(everything, "all kept").canvas.draw()
