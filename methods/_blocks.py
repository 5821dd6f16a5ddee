"""Feature maps in blocks small enough for intermediate results to stay in the cache.

An elementwise loss is bound by memory bandwidth: at full size, every operation reads and writes the
whole map in main memory and allocates fresh pages for its result.
"""

from collections.abc import Iterator

from torch import Tensor

CPU_BLOCK = 1 << 16  # elements: 256 KiB for each of a few buffers
GPU_BLOCK = 1 << 24  # 64 MiB each: large enough to hide the cost of a kernel launch


def samples_per_block(tensor: Tensor) -> int:
    """Samples of a batch that make up a block; at least one.

    Example:
        >>> import torch
        >>> samples_per_block(torch.empty(64, 128, 16, 16))
        2
    """
    elements = GPU_BLOCK if tensor.is_cuda else CPU_BLOCK
    return max(1, elements // max(1, tensor[:1].numel()))


def blocks_of_samples(tensor: Tensor) -> Iterator[slice]:
    """Slices of the batch, one block each."""
    step = samples_per_block(tensor)
    for start in range(0, len(tensor), step):
        yield slice(start, min(start + step, len(tensor)))
