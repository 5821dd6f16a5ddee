"""Makes a `Network` of any torchvision classifier, with taps that are found or given by path.

A path is that of a module ("layer1", "features.4"), which means its output, or of an operation that
torchvision's tracer names ("layer1.1.add", the residual sum before its ReLU).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bench.models.network import (
    STAGES,
    Adapted,
    Network,
    evenly_spaced,
    misfits,
    modes_restored,
    refused,
    tap_shapes,
)
from bench.registry import unknown

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torchvision.models import ResNet

TAP_NAME = re.compile(r"stem|stage[1-9]\d*(\.entry|\.pre)?|embedding")
POOLINGS = (nn.AdaptiveAvgPool2d, nn.functional.adaptive_avg_pool2d)


def build(
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    *,
    taps: Mapping[str, str] | None = None,
    head: str | None = None,
) -> Network:
    """A randomly initialised torchvision classifier with named taps.

    `taps` maps a tap's name to the path of a (B, C, H, W) tensor; "embedding" defaults to the input
    of the head. `head` is the path of the last `nn.Linear`, which computes "logits". Without them
    they are found: see `resnet_taps` and `find_taps`. ValueError if a tap or a path is unknown, or
    the model cannot take such images.
    """
    from torchvision import models

    with refused(f"torchvision/{name}", image_shape):
        model = models.get_model(name, num_classes=classes, **_sizes(name, image_shape))
        order = _node_names(model)
        head = head or _find_head(model, order, classes)
        if taps is None and isinstance(model, models.ResNet):
            taps = resnet_taps(model)
        elif taps is None:
            taps = find_taps(model, head, order, image_shape)
    network = TorchvisionNetwork(model, taps, head, order)
    with refused(f"torchvision/{name}", image_shape):
        shapes = tap_shapes(network, image_shape)
    for tap, fault in misfits(shapes, network.head.in_features):
        where = f"torchvision/{name}: tap {tap!r} at {network.paths[tap]!r}"
        raise ValueError(f"{where} {fault}; name another path in taps")
    return network


def _sizes(name: str, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The arguments of models that are built for a size, or with a second head for training."""
    channels, height, width = image_shape
    if channels != 3:
        raise ValueError("it takes 3 channels")
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("it is built for square images")
        return {"image_size": height}
    if name == "maxvit_t":
        return {"input_size": (height, width)}
    alone = {"aux_logits": False, "init_weights": False}
    return alone if name in ("googlenet", "inception_v3") else {}


def _find_head(model: nn.Module, order: Sequence[str], classes: int) -> str:
    linear = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and path in order
    ]
    if not linear:
        raise ValueError("its classifier is no nn.Linear; give the path of one as 'head'")
    return linear[-1]


def find_taps(
    model: nn.Module, head: str, order: Sequence[str], image_shape: tuple[int, int, int]
) -> dict[str, str]:
    """The deepest map of each of the last four resolutions, from shallow to deep.

    Only tensors count that every path from the images to the logits passes, before the final
    pooling. Of a transformer of one resolution, four blocks are taken, evenly spaced.
    """
    from torchvision import models

    if isinstance(model, models.VisionTransformer):
        blocks = [f"encoder.layers.{n}" for n, _ in model.encoder.layers.named_children()]
        ends = [blocks[place] for place in evenly_spaced(len(blocks))]
        return {f"stage{k}": path for k, path in enumerate(ends, start=1)}
    _, height, width = image_shape
    sizes: dict[tuple[int, int], list[str]] = {}
    for path, shape in _trunk(model, head, order, image_shape):
        h, w = (0, 0, *shape[1:3])[-2:] if _is_swin(model) else (0, 0, *shape[2:])[-2:]
        if len(shape) == 4 and abs(h * width - w * height) <= max(height, width):
            sizes.setdefault((h, w), []).append(path)
    runs = list(sizes.values())
    ends = [_before_block(run, after[0]) for run, after in itertools.pairwise(runs)]
    ends = [*ends, *(run[-1] for run in runs[-1:])][-STAGES:]
    return {f"stage{k}": path for k, path in enumerate(ends, start=1)}


def _before_block(paths: Sequence[str], smaller: str) -> str:
    """The last path before the block that ends in a smaller map, or within it if all are."""
    pairs = zip(paths[-1].split("."), smaller.split("."), strict=False)
    block = "".join(f"{mine}." for mine, _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))
    outside = [path for path in paths if not path.startswith(block)]
    return (outside or paths)[-1]


def _trunk(
    model: nn.Module, head: str, order: Sequence[str], image_shape: tuple[int, int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Path and shape of the tensors that all of the logits pass, before the final pooling."""
    import networkx
    from torch.fx.passes.shape_prop import ShapeProp
    from torchvision.models.feature_extraction import create_feature_extractor

    with modes_restored(model):
        cut = create_feature_extractor(model.eval(), list(order), suppress_diff_warning=True).eval()
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # it prints tracebacks
        ShapeProp(cut).propagate(torch.zeros(2, *image_shape))
    *nodes, output = cut.graph.nodes
    paths = {node: path for path, node in output.args[0].items()}
    first = next(node for node in nodes if node.op == "placeholder")
    edges = [(node, user) for node in nodes for user in node.users if user is not output]
    before = networkx.immediate_dominators(networkx.DiGraph(edges), first)
    chain, node = [], output.args[0][head]
    while node is not first:
        node = before[node]
        chain.append(node)
    kinds = [
        type(cut.get_submodule(node.target)) if node.op == "call_module" else node.target
        for node in chain
    ]
    pooled = [n for n, kind in enumerate(kinds) if kind in POOLINGS]
    return [
        (paths[node], tuple(node.meta["tensor_meta"].shape))
        for node in reversed(chain[max(pooled, default=-1) + 1 :])
        if node in paths and hasattr(node.meta.get("tensor_meta"), "shape")
    ]


def _is_swin(model: nn.Module) -> bool:
    """Whether maps have their channels last, except in the embedding of patches."""
    from torchvision import models

    return isinstance(model, models.SwinTransformer)


def names() -> list[str]:
    """The classifiers of torchvision."""
    from torchvision import models

    return models.list_models(module=models)


def resnet_taps(model: ResNet) -> dict[str, str]:
    """The taps of torchvision's ResNet, ResNeXt and Wide ResNet.

    "stem" is the max-pooled map that the first stage reads. "stageK.pre" is the last block's
    residual sum before its ReLU.
    """
    taps = {"stem": "maxpool", "embedding": "flatten"}
    for number in (1, 2, 3, 4):
        stage, layer = f"stage{number}", f"layer{number}"
        last = len(model.get_submodule(layer)) - 1  # pyright: ignore[reportArgumentType]
        taps |= {f"{stage}.entry": f"{layer}.0", f"{stage}.pre": f"{layer}.{last}.add"}
        taps[stage] = layer
    return taps


class TorchvisionNetwork(Adapted):
    """A torchvision classifier with taps at given paths.

    `view` runs the traced graph up to the deepest tap that is read. These graphs share the model's
    modules but are not submodules; `state_dict`, copies and pickles do not contain them.
    """

    def __init__(
        self, model: nn.Module, taps: Mapping[str, str], head: str, order: Sequence[str]
    ) -> None:
        """Checks every path and sorts the taps from shallow to deep, as `order` has all paths."""
        super().__init__(model)
        self.channels_last = _is_swin(model)
        patches = getattr(model, "image_size", 0) // getattr(model, "patch_size", 1)
        self.grid = (patches, patches) if patches else ()  # of a vision transformer
        places = _places(order)
        _check_paths(taps, head, places)
        last = dict(model.named_modules()).get(head)
        if not isinstance(last, nn.Linear):
            kind = "not a module" if last is None else f"a {type(last).__name__}"
            raise ValueError(f"head {head!r} is {kind}, wanted the path of the last nn.Linear")
        before_head = order[max(order.index(head) - 1, 0)]
        self.paths = {"embedding": before_head, **taps, "logits": head}
        self.tap_names = tuple(sorted(self.paths, key=lambda tap: places[self.paths[tap]]))
        self._cut: dict[tuple[frozenset[str], bool], GraphModule] = {}

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which is registered inside the model."""
        return cast(nn.Linear, self.model.get_submodule(self.paths["logits"]))

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        if not taps:
            return {}
        key = frozenset(self.paths[tap] for tap in taps), self.training
        if key not in self._cut:
            self._cut[key] = self._trace(key[0])
        shown = self._cut[key](images)
        return {tap: self._map(shown[self.paths[tap]], self.paths[tap]) for tap in taps}

    def _map(self, x: Tensor, path: str) -> Tensor:
        """Tokens (B, N, D) and maps (B, H, W, C) as (B, C, H, W), without the class token."""
        if self.grid and x.dim() == 3:
            return x[:, -math.prod(self.grid) :].transpose(1, 2).unflatten(2, self.grid)
        if self.channels_last and x.dim() == 4 and not path.startswith("features.0."):
            return x.permute(0, 3, 1, 2)
        return x

    def _trace(self, paths: frozenset[str]) -> GraphModule:
        from torchvision.models.feature_extraction import create_feature_extractor

        with modes_restored(self.model):
            cut = create_feature_extractor(self.model, sorted(paths), suppress_diff_warning=True)
            cut.train(self.training)
        for node in cut.graph.nodes:
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        cut.recompile()
        return cut

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the graphs, which a copy traces again."""
        return {**self.__dict__, "_cut": {}}

    def _apply(self, fn: Any, recurse: bool = True) -> TorchvisionNetwork:
        # A graph holds tensors that belong to no leaf module, such as a class token, by itself.
        self._cut.clear()
        return super()._apply(fn, recurse)


def _node_names(model: nn.Module) -> list[str]:
    """Paths of all operations that run in both training and evaluation, in order."""
    from torchvision.models.feature_extraction import get_graph_node_names

    with modes_restored(model):
        in_training, in_evaluation = get_graph_node_names(model, suppress_diff_warning=True)
    both = set(in_training)
    return [path for path in in_evaluation if path in both]


def _places(order: Sequence[str]) -> dict[str, int]:
    """The path of every operation and module -> position of the last operation at or inside it."""
    parts = [(place, path.split(".")) for place, path in enumerate(order)]
    return {".".join(p[:n]): place for place, p in parts for n in range(1, len(p) + 1)}


def _check_paths(taps: Mapping[str, str], head: str, known: Collection[str]) -> None:
    for tap in taps:
        if not TAP_NAME.fullmatch(tap):
            raise ValueError(
                f"tap {tap!r}: wanted stem, stageK, stageK.pre, stageK.entry or embedding"
            )
    for tap, path in {**taps, "logits": head}.items():
        if path not in known:
            raise ValueError(f"tap {tap!r}: {unknown('module path', path, known)}")
