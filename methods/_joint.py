"""Joint forms: a method with soft logits in addition to its task loss, a usual comparison."""

from dataclasses import replace

from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._soft_targets import soft_target_divergence

TEMPERATURE, RHO = 4.0, 0.9


def with_soft_logits(method: Method) -> Method:
    """The method with (1 - rho) CE + rho T^2 KL in place of CE, in every stage with labels.

    T = 4 and rho = 0.9, the defaults of soft_logits. Where gradients are merged, the soft targets
    count as part of the task: the method's own loss is clipped against both.

    Raises:
        ValueError: the method is a baseline, or no stage with labels reads more than logits.

    Source:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, where it is
        called "+ KD".
    """
    if method.category == "baseline":
        raise ValueError("with_soft_logits: a baseline has no transfer loss to add soft logits to")
    plan = tuple(_with_soft_targets(stage) for stage in method.plan)
    if plan == method.plan:
        raise ValueError(
            "with_soft_logits: wanted a stage with labels that reads more than logits; "
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
