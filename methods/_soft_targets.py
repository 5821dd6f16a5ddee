"""Divergence of softened class probabilities, before any factor for the temperature."""

import torch
from torch import Tensor
from torch.nn import functional as F

from methods._checks import above_zero, same_shape


def soft_target_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of the student's softened probabilities from the teacher's.

    sum_k q_k (log q_k - log p_k), with q = softmax(teacher / T) and p = softmax(student / T). A
    class that the teacher rules out by a logit of -inf adds the limit 0, whatever the student's.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T, above 0.

    Returns:
        (B,), in nats; infinite where the student alone rules a class out.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Example:
        >>> import math, torch
        >>> teacher = torch.tensor([[2 * math.log(3), 0.0]])   # q = (3/4, 1/4) at T = 2
        >>> soft_target_divergence(torch.zeros(1, 2), teacher, 2.0)
        tensor([0.1308])
    """
    same_shape("soft_target_divergence", student_logits, teacher_logits)
    above_zero("soft_target_divergence", temperature=temperature)
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    # Not F.kl_div: where q is 0 its product with log q is NaN.
    gap = torch.where(log_q == -torch.inf, 0.0, log_q - log_p)
    return (log_q.exp() * gap).sum(dim=1)
