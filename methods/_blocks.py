"""How much of a feature map is worked on at a time, so that what is made of it stays in the cache.

A loss of one element after another is bound by memory: at full size, every operation reads and
writes all of main memory that the map takes, and the system hands out fresh pages for the result.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CPU_BLOCK = 1 << 16  # elements: 256 KiB for each of a few buffers
GPU_BLOCK = 1 << 24  # 64 MiB each: enough for a launch to be worth it


def block_size(tensor: Tensor) -> int:
    """Elements of a block, on the tensor's device."""
    return GPU_BLOCK if tensor.is_cuda else CPU_BLOCK


def samples_at_a_time(tensor: Tensor) -> int:
    """How many of a batch's samples make up a block; at least one.

    Example:
        >>> import torch
        >>> samples_at_a_time(torch.empty(64, 128, 16, 16))
        2
    """
    return max(1, block_size(tensor) // max(1, tensor[:1].numel()))


def blocks_of_samples(tensor: Tensor) -> Iterator[slice]:
    """The batch in blocks, one after another."""
    step = samples_at_a_time(tensor)
    for start in range(0, len(tensor), step):
        yield slice(start, min(start + step, len(tensor)))
