"""Contrastive representation distillation: an image's two embeddings find each other.

A memory holds each network's embedding of every training image. One network's embedding of an image
is compared with the other network's embeddings of that image and of images of other classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.method import Facts, Method, NotApplicable, Pair, Shapes, Stage
from methods._checks import above_zero, between, same_shape
from methods._precision import full_precision, no_autocast
from methods._projections import Projections

SOURCE = """\
Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020.
Deviations: the negatives of all images of a step come from one random order of the training set, \
the first K of other classes for each, and K is at most the number of images outside the largest \
class; an image with a hidden label is a class of its own; scores are of one product with the \
whole memory."""

EPS = 1e-7
WIDTH = 128  # of the embeddings that are compared
INERTIA = 0.5  # of an entry of the memory at its update


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    drawn: Tensor,
    normalisers: Sequence[Tensor | float] | None = None,
    temperature: float = 0.07,
) -> Tensor:
    """How badly each network's embedding picks its image out of the other network's memory.

    log((x_0 + c + eps) / x_0) + sum_{j >= 1} log((x_j + c + eps) / c), for the student with
    x_j = exp(<teacher_bank[drawn_j], v> / T) / Z_s, c = K / N, eps = 1e-7; plus the same of the
    teacher's embedding with the student's bank and Z_t.

    Args:
        student: v, rows of length 1, (B, D).
        teacher: likewise, (B, D); from a trained layer, so it has a gradient.
        student_bank: (N, D), an entry for each training image. No gradient flows to the banks, and
            they may change before the backward pass.
        teacher_bank: (N, D).
        drawn: (B, K + 1) entries, the image's own first, then its negatives; -1 for none, which K
            does not count. At least one negative each.
        normalisers: Z_s and Z_t; None for N times the mean of the image's own exponentials.
        temperature: T, above 0.

    Returns:
        (B,), in nats.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not above 0.

    Source:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, and its code.

    Example:
        >>> v, drawn = torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 1]])
        >>> bank = torch.eye(2)      # c = 1/2, Z = 2 (e + 1) / 2, x = (e, 1) / (e + 1)
        >>> crd_loss(v, v, bank, bank, drawn, temperature=1.0)
        tensor([1.9031])
    """
    same_shape("crd_loss", student, teacher)
    same_shape("crd_loss, banks", student_bank, teacher_bank)
    if student.dim() != 2 or drawn.dim() != 2 or len(drawn) != len(student):
        raise ValueError(
            f"crd_loss: embeddings {tuple(student.shape)} and drawn {tuple(drawn.shape)} must be "
            "(B, D) and (B, K + 1)"
        )
    above_zero("crd_loss", temperature=temperature)
    images = len(student_bank)
    scores = _exponentials((student, teacher), (teacher_bank, student_bank), drawn, temperature)
    if normalisers is None:
        normalisers = _means(scores, drawn, images)
    return _contrast(scores, normalisers, drawn, images)


def _exponentials(
    points: Sequence[Tensor], banks: Sequence[Tensor], drawn: Tensor, temperature: float
) -> list[Tensor]:
    """exp(<entry, point> / T) of the drawn entries, (B, K + 1), from either side; 0 for none."""
    scores = []
    for point, bank in zip(points, banks, strict=True):
        with no_autocast(point):
            # One product instead of B (K + 1) gathered entries, with a copy of the bank, because
            # the bank may change before the backward pass.
            products = full_precision(point) @ bank.clone().mT
        chosen = products.gather(1, drawn.clamp(min=0)) / temperature
        scores.append(chosen.masked_fill(drawn < 0, -torch.inf).exp())
    return scores


def _means(scores: Sequence[Tensor], drawn: Tensor, images: int) -> list[Tensor]:
    """N times the mean of each image's exponentials, (B, 1), for either side."""
    count = (drawn >= 0).sum(dim=1, keepdim=True)
    return [score.detach().sum(dim=1, keepdim=True) / count * images for score in scores]


def _contrast(
    scores: Sequence[Tensor], normalisers: Sequence[Tensor | float], drawn: Tensor, images: int
) -> Tensor:
    absent = drawn[:, 1:] < 0
    noise = (~absent).sum(dim=1, keepdim=True).to(scores[0].dtype) / images  # c
    sides = []
    for score, normaliser in zip(scores, normalisers, strict=True):
        x = score / normaliser
        own = ((noise + EPS) / x[:, 0:1]).log1p()
        others = ((x[:, 1:] + EPS) / noise).log1p().masked_fill(absent, 0)
        sides.append(own[:, 0] + others.sum(dim=1))
    return torch.stack(sides).sum(dim=0)


class Memory(nn.Module):
    """Both networks' layers and their embeddings of all training images; gives the loss.

    Attributes:
        student_bank: (N, 128); training moves an image's entry half-way to its embedding.
        teacher_bank: likewise.
        normalisers: Z_s and Z_t, (2,), of the first batch in training; 0 before it.
        classes: (N,), one of its own for an image with a hidden label.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    normalisers: Tensor
    classes: Tensor

    def __init__(self, student: int, teacher: int, facts: Facts, negatives: int) -> None:
        """Sizes of both embeddings, and the K wanted; NotApplicable for images of one class."""
        super().__init__()
        self.projections = Projections(student, teacher, WIDTH)
        for name in ("student_bank", "teacher_bank"):
            bank = torch.empty(facts.images, WIDTH).uniform_(-1, 1) / math.sqrt(WIDTH / 3)
            self.register_buffer(name, bank)
        self.register_buffer("normalisers", torch.zeros(2))
        own = facts.classes + torch.arange(facts.images, device=facts.labels.device)
        self.register_buffer("classes", torch.where(facts.labels < 0, own, facts.labels))
        sizes = self.classes.new_zeros(facts.classes + facts.images)
        sizes.index_add_(0, self.classes, torch.ones_like(self.classes))
        self.largest = int(sizes.max())
        self.negatives = min(negatives, facts.images - self.largest)
        if self.negatives == 0:
            raise NotApplicable("all training images are of one class: none is a negative")

    def forward(
        self, student: Tensor, teacher: Tensor, index: Tensor, temperature: float
    ) -> Tensor:
        """The loss of both networks' embeddings of the images at `index`, (B,)."""
        points = [normalize(x, dim=1, eps=1e-12) for x in self.projections(student, teacher)]
        drawn, images = self.draw(index), len(self.classes)
        scores = _exponentials(points, (self.teacher_bank, self.student_bank), drawn, temperature)
        normalisers = self._kept_normalisers(_means(scores, drawn, images))
        if self.training:
            self._update(index, points)
        return _contrast(scores, normalisers, drawn, images)

    def draw(self, index: Tensor) -> Tensor:
        """The images' own entries and those of their negatives, (B, K + 1); see `crd_loss`.

        In evaluation the negatives are all images of other classes.
        """
        own, images = self.classes[index][:, None], len(self.classes)
        if not self.training:
            everyone = torch.arange(images, device=index.device)
            return torch.cat([index[:, None], everyone.where(self.classes != own, -1)], dim=1)
        # Among the first of a random order, K are of other classes than any image.
        order = torch.randperm(images, device=index.device)[: self.negatives + self.largest]
        other = self.classes[order] != own
        place, spare = other.cumsum(dim=1), self.negatives + 1
        place = place.where(other & (place < spare), spare)
        drawn = index.new_empty(len(index), spare + 1)
        drawn.scatter_(1, place, order.expand_as(place))
        drawn[:, 0] = index
        return drawn[:, :spare]

    def _kept_normalisers(self, means: Sequence[Tensor]) -> list[Tensor]:
        """Z_s and Z_t as kept from the first batch in training; before it, the image's own."""
        kept = self.normalisers
        if self.training:
            # No branch on a value, which would wait for the device.
            kept.copy_(kept.where(kept > 0, torch.stack([mean.mean() for mean in means])))
        return [z.where(z > 0, mean) for z, mean in zip(kept, means, strict=True)]

    @torch.no_grad()
    def _update(self, index: Tensor, points: Sequence[Tensor]) -> None:
        for bank, point in zip((self.student_bank, self.teacher_bank), points, strict=True):
            moved = INERTIA * bank[index] + (1 - INERTIA) * point
            bank.index_copy_(0, index, normalize(moved, dim=1, eps=1e-12))


SEARCH = {"weight": [0.008, 0.08, 0.8]}
"""What tuning tries."""


def method(*, weight: float = 0.8, temperature: float = 0.07, negatives: int = 16384) -> Method:
    """L = CE(z_s, y) + weight * `crd_loss` of the embeddings, one stage.

    A linear layer to 128 numbers is trained on each side.

    Args:
        weight: of `crd_loss`, above 0.
        temperature: T, above 0.02; exp(1 / T) has to stay far within float32.
        negatives: K, at least 1; at most the number of images outside the largest class is used.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> stage = method().plan[0]
        >>> stage.taps, stage.transfer_weight
        (('embedding',), 0.8)
    """
    above_zero("crd", weight=weight, negatives=negatives)
    between("crd", 0.02, math.inf, temperature=temperature)

    def connect(student: Shapes, teacher: Shapes, facts: Facts) -> Memory:
        return Memory(student["embedding"][0], teacher["embedding"][0], facts, negatives)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        student, teacher = pair.student["embedding"], pair.teacher["embedding"]
        return connector(student, teacher, pair.index, temperature)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=("embedding",),
        transfer_weight=weight,
    )
    return Method(category="shared-representation", source=SOURCE, plan=(stage,), connect=connect)
