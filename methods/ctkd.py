"""Curriculum temperature: soft targets at a temperature that is trained against the student."""

import math

import torch
from torch import Tensor, nn

from bench.method import Facts, Method, Pair, Shapes, Stage
from methods._checks import above_zero, between, same_shape
from methods._soft_targets import soft_target_divergence

SOURCE = """\
Li, Li, Yang, Zhao, Song, Luo, Li, Yang: Curriculum Temperature for Knowledge Distillation, AAAI \
2023 (arXiv 2211.16231), with one temperature for all images.
Deviations: an epoch is counted as N images seen, so that it ends late where the last batch is \
left out."""

LOWEST, RANGE = 1.0, 20.0
FIRST = 1.0
"""The first value of the trained scalar: T = 15.6."""


def ctkd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor) -> Tensor:
    """The loss of `soft_logits`, with a gradient for the temperature.

    T^2 sum_k q_k (log q_k - log p_k), with q = softmax(teacher / T) and p = softmax(student / T).

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T, (), above 0.

    Returns:
        (B,), in nats times T^2, with a gradient for T.

    Raises:
        ValueError: the shapes differ.

    Source:
        Li et al.: Curriculum Temperature for Knowledge Distillation, AAAI 2023.

    Example:
        >>> teacher = torch.tensor([[2 * math.log(3), 0.0]])   # q = (3/4, 1/4) at T = 2
        >>> ctkd_loss(torch.zeros(1, 2), teacher, torch.tensor(2.0))
        tensor([0.5232])
    """
    same_shape("ctkd_loss", student_logits, teacher_logits)
    temperature = temperature.to(student_logits.dtype)
    student = _divided(student_logits, temperature)
    teacher = _divided(teacher_logits.detach(), temperature)
    return temperature.square() * soft_target_divergence(student, teacher, 1.0)


def _divided(logits: Tensor, temperature: Tensor) -> Tensor:
    # The slope of -inf / T would be infinite, and 0 times that is NaN.
    ruled_out = logits == -torch.inf
    return (logits.masked_fill(ruled_out, 0.0) / temperature).masked_fill(ruled_out, -torch.inf)


class Temperature(nn.Module):
    """T = 1 + 20 sigmoid(a), a trained; its gradient is reversed over the first epochs."""

    def __init__(self, images: int, ramp_epochs: int) -> None:
        """`images` is N, and the ramp is as in `method`."""
        super().__init__()
        self.images, self.ramp_epochs = images, ramp_epochs
        self.raw = nn.Parameter(torch.tensor(FIRST))
        self.seen = nn.Buffer(torch.zeros((), dtype=torch.int64))

    @property
    def value(self) -> Tensor:
        """T, ()."""
        return LOWEST + RANGE * self.raw.sigmoid()

    @property
    def factor(self) -> Tensor:
        """lambda(e), (), on the gradient: 0 before the first epoch, -1 from the ramp's end on."""
        epoch = ((self.seen + self.images - 1) // self.images).clamp(max=self.ramp_epochs)
        return ((math.pi * epoch / self.ramp_epochs).cos() - 1) / 2

    def forward(self, batch: int) -> Tensor:
        """T for a batch of this size, with the gradient times lambda."""
        if self.training:
            self.seen += batch
        value = self.value
        return value.detach() + self.factor * (value - value.detach())


SEARCH = {"rho": [0.5, 0.7, 0.9], "ramp_epochs": [10, 40]}
"""What tuning tries."""


def method(*, rho: float = 0.9, ramp_epochs: int = 10) -> Method:
    """L = (1 - rho) CE(z_s, y) + rho T^2 KL(softmax(z_t / T) || softmax(z_s / T)), one stage.

    T = 1 + 20 sigmoid(a) is trained with the student, with its gradient times lambda(e) =
    (cos(pi min(e, E) / E) - 1) / 2 in epoch e, counted from 1, over a ramp of E epochs: it ends up
    climbing the loss that the student descends. The curve "temperature" shows T.

    Args:
        rho: weight on the soft targets, in (0, 1).
        ramp_epochs: E, at least 1.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> stage = method().plan[0]
        >>> round(stage.task_weight, 2), stage.transfer_weight
        (0.1, 0.9)
    """
    between("ctkd", 0, 1, rho=rho)
    above_zero("ctkd", ramp_epochs=ramp_epochs)

    def connect(student: Shapes, teacher: Shapes, facts: Facts) -> Temperature:
        return Temperature(facts.images, ramp_epochs)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        student, teacher = pair.student.logits, pair.teacher.logits
        return ctkd_loss(student, teacher, connector(len(student)))

    def watch(pair: Pair, connector: nn.Module) -> dict[str, Tensor]:
        assert isinstance(connector, Temperature)
        return {"temperature": connector.value}

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("logits",),
        task_weight=1 - rho,
        transfer_weight=rho,
        watch=watch,
    )
    return Method(category="response", source=SOURCE, plan=(stage,), connect=connect)
