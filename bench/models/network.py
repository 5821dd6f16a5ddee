"""The base class of all networks: taps by name, and a forward pass that stops early."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.method import Shapes


class Network(nn.Module):
    """A classifier whose inner tensors (taps) can be read by name; subclasses implement `view`.

    Attributes:
        tap_names: every tap from shallow to deep, "logits" last.
        head: the classifier that maps the embedding to the logits; the rest is the trunk.
    """

    tap_names: tuple[str, ...]
    head: nn.Module

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named taps of one batch (B, C, H, W); runs no deeper than the deepest of them.

        Returns:
            tap -> (B, C, H, W) for maps, (B, D) for the embedding, (B, K) for the logits.

        Raises:
            ValueError: the network has no such tap.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits."""
        return self.view(images, ("logits",))["logits"]

    def check_taps(self, taps: Collection[str]) -> None:
        """Raises ValueError for a tap that the network lacks, TypeError for a bare name."""
        if isinstance(taps, str):
            raise TypeError(f"taps is the string {taps!r}, wanted a collection such as ({taps!r},)")
        for tap in taps:
            if tap not in self.tap_names:
                raise ValueError(f"no tap {tap!r}; this network has {', '.join(self.tap_names)}")


@contextmanager
def modes_restored(network: nn.Module) -> Iterator[None]:
    """Gives every module its own mode back at the end; a frozen part may differ from the whole."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def tap_shapes(network: Network, image_shape: tuple[int, int, int]) -> Shapes:
    """Shape of one sample's tensor at every tap; modes and buffers do not change."""
    images = torch.zeros(2, *image_shape).to(next(network.parameters()))
    with modes_restored(network), torch.no_grad():
        view = network.eval().view(images, network.tap_names)
    return {tap: tuple(x.shape[1:]) for tap, x in view.items()}
