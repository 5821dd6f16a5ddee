"""One row per loss: how to call it, its oracle, and inputs to give it.

What must hold for every loss is written once, over `LOSSES`; a new loss is one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor

from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.fitnet import hint_loss
from methods.fsp import fsp_loss
from methods.kd_svd import kd_svd_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.soft_logits import soft_logits_loss

Shape = tuple[int, ...]
Tensors = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss as a function of the student's tensors and the teacher's.

    Attributes:
        compute: the implementation, (B,) or () where samples are coupled.
        oracle: the same sum in NumPy.
        student: shape of one sample of each of the student's tensors.
        teacher: likewise; may differ from `student` where no connector is needed.
        coupled: whether the loss is about the batch, not about each sample.
        zero_at_equal: whether a student that equals its teacher pays nothing.
        rtol: agreement with the oracle in float64.
    """

    name: str
    compute: Callable[[Tensors, Tensors], Tensor]
    oracle: Callable[[Tensors, Tensors], Any]
    student: tuple[Shape, ...]
    teacher: tuple[Shape, ...]
    coupled: bool = False
    zero_at_equal: bool = True
    rtol: float = 1e-12

    def inputs(
        self, batch: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, equal: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Random tensors for the student and for the teacher, the same ones if `equal`."""
        generator = torch.Generator().manual_seed(seed)

        def draw(shapes: tuple[Shape, ...]) -> list[Tensor]:
            tensors = [torch.randn(batch, *shape, generator=generator) for shape in shapes]
            return [tensor.to(dtype) for tensor in tensors]

        student = draw(self.student)
        teacher = [tensor.clone() for tensor in student] if equal else draw(self.teacher)
        return student, teacher

    def value_and_gradients(
        self, student: Tensors, teacher: Tensors, *, autocast: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and its sum's gradient with respect to each of the student's tensors.

        Only the forward pass is under autocast, as torch wants it: a backward pass inside it would
        be demoted by torch whatever the loss had asked for.
        """
        leaves = [tensor.detach().clone().requires_grad_() for tensor in student]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = self.compute(leaves, teacher)
        if not value.requires_grad:
            return value, tuple(torch.zeros_like(leaf) for leaf in leaves)
        gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        return value.detach(), tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        )


def _of_one(name: str, compute, oracle, *arguments, student, teacher, **fields) -> Loss:
    """A loss of one tensor per network, with its further arguments bound."""
    return Loss(
        name=name,
        compute=lambda ours, theirs: compute(*ours, *theirs, *arguments),
        oracle=lambda ours, theirs: oracle(*ours, *theirs, *arguments),
        student=(student,),
        teacher=(teacher,),
        **fields,
    )


def _attention(name: str, kind: str, teacher: Shape) -> Loss:
    compute, oracle = attention_transfer_loss, oracles.attention_transfer_loss
    name = f"attention_transfer, {name}"
    return _of_one(name, compute, oracle, kind, student=MAP, teacher=teacher)


def _rkd(name: str, compute, oracle, reduction: str) -> Loss:
    return Loss(
        name=f"{name}, {reduction}",
        compute=lambda student, teacher: compute(*student, *teacher, reduction=reduction),
        oracle=lambda student, teacher: oracle(*student, *teacher, reduction=reduction),
        student=((5,),),
        teacher=((7,),),
        coupled=True,
    )


def _kd_svd(name: str, rank: int, extra: int, student, teacher) -> Loss:
    return Loss(
        name=f"kd_svd, {name}",
        compute=lambda ours, theirs: kd_svd_loss(ours, theirs, rank, extra),
        oracle=lambda ours, theirs: oracles.kd_svd_loss(ours, theirs, rank, extra),
        student=student,
        teacher=teacher,
        rtol=1e-9,  # an eigenvector carries the rounding of its matrix over its gap
    )


LOGITS, MAP, WIDE_MAP = (6,), (2, 4, 3), (3, 4, 3)
BOUNDARY = activation_boundary_loss, oracles.activation_boundary_loss, 1.0
DISTANCE = "rkd_distance", rkd_distance_loss, oracles.rkd_distance_loss
ANGLE = "rkd_angle", rkd_angle_loss, oracles.rkd_angle_loss

LOSSES = (
    _of_one(
        "soft_logits",
        soft_logits_loss,
        oracles.soft_logits_loss,
        4.0,
        student=LOGITS,
        teacher=LOGITS,
    ),
    _of_one("fitnet", hint_loss, oracles.hint_loss, student=MAP, teacher=MAP),
    _attention("l2", "l2", WIDE_MAP),
    _attention("sumsq", "sumsq", WIDE_MAP),
    _attention("pooled teacher", "l2", (3, 8, 6)),
    _attention("pooled student", "sumsq", (3, 2, 2)),  # windows of unequal width: 3 columns to 2
    _of_one("activation_boundary", *BOUNDARY, student=MAP, teacher=MAP, zero_at_equal=False),
    Loss(
        name="fsp",
        compute=lambda student, teacher: fsp_loss(student[0], student[1], teacher[0], teacher[1]),
        oracle=lambda student, teacher: oracles.fsp_loss(*student, *teacher),
        student=((2, 4, 3), (3, 4, 3)),
        teacher=((2, 3, 5), (3, 3, 5)),
    ),
    _kd_svd("rank 1", 1, 3, ((2, 4, 3), (5, 3, 2)), ((2, 2, 3), (5, 3, 2))),
    _kd_svd("rank 2", 2, 1, ((4, 3, 2), (3, 4, 1), (5, 3, 2)), ((4, 3, 3), (3, 4, 3), (5, 3, 3))),
    _kd_svd("more channels than positions", 2, 2, ((6, 2, 2), (7, 2, 2)), ((6, 2, 3), (7, 2, 2))),
    _rkd(*DISTANCE, "peers"),
    _rkd(*DISTANCE, "distinct"),
    _rkd(*ANGLE, "peers"),
    _rkd(*ANGLE, "distinct"),
)


def _each(losses: Sequence[Loss]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.name)


each_loss = _each(LOSSES)
each_loss_per_sample = _each([loss for loss in LOSSES if not loss.coupled])
each_loss_zero_at_equal = _each([loss for loss in LOSSES if loss.zero_at_equal])
each_rkd_loss = _each([loss for loss in LOSSES if loss.coupled])
