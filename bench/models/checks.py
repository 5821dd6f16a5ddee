"""What a plugin's network must satisfy, checked before anything trains."""

from collections import Counter
from collections.abc import Callable

import safetensors.torch
import torch
from torch import nn

from bench.models.network import Network, misfits, modes_restored, tap_shapes

REQUIRED = ("embedding", "logits")


def check_network(
    build: Callable[[], Network], classes: int, image_shape: tuple[int, int, int]
) -> None:
    """Raises ValueError with the first fault of the networks that `build` makes, and its cure."""
    network, other = build(), build()
    if fault := _fault(network, other, classes, image_shape):
        raise ValueError(fault)


def _fault(network: Network, other: Network, classes: int, shape: tuple[int, int, int]) -> str:
    names, head = getattr(network, "tap_names", ()), getattr(network, "head", None)
    if missing := [tap for tap in REQUIRED if tap not in names]:
        return f"tap_names lacks {missing[0]!r}; it has {', '.join(names) or 'nothing'}"
    if not isinstance(head, nn.Linear) or all(module is not head for module in network.modules()):
        return f"head is {type(head).__name__}, wanted an nn.Linear that is part of the network"
    storages = Counter(tensor.data_ptr() for tensor in network.state_dict().values())
    shared = [k for k, x in network.state_dict().items() if storages[x.data_ptr()] > 1]
    if shared:
        return f"{shared[0]} and {shared[1]} share memory; give each tensor its own"
    shapes = tap_shapes(network, shape)
    if lacking := [tap for tap in names if tap not in shapes]:
        return f"view does not show tap {lacking[0]!r}, which tap_names has"
    if shapes["logits"] != (classes,):
        return f"logits have shape {shapes['logits']}, wanted ({classes},)"
    for tap, fault in misfits(shapes, head.in_features):
        return f"tap {tap!r} {fault}"
    return _not_restored(network, other, shape)


@torch.no_grad()
def _not_restored(network: Network, other: Network, shape: tuple[int, int, int]) -> str:
    """Whether a network with the saved state of another differs from it."""
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    network.train()(images)  # moves the statistics of BatchNorm
    state = safetensors.torch.save({k: x.contiguous() for k, x in network.state_dict().items()})
    other.load_state_dict(safetensors.torch.load(state))
    with modes_restored(network), modes_restored(other):
        if torch.equal(network.eval()(images), other.eval()(images)):
            return ""
    return "its state does not survive saving and loading; register all of it (nn.Buffer)"
