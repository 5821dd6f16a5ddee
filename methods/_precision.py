"""Relations are computed in full precision: their small differences vanish in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or as it is if it already is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products on `tensor`'s device keep the precision of their input."""
    return torch.autocast(tensor.device.type, enabled=False)
