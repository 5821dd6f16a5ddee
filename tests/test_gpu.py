"""The harness on a CUDA device: what it promises there, for every method.

Without such a device all of it is skipped:

    .venv/bin/python -m pytest -m gpu
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from bench.cell import Cell
from bench.cost.profiler import MethodRow, Profile, profile
from bench.cost.steps import Workload
from bench.hyperparameters import METHODS
from bench.record import Record
from bench.train.checkpoint import Checkpoints
from bench.train.device import seed_device, set_numerics
from tests.lessons import Lesson, cell, recipe, run

pytestmark = pytest.mark.gpu
NAMES = METHODS.names()
WAITING = {"kd_svd"}  # its decompositions wait for the device


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield torch.device("cuda", 0)
    torch.cuda.set_sync_debug_mode("default")


def weights(folder: Path, cell: Cell) -> dict[str, Tensor]:
    return safetensors.torch.load((folder / cell.id / "weights.safetensors").read_bytes())


def learns(record: Record) -> bool:
    """Either loss falls: the teacher is untrained, and some methods follow it against the task."""
    curves = (record.curves[name] for name in ("task_loss", "transfer_loss"))
    known = ([loss for loss in curve if loss is not None] for curve in curves)
    return any(sum(losses[-4:]) < sum(losses[:4]) for losses in known)


def finished(records: dict[str, Record]) -> None:
    assert [r.error for r in records.values() if r.status != "finished"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_again_unless_the_record_names_what_prevents_it(name, tmp_path, cuda):
    one = cell(name)
    records = [run([one], tmp_path / part, device=cuda)[one.id] for part in "ab"]
    assert {r.status for r in records} == {"finished"}
    if named := records[0].conditions["nondeterministic"]:
        pytest.skip(f"without a deterministic form: {', '.join(named)}")
    assert records[0].curves == records[1].curves
    first, second = (weights(tmp_path / part, one) for part in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_draws_on_the_second_device_follow_from_the_seed():
    second, draws = torch.device("cuda", 1), []
    set_numerics(cell("student"), second)
    for _ in range(2):
        seed_device(3, second)
        draws.append(torch.rand(8, device=second))
    torch.cuda.set_device(0)
    assert torch.equal(*draws)


def test_side_by_side_is_alone_up_to_rounding(tmp_path, cuda):
    cells = [cell(name, recipe=recipe(learning_rate=0.01)) for name in NAMES]
    together = run(cells, tmp_path / "together", device=cuda)
    finished(together)
    for one in cells:
        finished(run([one], tmp_path / one.id, device=cuda))
        mine, theirs = weights(tmp_path / "together", one), weights(tmp_path / one.id, one)
        for key in mine:
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-2, atol=1e-3, msg=str(one))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_precision_learns(precision, tmp_path, cuda):
    gentle = recipe(epochs=12, learning_rate=0.02)
    cells = [cell(name, precision=precision, recipe=gentle) for name in NAMES]
    records = run(cells, tmp_path, device=cuda)
    finished(records)
    assert {record.conditions["precision"] for record in records.values()} == {precision}
    assert [r.cell["method"] for r in records.values() if not learns(r)] == []


def test_a_checkpoint_goes_on_where_it_was(tmp_path, cuda):
    class Enough(Exception):
        pass

    def stop(cell_id: str, done: int, total: int, accuracy: float | None) -> None:
        if done == 2:
            raise Enough

    one = cell("rkd")
    whole = run([one], tmp_path / "whole", device=cuda)[one.id]
    kept = Checkpoints(tmp_path / "checkpoints", 0)
    with pytest.raises(Enough):
        run([one], tmp_path / "torn", checkpoints=kept, report=stop, device=cuda)
    again = run([one], tmp_path / "torn", checkpoints=kept, device=cuda)[one.id]
    assert again.conditions["resumed"] == 1
    assert again.curves["task_loss"] == pytest.approx(whole.curves["task_loss"], rel=1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WAITING])
def test_no_step_waits_for_the_device(name, cuda):
    lesson = Lesson(cell(name), device=cuda)
    set_numerics(lesson.student.cell, cuda)
    student, train = lesson.student, lesson.stream.train
    while not student.finished:
        student.begin_epoch(lesson.clean_view, train.labels)
        batches = iter(train.epoch(student.epochs_done, student.subset))
        student.step(lesson.seen(next(batches)))  # libraries may be loaded in the first one
        torch.cuda.set_sync_debug_mode("error")
        for batch in batches:
            student.step(lesson.seen(batch))
        torch.cuda.set_sync_debug_mode("default")
        student.end_epoch(lambda: 0.5)


def test_costs_are_measured_on_the_device(cuda):
    workload = Workload(
        classes=5, image_shape=(3, 16, 16), device=cuda, recipe=recipe(epochs=20, batch_size=16)
    )
    how = Profile(data="random", rounds=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*determinis.*")
        costs = profile("resnet20", "resnet8", [MethodRow("rkd", "rkd")], workload, how)
    for record in costs.records:
        assert record.conditions["device"] == torch.cuda.get_device_name(cuda)
        assert all(stage.step_ms.median > 0 for stage in record.stages)
        assert all(stage.peak_bytes > 0 for stage in record.stages)
