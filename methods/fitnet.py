"""FitNet: the student's middle layers learn to predict the teacher's."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.method import Method, Pair, Shapes, Stage
from methods._blocks import blocks_of_samples, samples_per_block
from methods._checks import between, one_of, same_shape
from methods._connector import Connectors, Kind, Relu, connect_points
from methods._points import STAGE_OUTPUTS, sensing_points
from methods._precision import full_precision
from methods._two_stages import BELOW_HEAD, finetune

SOURCE = """\
Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets, ICLR 2015.
Deviations: hints at several points (the paper's one pair: points="paper"); the loss divided by \
the hint's size (the paper's: scale="sum"); BatchNorm after the regressor's convolution; strided \
and transposed regressors where sizes differ by a factor of two; lambda falls linearly from 4 to 1 \
over exactly the second stage."""

Scale = Literal["mean", "sum"]
POINTS = {"all": STAGE_OUTPUTS, "paper": ("stage2",)}


def hint_loss(student_feature: Tensor, teacher_feature: Tensor, scale: Scale = "mean") -> Tensor:
    """Half the squared distance of the regressed guided layer to the hint layer.

    1/2 ||u - r||^2 / (C H W), with u the hint and r the student's feature after its regressor.

    Args:
        student_feature: r, (B, C, H, W), in the teacher's shape already.
        teacher_feature: u, (B, C, H, W).
        scale: "mean" as above; "sum" leaves out the division by C H W, as the paper does.

    Returns:
        (B,), in the features' units squared.

    Raises:
        ValueError: the shapes differ, or an unknown scale.

    Source:
        Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, eq. 3.

    Example:
        >>> import torch
        >>> student = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
        >>> teacher = torch.tensor([0.0, 2.0, 5.0, 4.0]).view(1, 1, 2, 2)
        >>> hint_loss(student, teacher)                      # squared distance 5, four elements
        tensor([0.6250])
    """
    same_shape("hint_loss", student_feature, teacher_feature)
    one_of("hint_loss", "scale", scale, get_args(Scale))
    student_feature, teacher_feature = map(full_precision, (student_feature, teacher_feature))
    half = _HalfSquaredDistance.apply(student_feature, teacher_feature.detach())
    return half / student_feature[:1].numel() if scale == "mean" else half


class _HalfSquaredDistance(torch.autograd.Function):
    """1/2 ||s - t||^2 of each sample, (B,), a few samples at a time; only s and t are saved.

    The backward pass subtracts again, which costs less than storing the difference.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor) -> Tensor:
        half = student.new_empty(len(student))
        space = torch.empty_like(student[: samples_per_block(student)])
        per_sample = tuple(range(1, student.dim()))  # flattening would copy a channels-last map
        for block in blocks_of_samples(student):
            part = student[block]
            squares = torch.sub(part, teacher[block], out=space[: len(part)]).square_()
            torch.sum(squares, dim=per_sample, out=half[block])
        ctx.save_for_backward(student, teacher)
        return half.mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        student, teacher = ctx.saved_tensors
        slope = torch.empty_like(student)
        each = grad.view(-1, *[1] * (student.dim() - 1))
        for block in blocks_of_samples(student):
            torch.sub(student[block], teacher[block], out=slope[block]).mul_(each[block])
        return slope, None


SEARCH = {"init_lr_factor": [0.1, 0.3, 1.0], "init_share": [0.1, 0.3], "temperature": [3.0, 5.0]}
"""What tuning tries."""
READ_WHEN = {"temperature": {"stage2": "ce+kd"}}
"""A hyper-parameter -> the settings under which it has an effect."""


def method(
    *,
    points: Literal["all", "paper"] | list[str] = "all",
    regressor: Kind = "auto",
    regressor_relu: Relu = "auto",
    scale: Scale = "mean",
    stage2: Literal["ce+kd", "ce"] = "ce+kd",
    temperature: float = 3.0,
    init_share: float = 0.3,
    init_lr_factor: float = 1.0,
) -> Method:
    """Stage "hint": sum over points of the hint loss, without labels; then stage "finetune".

    L_hint = sum_l 1/2 ||u_l - r_l(v_l)||^2 / (C H W), v_l the student's guided layer, r_l its
    regressor, u_l the teacher's hint layer. The stage trains the student up to the deepest point,
    and the regressors; the head and the layers above do not move. Then L = CE + lambda KD_T,
    lambda from 4 to 1, without T^2.

    Args:
        points: "all" three stage outputs; "paper": the middle one; or a list of taps.
        regressor: "auto" is the identity where the shapes are equal; "conv" is a layer even there.
        regressor_relu: whether it ends in ReLU; "auto": where the hint lies after a ReLU. Give
            False for teachers with linear bottlenecks (MobileNetV2), which "auto" cannot detect.
        scale: "mean" over the hint's elements, or the paper's "sum".
        stage2: "ce+kd", or "ce" for labels alone.
        temperature: T of the second stage's KD, above 0.
        init_share: part of the epochs for the hint stage, in (0, 1).
        init_lr_factor: the hint stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> [(stage.name, stage.share, stage.task_weight) for stage in method().plan]
        [('hint', 0.3, 0.0), ('finetune', 0.7, 1.0)]
    """
    taps = sensing_points("fitnet", points, POINTS)
    one_of("fitnet", "regressor", regressor, get_args(Kind))
    one_of("fitnet", "scale", scale, get_args(Scale))
    between("fitnet", 0, 1, init_share=init_share)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        return torch.stack(
            [hint_loss(connector(tap, pair.student[tap]), pair.teacher[tap], scale) for tap in taps]
        ).sum(dim=0)

    def connect(student: Shapes, teacher: Shapes) -> Connectors:
        return connect_points(taps, student, teacher, relu=regressor_relu, kind=regressor)

    hint = Stage(
        name="hint",
        share=init_share,
        transfer=transfer,
        taps=taps,
        task_weight=0.0,
        trains=BELOW_HEAD,
        lr_factor=init_lr_factor,
    )
    second = finetune(stage2, share=1 - init_share, temperature=temperature)
    return Method(category="multi-connection", source=SOURCE, plan=(hint, second), connect=connect)
