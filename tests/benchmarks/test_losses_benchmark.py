"""Every loss by itself, forward and backward, at the shapes of three well-known pairs.

A loss with a textbook form (tests/textbook_losses.py) runs in both, in one group, so that a
speed-up can be attributed. Run from the checkout, on an otherwise idle machine:

    pytest tests/benchmarks --benchmark-only --benchmark-json=FILE

FILE holds the timings with their conditions and, under `extra_info`, each case's shapes, counted
operations, GFLOP/s that they make at the median time, and the machine's own in a matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import NamedTuple

import pytest
import torch
from textbook_losses import TEXTBOOK
from torch import Tensor

from bench.cost.counting import count
from bench.models import zoo
from bench.models.network import tap_shapes
from methods.fsp import match_size

PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20", "wrn_40_2:wrn_16_2")
CLASSES, IMAGE = 100, (3, 32, 32)
BATCH = 64
ROUNDS, WARM_UP = 5, 1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Tensors = Sequence[Tensor]
Loss = Callable[..., Tensor]
STAGES = ("stage1", "stage2", "stage3")
PRE = tuple(f"{stage}.pre" for stage in STAGES)
MAPS = ("stem", *STAGES)


def of_one(loss: Loss, student: Tensors, teacher: Tensors) -> Tensor:
    return loss(student[0], teacher[0])


def of_all(loss: Loss, student: Tensors, teacher: Tensors) -> Tensor:
    return loss(student, teacher)


def at_every_point(loss: Loss, student: Tensors, teacher: Tensors) -> Tensor:
    return torch.stack([loss(*both) for both in zip(student, teacher, strict=True)]).sum(0)


def at_every_stage(loss: Loss, student: Tensors, teacher: Tensors) -> Tensor:
    pairs = zip(student, student[1:], teacher, teacher[1:], strict=False)
    return torch.stack([loss(*match_size(a, b), *match_size(c, d)) for a, b, c, d in pairs]).sum(0)


class Case(NamedTuple):
    """A loss to measure.

    Attributes:
        method: the module that it is in.
        loss: its name there.
        taps: what it reads of both networks.
        call: applies it to the student's tensors and the teacher's.
        arguments: its further ones.
    """

    method: str
    loss: str
    taps: tuple[str, ...]
    call: Callable[[Loss, Tensors, Tensors], Tensor]
    arguments: tuple[float, ...] = ()

    def forms(self) -> dict[str, Loss]:
        """The loss as shipped, and in its textbook form where that differs."""
        shipped = getattr(import_module(f"methods.{self.method}"), self.loss)
        return {"shipped": shipped} | (
            {"textbook": TEXTBOOK[self.loss]} if self.loss in TEXTBOOK else {}
        )


CASES = (
    Case("soft_logits", "soft_logits_loss", ("logits",), of_one, (4.0,)),
    Case("selective", "regression_loss", ("embedding",), of_one),
    Case("fitnet", "hint_loss", STAGES, at_every_point),
    Case("attention_transfer", "attention_transfer_loss", STAGES, at_every_point),
    Case("activation_boundary", "activation_boundary_loss", PRE, at_every_point, (1.0,)),
    Case("fsp", "fsp_loss", MAPS, at_every_stage),
    Case("kd_svd", "kd_svd_loss", STAGES, of_all),
    Case("rkd", "rkd_distance_loss", ("embedding",), of_one),
    Case("rkd", "rkd_angle_loss", ("embedding",), of_one),
)


def measured() -> Iterator[tuple[Case, str, Loss]]:
    """(case, form, the loss in that form)."""
    for case in CASES:
        yield from ((case, form, loss) for form, loss in case.forms().items())


@cache
def shapes_of(pair: str) -> dict[str, tuple[int, ...]]:
    """The taps that both networks show in one shape, so that no connector is in the way."""
    teacher, student = (
        tap_shapes(zoo.build(model, CLASSES, IMAGE), IMAGE) for model in pair.split(":")
    )
    return {tap: shape for tap, shape in student.items() if teacher.get(tap) == shape}


def drawn(taps: Sequence[str], pair: str, seed: int) -> list[Tensor]:
    """Normal values; behind a ReLU where the residual networks have one."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(BATCH, *shapes_of(pair)[tap], generator=generator) for tap in taps]
    return [
        (x.relu() if tap in MAPS or tap == "embedding" else x).to(DEVICE)
        for tap, x in zip(taps, values, strict=True)
    ]


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@cache
def matmul_gflop_per_s() -> float:
    """The best of ten products of 2048 x 2048 matrices in float32, as torch is set up."""
    left, right = torch.randn(2, 2048, 2048, device=DEVICE)
    best = float("inf")
    for _ in range(10):
        synchronise()
        start = time.perf_counter()
        left @ right
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    ("case", "form", "loss"),
    [pytest.param(*each, id=f"{each[0].loss}, {each[1]}") for each in measured()],
)
def test_loss(benchmark, case: Case, form: str, loss: Loss, pair: str) -> None:
    student, teacher = (drawn(case.taps, pair, seed) for seed in (0, 1))
    leaves = [tensor.requires_grad_() for tensor in student]

    def forward_and_backward() -> None:
        value = case.call(lambda *tensors: loss(*tensors, *case.arguments), leaves, teacher)
        torch.autograd.grad(value.mean(), leaves)
        synchronise()

    benchmark.group = f"{case.loss}: {pair}"
    counted = count(forward_and_backward)
    benchmark.pedantic(forward_and_backward, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
    benchmark.extra_info.update(
        form=form,
        batch=BATCH,
        shapes={tap: list(shapes_of(pair)[tap]) for tap in case.taps},
        device=str(DEVICE),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        flops=counted.flops,
        **counted._asdict(),
        gflop_per_s=counted.flops / benchmark.stats.stats.median / 1e9,
        matmul_gflop_per_s=matmul_gflop_per_s(),
    )
