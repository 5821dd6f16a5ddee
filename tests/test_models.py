"""The zoo: published sizes, named taps, forwards that really stop, no trace left behind."""

import copy
import pickle
from collections import Counter
from collections.abc import Collection

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.models import zoo
from bench.models.adapter import TorchvisionNetwork
from bench.models.folding import folded
from bench.models.network import Network, tap_shapes
from bench.models.small import SmallCnn

# Parameters in millions and multiply-adds in millions, 100 classes, 32x32 colour images, as
# measured on the networks of the field's most used public benchmark, to the digits printed there.
PUBLISHED_SIZES = {
    "resnet20": ("0.278", "40.8"),
    "resnet32": ("0.473", "69.1"),
    "resnet56": ("0.862", "125.8"),
    "resnet110": ("1.737", "253"),
    "resnet8x4": ("1.234", "177"),
    "resnet32x4": ("7.434", "1083"),
    "wrn_16_2": ("0.703", "101"),
    "wrn_40_1": ("0.570", "83.3"),
    "wrn_40_2": ("2.255", "328"),
    "vgg8": ("3.965", "96.2"),
    "vgg13": ("9.462", "285"),
    "MobileNetV2": ("0.813", "6.5"),
    "ShuffleV1": ("0.949", "38.7"),
    "ShuffleV2": ("1.356", "44.5"),
    "ResNet50": ("23.7", "1298"),
}
CIFAR_NAMES = [
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *("resnet8x4", "resnet32x4"),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "wrn_16_4", "wrn_40_4"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"),
]
FAMILIES = ["resnet8", "resnet14", "wrn_16_1", "vgg8", "vgg13", "MobileNetV2", "ShuffleV1"]
FAMILIES += ["ShuffleV2", "cnn4", "torchvision/resnet18"]
POST_ACTIVATION = ["resnet8", "resnet14", "vgg8", "vgg13", "ShuffleV1", "ShuffleV2", "ResNet50"]
POST_ACTIVATION += ["cnn4", "torchvision/resnet18"]
DENSENET = {
    "torchvision": "densenet121",
    "taps": {"stage1": "features.denseblock1", "stage2": "features"},
    "head": "classifier",
}


def make(model="resnet8", classes=10, image_shape=(3, 32, 32), seed=0) -> Network:
    torch.manual_seed(seed)
    return zoo.build(model, classes, image_shape)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def as_printed(value: float, printed: str) -> str:
    return f"{value:.{len(printed.partition('.')[2])}f}"


def test_every_name_of_the_field_is_there():
    names = zoo.MODELS.names()
    assert set(CIFAR_NAMES) <= set(names)
    assert [n for n in names if n not in CIFAR_NAMES] == ["cnn4", "cnn8", "cnn16", "cnn32"]


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_size_is_the_published_one(name):
    parameters, multiply_adds = PUBLISHED_SIZES[name]
    network = make(name, classes=100).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    counted = sum(p.numel() for p in network.parameters()) / 1e6
    assert as_printed(counted, parameters) == parameters
    assert as_printed(counter.get_total_flops() / 2e6, multiply_adds) == multiply_adds


def test_wide_resnet_40_4_has_the_papers_8_9_million_parameters():
    counted = sum(p.numel() for p in make("wrn_40_4", classes=10).parameters())
    assert as_printed(counted / 1e6, "8.9") == "8.9"


@pytest.mark.parametrize("width", [1, 3, 4, 32])
def test_small_net_of_any_width(width):
    shapes = tap_shapes(make(f"cnn{width}", image_shape=(1, 8, 8)), (1, 8, 8))
    stages = [shapes[f"stage{k}"] for k in (1, 2, 3)]
    assert stages == [(width, 8, 8), (2 * width, 4, 4), (4 * width, 2, 2)]


@pytest.mark.parametrize("name", [*CIFAR_NAMES, "cnn4", "torchvision/resnet18"])
def test_taps_every_method_needs_are_there(name):
    network = make(name)
    shapes = tap_shapes(network, (3, 32, 32))
    assert tuple(shapes) == network.tap_names
    for stage in ("stage1", "stage2", "stage3"):
        assert len(shapes[stage]) == 3
        assert shapes[f"{stage}.pre"] == shapes[stage]
        if f"{stage}.entry" in shapes:
            assert shapes[f"{stage}.entry"][1:] == shapes[stage][1:]
    assert len(shapes["stem"]) == 3
    deep = {tap.removesuffix(".entry") for tap in shapes if tap.endswith(".entry")}
    if name in ("resnet8", "vgg8", "cnn4"):  # stages of one block
        assert not deep
    elif name in ("resnet14", "wrn_16_1", "vgg13", "ShuffleV1", "ShuffleV2"):
        assert {"stage1", "stage2", "stage3"} <= deep
    assert shapes["embedding"] == (network.head.in_features,)
    assert shapes["logits"] == (10,)
    assert network.tap_names[-1] == "logits"
    assert not any(getattr(module, "inplace", False) for module in network.modules())


# Stages as (C, H, W), then the embedding's width, of networks of published pairs.
SHAPES_OF_PAIRS = {
    "resnet32x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8), 256],
    "resnet8x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8), 256],
    "wrn_40_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8), 128],
    "wrn_16_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8), 128],
    "vgg13": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4), 512],
    "vgg8": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4), 512],
    "MobileNetV2": [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2), 1280],
    "ShuffleV1": [(240, 16, 16), (480, 8, 8), (960, 4, 4), 960],
    "ShuffleV2": [(116, 16, 16), (232, 8, 8), (464, 4, 4), 1024],
    "ResNet50": [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4), 2048],
}


@pytest.mark.parametrize("name", SHAPES_OF_PAIRS)
def test_shapes_are_those_of_the_published_pairs(name):
    shapes = tap_shapes(make(name, classes=100), (3, 32, 32))
    stages = [shape for tap, shape in shapes.items() if tap.startswith("stage") and "." not in tap]
    assert [*stages, *shapes["embedding"]] == SHAPES_OF_PAIRS[name]
    assert shapes["logits"] == (100,)


@pytest.mark.parametrize("name", POST_ACTIVATION)
def test_stage_is_the_relu_of_its_pre(name):
    network = make(name).eval()
    view = network.view(images(2, 3, 32, 32), network.tap_names)
    for tap in network.tap_names:
        if tap.endswith(".pre"):
            assert (view[tap] < 0).any()
            assert torch.equal(view[tap.removesuffix(".pre")], F.relu(view[tap]))


def test_wide_resnet_shows_raw_sums_and_their_batch_norm():
    network = make("wrn_16_1").eval()
    view = network.view(images(2, 3, 32, 32), network.tap_names)
    norm = network.stages[2][-1].after
    assert (view["stage3"] < 0).any()
    torch.testing.assert_close(view["stage3.pre"], norm(view["stage3"]), rtol=0, atol=0)
    pooled = F.relu(view["stage3.pre"]).mean((2, 3))
    torch.testing.assert_close(view["embedding"], pooled, rtol=0, atol=0)


def test_mobilenet_pre_is_the_linear_bottleneck_itself():
    view = make("MobileNetV2").view(images(2, 3, 32, 32), ("stage2", "stage2.pre"))
    assert view["stage2"] is view["stage2.pre"]
    assert (view["stage2"] < 0).any()


def test_shuffle_v2_passes_half_the_channels_untouched():
    network = make("ShuffleV2").eval()
    unit = network.stages[0][1]
    x = F.relu(images(2, 116, 4, 4))
    out = F.relu(unit(x))
    torch.testing.assert_close(out[:, 0::2], x[:, :58], rtol=0, atol=0)


def test_vgg_pools_a_fourth_time_for_images_of_64():
    shapes = tap_shapes(make("vgg8", image_shape=(3, 64, 64)), (3, 64, 64))
    assert [shapes[f"stage{k}"][1] for k in (1, 2, 3, 4)] == [32, 16, 8, 4]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_runs_on_digits(name):
    network = make(name, image_shape=(1, 8, 8))
    assert network(images(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize("name", [*FAMILIES, "ResNet50"])
def test_nothing_deeper_than_the_tap_is_called_and_each_batch_norm_once(name):
    network = make(name).train()
    calls: Counter[nn.Module] = Counter()
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: calls.update([module]))
    x, before = images(4, 3, 16, 16), set()
    for n, tap in enumerate(network.tap_names):
        for taps in ((tap,), network.tap_names[: n + 1]):
            calls.clear()
            network.view(x, taps)
            assert set(calls) >= before, f"{tap} is listed after a deeper tap"
            assert (network.head in calls) == (tap == "logits")
            assert max(calls[norm] for norm in batch_norms(network)) <= 1
        before = set(calls)
    assert set(calls) == {m for m in network.modules() if not list(m.children())}


@pytest.mark.parametrize("model", [*FAMILIES, DENSENET], ids=str)
def test_running_deeper_does_not_alter_a_view(model):
    network = make(model).eval()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        together = network.view(x, network.tap_names)
        for tap in network.tap_names:
            alone = network.view(x, (tap,))[tap]
            torch.testing.assert_close(together[tap], alone, rtol=0, atol=0)
    torch.testing.assert_close(network(x), together["logits"].requires_grad_(), rtol=0, atol=0)


def test_view_without_taps_runs_nothing():
    network = make("resnet8").train()
    assert network.view(images(2, 3, 32, 32), ()) == {}
    assert not any(int(norm.num_batches_tracked) for norm in batch_norms(network))


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_gives_the_same_bits(name):
    first, again, other = (make(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "torchvision/resnet18"])
def test_tap_shapes_leaves_no_trace(name):
    network = make(name).train()
    batch_norms(network)[0].eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    generator = torch.get_rng_state()
    tap_shapes(network, (3, 32, 32))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_torchvision_logits_are_the_models_own_in_both_modes():
    network = make("torchvision/resnet18")
    x = images(4, 3, 16, 16)
    for mode in (True, False):
        network.train(mode)
        expected = copy.deepcopy(network.model)(x)
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_torchvision_taps_add_nothing_to_the_state():
    from torchvision.models import resnet18

    network = make("torchvision/resnet18")
    network.view(images(2, 3, 32, 32), ("stage2", "stage3.pre"))
    keys = [f"model.{key}" for key in resnet18(num_classes=10).state_dict()]
    assert list(network.state_dict()) == keys
    assert len({id(p) for p in network.parameters()}) == len(list(network.parameters()))


def test_torchvision_taps_given_by_path():
    model = {
        "torchvision": "mobilenet_v3_small",
        "taps": {"stem": "features.0", "stage1": "features.1", "stage1.pre": "features.1"},
        "head": "classifier.3",
    }
    network = make(model)
    shapes = tap_shapes(network, (3, 32, 32))
    assert network.tap_names == ("stem", "stage1", "stage1.pre", "embedding", "logits")
    view = network.view(images(2, 3, 32, 32), ("stage1", "stage1.pre"))
    assert view["stage1"] is view["stage1.pre"]  # two taps may show the same place
    assert shapes["stage1"] == (16, 8, 8)
    assert shapes["embedding"] == (1024,)
    assert network.head is network.model.classifier[3]


def test_frozen_batch_norm_of_a_torchvision_net_stays_frozen():
    network = make("torchvision/resnet18").train()
    network.model.bn1.eval()
    network.view(images(4, 3, 16, 16), ("stage1",))
    assert not network.model.bn1.training
    assert int(network.model.bn1.num_batches_tracked) == 0
    assert int(network.model.layer1[0].bn1.num_batches_tracked) == 1


class Shifted(nn.Module):
    """A buffer that no leaf module owns, as the tables of window attention."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc((x + self.shift).mean((2, 3)))


def test_moving_a_torchvision_net_moves_what_its_views_read():
    network = TorchvisionNetwork(Shifted(), {"stem": "add"}, "fc", ["add", "mean", "fc"])
    zeros = torch.zeros(1, 3, 4, 4)
    network.view(zeros, ("stem",))
    network.double().model.shift.fill_(5.0)
    shown = network.view(zeros.double(), ("stem",))["stem"]
    torch.testing.assert_close(shown, zeros.double() + 5, rtol=0, atol=0)


def test_torchvision_net_survives_pickling():
    network = make("torchvision/resnet18").eval()
    x, size = images(2, 3, 16, 16), len(pickle.dumps(network))
    logits = network(x)
    assert len(pickle.dumps(network)) == size, "what views keep must not travel"
    twin = pickle.loads(pickle.dumps(network))
    torch.testing.assert_close(twin(x), logits, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).any()


SMALL_IMAGE, IMAGE = (1, 8, 8), (3, 32, 32)


def resnet18(**changes):
    return {"torchvision": "resnet18", **changes}


@pytest.mark.parametrize(
    ("model", "image_shape", "message"),
    [
        ("resnet21", IMAGE, r"did you mean .*resnet20"),
        ("mobilenetv2", IMAGE, r"did you mean MobileNetV2"),
        ("cnn0", SMALL_IMAGE, r"did you mean cnn"),
        ("vgg8", (1, 4, 4), r"images of 4x4, wanted 8x8"),
        ("torchvision/resnet19", IMAGE, r"'resnet19'; did you mean resnet1"),
        ("torchvision/resnet18", SMALL_IMAGE, r"images of \(1, 8, 8\)"),
        (DENSENET, (3, 8, 8), r"densenet121 .* images of \(3, 8, 8\): .*too small"),
        (resnet18(taps={"stage1": "layr1"}), IMAGE, r"'stage1': .* did you mean layer1"),
        (resnet18(taps={"stgae1": "layer1"}), IMAGE, r"tap 'stgae1': wanted stem, stageK"),
        (resnet18(head="layer4"), IMAGE, r"head 'layer4' is a Sequential, wanted"),
        (resnet18(head="flatten"), IMAGE, r"head 'flatten' is not a module"),
        (resnet18(taps={"stage1": "flatten"}), IMAGE, r"'flatten' has shape \(512,\), wanted"),
        (resnet18(taps={"embedding": "layer3"}), IMAGE, r"the head reads \(512,\)"),
    ],
)
def test_bad_model_is_refused_with_the_cure(model, image_shape, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        zoo.build(model, 10, image_shape)
    assert "\n" not in str(caught.value)


def test_one_class_is_too_few():
    with pytest.raises(ValueError, match="classes is 1, wanted at least 2"):
        make(classes=1)


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
def test_unknown_tap_is_refused_with_those_there_are(name):
    network = make(name)
    with pytest.raises(ValueError, match="no tap 'stage9'; this network has stem, "):
        network.view(images(2, 3, 32, 32), ("stage9",))
    with pytest.raises(TypeError, match=r"wanted a collection such as \('logits',\)"):
        network.view(images(2, 3, 32, 32), "logits")


def trained(model: str, shape: tuple[int, int, int]):
    network = make(model, classes=5, image_shape=shape).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, *shape) + 0.3)
        for norm in batch_norms(network):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    return network.eval()


@pytest.mark.parametrize(
    ("model", "norms_left"),
    [("cnn4", 0), ("resnet8", 0), ("vgg8", 0), ("MobileNetV2", 0), ("wrn_16_1", 7)],
)
def test_every_tap_stays_what_it_was(model, norms_left):
    network = trained(model, (3, 32, 32))
    lean = folded(network, (3, 32, 32))
    assert lean is not network
    assert len(batch_norms(lean)) == norms_left < len(batch_norms(network))
    x, taps = images(4, 3, 32, 32), network.tap_names
    with torch.no_grad():
        before, after = network.view(x, taps), lean.view(x, taps)
    for tap in taps:
        torch.testing.assert_close(after[tap], before[tap], rtol=1e-3, atol=1e-3, msg=tap)


class Watched(SmallCnn):
    """Shows the tensor between its first convolution and BatchNorm."""

    def view(self, images: torch.Tensor, taps: Collection[str]) -> dict[str, torch.Tensor]:
        return {"stem": self.stem[0](images)}


def test_a_network_that_shows_what_lies_between_stays_whole():
    network = trained("cnn4", (1, 8, 8))
    network.__class__, network.tap_names = Watched, ("stem",)
    assert folded(network, (1, 8, 8)) is network
