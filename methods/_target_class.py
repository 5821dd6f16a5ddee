"""The target class of each sample, set apart from all others."""

import torch
from torch import Tensor


def target_classes(function: str, labels: Tensor, teacher_logits: Tensor) -> Tensor:
    """Which class each sample's label names; a hidden label, -1, is the teacher's first choice.

    Returns:
        (B, K) bool, True once in each row.

    Raises:
        ValueError: in the name of `function`, if labels (B,) do not fit teacher_logits (B, K).

    Example:
        >>> target_classes("f", torch.tensor([2, -1]), torch.eye(2, 3))
        tensor([[False, False,  True],
                [False,  True, False]])
    """
    if labels.shape != teacher_logits.shape[:1]:
        raise ValueError(
            f"{function}: labels {tuple(labels.shape)} must be ({len(teacher_logits)},), "
            "one class for each sample"
        )
    chosen = torch.where(labels < 0, teacher_logits.argmax(1), labels)
    return torch.arange(teacher_logits.shape[1], device=labels.device) == chosen[:, None]


def without_targets(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both networks' logits with -inf at the target, and where the teacher leaves no other class.

    In such a row, (B,) bool, both networks' logits are 0 without gradient: the probabilities of the
    other classes given that it is one of them are undefined.
    """
    ours, theirs = (x.masked_fill(target, -torch.inf) for x in (student_logits, teacher_logits))
    alone = (theirs == -torch.inf).all(1)
    ours, theirs = (x.masked_fill(alone[:, None], 0.0) for x in (ours, theirs))
    return ours, theirs, alone
