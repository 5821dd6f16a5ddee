"""Every loss by itself, forward and backward, at the shapes of three well-known pairs.

Where a method ships a textbook form beside its fast one, both run in one group, so that a speed-up
can be attributed. Run from the checkout, on an otherwise idle machine:

    pytest tests/benchmarks --benchmark-only [--benchmark-json=FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.cost.profiler import count
from bench.models import zoo
from bench.models.network import tap_shapes
from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.fitnet import hint_loss
from methods.fsp import fsp_loss, fsp_loss_reference, match_size
from methods.kd_svd import kd_svd_loss, kd_svd_loss_reference
from methods.rkd import (
    rkd_angle_loss,
    rkd_angle_loss_reference,
    rkd_distance_loss,
    rkd_distance_loss_reference,
)
from methods.selective import regression_loss
from methods.soft_logits import soft_logits_loss

PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20", "wrn_40_2:wrn_16_2")
CLASSES, IMAGE = 100, (3, 32, 32)
BATCH = 64
ROUNDS, WARM_UP = 5, 1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Tensors = Sequence[Tensor]
STAGES = ("stage1", "stage2", "stage3")


class Form(NamedTuple):
    """One way to compute a loss.

    Attributes:
        group: the loss.
        name: which form of it.
        taps: what it reads of both networks.
        compute: of the student's tensors and the teacher's.
    """

    group: str
    name: str
    taps: tuple[str, ...]
    compute: Callable[[Tensors, Tensors], Tensor]


def at_every_point(
    loss: Callable[[Tensor, Tensor], Tensor], student: Tensors, teacher: Tensors
) -> Tensor:
    return torch.stack([loss(*both) for both in zip(student, teacher, strict=True)]).sum(0)


def fsp(loss: Callable[..., Tensor], student: Tensors, teacher: Tensors) -> Tensor:
    pairs = zip(student, student[1:], teacher, teacher[1:], strict=False)
    return torch.stack([loss(*match_size(a, b), *match_size(c, d)) for a, b, c, d in pairs]).sum(0)


def of_one(loss: Callable[[Tensor, Tensor], Tensor], student: Tensors, teacher: Tensors) -> Tensor:
    return loss(student[0], teacher[0])


PRE = tuple(f"{stage}.pre" for stage in STAGES)
MAPS = ("stem", *STAGES)
FORMS = (
    Form("soft_logits", "fast", ("logits",),
         partial(of_one, lambda s, t: soft_logits_loss(s, t, 4.0))),
    Form("selective", "fast", ("embedding",), partial(of_one, regression_loss)),
    Form("fitnet", "fast", STAGES, partial(at_every_point, hint_loss)),
    Form("attention_transfer", "fast", STAGES, partial(at_every_point, attention_transfer_loss)),
    Form("activation_boundary", "fast", PRE,
         partial(at_every_point, lambda s, t: activation_boundary_loss(s, t, 1.0))),
    Form("fsp", "fast", MAPS, partial(fsp, fsp_loss)),
    Form("fsp", "reference", MAPS, partial(fsp, fsp_loss_reference)),
    Form("kd_svd", "fast", STAGES, kd_svd_loss),
    Form("kd_svd", "reference", STAGES, kd_svd_loss_reference),
    Form("rkd_distance", "fast", ("embedding",), partial(of_one, rkd_distance_loss)),
    Form("rkd_distance", "reference", ("embedding",),
         partial(of_one, rkd_distance_loss_reference)),
    Form("rkd_angle", "fast", ("embedding",), partial(of_one, rkd_angle_loss)),
    Form("rkd_angle", "reference", ("embedding",), partial(of_one, rkd_angle_loss_reference)),
)  # fmt: skip


@cache
def shapes_of(pair: str) -> dict[str, tuple[int, ...]]:
    """The taps that both networks show in one shape, so that no connector is in the way."""
    teacher, student = (
        tap_shapes(zoo.build(model, CLASSES, IMAGE), IMAGE) for model in pair.split(":")
    )
    return {tap: shape for tap, shape in student.items() if teacher.get(tap) == shape}


def drawn(form: Form, pair: str, seed: int) -> list[Tensor]:
    """Normal values; behind a ReLU where the residual networks have one."""
    generator = torch.Generator().manual_seed(seed)
    values = [
        torch.randn(BATCH, *shapes_of(pair)[tap], generator=generator).to(DEVICE)
        for tap in form.taps
    ]
    return [
        x.relu() if tap in MAPS or tap == "embedding" else x
        for tap, x in zip(form.taps, values, strict=True)
    ]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.group}, {form.name}")
def test_loss(benchmark, form: Form, pair: str) -> None:
    student, teacher = drawn(form, pair, 0), drawn(form, pair, 1)
    leaves = [tensor.requires_grad_() for tensor in student]

    def forward_and_backward() -> None:
        torch.autograd.grad(form.compute(leaves, teacher).mean(), leaves)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{form.group}: {pair}"
    counted = count(forward_and_backward)
    benchmark.extra_info.update(
        form=form.name,
        batch=BATCH,
        shapes={tap: list(shapes_of(pair)[tap]) for tap in form.taps},
        device=str(DEVICE),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **counted._asdict(),
    )
    benchmark.pedantic(forward_and_backward, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
