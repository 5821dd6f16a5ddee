"""Every network by name.

Names are those of the distillation literature. The sensing points are its points, too, so that
any two networks share at least "stage1" to "stage3":

| family | stem | stages | "stageK.pre" |
|---|---|---|---|
| resnet8 to 110, resnet8x4, resnet32x4 | conv, BN, ReLU | the 3 stages | last sum before its ReLU |
| ResNet50 | conv, BN, ReLU | the 4 stages | last sum before its ReLU |
| wrn_D_W | conv only | the 3 stages' raw sums | the next BatchNorm of that sum |
| vgg8 to 19 | first group | groups 2 to 5, before their pooling | last BatchNorm |
| MobileNetV2 | conv, BN, ReLU | groups 1-2, 3, 4-5, 6-7, linear | the same tensor as "stageK" |
| ShuffleV1, ShuffleV2 | conv, BN, ReLU | the 3 stages | last sum, or join, before its ReLU |
| cnn<w> | conv, BN, ReLU | the 3 stages | last BatchNorm |
| torchvision/<name> | after the max-pooling | layer1 to layer4, or as given | as for ResNets |

"stageK.entry", the first block's output, is there for stages of more than one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from bench.models.adapter import build_torchvision
from bench.models.mobile import MobileNetV2, ShuffleNetV1, ShuffleNetV2
from bench.models.network import Network
from bench.models.resnet import Bottleneck, ResNet
from bench.models.small import SmallCnn
from bench.models.vgg import Vgg
from bench.models.wrn import WideResNet

ImageShape = tuple[int, int, int]
Builder = Callable[[int, ImageShape], Network]

THIN, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
SMALL = re.compile(r"cnn([1-9]\d*)")
NAME = re.compile(r"\w[\w.-]*")
TORCHVISION = "torchvision/"


def _resnet(depth: int, widths: tuple[int, ...]) -> Builder:
    return partial(ResNet, depths=((depth - 2) // 6,) * 3, widths=widths)


_ZOO: dict[str, Builder] = {
    **{f"resnet{depth}": _resnet(depth, THIN) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _resnet(depth, WIDE) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{widen}": partial(WideResNet, depth=depth, widen=widen)
        for widen in (1, 2, 4)
        for depth in (16, 40)
    },
    "vgg8": partial(Vgg, depths=(1, 1, 1, 1, 1)),
    "vgg11": partial(Vgg, depths=(1, 1, 2, 2, 2)),
    "vgg13": partial(Vgg, depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(Vgg, depths=(2, 2, 3, 3, 3)),
    "vgg19": partial(Vgg, depths=(2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "ResNet50": partial(
        ResNet, depths=(3, 4, 6, 3), widths=(64, 64, 128, 256, 512), block=Bottleneck
    ),
    **{f"cnn{width}": partial(SmallCnn, width=width) for width in (4, 8, 16, 32)},
}


@dataclass(frozen=True)
class _Added:
    """A network from outside of this package."""

    builder: Builder
    code: str


_ADDED: dict[str, _Added] = {}


def names() -> list[str]:
    """Every name that `build` takes, but for cnn<w> of other widths and torchvision's."""
    return [*_ZOO, *_ADDED]


def add(name: str, builder: Builder, code: str) -> None:
    """Makes a network from elsewhere known by name, until `remove`.

    Args:
        name: letters, digits, "_", "-" and ".", as it stands in grids and tables.
        builder: (K, (C, H, W)) -> a freshly initialised `Network`.
        code: hash of the code that defines it; a part of its cells' ids.

    Raises:
        TypeError: the builder cannot be called.
        ValueError: a name that is taken, or no name.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"model {name!r}: wanted letters, digits, '_', '-' and '.'")
    if name in names() or SMALL.fullmatch(name):
        raise ValueError(f"a model {name} exists already; give it another name")
    if not callable(builder):
        raise TypeError(f"model {name} is {builder!r}, wanted (classes, image_shape) -> Network")
    _ADDED[name] = _Added(builder, code)


def remove(name: str) -> None:
    """Forgets a network that was added."""
    del _ADDED[name]


def code_digest(model: str | Mapping[str, object]) -> str:
    """Hash of an added network's code; "" for those that come with the harness."""
    return _ADDED[model].code if isinstance(model, str) and model in _ADDED else ""


def build(
    model: str | Mapping[str, object], classes: int, image_shape: tuple[int, int, int]
) -> Network:
    """A freshly initialised network; draws from torch's global generator only.

    Args:
        model: a name of `names()`, "cnn<w>" with any width w, "torchvision/<resnet>", or
            {"torchvision": name, "taps": {tap: path}, "head": path}, see `build_torchvision`.
        classes: K, at least 2.
        image_shape: (C, H, W).

    Raises:
        TypeError: `model` is neither a name nor a mapping, or an added builder gives no `Network`.
        ValueError: an unknown name or key, or sizes that the network cannot serve.

    Example:
        >>> build("cnn4", classes=10, image_shape=(1, 8, 8)).head
        Linear(in_features=16, out_features=10, bias=True)
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}, wanted at least 2")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape is {tuple(image_shape)}, wanted (C, H, W), each at least 1")
    if isinstance(model, Mapping):
        return _build_described(model, classes, image_shape)
    if not isinstance(model, str):
        raise TypeError(f"model is {model!r}, wanted a name or a mapping with 'torchvision'")
    if model.startswith(TORCHVISION):
        return build_torchvision(model.removeprefix(TORCHVISION), classes, image_shape)
    network = _builder(model)(classes, image_shape)
    if not isinstance(network, Network):
        raise TypeError(
            f"model {model}: its builder gave a {type(network).__name__}, wanted a "
            "bench.models.network.Network"
        )
    return network


def _builder(name: str) -> Builder:
    if name in _ZOO:
        return _ZOO[name]
    if name in _ADDED:
        return _ADDED[name].builder
    if small := SMALL.fullmatch(name):
        return partial(SmallCnn, width=int(small[1]))
    by_lower = {known.lower(): known for known in names()}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower)]
    raise ValueError(
        f"no model {name!r}; near: {', '.join(near) or 'none'}; there are {', '.join(names())}, "
        f"cnn<w> of any width w and {TORCHVISION}<name>; one of your own: --plugin FILE.py"
    )


def _build_described(model: Mapping[str, object], classes: int, image_shape: ImageShape) -> Network:
    known = {"torchvision", "taps", "head"}
    if not {"torchvision"} <= set(model) <= known:
        raise ValueError(
            f"model has the keys {', '.join(map(str, model)) or 'none'}; wanted 'torchvision' and, "
            "unless it is a ResNet, 'taps' and 'head'"
        )
    name, taps, head = model["torchvision"], model.get("taps"), model.get("head")
    if not isinstance(name, str):
        raise TypeError(f"model's 'torchvision' is {name!r}, wanted a name such as 'resnet18'")
    if not isinstance(taps, Mapping | None) or not _all_text(taps or {}):
        raise TypeError(f"model's 'taps' is {taps!r}, wanted a mapping of tap names to paths")
    if not isinstance(head, str | None):
        raise TypeError(f"model's 'head' is {head!r}, wanted the path of the last linear layer")
    return build_torchvision(name, classes, image_shape, taps=taps, head=head)


def _all_text(taps: Mapping[object, object]) -> bool:
    return all(isinstance(text, str) for pair in taps.items() for text in pair)


def check(model: str | Mapping[str, object]) -> None:
    """Refuses a model that `build` would not know, without building it.

    Raises:
        ValueError: an unknown name; with near ones.
    """
    if isinstance(model, Mapping):
        model = f"{TORCHVISION}{model.get('torchvision')}"
    if not model.startswith(TORCHVISION):
        _builder(model)
        return
    from torchvision import models

    name, known = model.removeprefix(TORCHVISION), models.list_models(module=models)
    if name not in known:
        near = ", ".join(get_close_matches(name, known)) or "none"
        raise ValueError(f"torchvision has no classifier {name!r}; near: {near}")
