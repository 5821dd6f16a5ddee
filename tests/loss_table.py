"""One row per loss: how to call it, its oracle, and inputs to give it.

What must hold for every loss is written once, over `LOSSES`; a new loss is one row here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import oracles
import oracles_of_logits
import oracles_of_maps
import pytest
import torch
from torch import Tensor

from methods._standardise import standardised
from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.cc import cc_loss
from methods.ctkd import ctkd_loss
from methods.dist import dist_loss
from methods.dkd import dkd_loss
from methods.fitnet import hint_loss
from methods.fsp import fsp_loss
from methods.ft import ft_loss
from methods.kd_svd import kd_svd_loss
from methods.nkd import nkd_loss
from methods.nst import nst_loss
from methods.ofd import ofd_loss
from methods.pkt import pkt_loss
from methods.reviewkd import hcl_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.simkd import simkd_loss
from methods.soft_logits import soft_logits_loss
from methods.sp import sp_loss
from methods.srrl import srrl_loss
from methods.vid import vid_loss
from methods.wttm import wttm_loss

ORACLES = vars(oracles) | vars(oracles_of_logits) | vars(oracles_of_maps)
Shape = tuple[int, ...]
Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss as a function of the student's tensors and the teacher's.

    Attributes:
        function: the implementation, (B,) or () where samples are coupled; its oracle has its name.
        student: shape of one sample of each of the student's tensors.
        teacher: likewise; may differ from `student` where no connector is needed.
        arguments: further ones, of the implementation and of the oracle.
        rtol: agreement with the oracle in float64.
        labelled: whether labels come next, after the tensors.
    """

    function: Callable[..., Tensor]
    student: tuple[Shape, ...]
    teacher: tuple[Shape, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 1e-12
    labelled: bool = False

    @property
    def name(self) -> str:
        """For the ids of tests."""
        values = [str(value) for value in self.arguments.values()]
        return ", ".join([self.function.__name__, *values, f"teacher {self.teacher}"])

    def compute(self, student: Tensors, teacher: Tensors) -> Tensor:
        """The loss as shipped."""
        return self._call(self.function, student, teacher)

    def oracle(self, student: Tensors, teacher: Tensors) -> Any:
        """The same sum in NumPy."""
        return self._call(ORACLES[self.function.__name__], student, teacher)

    def _call(self, function: Callable[..., Any], student: Tensors, teacher: Tensors) -> Any:
        tensors = (student, teacher) if function.__name__ == "kd_svd_loss" else (*student, *teacher)
        if self.labelled:
            tensors = (*tensors, torch.arange(len(student[0])) % student[0].shape[1])
        return function(*tensors, **self.arguments)

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


LOGITS, MAP, WIDE_MAP = ((6,),), ((2, 4, 3),), ((3, 4, 3),)
POINTS, WIDE_POINTS = ((5,),), ((7,),)
DRAWS = torch.Generator().manual_seed(0)


def float64(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of(loss: Callable[..., Tensor], student: Tensor, *rest: Any) -> Tensor:
    student = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, *rest).sum(), student)
    return gradient


def svd(student: tuple[Shape, ...], teacher: tuple[Shape, ...], **arguments: int) -> Loss:
    """Its eigenvectors carry the rounding of their matrices over their gaps."""
    return Loss(kd_svd_loss, student, teacher, arguments, rtol=1e-9)


def standardised_soft_logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What `soft_logits` computes with its switch `standardise`."""
    return soft_logits_loss(*standardised(student, teacher)[:2], temperature)


PER_SAMPLE = (
    Loss(soft_logits_loss, LOGITS, LOGITS, {"temperature": 4.0}),
    Loss(standardised_soft_logits_loss, LOGITS, LOGITS, {"temperature": 2.0}),
    *(
        Loss(dkd_loss, LOGITS, LOGITS, {"temperature": t, "alpha": 1.0, "beta": b}, labelled=True)
        for t, b in ((4.0, 8.0), (1.0, 0.5))
    ),
    Loss(nkd_loss, LOGITS, LOGITS, {"temperature": 3.0, "gamma": 1.5}, labelled=True),
    Loss(wttm_loss, LOGITS, LOGITS, {"gamma": 0.2, "weighted": True}),
    Loss(wttm_loss, LOGITS, LOGITS, {"gamma": 0.2, "weighted": False}),
    Loss(ctkd_loss, LOGITS, LOGITS, {"temperature": torch.tensor(4.0)}),
    Loss(hint_loss, MAP, MAP),
    Loss(attention_transfer_loss, MAP, WIDE_MAP, {"kind": "l2"}),
    Loss(attention_transfer_loss, MAP, WIDE_MAP, {"kind": "sumsq"}),
    Loss(attention_transfer_loss, MAP, ((3, 8, 6),), {"kind": "l2"}),
    # The student's map is pooled, in windows of unequal width: 3 columns to 2.
    Loss(attention_transfer_loss, MAP, ((3, 2, 2),), {"kind": "sumsq"}),
    Loss(activation_boundary_loss, MAP, MAP, {"margin": 1.0}),
    Loss(vid_loss, MAP, MAP, {"variance": torch.tensor([0.5, 4.0])}),
    Loss(nst_loss, MAP, ((3, 8, 6),)),
    Loss(nst_loss, ((6, 4, 3),), ((5, 2, 3),)),  # more channels than positions
    Loss(hcl_loss, MAP, MAP),
    Loss(hcl_loss, ((2, 7, 8),), ((2, 7, 8),)),  # pooled to 4 x 4, in windows of unequal height
    Loss(ft_loss, MAP, MAP, {"form": "vec"}),
    Loss(ft_loss, MAP, MAP, {"form": "map"}),
    Loss(ft_loss, MAP, ((2, 8, 6),), {"form": "vec"}),
    Loss(ofd_loss, MAP, MAP, {"margin": torch.tensor([-0.8, -0.1])}),
    Loss(simkd_loss, MAP, MAP),
    Loss(srrl_loss, POINTS, POINTS, {"head": torch.randn(3, 5, generator=DRAWS)}),
    Loss(fsp_loss, ((2, 4, 3), (3, 4, 3)), ((2, 3, 5), (3, 3, 5))),
    svd(((2, 4, 3), (5, 3, 2)), ((2, 2, 3), (5, 3, 2)), rank=1, extra=3),
    svd(((4, 3, 2), (3, 4, 1), (5, 3, 2)), ((4, 3, 3), (3, 4, 3), (5, 3, 3)), rank=2, extra=1),
    # more channels than positions
    svd(((6, 2, 2), (7, 2, 2)), ((6, 2, 3), (7, 2, 2)), rank=2, extra=2),
)
RKD = tuple(
    Loss(function, POINTS, WIDE_POINTS, {"reduction": reduction})
    for function in (rkd_distance_loss, rkd_angle_loss)
    for reduction in ("peers", "distinct")
)
SIMILARITIES = (
    *(Loss(sp_loss, MAP, WIDE_MAP, {"reduction": reduction}) for reduction in ("peers", "rows")),
    *(Loss(pkt_loss, POINTS, WIDE_POINTS, {"reduction": r}) for r in ("peers", "rows")),
    Loss(cc_loss, POINTS, WIDE_POINTS, {"form": "kernel"}),
    Loss(cc_loss, POINTS, WIDE_POINTS, {"form": "kernel", "gamma": 0.7, "order": 3}),
)
PRODUCTS_OF_GAPS = tuple(
    Loss(cc_loss, POINTS, POINTS, {"form": form}) for form in ("pairs", "neighbours")
)
CORRELATIONS = tuple(
    Loss(dist_loss, LOGITS, LOGITS, {"temperature": t, "beta": 1.0, "gamma": 0.5})
    for t in (1.0, 4.0)
)
LOSSES = PER_SAMPLE + RKD + SIMILARITIES + PRODUCTS_OF_GAPS + CORRELATIONS


def each(losses: Sequence[Loss]) -> pytest.MarkDecorator:
    """Runs a test for each loss."""
    return pytest.mark.parametrize("loss", losses, ids=lambda loss: loss.name)


each_loss = each(LOSSES)
each_loss_per_sample = each(PER_SAMPLE)
each_rkd_loss = each(RKD)


def of(function: Callable[..., Tensor]) -> tuple[Loss, ...]:
    """The rows of one loss."""
    return tuple(loss for loss in LOSSES if loss.function is function)
