"""Pooling of a larger map to the size of a smaller one."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def pool_alike(
    first: Tensor, second: Tensor, kind: Literal["average", "max"]
) -> tuple[Tensor, Tensor]:
    """Both (B, C, H, W) or (B, H, W) maps, pooled to the smaller height and the smaller width.

    From n to m positions, window i covers floor(i n / m) to ceil((i + 1) n / m).

    Example:
        >>> import torch
        >>> pool_alike(torch.arange(4.0).view(1, 1, 4), torch.zeros(1, 1, 2), "average")
        (tensor([[[0.5000, 2.5000]]]), tensor([[[0., 0.]]]))
    """
    height, width = (min(sides) for sides in zip(first.shape[-2:], second.shape[-2:], strict=True))
    return pooled(first, (height, width), kind), pooled(second, (height, width), kind)


def pooled(maps: Tensor, size: tuple[int, int], kind: Literal["average", "max"]) -> Tensor:
    """Maps (B, C, H, W) or (B, H, W), pooled to `size`, which is no larger; see `pool_alike`."""
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        # The same windows. The gradient of adaptive pooling has no deterministic CUDA kernel.
        window = (height // size[0], width // size[1])
        return F.avg_pool2d(maps, window) if kind == "average" else F.max_pool2d(maps, window)
    adaptive = F.adaptive_avg_pool2d if kind == "average" else F.adaptive_max_pool2d
    return adaptive(maps, size)
