"""Factor transfer: the student's translated map points where its teacher's paraphrased one does."""

from itertools import pairwise
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.method import MaskedLoss, Method, Pair, Shapes, Stage
from methods._checks import above_zero, between, one_of, same_shape
from methods._connector import channels
from methods._points import DEEPER, STAGE_OUTPUTS, deepest_map
from methods._pool import pool_alike
from methods._precision import full_precision
from methods._zero_rows import unit_vectors

SOURCE = """\
Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, \
NeurIPS 2018 (arXiv 1802.04977).
Deviations, from the authors' code: the paraphraser trains for a ninth of the epochs (30 of 270, \
as in RepDistiller; theirs: 5 epochs), at the recipe's learning rate; the larger factor is \
average-pooled; a sample has loss 0 if a factor is shorter than 1e-8. RepDistiller differs: \
attention maps of the factors (form="map", weight=200), a squared reconstruction error \
(reconstruct="mse") and BatchNorm in the translator."""

Form = Literal["vec", "map"]
Error = Literal["l1", "mse"]


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, form: Form = "vec") -> Tensor:
    """Mean absolute difference of the directions of two factors.

    mean |q_s - q_t|. "vec": q = vec(F) / ||F||, (k H W). "map": q = m / ||m|| with m the mean over
    channels of F^2, (H W). The larger factor is average-pooled to the smaller one's size first. A
    sample has loss 0 if the norm of either factor is below 1e-8: it has no direction.

    Args:
        student_factor: F_s, (B, k, H, W).
        teacher_factor: F_t, (B, k, H', W').
        form: "vec" as in the authors' code, or "map" as in RepDistiller.

    Returns:
        (B,), without unit.

    Raises:
        ValueError: not maps, different batches or channels, or an unknown form.

    Source:
        Kim et al.: Paraphrasing Complex Network, NeurIPS 2018, with p = 1.

    Example:
        >>> student = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(1, 2, 1, 2)
        >>> teacher = torch.tensor([[0.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
        >>> ft_loss(student, teacher)                        # (.6 + .8 + 0 + 1) / 4
        tensor([0.6000])
    """
    return masked_ft_loss(student_factor, teacher_factor, form).loss


def masked_ft_loss(
    student_factor: Tensor, teacher_factor: Tensor, form: Form = "vec"
) -> MaskedLoss:
    """`ft_loss`, and which samples have a factor without a direction."""
    one_of("ft_loss", "form", form, get_args(Form))
    if student_factor.dim() != 4 or teacher_factor.dim() != 4:
        raise ValueError(
            f"ft_loss: student {tuple(student_factor.shape)} and teacher "
            f"{tuple(teacher_factor.shape)} must be maps (B, k, H, W)"
        )
    factors = full_precision(student_factor), full_precision(teacher_factor).detach()
    student, teacher = pool_alike(*factors, "average")
    same_shape("ft_loss", student, teacher)
    ours, our_short = _direction(student, form)
    theirs, their_short = _direction(teacher, form)
    short = our_short | their_short
    return MaskedLoss(torch.where(short, 0.0, (ours - theirs).abs().mean(dim=1)), short)


def _direction(factor: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """(B, k H W) or (B, H W) of length 1, and (B,) whether it is undefined."""
    unit, short = unit_vectors(factor.flatten(1))
    if form == "map":
        unit = normalize(unit.view_as(factor).square().mean(dim=1).flatten(1), dim=1)
    return unit, short


class Factors(nn.Module):
    """Paraphraser (encoder and decoder of the teacher's map) and translator of the student's."""

    def __init__(self, student: int, teacher: int, factor: int) -> None:
        """Channels of the student's map, of the teacher's, and of both factors."""
        super().__init__()
        self.encoder = _layers(nn.Conv2d, teacher, teacher, factor, factor)
        self.decoder = _layers(nn.ConvTranspose2d, factor, factor, teacher, teacher)
        self.translator = _layers(nn.Conv2d, student, student, factor, factor)


def _layers(kind: type[nn.Conv2d | nn.ConvTranspose2d], *widths: int) -> nn.Sequential:
    # Leaky, so that factors keep their signs.
    layers = ((kind(*pair, 3, padding=1), nn.LeakyReLU(0.1)) for pair in pairwise(widths))
    return nn.Sequential(*(layer for both in layers for layer in both))


SEARCH = {"weight": [5.0, 50.0, 500.0], "init_lr_factor": [0.1, 1.0]}
"""What tuning tries."""


def method(
    *,
    form: Form = "vec",
    weight: float = 500.0,
    rate: float = 0.5,
    reconstruct: Error = "l1",
    init_share: float = 1 / 9,
    init_lr_factor: float = 1.0,
) -> Method:
    """Stage "paraphrase": an autoencoder of the teacher's deepest map; then L = CE + weight L_FT.

    The first stage lowers mean |t - decoder(encoder(t))| and does not run the student. The second
    one, "distil", has L_FT = `ft_loss` of F_s = translator(s) and F_t = encoder(t), s and t the
    deepest maps, and trains the student and the translator; the encoder stays.

    Args:
        form: see `ft_loss`.
        weight: of L_FT, above 0; RepDistiller has 200 with form="map".
        rate: channels of the factors as a part of the teacher's, above 0; at least one channel.
        reconstruct: error of the first stage, "l1" (absolute) or "mse" (squared).
        init_share: part of the epochs for the first stage, in (0, 1).
        init_lr_factor: the first stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> [(stage.name, stage.student, stage.task_weight) for stage in method().plan]
        [('paraphrase', False, 0.0), ('distil', True, 1.0)]
    """
    one_of("ft", "form", form, get_args(Form))
    one_of("ft", "reconstruct", reconstruct, get_args(Error))
    above_zero("ft", weight=weight, rate=rate)
    between("ft", 0, 1, init_share=init_share)

    def reconstruction(pair: Pair, connector: nn.Module) -> Tensor:
        factors, feature = cast(Factors, connector), pair.teacher[deepest_map(pair.teacher)]
        error = feature - factors.decoder(factors.encoder(feature))
        return (error.abs() if reconstruct == "l1" else error.square()).flatten(1).mean(dim=1)

    def transfer(pair: Pair, connector: nn.Module) -> MaskedLoss:
        factors, tap = cast(Factors, connector), deepest_map(pair.student, pair.teacher)
        with torch.no_grad():  # without a gradient, the paraphraser neither moves nor decays
            factor = factors.encoder(pair.teacher[tap])
        return masked_ft_loss(factors.translator(pair.student[tap]), factor, form)

    def connect(student: Shapes, teacher: Shapes) -> Factors:
        tap = deepest_map(student, teacher)
        here, there = channels(student[tap], teacher[tap])
        return Factors(here, there, max(1, round(rate * there)))

    deepest = {"taps": STAGE_OUTPUTS[-1:], "optional_taps": DEEPER}
    paraphrase = Stage(
        name="paraphrase",
        share=init_share,
        transfer=reconstruction,
        task_weight=0.0,
        trains=frozenset({"connector"}),
        student=False,
        lr_factor=init_lr_factor,
        **deepest,
    )
    distil = Stage(
        name="distil",
        share=1 - init_share,
        transfer=transfer,
        transfer_weight=weight,
        **deepest,
    )
    return Method(
        category="multi-connection", source=SOURCE, plan=(paraphrase, distil), connect=connect
    )
