"""A user's own teacher: weights from a file, fitted to the data, evaluated and never trained."""

import argparse
import hashlib
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from torchvision.models import get_model, resnet18

from bench.cli import main
from bench.models import zoo
from bench.models.files import WeightsError, find_weights, fitted, read_state
from bench.models.folding import folded
from bench.models.network import Normalised, tap_shapes
from bench.record import Plan, Record, WorkDir, file_digest
from bench.seeds import derive

# Colour images, so that torchvision's networks can read them.
DATA = """
import torch
from bench.data.dataset import DataSet
from bench.data.sources import Source

def read(name, downloads):
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randint(0, 80, (60, 3, 32, 32), generator=draws)
    images[range(60), labels] += 120
    images = images.to(torch.uint8)
    return DataSet.of(name, (images[:48], labels[:48]), (images[48:], labels[48:]),
                      ["red", "green", "blue"])

DATA_SOURCES = {"colours": Source(read, classes=3, as_tree=False)}
"""
NORMALISE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
TORCHVISION = {"torchvision": "resnet18", "weights": "mine.pth", "normalise": NORMALISE}
GRID = {
    "description": "A teacher of my own.",
    "data": {"source": "colours", "pad": 1, "fraction": 0.5},
    "models": {"mine": {"model": "resnet8", "weights": "mine.pth", "normalise": NORMALISE}},
    "pairs": ["mine:cnn2"],
    "methods": ["soft_logits"],
    "seeds": 2,
    "recipe": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "colours.py").write_text(DATA)
    save(tmp_path)
    return tmp_path


def save(folder: Path, seed=1, classes=3, name="mine.pth", model="resnet8") -> dict:
    """A network with statistics of its own, wrapped as training code does."""
    torch.manual_seed(seed)
    state = zoo.build(model, classes, (3, 32, 32)).state_dict()
    state = {k.removeprefix("model."): v for k, v in state.items()}
    state = {k: torch.rand_like(v) if "running" in k else v for k, v in state.items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / name)
    return state


def words(folder: Path, *more: str, **changes: object) -> list[str]:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({**GRID, **changes}))
    options = ["--grid", str(file), "--work-dir", str(folder / "work"), "--workers", "1"]
    return [*options, "--plugin", str(folder / "colours.py"), *more]


def run(folder: Path, *more: str, **changes: object) -> dict[tuple[str, int], Record]:
    """Runs a grid; label and seed -> record."""
    assert main(words(folder, *more, **changes)) == 0
    work = WorkDir(folder / "work")
    plan = Plan.from_json(work.plan("own").read_text())
    found = {(row.label, row.seed): work.store.read(row.cell_id) for row in plan.rows}
    return {key: record for key, record in found.items() if record is not None}


def saved(folder: Path, record: Record) -> dict[str, torch.Tensor]:
    own = WorkDir(folder / "work").store.folder(record.cell_id)
    return safetensors.torch.load_file(own / record.files["weights"])


def test_a_teacher_from_a_file_is_evaluated_once_and_stays_the_files(
    folder, capsys, no_figures, refused, monkeypatch, no_store
):
    state = save(folder, model="torchvision/resnet18")
    mine = {"mine": TORCHVISION}
    assert main(words(folder, "--dry-run", models=mine)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "mine, as its file has it: the teacher guesses: 33.3% right, 3 classes" in said
    found = run(folder, models=mine)
    teacher = found["teacher", 0]
    assert found["teacher", 1] == teacher  # one for all seeds
    assert teacher.final["epochs"] == 0
    assert teacher.stages == []
    kept = saved(folder, teacher)
    for key, tensor in state.items():  # statistics of BatchNorm are among them
        assert torch.equal(kept[f"network.model.{key}"], tensor), key
    sha256 = hashlib.sha256((folder / "mine.pth").read_bytes()).hexdigest()
    assert teacher.conditions["weights_sha256"] == sha256
    assert teacher.cell["model"]["weights"] == sha256
    assert str(folder) not in teacher.to_json()
    said = " ".join(capsys.readouterr().out.split())
    assert f"weights of mine.pth (SHA-256 {sha256[:12]}), " in said
    assert "The teacher guesses" in said
    for command in (["recommend", *words(folder)[:4]], words(folder, "--dry-run", models=mine)):
        assert main(command) == 0
        assert "the teacher guesses: 33.3% right, 3 classes" in capsys.readouterr().out

    run(folder, "recipe.momentum=0.8", models=mine)
    assert "4 cells trained" in capsys.readouterr().out  # the students of two seeds
    (name,) = (path.parent.name for path in (folder / "work").glob("own-*/plan.json"))
    monkeypatch.chdir(folder / "work")  # weights are relative to the grid's file all the same
    assert main(["run", "--grid", name, *words(folder, models=mine)[2:]]) == 0
    assert "nothing to train" in capsys.readouterr().out
    (folder / "moved").mkdir()
    (folder / "mine.pth").rename(folder / "moved" / "mine.pth")
    assert "mine.pth" in refused(*words(folder, models=mine))
    moved = {"mine": {**TORCHVISION, "weights": "moved/mine.pth"}}
    assert run(folder, models=moved) == found

    save(folder, seed=2, model="torchvision/resnet18")
    again = run(folder, models=mine)
    changed = {key for key in found if found[key].cell_id != again[key].cell_id}
    assert changed == {(label, seed) for label in ("teacher", "soft_logits") for seed in (0, 1)}


def test_accuracy_and_exports_are_of_the_file_under_its_own_preprocessing(
    folder, no_figures, capsys, no_store
):
    """Computed again from the pixels, without the harness's normalisation."""
    model = resnet18(num_classes=3).eval()
    model.load_state_dict(save(folder, model="torchvision/resnet18"))
    record = run(folder, models={"mine": TORCHVISION}, seeds=1, methods=["student"])["teacher", 0]
    space: dict = {}
    exec(DATA, space)
    data = space["read"]("colours", None)
    mean, std = (torch.tensor(NORMALISE[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        predicted = model((data.test_images / 255 - mean) / std).argmax(1)
    right = (predicted == data.test_labels).double().mean().item()
    assert record.final["last_accuracy"] == pytest.approx(right)
    work = ["--work-dir", str(folder / "work"), "--plugin", str(folder / "colours.py")]
    for form in ("torch.export", "safetensors"):
        assert main(["export", "mine/teacher/0", "--grid", "own", *work, "--format", form]) == 0
        assert "compared with the trained network on 12 test images" in capsys.readouterr().out


def test_fine_tuning_and_a_students_own_start_train_from_the_file(folder, no_figures, no_store):
    teacher = {"weights": "mine.pth", "fine_tune": {"epochs": 2, "learning_rate": 1e-12}}
    record = run(folder, teacher=teacher, models={}, pairs=["resnet8:cnn2"], seeds=1)
    tuned = record["teacher", 0]
    assert tuned.final["epochs"] == 2
    assert tuned.cell["recipe"]["epochs"] == 2
    start, kept = save(folder), saved(folder, tuned)
    torch.testing.assert_close(kept["head.weight"], start["head.weight"])
    assert not torch.equal(kept["stem.1.running_mean"], start["stem.1.running_mean"])

    recipe = {**GRID["recipe"], "learning_rate": 1e-12}
    both = run(folder, pairs=["mine:mine"], recipe=recipe, seeds=1, methods=["student"])
    assert both["teacher", 0].final["epochs"] == 0
    assert both["student", 0].final["epochs"] == 1
    kept = saved(folder, both["student", 0])
    torch.testing.assert_close(kept["network.head.weight"], start["head.weight"])


def test_what_trains_from_a_file_of_other_classes_has_a_fresh_head_of_its_own(
    folder, no_figures, no_store, refused, capsys
):
    start = save(folder, classes=5)
    own, recipe = {"weights": "mine.pth"}, {**GRID["recipe"], "learning_rate": 1e-12}
    grid = {"models": {"mine": {"model": "resnet8", **own}}, "recipe": recipe}
    ways = {"pairs": ["cnn2:mine"], "methods": ["student"]}, {"teacher": {"fine_tune": {}}}
    for way, role in zip(ways, ("student", "teacher"), strict=True):
        found = run(folder, **{**grid, **way})
        kept = [saved(folder, found[role, seed]) for seed in (0, 1)]
        assert "weights of mine.pth but its head" in " ".join(capsys.readouterr().out.split())
        for seed, state in enumerate(kept):
            torch.manual_seed(derive(seed, "init", "mine"))
            fresh = zoo.build("resnet8", 3, (3, 32, 32)).state_dict()
            torch.testing.assert_close(state["head.weight"], fresh["head.weight"])
            torch.testing.assert_close(state["stem.0.weight"], start["stem.0.weight"])
        assert not torch.equal(kept[0]["head.weight"], kept[1]["head.weight"])
    line = refused(*words(folder, **grid))  # as it is, it needs the file's classes
    assert "name the file's by classes, or train from it with fine_tune" in line


@pytest.mark.parametrize(("field", "pair"), [("fine_tune", "cnn2:mine"), ("recipe", "mine:cnn2")])
def test_a_field_that_no_teacher_uses_is_refused_but_in_a_part(folder, refused, field, pair):
    changes = {"teacher": {field: {"epochs": 2}}, "models": GRID["models"]}
    assert f"teacher.{field}: " in refused(*words(folder, "--dry-run", **changes, pairs=[pair]))
    pairs = ["mine:cnn2", "cnn2:mine"]  # of which one uses it
    assert main(words(folder, "--dry-run", "--pairs", pair, **changes, pairs=pairs)) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("mine.pt", r"no file .*mine\.pt"),
        ({**TORCHVISION, "weights": "no_such"}, "unknown weights of torchvision 'no_such'"),
        ("big.pth", "has 5 classes, the data 3; name the file's by classes"),
        (
            {"weights": "big.pth", "classes": [0, 7, 1]},
            r"got \[0, 7, 1\], wanted 3 different .* below the 5",
        ),
        ({"weights": "big.pth", "classes": [4, 4, 4]}, r"got \[4, 4, 4\], wanted 3 different"),
        ({"weights": "big.pth", "classes": []}, r"got \[\], wanted 3 different positions"),
        ({"weights": "big.pth", "classes": ["red", "blue"]}, "2 names, but .* has 5 classes"),
        ({"classes": ["red", "green", "violet"]}, "unknown class of the data 'blue'"),
        ({"model": "resnet14"}, r"lacks stages\.0\.1\.first\.0\.weight, .* and \d+ more"),
        ({"normalise": {"mean": [0.5], "std": [0.2]}}, "1 channels, the images have 3"),
        ({"normalise": {"mean": [0.5], "std": [0.2, 0.3]}}, "1 means and 2 deviations"),
        ({"weight": "x"}, "unknown field 'weight'; did you mean weights"),
        ({"timm": "test_vit"}, "give one of model, torchvision and timm"),
        ("odd.pth", r"is no state dict .*such as \S+Linear, are not .*; write one with"),
        ("args.pth", r"args\.pth is no state dict \(it .* such as argparse\.Namespace"),
        ("hello.pth", r"hello\.pth is no state dict \(torch\.save did not write it"),
        ("a,b.pth", r"b\.pth is no state dict \(torch\.save did not write it"),
        ("keys.pth", "is no state dict: 1 in it is no name of a tensor"),
        ("none.safetensors", "holds no tensor, wanted a state dict"),
        ("nan.pth", r"nan\.pth for mine: stem\.1\.bias holds numbers that are not fin"),
        ({**TORCHVISION, "weights": "x.ckpt"}, r"got 'x\.ckpt', wanted a file ending in .*\.pth"),
        ({**TORCHVISION, "weights": "../"}, r"got '\.\./', wanted a file ending in .*\.pth"),
        ("list.pth", "holds a list, wanted a state dict"),
        ("wide.pth", r"stem\.0\.weight is 16x4x3x3 in the file, 16x3x3x3 in the"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(folder, refused, changes, said):
    save(folder, classes=5, name="big.pth")
    torch.save(torch.nn.Linear(2, 2), folder / "odd.pth")
    torch.save([1], folder / "list.pth")
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, folder / "args.pth")
    torch.save({1: torch.ones(1)}, folder / "keys.pth")
    for text in ("hello", "a,b"):
        (folder / f"{text}.pth").write_text(text)
    safetensors.torch.save_file({}, folder / "none.safetensors")
    torch.save({**save(folder), "stem.0.weight": torch.ones(16, 4, 3, 3)}, folder / "wide.pth")
    torch.save({**save(folder), "stem.1.bias": torch.full((16,), torch.nan)}, folder / "nan.pth")
    changes = {"weights": changes} if isinstance(changes, str) else changes
    mine = changes if "torchvision" in changes else {**GRID["models"]["mine"], **changes}
    line = refused(*words(folder, "--dry-run", models={"mine": mine}))
    assert re.search(said, line), line


@pytest.mark.parametrize("classes", [(4, 0, 2), ("red", "x", "y", "z", "blue")])
def test_the_heads_rows_are_those_of_the_datas_classes(tmp_path, classes):
    state = save(tmp_path, classes=5, model="torchvision/resnet18")
    network = zoo.build("torchvision/resnet18", 3, (3, 32, 32))
    found = fitted(state, network, ("blue", "red", "y"), classes, "mine.pth")
    rows = [4, 0, 2]
    assert torch.equal(found["model.fc.weight"], state["fc.weight"][rows])
    assert torch.equal(found["model.fc.bias"], state["fc.bias"][rows])
    network.load_state_dict(found)


def test_wrappings_prefixes_and_formats_hold_the_same_state(tmp_path):
    state = save(tmp_path, model="torchvision/resnet18")
    shapes = {key: tensor.shape for key, tensor in state.items()}
    network = zoo.build("torchvision/resnet18", 3, (3, 32, 32))
    seen = dict.fromkeys(("scale", "shift"), torch.ones(3, 1, 1))  # of an exported student
    for wrapped in (
        state,
        {"model": state},
        {"state_dict_ema": state, "epoch": 3},
        {f"network.model.{k}": v for k, v in state.items()} | seen,
        {f"_orig_mod.module.{k}": v for k, v in state.items()},
    ):
        torch.save(wrapped, path := tmp_path / "other.pt")
        found = fitted(read_state(path, file_digest(path)), network, "abc", None, "other.pt")
        assert {k.removeprefix("model."): v.shape for k, v in found.items()} == shapes
    safetensors.torch.save_file(state, path := tmp_path / "same.safetensors")
    assert read_state(path, file_digest(path)).keys() == state.keys()
    with pytest.raises(WeightsError, match="changed while it was read"):
        read_state(path, "0" * 64)


def test_normalised_images_are_the_networks_own_and_survive_folding():
    own = {"mean": [0.3], "std": [0.5]}
    network = zoo.build({"model": "cnn2", "normalise": own}, 3, (1, 8, 8)).eval()
    assert isinstance(network, Normalised)
    network.see((0.6,), (0.2,))
    pixels = torch.rand(4, 1, 8, 8)
    shown = network.view((pixels - 0.6) / 0.2, network.tap_names)
    wanted = network.network.view((pixels - 0.3) / 0.5, network.tap_names)
    torch.testing.assert_close(shown, wanted, rtol=1e-5, atol=1e-6)
    lean = folded(network, (1, 8, 8))
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in lean.modules()) == 0
    torch.testing.assert_close(lean((pixels - 0.6) / 0.2), wanted["logits"], rtol=1e-4, atol=1e-5)
    assert tap_shapes(network, (1, 8, 8))["stage1"] == (2, 8, 8)


def test_torchvisions_own_weights_are_read_from_its_cache_by_the_names_of_classes(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="IMAGENET1K_V1 is not in torch's cache: put https"):
        find_weights("IMAGENET1K_V1", tmp_path, "resnet18")
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = save(cache, classes=1000, name="resnet18-f37072fd.pth", model="torchvision/resnet18")
    path = find_weights("IMAGENET1K_V1", tmp_path, "resnet18")
    assert find_weights("DEFAULT", tmp_path, "resnet18") == path
    network = zoo.build("torchvision/resnet18", 2, (3, 32, 32))
    read = read_state(path, file_digest(path))
    found = fitted(read, network, ("goldfish", "tench"), "imagenet", path.name)
    assert torch.equal(found["model.fc.bias"], state["fc.bias"][[1, 0]])


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_that_only_help_to_train_are_left_out(name):
    state = get_model(name, num_classes=3, init_weights=False).state_dict()
    found = fitted(state, zoo.build(f"torchvision/{name}", 3, (3, 96, 96)), "abc", None, name)
    assert {f"model.{key}" for key in state if "aux" not in key.lower()} == found.keys()


def test_weights_of_timm_fit_its_network(tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_vit", num_classes=3, img_size=32).state_dict()
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    network = zoo.build({"timm": "test_vit", "normalise": NORMALISE}, 3, (3, 32, 32))
    found = fitted(state, network, ("a", "b", "c"), None, "vit.safetensors")
    assert torch.equal(found["network.model.head.weight"], state["head.weight"])
    other = zoo.build("timm/test_vit", 3, (3, 64, 64))
    with pytest.raises(WeightsError, match="pos_embed is 1x5x64 in the file, 1x17x64 in the net"):
        fitted(state, other, ("a", "b", "c"), None, "vit.safetensors")
