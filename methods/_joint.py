"""Joint forms: any method with soft logits beside its task loss, as the field compares them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._soft_targets import soft_target_divergence

TEMPERATURE, RHO = 4.0, 0.9


def with_soft_logits(method: Method) -> Method:
    """The method with (1 - rho) CE + rho T^2 KL in the place of CE, in every stage with labels.

    T = 4 and rho = 0.9, the defaults of soft_logits. Where gradients are merged, the soft targets
    count with the task: the method's own loss is clipped against both.

    Raises:
        ValueError: the method is a baseline, or soft targets are all that it is.

    Source:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, combine
        methods so ("+ KD").
    """
    if method.category == "baseline":
        raise ValueError("with_soft_logits: a baseline has no transfer loss to stand beside")
    plan = tuple(_beside(stage) if _can_take(stage) else stage for stage in method.plan)
    if plan == method.plan:
        raise ValueError(
            "with_soft_logits: every stage with labels reads soft logits already; "
            "a method with a second stage can do without them (stage2=ce)"
        )
    note = (
        f" Joint form: with soft logits (T = {TEMPERATURE:g}, rho = {RHO:g}) beside the task loss."
    )
    return replace(method, plan=plan, source=method.source + note)


def _can_take(stage: Stage) -> bool:
    return stage.task_weight > 0 and stage.taps != ("logits",)


def _beside(stage: Stage) -> Stage:
    return replace(
        stage,
        task_weight=stage.task_weight * (1 - RHO),
        beside=_soft_targets,
        beside_weight=stage.task_weight * RHO,
    )


def _soft_targets(pair: Pair, connector: nn.Module) -> Tensor:
    divergence = soft_target_divergence(pair.student.logits, pair.teacher.logits, TEMPERATURE)
    return TEMPERATURE**2 * divergence
