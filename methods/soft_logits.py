"""Soft logits: the student learns the teacher's softened class probabilities."""

from torch import Tensor, nn

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import above_zero
from methods._soft_targets import soft_target_divergence
from methods._standardise import standardise as standardise  # public here
from methods._standardise import standardised

SOURCE = """\
Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS Deep Learning Workshop, \
2015 (arXiv 1503.02531).
Deviations: the divergence instead of the soft cross-entropy, which differs by the teacher's \
entropy and so has the same gradient; task and transfer are weighted 1 - rho and rho.
standardise=True: Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR \
2024; rho = 0.9, weight = 9 and temperature = 2 in the authors' code. Deviation: a sample with \
equal logits has loss 0, where its gradient would be of the order of 1e6."""


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
    weight: float | None = None,
    standardise: bool = False,
) -> Method:
    """L = (1 - rho) CE(z_s, y) + rho T^2 KL(softmax(z_t / T) || softmax(z_s / T)), one stage.

    Args:
        temperature: T, above 0; CE is at T = 1.
        rho: weight on the soft targets, in [0, 1]. At 1 no label is read; at 0 no teacher runs,
            unless `weight` is given.
        scale_by_temperature_squared: False leaves T^2 out, as some published results did.
        weight: weight on the soft targets, above 0, if it is not to be rho; CE keeps 1 - rho.
        standardise: True compares both networks' `standardise`d logits.

    Raises:
        ValueError: a temperature, rho or weight out of range.

    Example:
        >>> stage = method(rho=0.75).plan[0]
        >>> stage.task_weight, stage.transfer_weight
        (0.25, 0.75)
        >>> method(rho=0.75, weight=9.0).plan[0].transfer_weight
        9.0
        >>> method(rho=0.0).needs_teacher
        False
    """
    above_zero("soft_logits", temperature=temperature)
    if not 0 <= rho <= 1:
        raise ValueError(f"soft_logits: rho {rho} must be in [0, 1]")
    if weight is None:
        weight = rho
    else:
        above_zero("soft_logits", weight=weight)
    divergence = soft_logits_loss if scale_by_temperature_squared else soft_target_divergence

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        logits = pair.student.logits, pair.teacher.logits
        ours, theirs, flat = standardised(*logits) if standardise else (*logits, None)
        return MaskedLoss(divergence(ours, theirs, temperature), flat)

    if weight == 0:
        stage = Stage(name="distil", share=1.0)
    else:
        stage = Stage(
            name="distil",
            share=1.0,
            transfer=transfer,
            taps=("logits",),
            task_weight=1 - rho,
            transfer_weight=weight,
        )
    return Method(category="response", source=SOURCE, plan=(stage,))
