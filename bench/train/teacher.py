"""A trained network that only looks: frozen, in evaluation mode, without gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from bench.cell import Cell
from bench.method import View, in_float32
from bench.models.folding import folded
from bench.models.network import Network
from bench.train.device import autocast, to_device


class Teacher:
    """One teacher of a cohort: its view of each batch, asked for once for all students."""

    def __init__(
        self, network: Network, cell: Cell, device: torch.device, image_shape: tuple[int, int, int]
    ) -> None:
        """Takes the network over: its BatchNorms folded, moved to `device`, frozen for good."""
        lean = folded(network.eval(), image_shape)
        self.network = to_device(lean, device).eval().requires_grad_(False)
        self.cell = cell
        self.device = device
        self._clean: dict[str, Tensor] = {}

    @torch.no_grad()
    def view(self, images: Tensor, taps: Collection[str]) -> View:
        """The teacher's view of a batch, no deeper than the deepest of `taps`."""
        with autocast(self.cell, self.device):
            shown = self.network.view(images, taps)
        return in_float32(shown)

    def clean_view(self, images: Iterator[Tensor], taps: Collection[str]) -> View:
        """The view of the whole training set without augmentation, computed once per tap.

        Args:
            images: batches in the order of the training set.
            taps: what is wanted.

        Returns:
            taps with the whole training set as batch, (N, ...).
        """
        if missing := [tap for tap in taps if tap not in self._clean]:
            views = [self.view(batch, missing) for batch in images]
            self._clean |= {tap: torch.cat([view[tap] for view in views]) for tap in missing}
        return View({tap: self._clean[tap] for tap in taps})

    def digest(self) -> str:
        """Hash of all parameters and buffers: equal as long as nobody touched them."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.network.state_dict().items()):
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()
