"""Normalised knowledge distillation: soft cross-entropy of the target class, and of the others."""

import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._checks import above_zero, same_shape
from methods._target_class import target_classes, without_targets

SOURCE = """\
Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge Distillation: A \
Unified Approach with Normalized Loss and Customized Soft Labels, ICCV 2023 (arXiv 2303.13005).
Deviations: a hidden label is the teacher's first choice; a teacher that rules out all other \
classes teaches nothing of them. Defaults are those of ImageNet; the authors' configuration for \
CIFAR-100 has gamma = 3.5 and temperature = 3."""


def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    gamma: float,
) -> Tensor:
    """Cross-entropy of the target class, and of the others if it is one of them.

    -q_y log p_y - gamma T^2 sum_{k != y} q^_k log p^_k, with q = softmax(teacher), p =
    softmax(student), and q^ and p^ the probabilities of the other classes at temperature T, scaled
    to sum to 1. Cross-entropies do not vanish at equal logits. A class of probability 0 adds 0.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        labels: y, (B,); where -1, the class of the teacher's largest logit.
        temperature: T of the other classes, above 0.
        gamma: weight on the other classes.

    Returns:
        (B,), in nats; not finite where the student alone rules a class out.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Source:
        Yang, Zeng, Li, Zhang, Yuan, Li: From Knowledge Distillation to Self-Knowledge
        Distillation, ICCV 2023.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> nkd_loss(student, teacher, torch.tensor([0]), temperature=1.0, gamma=1.5)
        tensor([2.1849])
    """
    same_shape("nkd_loss", student_logits, teacher_logits)
    above_zero("nkd_loss", temperature=temperature)
    target = target_classes("nkd_loss", labels, teacher_logits)
    of_target = teacher_logits.softmax(1).masked_fill(~target, 0.0)
    loss = _cross_entropy(of_target, student_logits.log_softmax(1))
    ours, theirs, alone = without_targets(student_logits, teacher_logits, target)
    of_others = (theirs / temperature).softmax(1).masked_fill(alone[:, None], 0.0)
    others = _cross_entropy(of_others, (ours / temperature).log_softmax(1))
    return loss + gamma * temperature**2 * others


def _cross_entropy(q: Tensor, log_p: Tensor) -> Tensor:
    # Where both are 0, q log p is 0 times minus infinity.
    return -(q * torch.where(q > 0, log_p, 0.0)).sum(1)


SEARCH = {"gamma": [0.02, 0.2, 1.5, 3.5], "temperature": [1.0, 3.0]}
"""What tuning tries."""


def method(*, temperature: float = 1.0, gamma: float = 1.5) -> Method:
    """L = CE(z_s, y) + `nkd_loss`, one stage.

    Args:
        temperature: T of the other classes, above 0; CE and the target class are at T = 1.
        gamma: weight on the other classes, above 0.

    Raises:
        ValueError: a temperature or gamma out of range.

    Example:
        >>> [(stage.name, stage.taps) for stage in method().plan]
        [('distil', ('logits',))]
    """
    above_zero("nkd", temperature=temperature, gamma=gamma)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        logits = pair.student.logits, pair.teacher.logits
        return nkd_loss(*logits, pair.labels, temperature, gamma)

    stage = Stage(name="distil", share=1.0, transfer=transfer, taps=("logits",))
    return Method(category="response", source=SOURCE, plan=(stage,))
