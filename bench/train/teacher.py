"""The teacher of a cohort: a trained network, frozen and in evaluation mode."""

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from bench.cell import Cell
from bench.method import Facts, View, in_float32
from bench.models.folding import folded
from bench.models.network import Network, Normalised, tap_shapes
from bench.record import Store
from bench.train.device import autocast, to_device
from bench.train.stream import Stream
from bench.train.weights import build_network, linear, read_weights


class Teacher:
    """A frozen network that computes what students read; `shapes` are of one sample, by tap."""

    def __init__(
        self, network: Network, cell: Cell, device: torch.device, image_shape: tuple[int, int, int]
    ) -> None:
        """Folds the network's BatchNorms, moves it to `device` and freezes it."""
        self._norms = {
            tap: (norm.weight.detach().to(device), norm.bias.detach().to(device))
            for tap in network.tap_names
            if (norm := network.norm_of(tap)) is not None
        }
        lean = folded(network.eval(), image_shape)
        self.network = to_device(lean, device).eval().requires_grad_(False)
        self.cell = cell
        self.device = device
        self.shapes = tap_shapes(self.network, image_shape)
        self.clean: dict[str, Tensor] = {}

    @torch.no_grad()
    def view(self, images: Tensor, taps: Collection[str]) -> View:
        """The given taps of one batch; runs no deeper than the deepest of them."""
        with autocast(self.cell, self.device):
            shown = self.network.view(images, taps)
        return in_float32(shown)

    def clean_view(self, images: Iterator[Tensor], taps: Collection[str]) -> View:
        """The given taps of the training set, (N, ...), from its batches; computed once each."""
        if missing := [tap for tap in taps if tap not in self.clean]:
            views = [self.view(batch, missing) for batch in images]
            self.clean |= {tap: torch.cat([view[tap] for view in views]) for tap in missing}
        return View({tap: self.clean[tap] for tap in taps})

    def facts(self, labels: Tensor) -> Facts:
        """Copies that connectors may hold; `labels` are those of the training images, (N,)."""
        (classes,) = self.shapes["logits"]
        head = linear(self.network.head)
        norms = {tap: (weight.clone(), bias.clone()) for tap, (weight, bias) in self._norms.items()}
        return Facts(len(labels), labels, classes, head, norms)

    def digest(self) -> str:
        """Hash of all parameters and buffers."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.network.state_dict().items()):
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()


def load_teacher(cell: Cell, store: Store, stream: Stream, device: torch.device) -> Teacher:
    """The trained network of a finished cell, as a teacher; see `read_weights`."""
    network = build_network(cell, stream.classes, stream.image_shape)
    network.load_state_dict(read_weights(cell.id, store))
    if isinstance(network, Normalised):
        network.see(stream.mean, stream.std)  # a source's, where students start from one
    return Teacher(network, cell, device, stream.image_shape)
