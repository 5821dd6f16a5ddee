"""What a selection leaves behind, and the pictures that the report draws of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lessons import cell, dataset, run
from safetensors.numpy import load

from bench.method import Selection, View
from bench.record import FAILED, Plan, Record, Row, Store, dump_json
from bench.report.selection import draw_selection, write_selection_figures
from bench.train.evidence import example_images, example_positions
from methods import selective
from methods._selection_evidence import evidence_of, plane, principal_axes

ROOT = Path(__file__).resolve().parents[1]
STAGE = "selection_finetune"
PAIR = "selection_synthetic-fraction-0.5-cnn3-to-cnn2"


def clusters(each: int, classes: int = 6, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(N, width) points about their class's centre, and labels; later classes spread wider."""
    generator = np.random.default_rng(0)
    labels = np.arange(each * classes) % classes
    centres = generator.normal(size=(classes, width))
    spread = 0.2 + 0.1 * labels[:, None]
    return centres[labels] + spread * generator.normal(size=(len(labels), width)), labels


def synthetic(each: int = 20) -> dict[str, Any]:
    """Evidence of a selection that drops what lies far from its centre."""
    points, labels = clusters(each)
    centres = np.stack([points[labels == k].mean(0) for k in range(6)])
    cost = np.linalg.norm(points - centres[labels], axis=1)
    return {"tau": 0.9, "energy": 12.5, **evidence_of(cost < 0.9, cost, points, labels)}


def consistent(evidence: dict[str, Any], images: int) -> None:
    """Counts, list, histogram and map tell of the same selection."""
    found, plane_ = evidence["keep_cost_histogram"], evidence["map"]
    kept = set(evidence["indices"])
    assert evidence["images"] == len(evidence["keep_costs"]) == images
    assert evidence["kept"] == len(kept) == sum(found["kept"])
    assert images - evidence["kept"] == sum(found["dropped"])
    assert sum(found["counts"]) == images
    assert [sum(pair) for pair in zip(*evidence["kept_per_class"].values(), strict=True)] == [
        evidence["kept"], images,
    ]  # fmt: skip
    lengths = {len(plane_[key]) for key in ("images", "labels", "x", "y")}
    assert lengths == {min(plane_["of"], 5000)}
    assert set(plane_["labels"]) <= set(evidence["shown_classes"])
    assert json.loads(dump_json(evidence)) == evidence


# Evidence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["graph_cut", "random"])
def test_evidence_of_the_method_is_consistent(choice):
    points, labels = clusters(15)
    keep = selective.method(keep=0.8, selection=choice).plan[1].keep
    assert keep is not None
    kept, evidence = keep(View({"embedding": torch.from_numpy(points)}), torch.from_numpy(labels))
    consistent(dict(evidence), 90)
    assert evidence["indices"] == kept.nonzero().flatten().tolist()


def test_random_control_differs_from_the_cut_in_what_it_drops_alone():
    points, labels = clusters(15)
    view, found = View({"embedding": torch.from_numpy(points)}), {}
    for choice in ("graph_cut", "random"):
        keep = selective.method(keep=0.8, selection=choice).plan[1].keep
        assert keep is not None
        found[choice] = keep(view, torch.from_numpy(labels)).evidence
    cut, control = found["graph_cut"], found["random"]
    same = ("tau", "energy", "kept", "kept_per_class", "keep_costs", "shown_classes", "map")
    assert {key: cut[key] for key in same} == {key: control[key] for key in same}
    assert cut["indices"] != control["indices"]
    # The floor of a class takes back what the cut dropped: dearer than the cut, not than chance.
    assert len(cut["added_back"]) > len(control["added_back"]) == 0
    assert cut["energy"] < cut["energy_of_kept"] < control["energy_of_kept"]


def test_energy_of_the_cut_alone_is_that_of_its_choice():
    points, labels = (torch.from_numpy(x) for x in clusters(15))
    found = selective.select_by_graph_cut(points, labels, 0.98)
    assert found.added_back == ()
    assert found.energy_of(found.kept) == found.energy
    assert found.energy_of(torch.ones(90, dtype=torch.bool)) > found.energy


def test_classes_shown_are_those_that_lost_most():
    kept = np.ones(12, bool)
    kept[[0, 1, 5]] = False  # twice class 3, once class 1
    labels = np.array([3, 3, 3, 1, 1, 1, 0, 0, 2, 2, 4, 5])
    evidence = evidence_of(kept, np.zeros(12), np.eye(12), labels)
    assert evidence["shown_classes"] == [3, 1, 0, 2, 4]


def test_large_sets_are_mapped_by_a_sample_of_each_class_and_side():
    points, labels = clusters(1500)
    cost = np.random.default_rng(1).random(9000)
    kept = cost < 0.9
    found: dict[str, Any] = plane(kept, cost, points, labels, [0, 1, 2, 3, 4], 700)
    assert found["of"] == 7500
    assert 700 <= len(found["images"]) <= 710  # every stratum is rounded up
    images, whole = np.array(found["images"]), labels < 5
    for label in range(5):
        share = (kept[images] & (labels[images] == label)).sum() / (kept & (labels == label)).sum()
        assert share == pytest.approx(700 / 7500, abs=0.002)
    # Evenly over the costs, the extremes of every stratum among them.
    assert cost[images].max() == cost[whole].max()
    assert cost[images].min() == cost[whole].min()
    assert np.median(cost[images]) == pytest.approx(np.median(cost[whole]), abs=0.01)


def test_principal_axes_keep_their_direction_when_points_are_shuffled():
    points, _ = clusters(10)
    order = np.random.default_rng(2).permutation(len(points))
    first, again = principal_axes(points), principal_axes(points[order])
    for one, other in zip(first[:2], again[:2], strict=True):
        np.testing.assert_allclose(one[order], other, rtol=0, atol=1e-12)
    spread = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(first[2], spread[:2] / spread.sum(), rtol=1e-12)


def test_one_dimension_makes_a_flat_map():
    x, y, variance = principal_axes(np.array([[1.0], [3.0], [2.0]]))
    np.testing.assert_allclose(x, [-1, 1, 0], atol=1e-12)
    assert y.tolist() == [0, 0, 0]
    np.testing.assert_allclose(variance, [1, 0])


# Examples -----------------------------------------------------------------------------------------


def test_examples_are_the_cheapest_kept_and_the_dearest_dropped():
    labels = torch.tensor([2, 2, 2, 2, 7, 7])
    kept = torch.tensor([True, True, False, False, True, True])
    evidence = {"keep_costs": [0.5, 0.2, 0.9, 1.4, 0.3, 0.1], "shown_classes": [2, 7]}
    found = example_positions(Selection(kept, evidence), labels, each=1)
    assert {name: index.tolist() for name, index in found.items()} == {
        "2.kept": [1], "2.dropped": [3], "7.kept": [5],
    }  # fmt: skip


def test_evidence_without_costs_has_no_examples():
    chosen = Selection(torch.tensor([True, False]), {"kept": 1})
    assert example_images(chosen, torch.tensor([0, 1]), torch.eye(2).byte().__getitem__) == {}


# Figures ------------------------------------------------------------------------------------------


def planned(store: Store, cells: list[tuple[str, Any]]) -> tuple[Plan, dict[str, Record]]:
    """A plan of one pair from (label, cell), and its records."""
    rows = [
        Row(
            role="method", data="synthetic", axes={"fraction": 0.5}, teacher="cnn3",
            student="cnn2", label=label, method=one.method, category="response", seed=one.seed,
            cell_id=one.id,
        )
        for label, one in cells
    ]  # fmt: skip
    plan = Plan(name="figures", description="", config={}, rows=rows)
    return plan, store.read_all(plan.cell_ids())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of the cut and of its control, trained for real: store, plan, records."""
    root = tmp_path_factory.mktemp("cells")
    control = "selective (selection=random)"
    cells = [
        (label, cell("selective", seed=seed, hyperparameters=changes))
        for seed in (0, 1)
        for label, changes in (("selective", {}), (control, {"selection": "random"}))
    ]
    for seed in (0, 1):
        run([one for _, one in cells if one.seed == seed], root)
    return Store(root), *planned(Store(root), cells)


def test_a_cell_saves_evidence_and_the_images_as_they_were(trained):
    store, plan, records = trained
    for row in plan.rows:
        files = records[row.cell_id].files
        folder = store.folder(row.cell_id)
        evidence = json.loads((folder / files[STAGE]).read_text())
        consistent(evidence, 40)
        images = load((folder / files[f"{STAGE}_images"]).read_bytes())
        kept = set(evidence["indices"])
        for label in evidence["shown_classes"]:
            assert images[f"{label}.kept"].dtype == np.uint8
            assert images[f"{label}.kept"].shape[1:] == (1, 8, 8)
            assert set(images[f"{label}.kept.index"].tolist()) <= kept
            assert not kept & set(images.get(f"{label}.dropped.index", np.array([])).tolist())


def test_saved_images_are_the_training_images(trained):
    store, plan, records = trained
    row = plan.rows[0]
    path = store.folder(row.cell_id) / records[row.cell_id].files[f"{STAGE}_images"]
    images, originals = load(path.read_bytes()), dataset().train_images.numpy()
    for name in (name for name in images if not name.endswith(".index")):
        np.testing.assert_array_equal(images[name], originals[images[f"{name}.index"]])


def test_next_seed_stands_in_for_one_that_failed(trained, tmp_path):
    store, plan, records = trained
    row = plan.rows[0]
    plan = replace(plan, rows=[one for one in plan.rows if one.label == row.label])
    broken = {**records, row.cell_id: replace(records[row.cell_id], status=FAILED)}
    names = [p.name for p in write_selection_figures(plan, broken, store.root, tmp_path)]
    assert names == [f"{PAIR}_selective_seed1.{kind}" for kind in ("svg", "png")]


def test_cells_without_files_or_with_other_evidence_have_no_figure(trained, tmp_path):
    store, plan, records = trained
    assert write_selection_figures(plan, records, tmp_path / "elsewhere", tmp_path) == []
    assert write_selection_figures(plan, {}, store.root, tmp_path) == []
    for row in plan.rows:
        path = tmp_path / "store" / row.cell_id / records[row.cell_id].files[STAGE]
        path.parent.mkdir(parents=True)
        path.write_text('{"kept": 20}')
    assert write_selection_figures(plan, records, tmp_path / "store", tmp_path) == []
    path.write_text("{")
    last = replace(plan, rows=plan.rows[-1:])
    with pytest.raises(ValueError, match=r"damaged.*train its cell again"):
        write_selection_figures(last, records, tmp_path / "store", tmp_path)


def test_first_seed_of_each_row_is_drawn_with_equal_bytes_in_another_process(trained, tmp_path):
    store, plan, records = trained
    (tmp_path / "plan.json").write_text(plan.to_json())
    code = (
        "import sys\nfrom pathlib import Path\nfrom bench.record import Plan, Store\n"
        "from bench.report.selection import write_selection_figures as write\n"
        "assert 'matplotlib' not in sys.modules\n"
        "folder, store = Path(sys.argv[1]), Store(Path(sys.argv[2]))\n"
        "plan = Plan.from_json((folder / 'plan.json').read_text())\n"
        "write(plan, store.read_all(plan.cell_ids()), store.root, folder)\n"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(store.root)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = write_selection_figures(plan, records, store.root, tmp_path / "here")
    assert [path.name for path in here] == [
        f"{PAIR}_{label}_seed0.{kind}"
        for label in ("selective", "selective-selection=random")
        for kind in ("svg", "png")
    ]
    for path in here:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        assert path.stat().st_size > 10_000


def test_figure_of_evidence_alone_shows_every_image_of_its_classes():
    evidence = synthetic()
    figure = draw_selection(evidence, None, "by hand")
    before, after, costs = figure.axes
    drawn = [sum(len(c.get_offsets()) for c in axes.collections) for axes in (before, after)]
    plane_ = evidence["map"]
    assert drawn[0] == len(plane_["images"])
    assert drawn[1] == len(set(plane_["images"]) & set(evidence["indices"]))
    assert before.get_xlim() == after.get_xlim()
    assert costs.get_legend().get_texts()[-1].get_text() == f"dropped ({120 - evidence['kept']})"
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title("left")


def test_figure_refuses_evidence_that_lacks_a_part():
    evidence = synthetic()
    del evidence["map"], evidence["tau"]
    with pytest.raises(ValueError, match=r"has no tau, map; train the cell again"):
        draw_selection(evidence, None, "by hand")


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 4, 4), (1, 6, 3), (2, 3, 6)])
def test_examples_of_any_shape_are_drawn_where_they_belong(channels, height, width):
    evidence = synthetic()
    label = evidence["shown_classes"][0]
    picture = np.full((2, channels, height, width), 90, np.uint8)
    images = {f"{label}.dropped": picture, f"{label}.dropped.index": np.array([3, 4])}
    kept, dropped = draw_selection(evidence, images, "by hand").axes[3:]
    assert [len(axes.images) for axes in (kept, dropped)] == [0, 2]
    for place, image in enumerate(dropped.images):
        left, right, bottom, top = image.get_extent()
        assert place <= left < right <= place + 1
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
    assert dropped.get_xlim() == (0, 6)
    assert "none kept" in [text.get_text() for text in kept.texts]


def test_every_image_kept_is_drawn_too():
    points, labels = clusters(4)
    found = evidence_of(np.ones(24, bool), np.full(24, 3.0), points, labels)
    figure = draw_selection({"tau": 5.0, **found}, None, "all kept")
    figure.canvas.draw()
    assert "above 1.95" in figure.axes[2].get_xlabel()
