"""Rows without a direction, which normalising would give a gradient of 1 / eps."""

import torch
from torch import Tensor

SMALLEST = 1e-12  # squared length, as a share of the longest row's
SHORT = 1e-8  # length, in the vectors' own unit


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


def unit_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """`vectors` (..., D) divided by their lengths, and (...) which are shorter than 1e-8.

    Those become 0 and have no gradient: it would be 1 / length.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [1e-9, 0.0]]))
        (tensor([[0.6000, 0.8000],
                 [0.0000, 0.0000]]), tensor([False,  True]))
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    short = lengths < SHORT
    # Two selections: the gradient of a quotient that is not selected would still be huge.
    return torch.where(short, 0.0, vectors) / torch.where(short, 1.0, lengths), short[..., 0]
