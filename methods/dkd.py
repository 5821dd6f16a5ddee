"""Decoupled knowledge distillation: the target class and the others are weighted apart."""

import torch
from torch import Tensor, nn

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import above_zero, same_shape, weights
from methods._soft_targets import soft_target_divergence
from methods._standardise import standardised
from methods._target_class import target_classes, without_targets
from methods._warm_up import PUBLISHED, warm_up

SOURCE = """\
Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022 (arXiv 2203.08679).
Deviations: one beta for every pair of networks, where the paper chose 2, 6 or 8 for each pair; \
the warm-up is a share of the stage, 20 of 240 epochs; a hidden label is the teacher's first \
choice; all terms come from logarithms of probabilities, where the authors' code takes the \
logarithm of a probability that may round to 0."""


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """The two parts of the divergence from the teacher's soft targets, each with its own weight.

    T^2 (alpha KL(b_q || b_p) + beta KL(q^ || p^)), with q = softmax(teacher / T), the teacher's
    probabilities of "target or not" b_q = (q_y, 1 - q_y) and of the others if it is not,
    q^_k = q_k / (1 - q_y) for k != y; p, b_p and p^ are the student's. KL(q || p) is the first
    divergence plus 1 - q_y times the second: soft logits leave out what a sure teacher knows of the
    other classes. A class with q_k = 0 adds 0, and K = 2 has no second part.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        labels: y, (B,); where -1, the class of the teacher's largest logit.
        temperature: T, above 0.
        alpha: weight on the target class.
        beta: weight on the other classes.

    Returns:
        (B,), in nats times T^2; not finite where the student alone rules a class out.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Source:
        Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])
        >>> dkd_loss(student, teacher, torch.tensor([0]), temperature=4.0, alpha=1.0, beta=8.0)
        tensor([1.7901])
    """
    same_shape("dkd_loss", student_logits, teacher_logits)
    target = target_classes("dkd_loss", labels, teacher_logits)
    ours, theirs, _ = without_targets(student_logits, teacher_logits, target)
    of_others = soft_target_divergence(ours, theirs, temperature)
    ours, theirs = (
        _target_or_not(x / temperature, target) for x in (student_logits, teacher_logits)
    )
    of_target = soft_target_divergence(ours, theirs, 1.0)
    return temperature**2 * (alpha * of_target + beta * of_others)


def _target_or_not(logits: Tensor, target: Tensor) -> Tensor:
    """(B, 2): logits of the same probability of the target class, and of all others together."""
    others = logits.masked_fill(target, -torch.inf)
    ruled_out = (others == -torch.inf).all(1)  # where logsumexp would have a gradient of NaN
    other = others.masked_fill(ruled_out[:, None], 0.0).logsumexp(1)
    chosen = torch.where(target, logits, 0.0).sum(1)
    return torch.stack([chosen, other.masked_fill(ruled_out, -torch.inf)], dim=1)


SEARCH = {"beta": [0.1, 0.5, 2.0, 8.0], "temperature": [2.0, 4.0]}
"""What tuning tries."""


def method(
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    warmup: float = PUBLISHED,
    standardise: bool = False,
) -> Method:
    """L = CE(z_s, y) + w T^2 (alpha KL(b_q || b_p) + beta KL(q^ || p^)), one stage; see `dkd_loss`.

    Args:
        temperature: T, above 0; CE is at T = 1.
        alpha: weight on the target class, at least 0.
        beta: weight on the other classes, at least 0.
        warmup: the progress at which w, from 0.05, reaches 1; 0 for w = 1. See `warm_up`.
        standardise: True compares both networks' standardised logits, as in `soft_logits`;
            published with alpha = 9, beta nine times as large and temperature = 2.

    Raises:
        ValueError: a temperature or warm-up out of range, a negative weight, or both weights 0.

    Example:
        >>> stage = method(warmup=0.5).plan[0]
        >>> stage.weight_at(0.0), stage.weight_at(0.25), stage.weight_at(1.0)
        (0.05, 0.525, 1.0)
    """
    above_zero("dkd", temperature=temperature)
    weights("dkd", alpha=alpha, beta=beta)

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        logits = pair.student.logits, pair.teacher.logits
        ours, theirs, flat = standardised(*logits) if standardise else (*logits, None)
        return MaskedLoss(dkd_loss(ours, theirs, pair.labels, temperature, alpha, beta), flat)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("logits",),
        transfer_weight=warm_up(warmup),
    )
    return Method(category="response", source=SOURCE, plan=(stage,))
