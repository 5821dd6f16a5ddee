"""No step waits for the device: on a GPU the next kernels are queued while earlier ones run."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.hyperparameters import METHODS
from tests.lessons import Lesson, cell, dataset

aten = torch.ops.aten

# Their results are numbers or shapes that Python, or the operator itself, has to know.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default,
    aten.masked_select.default, aten.repeat_interleave.Tensor, aten._unique2.default,
    aten.unique_dim.default, aten._linalg_eigh.default, aten._linalg_svd.default,
    aten._linalg_solve_ex.default, aten.linalg_qr.default,
}  # fmt: skip

# Which samples need a whole decomposition is known only when they are looked at, and CUDA's
# decompositions wait by themselves.
DECOMPOSED = {"kd_svd"}


class Waits(TorchDispatchMode):
    """Notes every operation that would make a GPU's caller wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if func in WAITING or masked:
            self.found.add(str(func))
            self.count += 1
        return func(*args, **(kwargs or {}))


def waits(lesson: Lesson) -> set[str]:
    """Operations that wait in any step of any stage but an epoch's last, where `watch` runs."""
    student, train, found = lesson.student, lesson.stream.train, set()
    while not student.finished:
        student.begin_epoch(lesson.clean_view, train.labels)
        for batch in train.epoch(student.epochs_done, student.subset):
            with Waits() as mode:
                student.step(lesson.seen(batch))
            found |= mode.found
        student.end_epoch(lambda: 0.5)
    return found


@pytest.mark.parametrize("name", METHODS.names())
def test_no_step_waits_for_the_device(name):
    found = waits(Lesson(cell(name), dataset(train=20)))
    if name in DECOMPOSED:
        assert found <= {str(func) for func in WAITING}
    else:
        assert found == set()


@pytest.mark.parametrize(
    "action",
    [
        lambda x, mask: x.sum().item(),
        lambda x, mask: bool(x[0] > 0),
        lambda x, mask: x[mask],
        lambda x, mask: mask.nonzero(),
        lambda x, mask: torch.linalg.svd(x.view(2, 2)),
    ],
)
def test_waiting_is_noticed(action):
    with Waits() as mode:
        action(torch.arange(4.0), torch.arange(4) > 1)
    assert mode.found


def test_the_end_of_an_epoch_waits_for_its_sums_once():
    lesson = Lesson(cell("soft_logits"))
    student, train = lesson.student, lesson.stream.train
    student.begin_epoch(lesson.clean_view, train.labels)
    for batch in train.epoch(0):
        student.step(lesson.seen(batch))
    sums = student.sums
    with Waits() as mode:
        student.end_epoch(lambda: 0.5)
    assert mode.count <= 1  # whether all weights are finite; `tolist` on the CPU waits for nothing
    assert sums.mean("task") == student.curves["task_loss"][-1]
    sums.add("task", torch.ones(()))
    assert sums.total("task") == pytest.approx(4 * student.curves["task_loss"][-1] + 1)
