"""What a loss must not notice, and what it must."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from loss_table import LOSSES, PRODUCTS_OF_GAPS, Loss, drawn, of
from torch import Tensor

from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.cc import cc_loss
from methods.dist import dist_loss
from methods.dkd import dkd_loss
from methods.fsp import fsp_loss
from methods.kd_svd import kd_svd_loss
from methods.nkd import nkd_loss
from methods.pkt import pkt_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.soft_logits import soft_logits_loss
from methods.sp import sp_loss
from methods.wttm import wttm_loss

Change = Callable[[Tensor], Tensor]


def mixed(rows: Tensor) -> Tensor:
    """By an orthogonal matrix."""
    size = rows.shape[-1]
    return rows @ torch.linalg.qr(drawn(size, size, seed=0))[0]


def permuted(tensor: Tensor, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return tensor.index_select(dim, torch.randperm(tensor.shape[dim], generator=generator))


def moved_positions(feature: Tensor) -> Tensor:
    return permuted(feature.flatten(2), 2).view_as(feature)


def scaled_per_sample(x: Tensor) -> Tensor:
    return (x.flatten(1) * torch.logspace(-2, 2, len(x), dtype=x.dtype)[:, None]).view_as(x)


CHANGES: dict[str, Change] = {
    "channels reordered": lambda x: permuted(x, 1),
    "channels mixed": lambda x: mixed(x.movedim(1, -1)).movedim(-1, 1),
    "positions moved": moved_positions,
    "positions mixed": lambda x: mixed(x.flatten(2)).view_as(x),
    "mixed": lambda x: mixed(x.flatten(1)).view_as(x),
    "reflected": lambda x: torch.cat([-x[:, :1], x[:, 1:]], dim=1),
    "translated": lambda x: x + 10 * drawn(x.shape[1], seed=8),
    "scaled": lambda x: x * 37,
    "scaled per sample": scaled_per_sample,
    "shifted per sample": lambda x: x + 7 * drawn(len(x), 1, seed=2),
    "signs flipped": lambda x: x * drawn(*x.shape, seed=9).sign(),
    "negated": torch.neg,
}


def each_change(changes: Mapping[Callable[..., Tensor], Sequence[str]]):
    """Runs a test for every change of every loss; products of gaps ignore none."""
    cases = [
        pytest.param(loss, CHANGES[change], id=f"{loss.name}, {change}")
        for loss in LOSSES
        for change in changes.get(loss.function, ())
        if loss not in PRODUCTS_OF_GAPS
    ]
    return pytest.mark.parametrize(("loss", "change"), cases)


def assert_same(loss: Loss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """The loss of these tensors is that of `loss.inputs(5)`."""
    reference = loss.compute(*loss.inputs(5))
    assert reference.abs().min() > 1e-9, "a loss of zero is invariant to everything"
    value = loss.compute(student, teacher)
    # The eps of pkt is a share of the length.
    rtol = 1e-4 if loss.function is pkt_loss else max(loss.rtol, 1e-11)
    torch.testing.assert_close(value, reference, rtol=rtol, atol=1e-14)


SHIFTED = ("shifted per sample",)
OF_CHANNELS = ("channels reordered", "channels mixed", "signs flipped", "scaled per sample")
RIGID_OR_SCALE = ("mixed", "reflected", "translated", "scaled")


@each_change(
    {
        **dict.fromkeys((soft_logits_loss, dkd_loss, dist_loss, nkd_loss, wttm_loss), SHIFTED),
        attention_transfer_loss: OF_CHANNELS,
        kd_svd_loss: ("negated", "scaled per sample", "positions moved", "positions mixed"),
        sp_loss: ("scaled", "mixed"),
        pkt_loss: ("scaled per sample", "mixed"),
        cc_loss: ("scaled per sample", "mixed"),
        rkd_distance_loss: RIGID_OR_SCALE,
        rkd_angle_loss: RIGID_OR_SCALE,
    }
)
def test_ignores_a_change_of_any_single_tensor(loss: Loss, change: Change):
    inputs = loss.inputs(5)
    for network, tensors in enumerate(inputs):
        for place, tensor in enumerate(tensors):
            changed = [list(each) for each in inputs]
            changed[network][place] = change(tensor)
            assert_same(loss, *changed)


@each_change({fsp_loss: ("positions moved", "positions mixed")})
def test_ignores_where_things_are_in_either_network(loss: Loss, change: Change):
    student, teacher = loss.inputs(5)
    assert_same(loss, [change(x) for x in student], teacher)
    assert_same(loss, student, [change(x) for x in teacher])


def test_fsp_ignores_a_factor_moved_from_one_map_to_the_other():
    (fsp,) = of(fsp_loss)
    (first, second), teacher = fsp.inputs(5)
    assert_same(fsp, [5 * first, second / 5], teacher)


def test_activation_boundary_ignores_a_joint_sign_flip_and_joint_permutations():
    (boundary,) = of(activation_boundary_loss)
    (student,), (teacher,) = boundary.inputs(5)
    assert_same(boundary, [-student], [-teacher])
    for dim in (1, 2, 3):
        assert_same(boundary, [permuted(student, dim)], [permuted(teacher, dim)])
