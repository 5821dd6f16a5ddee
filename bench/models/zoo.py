"""Every network by name; README.md in this folder lists names, sizes and taps."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bench.models.network import Network, Normalised
from bench.registry import Registry, unknown

ImageShape = tuple[int, int, int]
Builder = Callable[[int, ImageShape], Network]

THIN, WIDE, DEEP = (16, 16, 32, 64), (32, 64, 128, 256), (64, 256, 512, 1024, 2048)
SMALL = re.compile(r"cnn([1-9]\d*)")
LIBRARIES = {"torchvision": "bench.models.adapter", "timm": "bench.models.timm_nets"}
"""Library -> the module that adapts its networks; they are named "library/name"."""


def _own(name: str, classes: int, image_shape: ImageShape, **options: Any) -> Network:
    """A network of this package by "module.Class". The module is imported only to build it."""
    module, kind = name.split(".")
    return getattr(import_module(f"bench.models.{module}"), kind)(classes, image_shape, **options)


def _resnet(depth: int, widths: tuple[int, ...]) -> Builder:
    return partial(_own, "resnet.ResNet", depths=((depth - 2) // 6,) * 3, widths=widths)


def _check_added(name: str, builder: Builder) -> None:
    if SMALL.fullmatch(name):
        raise ValueError(f"a model {name} exists already; choose another name")
    if not callable(builder):
        raise TypeError(f"model {name} is {builder!r}, wanted (classes, image_shape) -> Network")


_ZOO: dict[str, Builder] = {
    **{f"resnet{depth}": _resnet(depth, THIN) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _resnet(depth, WIDE) for depth in (8, 32)},
    **{
        f"wrn_{depth}_{widen}": partial(_own, "resnet.WideResNet", depth=depth, widen=widen)
        for widen in (1, 2, 4)
        for depth in (16, 40)
    },
    "vgg8": partial(_own, "small.Vgg", depths=(1, 1, 1, 1, 1)),
    "vgg11": partial(_own, "small.Vgg", depths=(1, 1, 2, 2, 2)),
    "vgg13": partial(_own, "small.Vgg", depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(_own, "small.Vgg", depths=(2, 2, 3, 3, 3)),
    "vgg19": partial(_own, "small.Vgg", depths=(2, 2, 4, 4, 4)),
    "MobileNetV2": partial(_own, "mobile.MobileNetV2"),
    "ShuffleV1": partial(_own, "mobile.ShuffleNetV1"),
    "ShuffleV2": partial(_own, "mobile.ShuffleNetV2"),
    "ResNet50": partial(_own, "resnet.ResNet", depths=(3, 4, 6, 3), widths=DEEP, bottleneck=True),
    **{f"cnn{width}": partial(_own, "small.SmallCnn", width=width) for width in (4, 8, 16, 32)},
}

MODELS: Registry[Builder] = Registry("model", _ZOO, _check_added)
"""Every name that `build` takes, except cnn<w> of other widths and those of `LIBRARIES`."""


def base(model: str | Mapping[str, Any]) -> str:
    """The name of the architecture: a mapping's "model", or the library's name for it.

    Example:
        >>> base({"torchvision": "resnet18"}), base({"model": "cnn4", "name": "mine"})
        ('torchvision/resnet18', 'cnn4')
    """
    if isinstance(model, str):
        return model
    library = next((key for key in LIBRARIES if model.get(key) is not None), None)
    return f"{library}/{model[library]}" if library else model["model"]


def library_names(library: str) -> list[str]:
    """The classifiers of a library; ValueError, with the cure, if it is not installed."""
    if find_spec(library) is None:
        raise ValueError(f"{library} is not installed; pip install 'kd-bench[{library}]'")
    return import_module(LIBRARIES[library]).names()


def model_code(model: str | Mapping[str, Any]) -> str:
    """Hash of an added network's code; "" for those that come with the harness."""
    return MODELS.code(base(model))


def build(model: str | Mapping[str, Any], classes: int, image_shape: ImageShape) -> Network:
    """A network for images (C, H, W), initialised with draws from torch's global generator.

    `model` is a name of `MODELS`, "cnn<w>" with any width w, "torchvision/<name>", "timm/<name>",
    or the fields of a `bench.grid_fields.ModelSpec`. Its "weights" and "classes" change nothing
    here.

    Raises:
        TypeError: a plugin's builder does not return a `Network`.
        ValueError: a name is unknown, or the network cannot take such images.
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}, wanted at least 2")
    described = {} if isinstance(model, str) else model
    name = base(model)
    paths = {key: described[key] for key in ("taps", "head") if key in described}
    if paths and name.rpartition("/")[0] != "torchvision":
        raise ValueError(f"model {name} has taps and a head of its own; leave both out")
    network = _builder(name)(classes, image_shape, **paths)
    if not isinstance(network, Network):
        raise TypeError(
            f"model {name}: its builder gave a {type(network).__name__}, wanted a "
            "bench.models.network.Network"
        )
    if (own := described.get("normalise")) is None:
        return network
    if (own_channels := len(own["mean"])) != (channels := image_shape[0]):
        raise ValueError(f"normalise has {own_channels} channels, the images have {channels}")
    return Normalised(network, own["mean"], own["std"])


def _builder(name: str) -> Callable[..., Network]:
    library, _, theirs = name.rpartition("/")
    if library in LIBRARIES:
        if theirs not in (known := library_names(library)):
            raise ValueError(unknown(f"classifier of {library}", theirs, known))
        return partial(import_module(LIBRARIES[library]).build, theirs)
    if small := SMALL.fullmatch(name):
        return partial(_own, "small.SmallCnn", width=int(small[1]))
    return MODELS.get(name)


def check(model: str | Mapping[str, Any]) -> None:
    """Raises ValueError, with near matches, for a model that `build` does not know."""
    _builder(base(model))
