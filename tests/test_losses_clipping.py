"""KD-SVD's merge: the transfer gradient joins the task gradient and is never the longer one."""

import math

import pytest
import torch
from torch import Tensor

from methods import kd_svd

TASK, TRANSFER = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])  # norms 5 and 10


def merge_with(**switches):
    return kd_svd.method(**switches).plan[0].merge


@pytest.mark.parametrize(
    ("switches", "task", "transfer", "epoch", "expected"),
    [
        ({}, TASK, TRANSFER, 0, [4.5, 6.0]),  # at most half of 5: a quarter of (6, 8)
        ({}, TASK, TRANSFER, 1, [3 + 3 * 0.7310586, 4 + 4 * 0.7310586]),  # sigmoid(1) of 5
        ({}, TASK, TRANSFER, 50, [6.0, 8.0]),  # all of 5
        ({"ramp": False}, TASK, TRANSFER, 0, [6.0, 8.0]),
        ({}, TASK, TRANSFER / 20, 0, [3.3, 4.4]),  # short enough as it is
        ({}, TASK, 0 * TRANSFER, 0, [3.0, 4.0]),
        ({}, 0 * TASK, TRANSFER, 3, [0.0, 0.0]),
    ],
)
def test_transfer_gradient_is_cut_to_the_ramped_length_of_the_task_gradient(
    switches: dict[str, bool], task: Tensor, transfer: Tensor, epoch: int, expected: list[float]
):
    (merged,), _ = merge_with(**switches)([task], [transfer], epoch)
    assert merged.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_parameter_with_one_gradient_gets_it_whole():
    # A connector has no task gradient; cut to a length of zero it would never learn.
    merged, watched = merge_with()([None, TASK, None], [TRANSFER, None, None], 0)
    assert torch.equal(merged[0], TRANSFER)
    assert torch.equal(merged[1], TASK)
    assert merged[2] is None
    assert not watched  # nothing was measured against a bound


def test_per_tensor_and_global_clipping_differ_where_tensors_disagree():
    # norms 5 | 5 of the task, 10 | 0.5 of the transfer; over all: 7.07 and 10.01
    task, transfer = [TASK, TASK], [TRANSFER, TRANSFER / 20]
    share = math.sqrt(50 / 100.25)
    for clip, factors in (("per_tensor", (0.5, 1)), ("global", (share, share))):
        merged, watched = merge_with(ramp=False, clip=clip)(task, transfer, 0)
        assert watched["clipped_share"] == sum(factor < 1 for factor in factors) / 2
        for found, base, extra, factor in zip(merged, task, transfer, factors, strict=True):
            torch.testing.assert_close(found, base + factor * extra)


@pytest.mark.parametrize("epoch", [0, 1, 5, 1000])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_transfer_part_of_every_tensor_is_within_its_bound_and_keeps_its_direction(
    epoch: int, size: float
):
    generator = torch.Generator().manual_seed(epoch)
    shapes = [(3, 4), (5,), (), (2, 2, 3, 3)]
    task = [torch.randn(shape, generator=generator).double() for shape in shapes]
    transfer = [size * torch.randn(shape, generator=generator).double() for shape in shapes]
    merged, _ = merge_with()(task, transfer, epoch)
    for ours, theirs, both in zip(task, transfer, merged, strict=True):
        part = both - ours
        bound = ours.norm() / (1 + math.exp(-epoch))
        assert part.norm() <= bound * (1 + 1e-9)
        wanted = theirs * min(1.0, (bound / theirs.norm()).item())
        torch.testing.assert_close(part, wanted, rtol=1e-9, atol=1e-15)


def test_a_parameter_is_at_its_bound_only_if_its_transfer_gradient_is_longer():
    # Half of |task| = 5 against lengths 10, 2.5, 0 and 1; then a task gradient of 0.
    transfers = [TRANSFER, TRANSFER / 4, 0 * TRANSFER, TRANSFER / 10, TRANSFER]
    _, watched = merge_with()([*4 * [TASK], 0 * TASK], transfers, 0)
    assert watched["clipped_share"] == 2 / 5


def test_refuses_lists_of_unequal_length():
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        merge_with()([TASK, TASK], [TRANSFER], 0)
