"""Makes a `Network` of any torchvision classifier, with taps given by path.

A path is that of a module ("layer1", "features.4"), which means its output, or of an operation that
torchvision's tracer names ("layer1.1.add", the residual sum before its ReLU).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from bench.models.network import Network, modes_restored, tap_shapes
from bench.registry import unknown

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torchvision.models import ResNet

TAP_NAME = re.compile(r"stem|stage[1-9]\d*(\.entry|\.pre)?|embedding")


def build_torchvision(
    name: str,
    classes: int,
    image_shape: tuple[int, int, int],
    *,
    taps: Mapping[str, str] | None = None,
    head: str | None = None,
) -> Network:
    """A randomly initialised torchvision classifier with named taps.

    `taps` maps a tap's name to the path of a (B, C, H, W) tensor; "embedding" defaults to the input
    of the head. `head` is the path of the last `nn.Linear`, which computes "logits". A ResNet needs
    neither: see `resnet_taps`.

    Raises:
        ValueError: the model, a tap or a path is unknown, taps are missing for a model without
            default taps, or the model cannot take such images.

    Example:
        >>> net = build_torchvision("resnet18", 10, (3, 32, 32))
        >>> tap_shapes(net, (3, 32, 32))["stage2"]
        (128, 4, 4)
    """
    from torchvision import models

    check_name(name)
    model = models.get_model(name, weights=None, num_classes=classes)
    if taps is None and isinstance(model, models.ResNet):
        taps = resnet_taps(model)
    if head is None and isinstance(model, models.ResNet):
        head = "fc"
    if taps is None or head is None:
        modules = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f'torchvision/{name} has no default taps: give {{"torchvision": "{name}", "taps": '
            f'{{"stage1": <path>, ...}}, "head": <path of the last linear layer>}} with paths '
            f"inside {modules}"
        )
    network = TorchvisionNetwork(model, taps, head)
    _check_fit(network, f"torchvision/{name}", image_shape)
    return network


def check_name(name: str) -> None:
    """Raises ValueError, with near matches, if torchvision has no such classifier."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(unknown("classifier of torchvision", name, known))


def resnet_taps(model: ResNet) -> dict[str, str]:
    """The taps of torchvision's ResNet, ResNeXt and Wide ResNet.

    "stem" is the max-pooled map that the first stage reads. "stageK.pre" is the last block's
    residual sum before its ReLU.
    """
    taps = {"stem": "maxpool", "embedding": "flatten"}
    for number in (1, 2, 3, 4):
        stage, layer = f"stage{number}", f"layer{number}"
        depth = len(model.get_submodule(layer))  # pyright: ignore[reportArgumentType]
        taps[stage] = layer
        taps[f"{stage}.pre"] = f"{layer}.{depth - 1}.add"
        if depth > 1:
            taps[f"{stage}.entry"] = f"{layer}.0"
    return taps


class TorchvisionNetwork(Network):
    """A torchvision classifier with taps at given paths.

    `view` runs the traced graph up to the deepest tap that is read. These graphs share the model's
    modules but are not submodules: `state_dict` and `parameters` do not see them, and copies and
    pickles do not contain them.
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, str], head: str) -> None:
        """Traces `model`, checks every path and sorts the taps from shallow to deep."""
        super().__init__()
        self.model = model
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # pyright: ignore[reportArgumentType]
        order = _node_names(model)
        _check_paths(taps, head, order)
        last = dict(model.named_modules()).get(head)
        if not isinstance(last, nn.Linear):
            kind = "not a module" if last is None else f"a {type(last).__name__}"
            raise ValueError(f"head {head!r} is {kind}, wanted the path of the last nn.Linear")
        before_head = order[max(order.index(head) - 1, 0)]
        self.paths = {"embedding": before_head, **taps, "logits": head}
        self.tap_names = tuple(sorted(self.paths, key=lambda tap: _place(self.paths[tap], order)))
        self._cut: dict[tuple[frozenset[str], bool], GraphModule] = {}

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which is registered inside the model."""
        return cast(nn.Linear, self.model.get_submodule(self.paths["logits"]))

    def own_state(self) -> tuple[dict[str, Tensor], str]:
        """See `Network.own_state`."""
        return self.model.state_dict(), "model."

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        if not taps:
            return {}
        key = frozenset(self.paths[tap] for tap in taps), self.training
        if key not in self._cut:
            self._cut[key] = self._trace(key[0])
        shown = self._cut[key](images)
        return {tap: shown[self.paths[tap]] for tap in taps}

    def _trace(self, paths: frozenset[str]) -> GraphModule:
        from torchvision.models.feature_extraction import create_feature_extractor

        with modes_restored(self.model):
            cut = create_feature_extractor(
                self.model, sorted(paths), suppress_diff_warning=True
            ).train(self.training)
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


def _place(path: str, order: Sequence[str]) -> int:
    """Position of the last operation at or inside `path`; -1 if there is none."""
    inside = (n for n, node in enumerate(order) if node == path or node.startswith(f"{path}."))
    return max(inside, default=-1)


def _check_paths(taps: Mapping[str, str], head: str, order: Sequence[str]) -> None:
    for tap in taps:
        if not TAP_NAME.fullmatch(tap):
            raise ValueError(
                f"tap {tap!r}: wanted stem, stageK, stageK.pre, stageK.entry or embedding"
            )
    for tap, path in {**taps, "logits": head}.items():
        if _place(path, order) < 0:
            parts = [node.split(".") for node in order]
            known = dict.fromkeys(".".join(p[:n]) for p in parts for n in range(1, len(p) + 1))
            raise ValueError(f"tap {tap!r}: {unknown('module path', path, known)}")


def _check_fit(network: TorchvisionNetwork, name: str, image_shape: tuple[int, int, int]) -> None:
    try:
        shapes = tap_shapes(network, image_shape)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} cannot take images of {image_shape}: {reason}") from error
    wanted = (network.head.in_features,)
    if shapes["embedding"] != wanted:
        raise ValueError(
            f"{name}: the embedding at {network.paths['embedding']!r} has shape "
            f"{shapes['embedding']}, the head reads {wanted}; name its path in taps"
        )
    for tap, shape in shapes.items():
        if tap not in ("embedding", "logits") and len(shape) != 3:
            raise ValueError(
                f"{name}: tap {tap!r} at {network.paths[tap]!r} has shape {shape}, wanted (C, H, W)"
            )
