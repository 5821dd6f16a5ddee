"""A transfer weight that rises at the start of a stage."""

import math
from collections.abc import Callable

PUBLISHED = 19 / 239
"""`phi` of the published warm-up: 20 of 240 epochs."""


def warm_up(phi: float) -> Callable[[float], float]:
    """The weight as a function of the progress p: w(p) = min(1, 0.05 + 0.95 p / phi).

    Over 240 epochs and at phi = 19 / 239 this is min(1, epoch / 20), the epoch counted from 1.

    Args:
        phi: the progress at which the weight reaches 1, at least 0. At 0 the weight is always 1;
            above 1 the stage ends before the warm-up does.

    Returns:
        A `Stage.transfer_weight`.

    Raises:
        ValueError: phi is negative or not finite.

    Source:
        Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, in their code.

    Example:
        >>> weight = warm_up(0.5)
        >>> [round(weight(progress), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.05, 0.525, 1.0, 1.0]
    """
    if not 0 <= phi < math.inf:
        raise ValueError(
            f"warm_up: {phi} must be at least 0 and finite: the progress at which the weight is 1"
        )
    return lambda progress: 1.0 if phi == 0 else min(1.0, 0.05 + 0.95 * progress / phi)
