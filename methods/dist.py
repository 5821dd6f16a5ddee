"""DIST: class probabilities correlate with the teacher's, over classes and over samples."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.linalg import vector_norm

from bench.method import MaskedLoss, Method, Pair, Stage
from methods._checks import above_zero, same_shape, weights

SOURCE = """\
Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022 \
(arXiv 2205.10536).
Deviations: a correlation with a row or column of equal probabilities is 0 without gradient, where \
the authors' code divides by 1e-8; a single sample has no correlation within classes. The authors' \
code for segmentation leaves out temperature and T^2."""

EPS = 1e-8
CONSTANT = 1e-12  # squared spread, as a share of the squared length


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    beta: float,
    gamma: float,
    *,
    eps: float = EPS,
) -> Tensor:
    """How far class probabilities are from a perfect correlation with the teacher's.

    T^2 (beta (1 - mean_b r(P_b, Q_b)) + gamma (1 - mean_k r(P_k, Q_k))), with P = softmax(student
    / T) and Q = softmax(teacher / T): over the rows (samples), and over the columns (classes) of
    the batch. r(u, v) = <u - mean u, v - mean v> / (|u - mean u| |v - mean v| + eps) is Pearson's.
    Where |u - mean u|^2 <= 1e-12 |u|^2 in either network, r and its gradient are 0. Equal logits
    leave a loss of the order of eps over the squared spread.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).
        temperature: T, above 0.
        beta: weight on the correlations of samples.
        gamma: weight on the correlations of classes; read for B > 1.
        eps: see above. A class with a product of spreads below it counts as uncorrelated.

    Returns:
        (), without unit, in [0, 2 T^2 (beta + gamma)].

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Source:
        Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022;
        T^2 and eps are those of their code.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 1]])
        >>> teacher = torch.tensor([[2.0, 0, 0], [0, 1, 1], [0, 0, 3]])
        >>> dist_loss(student, teacher, 4.0, 1.0, 1.0)
        tensor(4.2880)
    """
    return _masked_dist_loss(student_logits, teacher_logits, temperature, beta, gamma, eps).loss


def _masked_dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    beta: float,
    gamma: float,
    eps: float,
) -> MaskedLoss:
    ours, theirs = _probabilities(student_logits, teacher_logits, temperature)
    by_sample, constant = _correlations(ours, theirs, eps)
    loss = beta * (1 - by_sample.mean())
    if len(ours) > 1:
        by_class, _ = _correlations(ours.mT, theirs.mT, eps)
        loss = loss + gamma * (1 - by_class.mean())
    return MaskedLoss(temperature**2 * loss, constant)


def _probabilities(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    same_shape("dist_loss", student_logits, teacher_logits)
    above_zero("dist_loss", temperature=temperature)
    ours, theirs = ((x / temperature).softmax(1) for x in (student_logits, teacher_logits))
    return ours, theirs


def _correlations(student: Tensor, teacher: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Pearson's r of each pair of rows, and where one of them is constant; (N,) each."""
    constant = _constant(student) | _constant(teacher)
    ours, theirs = (_centred(x).masked_fill(constant[:, None], 0.0) for x in (student, teacher))
    spreads = vector_norm(ours, dim=1) * vector_norm(theirs, dim=1)
    return (ours * theirs).sum(1) / (spreads + eps), constant


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _constant(rows: Tensor) -> Tensor:
    return _centred(rows).square().sum(1) <= CONSTANT * rows.square().sum(1)


SEARCH = {"weight": [0.02, 0.2, 2.0], "temperature": [1.0, 4.0]}
"""What tuning tries."""


def method(
    *, weight: float = 2.0, temperature: float = 4.0, beta: float = 1.0, gamma: float = 1.0
) -> Method:
    """L = CE(z_s, y) + weight * `dist_loss`, one stage.

    The curve `classes_near_eps` is the share of classes with a product of spreads below 100 eps:
    eps takes more than a hundredth of their correlation.

    Args:
        weight: weight on both terms, above 0; T^2 = 16 comes on top.
        temperature: T, above 0; CE is at T = 1.
        beta: weight on the correlations of samples, at least 0.
        gamma: weight on the correlations of classes, at least 0.

    Raises:
        ValueError: a temperature or weight out of range, or beta and gamma both 0.

    Example:
        >>> method(weight=0.2).plan[0].transfer_weight
        0.2
    """
    above_zero("dist", weight=weight, temperature=temperature)
    weights("dist", beta=beta, gamma=gamma)

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        logits = pair.student.logits, pair.teacher.logits
        return _masked_dist_loss(*logits, temperature, beta, gamma, EPS)

    def watch(pair: Pair, connector: nn.Module) -> Mapping[str, Tensor]:
        logits = pair.student.logits, pair.teacher.logits
        ours, theirs = (_centred(x.mT) for x in _probabilities(*logits, temperature))
        spreads = vector_norm(ours, dim=1) * vector_norm(theirs, dim=1)
        return {"classes_near_eps": (spreads < 100 * EPS).float().mean()}

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("logits",),
        transfer_weight=weight,
        watch=watch,
    )
    return Method(category="response", source=SOURCE, plan=(stage,))
