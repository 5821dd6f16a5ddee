"""Exported students: what a file holds, that it computes the same, and what is refused."""

import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lessons import cell, dataset, plain_cell
from lessons import run as train
from safetensors import safe_open
from students import random_student, row_of

from bench import export
from bench.cell import Cell, DataSpec
from bench.cli import main
from bench.cost.costs import Costs
from bench.data.cache import cached
from bench.data.dataset import DataSet
from bench.decide.records import pairs_of
from bench.export import CARD, FORMATS, Card, ExportError, find_row, load_trained, pack
from bench.models import zoo
from bench.models.files import WeightsError, read_state
from bench.record import Plan, WorkDir, file_digest, write_atomically
from bench.train.weights import read_weights

FINE = DataSpec(source="synthetic", pad=1)
COARSE = DataSpec(source="synthetic", resolution=2, resize="crop")


def cells() -> dict[str, Cell]:
    content = dataset().fingerprint
    taught = cell("soft_logits", fingerprint=content)
    coarse = cell("soft_logits", fingerprint=content, data=COARSE)
    other = cell("transfer", fingerprint=content)
    source = plain_cell("cnn2", fingerprint=brighter().fingerprint, data=FINE)
    return {
        "soft_logits": taught, "coarse": coarse, "student": plain_cell("cnn2", 1),
        "transfer": Cell(**{**vars(other), "source": source}),
    }  # fmt: skip


def brighter() -> DataSet:
    data = dataset()
    return DataSet.of(
        "synthetic", (data.train_images // 2 + 100, data.train_labels),
        (data.test_images // 2 + 100, data.test_labels), data.classes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> WorkDir:
    """A grid of four trained cells, one with blurred images and one from a source."""
    folder = WorkDir(tmp_path_factory.mktemp("export"))
    for name, data in (("a", dataset()), ("b", brighter())):
        cached(folder.cache / f"synthetic-{name * 12}", {"name": name}, lambda _, d=data: d)
    made = cells()
    for one in made.values():
        train([one], folder.store.root)
    labels = {"coarse": "soft_logits"}
    rows = [row_of(one, labels.get(name, name)) for name, one in made.items()]
    plan = Plan(name="taught", description="", config={}, rows=rows)
    write_atomically(folder.plan(plan.name), plan.to_json())
    return folder


def plan_of(work: WorkDir) -> Plan:
    return Plan.from_json(work.plan("taught").read_text())


@pytest.mark.parametrize("name", ["soft_logits", "coarse"])
def test_a_graph_maps_raw_pixels_to_the_logits_of_the_trained_network(work, tmp_path, name):
    made, file = cells()[name], tmp_path / "student.pt2"
    words = ["export", made.id[:10], "--grid", "taught", "--work-dir", str(work.root)]
    assert main([*words, "--format", "torch.export", "--output", str(file)]) == 0
    (tmp_path / "copy.pt2").write_bytes(file.read_bytes())
    assert file_digest(tmp_path / "copy.pt2") in (tmp_path / "student.pt2.sha256").read_text()
    about = {CARD: ""}
    program = torch.export.load(file, extra_files=about).module()
    data = dataset()
    # The evaluation written out: scale to [0, 1], normalise, coarsen, network.
    network = zoo.build("cnn2", 4, (1, 8, 8)).eval()
    with safe_open(work.store.folder(made.id) / "weights.safetensors", "pt") as weights:
        network.load_state_dict({key: weights.get_tensor(key) for key in weights.keys()})  # noqa: SIM118
    images = (data.test_images.double() / 255 - data.mean[0]) / data.std[0]
    if made.data.resolution == 2:
        coarse = torch.nn.functional.avg_pool2d(images, 2)
        images = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    with torch.no_grad():
        wanted = network.double()(images)
    for count in (1, 7, 20):  # any batch size
        found = program(data.test_images[:count]).double()
        torch.testing.assert_close(found, wanted[:count], rtol=1e-4, atol=1e-5)
    card = Card.model_validate_json(about[CARD])
    assert card.classes == ("c0", "c1", "c2", "c3")
    assert card.mean == data.mean
    assert card.cell_id == made.id
    assert card.resize == "squash"  # nothing was cropped: they have no size
    assert (name == "coarse") == ("average over 2x2 pixels" in card.preprocessing[-1])


def flip_last_bit(path: Path) -> None:
    *content, last = path.read_bytes()
    path.write_bytes(bytes([*content, last ^ 1]))


def test_an_exported_file_that_was_damaged_is_no_start_for_another_training(work, tmp_path):
    made, file = cells()["soft_logits"], tmp_path / "student.safetensors"
    words = ["export", made.id, "--grid", "taught", "--work-dir", str(work.root)]
    assert main([*words, "--output", str(file)]) == 0
    assert read_state(file, file_digest(file)).keys() == read_weights(made.id, work.store).keys()
    flip_last_bit(file)
    with pytest.raises(WeightsError, match="damaged: "):
        read_state(file, file_digest(file))


def test_an_output_is_a_file_of_its_format_wherever_a_link_leads(work, tmp_path, refused, capsys):
    made, link = cells()["soft_logits"], tmp_path / "link"
    words = ["export", made.id, "--grid", "taught", "--work-dir", str(work.root), "--output"]
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        assert "got a folder or a device" in refused(*words, str(tmp_path / name))
    said = refused(*words, str(tmp_path / "a.onnx"))
    assert "--format safetensors writes .safetensors files" in said
    link.symlink_to(tmp_path / "student")
    assert main([*words, str(link)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "student").is_file()
    assert "recorded on test images" in capsys.readouterr().out


def test_damaged_weights_are_not_exported_and_the_cure_is_named(work, tmp_path, refused):
    copy = WorkDir(tmp_path / "copy")
    shutil.copytree(work.root, copy.root)
    made = cells()["soft_logits"]
    path = copy.store.folder(made.id) / "weights.safetensors"
    flip_last_bit(path)
    said = refused("export", made.id, "--grid", "taught", "--work-dir", str(copy.root))
    assert f"damaged: {path}" in said
    assert "run_all.py --grid taught" in said


def test_weights_travel_with_what_is_needed_to_use_them(work):
    made = cells()["soft_logits"]
    content, parity = pack(load_trained(find_row(plan_of(work), made.id), work), "safetensors")
    assert parity.difference <= parity.allowed
    assert parity.images == 20
    record = work.store.read(made.id)
    assert parity.accuracy == record.final["last_accuracy"]
    length = int.from_bytes(content[:8], "little")
    card = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][CARD])
    assert card["name"] == "cnn3>cnn2/soft_logits/0"
    assert card["image_shape"] == [1, 8, 8]


def test_a_network_that_started_from_a_source_is_normalised_as_the_source(work):
    trained = load_trained(find_row(plan_of(work), cells()["transfer"].id), work)
    assert trained.card.mean == brighter().mean
    assert trained.data.mean == dataset().mean


@pytest.mark.parametrize("error", [0.01, torch.nan])
def test_an_export_that_computes_something_else_is_not_written(
    work, tmp_path, monkeypatch, capsys, error
):
    def shifted(content: bytes) -> export.Logits:
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda images: program(images) + error

    wrong = replace(FORMATS["torch.export"], unpack=shifted)
    monkeypatch.setitem(FORMATS, "torch.export", wrong)
    file = tmp_path / "student.pt2"
    words = ["export", cells()["soft_logits"].id, "--grid", "taught", "--output", str(file)]
    assert main([*words, "--format", "torch.export", "--work-dir", str(work.root)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "nothing is written" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cnn3>cnn2/soft_logit/0", "did you mean cnn3>cnn2/soft_logits/0"),
        ("cnn3>cnn2/soft_logits/0", "names 2 cells of taught; give a whole id"),
        ("", "unknown cell ''"),
        ("student", "did you mean cnn2/student/1"),
    ],
)
def test_a_cell_that_is_none_or_several_is_refused_with_the_near_ones(work, asked, said):
    with pytest.raises(ExportError, match=said):
        find_row(plan_of(work), asked)


def test_an_accuracy_on_held_out_images_is_named_as_one(work, tmp_path):
    shown, copy = find_row(plan_of(work), cells()["soft_logits"].id), WorkDir(tmp_path / "copy")
    shutil.copytree(work.root, copy.root)
    record = copy.store.load(shown.cell_id)
    record.cell["data"]["validation"] = 0.5
    copy.store.write(record)
    assert load_trained(shown, work).card.measured_on == "test images"
    assert load_trained(shown, copy).card.measured_on == "held-out training images"
    held = copy.store.read_all([shown.cell_id])
    plan = replace(plan_of(work), rows=[replace(shown, role="student")])
    (pair,) = pairs_of(plan, held, Costs()).values()
    assert pair.measured_on == "a held-out set"


def test_images_that_are_not_here_any_more_are_asked_for(work):
    with pytest.raises(ExportError, match="start the grid again"):
        load_trained(find_row(plan_of(work), "cnn2/student/1"), work)


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
def test_a_missing_package_is_one_line_with_the_cure(work, monkeypatch, refused, form):
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = ["export", cells()["coarse"].id, "--grid", "taught", "--format", form]
    said = refused(*words, "--work-dir", str(work.root))
    assert "needs onnx, which is not installed" in said
    assert "pip install 'kd-bench[onnx]'" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["onnx", "onnx-int8", "torch.export"])
@pytest.mark.parametrize("model", [
    "cnn4", "resnet8", "resnet110", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1",
    "ShuffleV2", "ResNet50", "torchvision/resnet18",
])  # fmt: skip
def test_every_family_of_networks_can_be_exported(model, form):
    if form.startswith("onnx"):
        pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    _, parity = pack(random_student(model, 32), form)
    assert parity.difference <= parity.allowed
