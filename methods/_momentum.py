"""Split momentum: task and transfer gradients in momentum buffers of their own."""

from dataclasses import replace

from bench.method import Method


def with_momentum_split(method: Method, split: float) -> Method:
    """The method with momentum m - D on the task gradient and m + D on the transfer gradient.

    D is `split`, above 0 and below the recipe's momentum m. A larger momentum lets the transfer
    loss lead the training. Published next to soft logits with D = 0.075 and m = 0.9, without
    Nesterov's form. A step has two backward passes.

    Raises:
        ValueError: the method has several stages, or lacks one of the losses, or merges or clips
            their gradients.

    Source:
        Zhao, Cui, Song, Liang: DOT: A Distillation-Oriented Trainer, ICCV 2023.
    """
    if len(method.plan) > 1:
        raise ValueError("momentum_split: wanted a method of one stage, with both losses")
    note = f" Split momentum (DOT, Zhao et al., ICCV 2023), D = {split:g}."
    plan = tuple(replace(stage, momentum_split=split) for stage in method.plan)
    return replace(method, plan=plan, source=method.source + note)
