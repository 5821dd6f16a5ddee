"""Neuron selectivity transfer: the student's channels respond to the same patterns of positions."""

import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Stage
from methods._checks import above_zero
from methods._points import DEEPER, STAGE_OUTPUTS, common_stages
from methods._pool import pool_alike
from methods._precision import full_precision, no_autocast
from methods._zero_rows import unit_vectors

SOURCE = """\
Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, \
arXiv 1707.01219, 2017.
Deviations: all stages and weight 50, as in RepDistiller; its larger map is average-pooled to the \
smaller one before channels are normalised; a channel shorter than 1e-8 counts as silent. The \
kernel is never formed for all pairs of channels and positions (RepDistiller: 1 GiB at a batch of \
64); the value is the same."""


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the two sets of channels, under the kernel <u, u'>^2.

    mean_{c,c'} <t_c, t_c'>^2 + mean_{c,c'} <s_c, s_c'>^2 - 2 mean_{c,c'} <s_c, t_c'>^2, where s_c
    and t_c are channels as unit vectors over the P = H W positions, 0 for a silent channel (norm
    below 1e-8). With A = (1 / C) sum_c u_c u_c^T it equals ||A_s - A_t||_F^2: signs, sizes and the
    order of channels do not count. The larger map is average-pooled to the smaller one's size.

    Args:
        student: feature map (B, C, H, W).
        teacher: feature map (B, D, H', W'); any channels and size.

    Returns:
        (B,), without unit, in [0, 2].

    Raises:
        ValueError: not maps, or different batches.

    Source:
        Huang, Wang: Like What You Like, arXiv 1707.01219, with its polynomial kernel, d = 2, c = 0.

    Example:
        >>> student = torch.eye(2).view(1, 2, 1, 2)
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 2, 1, 2)
        >>> nst_loss(student, teacher)                       # 1 + 1/2 - 2 (1/2)
        tensor([0.5000])
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ValueError(
            f"nst_loss: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be "
            "maps (B, C, H, W) of one batch"
        )
    maps = pool_alike(full_precision(student), full_precision(teacher).detach(), "average")
    ours, theirs = (unit_vectors(x.flatten(2))[0] for x in maps)
    with no_autocast(ours):
        # The cheaper of two equal forms: products of positions, or of channels.
        if ours.shape[2] <= max(ours.shape[1], theirs.shape[1]):
            difference = ours.mT @ ours / ours.shape[1] - theirs.mT @ theirs / theirs.shape[1]
            return difference.square().sum(dim=(1, 2))
        across = _mean_kernel(ours, theirs)
        return _mean_kernel(ours, ours) + _mean_kernel(theirs, theirs) - 2 * across


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().mean(dim=(1, 2))


SEARCH = {"weight": [0.5, 5.0, 50.0]}
"""What tuning tries."""


def method(*, weight: float = 50.0) -> Method:
    """L = CE(z_s, y) + weight sum_l L_l, one stage, over all stages of the networks.

    L_l is `nst_loss` of the two maps at the output of stage l.

    Args:
        weight: on the sum over stages, above 0.

    Raises:
        ValueError: a weight out of range.

    Example:
        >>> method().plan[0].taps
        ('stage1', 'stage2', 'stage3')
    """
    above_zero("nst", weight=weight)

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        taps = common_stages(pair.student, pair.teacher)
        return torch.stack([nst_loss(pair.student[tap], pair.teacher[tap]) for tap in taps]).sum(0)

    stage = Stage(
        name="distil",
        share=1.0,
        transfer=transfer,
        taps=STAGE_OUTPUTS,
        optional_taps=DEEPER,
        transfer_weight=weight,
    )
    return Method(category="multi-connection", source=SOURCE, plan=(stage,))
