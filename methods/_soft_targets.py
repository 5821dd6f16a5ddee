"""Divergence of softened class probabilities, and methods with it next to their task loss."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Method, Pair, Stage
from methods._checks import above_zero, same_shape

TEMPERATURE, RHO = 4.0, 0.9


def soft_target_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of the student's softened probabilities from the teacher's.

    sum_k q_k (log q_k - log p_k), with q = softmax(teacher / T) and p = softmax(student / T). A
    class that the teacher rules out by a logit of -inf adds the limit 0, whatever the student's.

    Logits are (B, K), and T is above 0.

    Returns:
        (B,), in nats; infinite where the student alone rules a class out.
    """
    same_shape("soft_target_divergence", student_logits, teacher_logits)
    above_zero("soft_target_divergence", temperature=temperature)
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    # Not F.kl_div: where q is 0 its product with log q is NaN.
    gap = torch.where(log_q == -torch.inf, 0.0, log_q - log_p)
    return (log_q.exp() * gap).sum(dim=1)


def with_soft_logits(method: Method) -> Method:
    """The method with (1 - rho) CE + rho T^2 KL in place of CE, in every stage with labels.

    T = 4 and rho = 0.9, the defaults of soft_logits. Where gradients are merged, the soft targets
    count as part of the task. ValueError for a baseline, or without any loss but soft targets.

    Source:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, where it is
        called "+ KD".
    """
    if method.category == "baseline":
        raise ValueError("with_soft_logits: a baseline has no transfer loss to add soft logits to")
    plan = tuple(_with_soft_targets(stage) for stage in method.plan)
    if plan == method.plan:
        raise ValueError(
            "with_soft_logits: every stage with labels reads soft logits already; "
            "set stage2=ce where a method has that hyper-parameter"
        )
    note = (
        f" Joint form: with soft logits (T = {TEMPERATURE:g}, rho = {RHO:g}) next to the task loss."
    )
    return replace(method, plan=plan, source=method.source + note)


def _with_soft_targets(stage: Stage) -> Stage:
    if stage.task_weight == 0 or stage.taps == ("logits",):
        return stage
    return replace(
        stage,
        task_weight=stage.task_weight * (1 - RHO),
        joint=_soft_target_loss,
        joint_weight=stage.task_weight * RHO,
    )


def _soft_target_loss(pair: Pair, connector: nn.Module) -> Tensor:
    divergence = soft_target_divergence(pair.student.logits, pair.teacher.logits, TEMPERATURE)
    return TEMPERATURE**2 * divergence
