"""The activation boundary loss in one pass over memory, saving one bit per neuron of the teacher.

Both maps are read block by block, and every intermediate result of a block stays in the cache. The
backward pass computes the shortfall again, from the student's map, which exists anyway, and from
the packed signs of the teacher's. `torch.where` is avoided: on a CPU it costs ten times as much as
a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from methods._blocks import block_size
from methods._precision import full_precision

WORDS = {torch.float32: torch.int32, torch.float64: torch.int64}


class _Block(NamedTuple):
    """A part of (B, P) neurons, and the place of its packed signs."""

    rows: slice
    columns: slice
    bytes: slice


class BoundaryShortfall(torch.autograd.Function):
    """sum_p max(0, mu - y s)^2 of (B, ...) maps, with y = +1 where t > 0 and -1 elsewhere: (B,).

    Arguments: student (B, ...), teacher (B, ...), margin mu. The gradient, -2 y max(0, mu - y s)
    times the incoming one, goes to the student only.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, margin: float) -> Tensor:
        """Also packs the teacher's signs if a gradient is needed."""
        neurons, signs = _rows(student, student), _rows(teacher, student)
        loss = full_precision(student.new_zeros(len(neurons)))
        one, mu = loss.new_ones(()), loss.new_full((), margin)
        blocks = list(_blocks(neurons))
        octets = blocks[-1].bytes.stop if blocks and ctx.needs_input_grad[0] else 0
        packed = torch.empty(octets, dtype=torch.uint8, device=student.device)
        powers = 2 ** torch.arange(8, dtype=loss.dtype, device=student.device)
        space = _space(blocks, loss)
        for block in blocks:
            part = full_precision(neurons[block.rows, block.columns])
            fires = space[: part.numel()].view_as(part)
            torch.gt(signs[block.rows, block.columns], 0, out=fires)  # 1.0 or 0.0
            if len(packed):
                size = block.bytes.stop - block.bytes.start
                space[part.numel() : 8 * size] = 0  # clears what a larger block left behind
                packed[block.bytes] = torch.mv(space[: 8 * size].view(8, size).mT, powers)
            away = torch.sub(one, fires, alpha=2, out=fires)  # -y
            shortfall = torch.addcmul(mu, away, part, out=away).relu_()
            loss[block.rows] += shortfall.square_().sum(1)
        ctx.save_for_backward(student, packed)
        ctx.margin = margin
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        """Flips the sign bit of the student's numbers where the teacher's neuron fires."""
        student, packed = ctx.saved_tensors
        neurons = _rows(student, student)
        slope = torch.empty_like(neurons)
        blocks, twice = list(_blocks(neurons)), 2 * grad[:, None]
        word = WORDS[grad.dtype]
        top, last = torch.iinfo(word).min, torch.iinfo(word).bits - 1
        shifts = (last - torch.arange(8, dtype=word, device=grad.device))[:, None]
        flips, space = _space(blocks, packed.new_empty(0, dtype=word)), _space(blocks, grad)
        for block in blocks:
            part = full_precision(neurons[block.rows, block.columns])
            octets = packed[block.bytes].to(word)
            torch.bitwise_left_shift(octets, shifts, out=flips[: 8 * len(octets)].view(8, -1))
            flip = flips[: part.numel()].view_as(part).bitwise_and_(top)
            shortfall = space[: part.numel()].view_as(part)
            torch.bitwise_xor(part.view(word), flip, out=shortfall.view(word))  # -y s
            shortfall.add_(ctx.margin).relu_()
            shortfall.view(word).bitwise_xor_(flip)
            torch.mul(shortfall, twice[block.rows], out=slope[block.rows, block.columns])
        return _as_map(slope, student), None, None


def _blocks(neurons: Tensor) -> Iterator[_Block]:
    """Whole samples while they fit into a block, and parts of one sample otherwise."""
    batch, width = neurons.shape
    size = block_size(neurons)
    height, width_of_block = max(1, size // max(1, width)), min(width, size)
    start = 0
    for row in range(0, batch, height):
        for column in range(0, width, width_of_block):
            rows = slice(row, min(row + height, batch))
            columns = slice(column, min(column + width_of_block, width))
            count = (rows.stop - rows.start) * (columns.stop - columns.start)
            stop = start + -(-count // 8)
            yield _Block(rows, columns, slice(start, stop))
            start = stop


def _space(blocks: list[_Block], like: Tensor) -> Tensor:
    """A buffer for the largest block, up to whole bytes of signs."""
    octets = max((block.bytes.stop - block.bytes.start for block in blocks), default=0)
    return like.new_empty(8 * octets)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """(B, P) neurons in the memory order of `like`; a view if `tensor` has that order."""
    return (tensor.permute(0, 2, 3, 1) if _channels_last(like) else tensor).flatten(1)


def _as_map(neurons: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    if not _channels_last(like):
        return neurons.view(like.shape)
    batch, channels, height, width = like.shape
    return neurons.view(batch, height, width, channels).permute(0, 3, 1, 2)
