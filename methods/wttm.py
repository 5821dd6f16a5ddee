"""Weighted transformed teacher matching: only the teacher is softened, by a power."""

from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._checks import above_zero, same_shape
from methods._soft_targets import soft_target_divergence

SOURCE = """\
Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024 (arXiv \
2402.11148).
Deviations: none in the loss. The authors print gamma = 0.2 and weight = 4 for it next to CRD, and \
gamma = 0.1 and weight = 45 for the form without U; values for other rows are not to be had."""


def wttm_loss(
    student_logits: Tensor, teacher_logits: Tensor, gamma: float, *, weighted: bool = True
) -> Tensor:
    """Divergence from a power of the teacher's probabilities, weighted by their smoothness.

    U KL(q || softmax(student)), with U = sum_k softmax(teacher)_k^gamma and q = softmax(teacher)
    ^gamma / U. The power is a temperature of 1 / gamma for the teacher alone: the student learns
    the softened probabilities themselves. U is 1 where the teacher is sure of one class, and
    K^(1 - gamma) where all classes are alike to it.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        gamma: the exponent, above 0; below 1 it softens.
        weighted: False leaves U out, which is transformed teacher matching (TTM).

    Returns:
        (B,), in nats; infinite where the student alone rules a class out.

    Raises:
        ValueError: the shapes differ, or gamma is not above 0.

    Source:
        Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> wttm_loss(student, teacher, 0.1), wttm_loss(student, teacher, 0.1, weighted=False)
        (tensor([0.7210]), tensor([0.2865]))
    """
    same_shape("wttm_loss", student_logits, teacher_logits)
    above_zero("wttm_loss", gamma=gamma)
    powers = gamma * teacher_logits.log_softmax(1)
    divergence = soft_target_divergence(student_logits, powers, 1.0)
    return powers.logsumexp(1).exp() * divergence if weighted else divergence


SEARCH = {"weight": [0.04, 0.4, 4.0], "gamma": [0.1, 0.2]}
"""What tuning tries."""


def method(*, weight: float = 4.0, gamma: float = 0.2, weighted: bool = True) -> Method:
    """L = CE(z_s, y) + weight U KL(q || softmax(z_s)), one stage; see `wttm_loss`.

    Args:
        weight: weight on the divergence, above 0.
        gamma: the teacher's exponent, above 0.
        weighted: False leaves U out; its published weight is 45, with gamma = 0.1.

    Raises:
        ValueError: a weight or gamma out of range.

    Example:
        >>> method(weight=0.4).plan[0].transfer_weight
        0.4
    """
    above_zero("wttm", weight=weight, gamma=gamma)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        return wttm_loss(pair.student.logits, pair.teacher.logits, gamma, weighted=weighted)

    stage = Stage(
        name="distil", share=1.0, transfer=transfer, taps=("logits",), transfer_weight=weight
    )
    return Method(category="response", source=SOURCE, plan=(stage,))
