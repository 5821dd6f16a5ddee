"""The second stage of methods that first initialise the student's trunk."""

from typing import Literal, get_args

from torch import Tensor, nn

from bench.method import Pair, Stage
from methods._checks import above_zero, one_of
from methods._soft_targets import soft_target_divergence

BELOW_HEAD = frozenset({"trunk", "connector"})
"""What an initialising stage trains; the head stays bit-equal, in spite of weight decay."""

SecondStage = Literal["ce+kd", "ce", "kd_only"]

FIRST_KD_WEIGHT, LAST_KD_WEIGHT = 4.0, 1.0


def finetune(stage2: SecondStage, *, share: float, temperature: float) -> Stage:
    """The second stage of FitNet, attention transfer and activation boundary.

    "ce+kd": CE + lambda * KD_T, with lambda falling linearly from 4 to 1 over the stage, as in
    FitNet. "ce": CE alone, no teacher. "kd_only": KD_T alone at weight 1, no labels. KD_T is the
    divergence at temperature T without the factor T^2, as in the code of FitNet's authors.

    Raises:
        ValueError: an unknown `stage2`, a temperature not above 0, or a share outside (0, 1].

    Example:
        >>> stage = finetune("ce+kd", share=0.7, temperature=3.0)
        >>> [stage.weight_at(progress) for progress in (0.0, 0.5, 1.0)]
        [4.0, 2.5, 1.0]
    """
    one_of("finetune", "stage2", stage2, get_args(SecondStage))
    above_zero("finetune", temperature=temperature)
    if stage2 == "ce":
        return Stage(name="finetune", share=share)

    def divergence(pair: Pair, connector: nn.Module) -> Tensor:
        return soft_target_divergence(pair.student.logits, pair.teacher.logits, temperature)

    labelled = stage2 == "ce+kd"
    return Stage(
        name="finetune",
        share=share,
        transfer=divergence,
        taps=("logits",),
        task_weight=1.0 if labelled else 0.0,
        transfer_weight=_kd_weight if labelled else 1.0,
    )


def _kd_weight(progress: float) -> float:
    return FIRST_KD_WEIGHT + (LAST_KD_WEIGHT - FIRST_KD_WEIGHT) * progress
