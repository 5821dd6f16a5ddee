"""Soft logits: the student learns the teacher's softened class probabilities."""

from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._checks import above_zero
from methods._soft_targets import soft_target_divergence

SOURCE = """\
Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS Deep Learning Workshop, \
2015 (arXiv 1503.02531).
Deviations: the divergence instead of the soft cross-entropy, which differs by the teacher's \
entropy and so has the same gradient; task and transfer are weighted 1 - rho and rho."""


def soft_logits_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Divergence from the teacher's softened probabilities, on the scale of a T = 1 gradient.

    T^2 sum_k q_k (log q_k - log p_k), with q = softmax(teacher / T) and p = softmax(student / T).
    T^2 cancels the factor 1 / T^2 that softening brings into the gradient.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T, above 0.

    Returns:
        (B,), in nats times T^2.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Source:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2.

    Example:
        >>> import math, torch
        >>> teacher = torch.tensor([[2 * math.log(3), 0.0]])   # q = (3/4, 1/4) at T = 2
        >>> soft_logits_loss(torch.zeros(1, 2), teacher, 2.0)
        tensor([0.5232])
    """
    return temperature**2 * soft_target_divergence(student_logits, teacher_logits, temperature)


SEARCH = {"temperature": [2.0, 4.0, 8.0], "rho": [0.5, 0.7, 0.9]}
"""What tuning tries."""


def method(
    *,
    temperature: float = 4.0,
    rho: float = 0.9,
    scale_by_temperature_squared: bool = True,
) -> Method:
    """L = (1 - rho) CE(z_s, y) + rho T^2 KL(softmax(z_t / T) || softmax(z_s / T)), one stage.

    Args:
        temperature: T, above 0; CE is at T = 1.
        rho: weight on the soft targets, in [0, 1]. At 0 no teacher runs; at 1 no label is read.
        scale_by_temperature_squared: False leaves T^2 out, as some published results did.

    Raises:
        ValueError: a temperature or rho out of range.

    Example:
        >>> stage = method(rho=0.75).plan[0]
        >>> stage.task_weight, stage.transfer_weight
        (0.25, 0.75)
        >>> method(rho=0.0).needs_teacher
        False
    """
    above_zero("soft_logits", temperature=temperature)
    if not 0 <= rho <= 1:
        raise ValueError(f"soft_logits: rho {rho} must be in [0, 1]")
    divergence = soft_logits_loss if scale_by_temperature_squared else soft_target_divergence

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        return divergence(pair.student.logits, pair.teacher.logits, temperature)

    if rho == 0:
        stage = Stage(name="distil", share=1.0)
    else:
        stage = Stage(
            name="distil",
            share=1.0,
            transfer=transfer,
            taps=("logits",),
            task_weight=1 - rho,
            transfer_weight=rho,
        )
    return Method(category="response", source=SOURCE, plan=(stage,))
