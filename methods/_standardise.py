"""Logits as z-scores: only how a sample's classes stand to each other is compared."""

import torch
from torch import Tensor

from methods._checks import same_shape
from methods._precision import full_precision

EPS = 1e-7
FLAT = 1e-6  # standard deviation, as a share of the largest |logit|


def standardise(logits: Tensor) -> Tensor:
    """Each sample's logits with mean 0 and standard deviation 1.

    Z_k = (z_k - mean z) / (std z + 1e-7), with the standard deviation of K - 1 degrees of freedom.
    A logit of -inf stays, outside mean and deviation. All finite logits become 0, without gradient,
    where std z <= 1e-6 max |z| or fewer than two are finite. Half precision is raised to float32.

    Args:
        logits: (B, K).

    Returns:
        (B, K), without unit; its squares sum to K - 1, so that its softmax is the sharper, the more
        classes there are.

    Source:
        Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR 2024.

    Example:
        >>> standardise(torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]]))
        tensor([[-1.0000,  0.0000,  1.0000],
                [-1.0000,  0.0000,  1.0000]])
    """
    scores, _ = _scores(logits)
    return scores


def standardised(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both networks' z-scores, and the samples (B,) whose scores either network leaves undefined.

    Both networks' scores of such a sample are 0 without gradient, and so is a divergence of them.
    ValueError if the shapes differ.
    """
    same_shape("standardised", student_logits, teacher_logits)
    (ours, flat), (theirs, their_flat) = map(_scores, (student_logits, teacher_logits))
    flat = flat | their_flat
    ours, theirs = (x.masked_fill(flat[:, None], 0.0) for x in (ours, theirs))
    return ours, theirs, flat


def _scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`standardise`, and the rows (B,) whose logits are all alike."""
    logits = full_precision(logits)
    ruled_out = logits == -torch.inf
    count = (~ruled_out).sum(1, keepdim=True)
    finite = logits.masked_fill(ruled_out, 0.0)
    centred = finite - finite.sum(1, keepdim=True) / count.clamp(min=1)
    centred = centred.masked_fill(ruled_out, 0.0)
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    flat = variance.sqrt() <= FLAT * finite.abs().amax(1, keepdim=True)
    # The root's gradient is infinite at 0, and infinity times 0 is NaN.
    deviation = variance.masked_fill(flat, 1.0).sqrt()
    scores = (centred / (deviation + EPS)).masked_fill(flat, 0.0)
    return scores.masked_fill(ruled_out, -torch.inf), flat.squeeze(1)
