"""SRRL: the student's embedding should match its teacher's, as the teacher's classifier sees it."""

from torch import Tensor, nn

from bench.method import Facts, Method, NotApplicable, Pair, Shapes, Stage
from methods._checks import above_zero, same_shape
from methods._connector import channels
from methods._points import DEEPER, deepest_map
from methods._precision import full_precision, no_autocast

SOURCE = """\
Yang, Martinez, Bulat, Tzimiropoulos: Knowledge Distillation via Softmax Regression \
Representation Learning, ICLR 2021.
Deviations: the student's map is the output of its last stage, also where a convolution follows \
(MobileNetV2, ShuffleNetV2); the teacher's side is its embedding, whatever it pools."""


def srrl_loss(student: Tensor, teacher: Tensor, head: Tensor, logit_weight: float = 1.0) -> Tensor:
    """Distance of two embeddings, and of the logits that the teacher's classifier gives for them.

    (1 / D) ||s - t||^2 + (logit_weight / K) ||W (s - t)||^2; the classifier's bias cancels.

    Args:
        student: s, in the teacher's space, (B, D).
        teacher: t, (B, D).
        head: W, (K, D).
        logit_weight: on the logits' term.

    Returns:
        (B,).

    Raises:
        ValueError: the shapes differ, or the classifier is of another width.

    Source:
        Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning, ICLR
        2021.

    Example:
        >>> import torch
        >>> student, head = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> srrl_loss(student, torch.zeros(1, 2), head)     # (1 + 4) / 2 + (4 + 4) / 2
        tensor([6.5000])
    """
    same_shape("srrl_loss", student, teacher)
    if head.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"srrl_loss: head {tuple(head.shape)}, wanted (K, {student.shape[1]}) for embeddings "
            f"{tuple(student.shape)}"
        )
    gaps = full_precision(student) - full_precision(teacher).detach()
    with no_autocast(gaps):
        logits = gaps @ head.to(gaps.dtype).T
    return gaps.square().mean(dim=1) + logit_weight * logits.square().mean(dim=1)


class Representation(nn.Module):
    """The mean over positions of a 1x1 convolution with BatchNorm and ReLU; W as a buffer."""

    def __init__(self, width: int, head: Tensor) -> None:
        """`width`: the student's channels; `head`: W, (K, D)."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, head.shape[1], 1, bias=False), nn.BatchNorm2d(head.shape[1]), nn.ReLU()
        )
        self.head = nn.Buffer(head.clone())

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """The student's map (B, C, H, W) as an embedding (B, D), and W."""
        return self.layers(student).mean(dim=(2, 3)), self.head


def connect(student: Shapes, teacher: Shapes, facts: Facts) -> Representation:
    """The layer that gives the student's embedding, and the teacher's linear classifier."""
    if facts.head is None:
        raise NotApplicable("the teacher's classifier is not linear, so it cannot be applied")
    tap = deepest_map(student, teacher)
    width, _ = channels(student[tap], teacher[tap])
    return Representation(width, facts.head[0])


SEARCH = {"weight": [0.01, 0.1, 1.0], "logit_weight": [1.0, 5.0]}
"""What tuning tries."""


def method(*, weight: float = 1.0, logit_weight: float = 1.0) -> Method:
    """L = CE(z_s, y) + weight [mean_d (h - e_t)^2 + logit_weight mean_k (W h + b - z_t)^2].

    e_t and z_t = W e_t + b are the teacher's embedding and logits, and h the mean over positions of
    ReLU(BN(conv(f_s))), f_s the student's last map. The convolution is trained with the student,
    which keeps its own head; W and b are the teacher's and do not move. One stage.

    Args:
        weight: on the sum of both, above 0.
        logit_weight: on the difference of the logits in that sum, above 0.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> method().plan[0].taps
        ('stage3', 'embedding')
    """
    above_zero("srrl", weight=weight, logit_weight=logit_weight)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        student, head = connector(pair.student[deepest_map(pair.student, pair.teacher)])
        return srrl_loss(student, pair.teacher["embedding"], head, logit_weight)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("stage3", "embedding"),
        optional_taps=DEEPER,
        transfer_weight=weight,
    )
    return Method(category="multi-connection", source=SOURCE, plan=(stage,), connect=connect)
