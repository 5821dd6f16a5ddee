"""Networks of torchvision, timm and plugins: taps that are found, and what is refused at once."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_bring import DATA, GRID, words
from torch import nn
from torchvision import models

from bench.cli import main
from bench.models import zoo
from bench.models.adapter import TorchvisionNetwork, _node_names, find_taps
from bench.models.network import Network, check_network, tap_shapes
from bench.record import FINISHED, NOT_APPLICABLE, Plan, WorkDir

WIDE = (3, 64, 96)
FOUND = {
    "torchvision/mobilenet_v3_small": [(16, 16, 24), (24, 8, 12), (48, 4, 6), (576, 2, 3)],
    "torchvision/densenet121": [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (1024, 2, 3)],
    "torchvision/swin_t": [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)],
    "timm/test_vit": [(64, 4, 6)] * 4,
    "timm/test_resnet": [(32, 16, 24), (48, 8, 12), (192, 4, 6), (96, 2, 3)],
    "timm/test_convnext": [(24, 16, 24), (32, 8, 12), (48, 4, 6), (64, 2, 3)],
    "timm/test_efficientnet": [(24, 16, 24), (32, 8, 12), (48, 4, 6), (64, 2, 3)],
}
LARGE = pytest.mark.parametrize("name", FOUND)


def built(name: str, shape: tuple[int, int, int] = WIDE) -> Network:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return zoo.build(name, 3, shape).eval()


@LARGE
def test_stages_are_the_deepest_maps_of_the_last_four_resolutions(name):
    network = built(name)
    shapes = tap_shapes(network, WIDE)
    assert [shape for tap, shape in shapes.items() if tap.startswith("stage")] == FOUND[name]
    assert shapes["embedding"] == (network.head.in_features,)
    images = torch.randn(2, *WIDE)
    with torch.no_grad():
        whole = network.view(images, network.tap_names)
        assert torch.equal(whole["logits"], network.get_submodule(network.bare)(images))
        for tap in network.tap_names:  # read alone, nothing deeper runs
            torch.testing.assert_close(network.view(images, (tap,))[tap], whole[tap])


def test_tokens_become_maps_without_the_class_token():
    model = models.VisionTransformer(16, 4, 8, 2, 8, 16, num_classes=3).eval()
    order = _node_names(model)
    taps = find_taps(model, "heads.head", order, (3, 16, 16))
    network = TorchvisionNetwork(model, taps, "heads.head", order).eval()
    seen = []
    model.encoder.layers[3].register_forward_hook(lambda *args: seen.append(args[2]))
    images = torch.randn(2, 3, 16, 16)
    model(images)
    shown = network.view(images, ("stage2",))["stage2"]  # the fourth of eight blocks
    assert shown.shape == (2, 8, 4, 4)
    torch.testing.assert_close(shown[1, :, 2, 3], seen[0][1, 1 + 2 * 4 + 3])


def test_registers_of_timm_are_no_positions():
    network = built("timm/vit_small_patch16_dinov3", (3, 32, 32))
    assert network.model.num_prefix_tokens > 1
    assert tap_shapes(network, (3, 32, 32))["stage4"] == (384, 2, 2)


def test_timm_runs_no_deeper_than_the_tap_and_copies():
    network, run = built("timm/test_resnet"), []
    for name, module in network.model.named_modules():
        module.register_forward_hook(lambda *args, name=name: run.append(name))
    network.view(torch.randn(2, *WIDE), ("stage2",))
    assert "layer2" in run
    assert not {"layer3", "fc"} & set(run)
    twin = copy.deepcopy(built("timm/test_vit"))
    images = torch.randn(2, *WIDE)
    assert torch.equal(pickle.loads(pickle.dumps(twin))(images), twin(images))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("torchvision/squeezenet1_0", WIDE, "its classifier is no nn.Linear"),
        ("torchvision/vit_b_16", WIDE, "built for square images"),
        ("torchvision/resnet18", (1, 64, 64), r"\(1, 64, 64\): it takes 3 channels"),
        ("torchvision/inception_v3", (3, 64, 64), r"\(3, 64, 64\): calculated .*kernel size"),
        ("torchvision/maxvit_t", WIDE, r"not divisible by partition size"),
        ("timm/dla34", WIDE, "its classifier is a Conv2d, wanted one nn.Linear"),
        ("timm/deit_tiny_distilled_patch16_224", WIDE, "its classifier is a tuple"),
        ("timm/test_resne", WIDE, "did you mean test_resnet"),
        ("timm/inception_v3", (3, 32, 32), r"on images of \(3, 32, 32\): .*kernel size"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(name, shape, said, capsys):
    with pytest.raises(ValueError, match=f"(?i){said}") as caught:
        built(name, shape)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_model_is_listed_with_its_taps(capsys, refused):
    assert main(["list", "--model", "torchvision/mobilenet_v3_small", "--size", "64x96"]) == 0
    said = capsys.readouterr().out
    assert "stage4         576 x 2 x 3" in said
    assert "1,528,106 parameters" in said
    assert "did you mean resnet8" in refused("list", "--model", "resnet9")
    assert "wanted a size such as 64x64" in refused("list", "--model", "cnn4", "--size", "8")


def test_a_transformer_teaches_a_cnn_and_learns_from_one(tmp_path, no_figures, no_store):
    """All methods at 64 pixels. What cannot be used says why, and nothing fails."""
    pytest.importorskip("timm")
    (tmp_path / "colours.py").write_text(DATA.replace("32", "64"))
    pairs = ["timm/test_vit:cnn2", "cnn2:timm/test_vit"]
    recipe = {"epochs": 2, "batch_size": 12, "learning_rate": 0.01, "evaluate_every": 2}
    grid = {"pairs": pairs, "recipe": recipe, "models": {}, "seeds": 1}
    assert main(words(tmp_path, "--methods", "all", **grid)) == 0
    work = WorkDir(tmp_path / "work")
    (path,) = work.root.glob("own-*/plan.json")
    plan = Plan.from_json(path.read_text())
    records = work.store.read_all(plan.cell_ids())
    assert {record.status for record in records.values()} == {FINISHED, NOT_APPLICABLE}
    states = {(row.teacher, row.label): records[row.cell_id].status for row in plan.rows}
    refused = {key for key, status in states.items() if status == NOT_APPLICABLE}
    maps = {"activation_boundary", "fsp", "ofd", "reviewkd", "simkd"}  # a stem, or before a ReLU
    neither = {*maps, "transfer"}  # which has no source
    assert {label for teacher, label in refused if teacher == "timm/test_vit"} == neither
    assert {label for teacher, label in refused if teacher == "cnn2"} == {*neither, "fitnet"}
    methods = {row.label: row.category for row in plan.rows if row.role == "method"}
    assert not {label for _, label in refused if methods[label] == "response"}
    assert records.keys() == set(plan.cell_ids())


class Faulty(Network):
    """A plugin's network with one fault, or none."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.tap_names = fault, ("stage1", "embedding", "logits")
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.scale = torch.rand(1) if fault == "state" else nn.Buffer(torch.rand(1))
        head = nn.Linear(2, 5 if fault == "classes" else 3)
        self.head = head if fault != "function" else lambda x: x
        if fault == "taps":
            self.tap_names = ("stage1", "logits")
        if fault == "twin":
            self.twin = self.head
        if fault == "shared":
            self.second = nn.Linear(2, 3)
            self.second.weight = self.head.weight

    def view(self, images, taps):
        x = self.body(images) * self.scale
        x = x * torch.rand(1) if self.fault == "draws" else x
        maps = x.flatten(1) if self.fault == "flat" else x
        embedding = x.mean((2, 3))
        if self.fault == "wide":
            embedding = torch.cat([embedding, embedding], 1)
        logits = self.head(embedding[:, :2])
        return {"stage1": maps, "embedding": embedding, "logits": logits}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("taps", "tap_names lacks 'embedding'"),
        ("function", "head is function, wanted an nn.Linear that is part"),
        ("shared", "head.weight and second.weight share memory"),
        ("twin", "head.weight and twin.weight share memory"),
        ("draws", "in evaluation mode it gives other logits for the same images"),
        ("classes", r"logits have shape \(5,\), wanted \(3,\)"),
        ("flat", r"tap 'stage1' has shape \(128,\), wanted \(C, H, W\)"),
        ("wide", r"has shape \(4,\), the head reads"),
        ("state", "does not survive saving and loading"),
    ],
)
def test_a_plugins_network_is_checked_before_anything_trains(fault, said):
    check_network(Faulty, 3, (1, 8, 8))
    with pytest.raises(ValueError, match=said):
        check_network(lambda: Faulty(fault), 3, (1, 8, 8))


def test_the_network_of_the_page_is_a_plugin_that_is_checked(tmp_path, capsys, refused):
    text = (Path(__file__).parents[1] / "bench" / "models" / "README.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "MyNet" in part)
    (tmp_path / "my_net.py").write_text(code)
    plugin = ["--plugin", str(tmp_path / "my_net.py")]
    assert main(["list", "--model", "my_net", "--size", "1x8x8", *plugin]) == 0
    assert "stage2         16 x 2 x 2" in capsys.readouterr().out
    grid = {**GRID, "pairs": ["my_net:my_net"], "methods": ["soft_logits", "fsp"], "seeds": 1}
    grid |= {"data": {"source": "digits", "classes": 2}, "models": {}}
    grid["recipe"] = {"epochs": 2, "batch_size": 50, "learning_rate": 0.1}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(grid))
    dry_run = ["--grid", str(tmp_path / "own.yaml"), "--work-dir", str(tmp_path), "--dry-run"]
    dry_run += plugin
    assert main(dry_run) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "fsp (1 cell): stage 'init' reads tap 'stem', which the student lacks" in said
    (tmp_path / "my_net.py").write_text(code.replace("self.head = nn", "self.head = lambda x: x #"))
    line = refused(*dry_run)
    assert "cell my_net/student/0: head is function, wanted an nn.Linear" in line
    drawn = "self.head.register_forward_hook(lambda *args, by=torch.rand(1): args[2] * by)"
    again = code.replace("(16, classes)\n", f"(16, classes)\n        {drawn}\n")
    (tmp_path / "my_net.py").write_text(f"import torch\n{again}")
    assert "its state does not survive saving and loading" in refused(*dry_run)
