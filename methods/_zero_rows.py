"""Rows without a direction, which normalising would give a gradient of 1 / eps."""

import torch
from torch import Tensor

SMALLEST = 1e-12  # squared length, as a share of the longest row's


def detach_zero_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`rows` (B, D) without a graph at zero rows, and (B,) which rows these are.

    A row counts as zero if its squared length is at most 1e-12 of the longest row's.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
        >>> detached, zero = detach_zero_rows(rows)
        >>> zero
        tensor([False,  True])
    """
    squares = rows.detach().square().sum(dim=1)
    zero = squares <= SMALLEST * squares.max()
    return torch.where(zero[:, None], rows.detach(), rows), zero
