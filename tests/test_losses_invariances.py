"""What a loss must not notice, and what it must."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from loss_table import LOSSES, Loss, of
from torch import Tensor

from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import attention_transfer_loss
from methods.dist import dist_loss
from methods.dkd import dkd_loss
from methods.fsp import fsp_loss
from methods.kd_svd import kd_svd_loss
from methods.nkd import nkd_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.soft_logits import soft_logits_loss
from methods.wttm import wttm_loss

Change = Callable[[Tensor], Tensor]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(drawn(size, size, seed=0))[0]


def permuted(tensor: Tensor, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return tensor.index_select(dim, torch.randperm(tensor.shape[dim], generator=generator))


def reordered_channels(feature: Tensor) -> Tensor:
    return permuted(feature, 1)


def mixed_channels(feature: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", orthogonal(feature.shape[1]), feature)


def moved_positions(feature: Tensor) -> Tensor:
    return permuted(feature.flatten(2), 2).view_as(feature)


def mixed_positions(feature: Tensor) -> Tensor:
    flat = feature.flatten(2)
    return (flat @ orthogonal(flat.shape[2])).view_as(feature)


def scaled_per_sample(feature: Tensor) -> Tensor:
    sizes = torch.logspace(-2, 2, len(feature), dtype=feature.dtype)
    return feature * sizes.view(-1, 1, 1, 1)


def flipped_signs(feature: Tensor) -> Tensor:
    return feature * drawn(*feature.shape, seed=9).sign()


def negated(feature: Tensor) -> Tensor:
    return -feature


def shifted_per_sample(logits: Tensor) -> Tensor:
    return logits + 7 * drawn(len(logits), 1, seed=2)


def rotated(points: Tensor) -> Tensor:
    return points @ orthogonal(points.shape[1])


def reflected(points: Tensor) -> Tensor:
    return torch.cat([-points[:, :1], points[:, 1:]], dim=1)


def translated(points: Tensor) -> Tensor:
    return points + 10 * drawn(points.shape[1], seed=8)


def scaled(points: Tensor) -> Tensor:
    return points * 37


def each_change(changes: Mapping[Callable[..., Tensor], Sequence[Change]]):
    """Runs a test for every change of every loss."""
    cases = [
        pytest.param(loss, change, id=f"{loss.name}, {change.__name__}")
        for loss in LOSSES
        for change in changes.get(loss.function, ())
    ]
    return pytest.mark.parametrize(("loss", "change"), cases)


def assert_same(loss: Loss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """The loss of these tensors is that of `loss.inputs(5)`."""
    reference = loss.compute(*loss.inputs(5))
    assert reference.abs().min() > 1e-9, "a loss of zero is invariant to everything"
    value = loss.compute(student, teacher)
    torch.testing.assert_close(value, reference, rtol=max(loss.rtol, 1e-11), atol=1e-14)


RIGID_OR_SCALE = (rotated, reflected, translated, scaled)


@each_change(
    {
        soft_logits_loss: (shifted_per_sample,),
        dkd_loss: (shifted_per_sample,),
        dist_loss: (shifted_per_sample,),
        nkd_loss: (shifted_per_sample,),
        wttm_loss: (shifted_per_sample,),
        attention_transfer_loss: (
            reordered_channels,
            flipped_signs,
            mixed_channels,
            scaled_per_sample,
        ),
        kd_svd_loss: (negated, scaled_per_sample, moved_positions, mixed_positions),
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


@each_change({fsp_loss: (moved_positions, mixed_positions)})
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
