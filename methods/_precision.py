"""Full precision for relations: their small differences vanish in half precision."""

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """`tensor` in float32; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which matrix products on the tensor's device keep their input's precision."""
    return torch.autocast(tensor.device.type, enabled=False)
