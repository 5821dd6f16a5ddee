"""A trained network without its BatchNorms: each is folded into the convolution before it.

In evaluation mode a BatchNorm is an affine map of every channel with fixed coefficients, and so is
part of a convolution already: one pass over every map less, up to rounding.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from bench.models.network import Network

TOLERANCE = 1e-3
"""Largest deviation of a tap, as a share of its largest value."""


def folded(network: Network, image_shape: tuple[int, int, int]) -> Network:
    """A copy that shows the same taps, in evaluation mode, with fewer operations.

    Folds where a Sequential holds a convolution and its BatchNorm next to each other. If a tap
    shows the tensor between the two, or the network sees through it otherwise, it stays as it is.

    Args:
        network: in evaluation mode.
        image_shape: (C, H, W).

    Returns:
        the folded copy, or `network` itself.
    """
    lean = copy.deepcopy(network)
    for module in list(lean.modules()):
        if isinstance(module, nn.Sequential):
            _fold(module)
    return lean if _alike(network, lean, image_shape) else network


def _fold(sequence: nn.Sequential) -> None:
    for place, (conv, norm) in enumerate(itertools.pairwise(sequence)):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence[place], sequence[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


@torch.no_grad()
def _alike(network: Network, lean: Network, image_shape: tuple[int, int, int]) -> bool:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator).to(parameter)
    before = network.view(images, network.tap_names)
    after = lean.view(images, network.tap_names)
    return all(
        (after[tap] - x).abs().max() <= TOLERANCE * x.abs().max() for tap, x in before.items()
    )
