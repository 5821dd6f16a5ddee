"""Pooling of a larger map to the size of a smaller one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def common_size(first: Tensor, second: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps (..., H, W)."""
    return min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1])


def pool_to(maps: Tensor, size: tuple[int, int], kind: Literal["average", "max"]) -> Tensor:
    """Adaptive pooling of (B, C, H, W) or (B, H, W) maps to `size`, which must not be larger.

    From n to m positions, window i covers floor(i n / m) to ceil((i + 1) n / m).

    Example:
        >>> import torch
        >>> pool_to(torch.arange(4.0).view(1, 1, 4), (1, 2), "average")
        tensor([[[0.5000, 2.5000]]])
    """
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        # The same windows. The gradient of adaptive pooling has no deterministic CUDA kernel.
        window = (height // size[0], width // size[1])
        return F.avg_pool2d(maps, window) if kind == "average" else F.max_pool2d(maps, window)
    adaptive = F.adaptive_avg_pool2d if kind == "average" else F.adaptive_max_pool2d
    return adaptive(maps, size)
