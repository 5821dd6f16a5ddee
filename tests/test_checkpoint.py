"""Checkpoints: a training that resumes from one ends with the bits of one without interruption."""

import json
from functools import partial
from pathlib import Path

import lessons
import pytest
import torch
from lessons import cell, dataset, plain_cell, recipe
from processes import comparable

from bench.checksum import DamagedError, pack, unpack
from bench.hyperparameters import METHODS, build_method
from bench.record import Record, Store
from bench.train.checkpoint import Checkpoints, History, State

EPOCHS = 4
run = partial(lessons.run, data=dataset(train=20))

HURT = {
    "cut": lambda content: content[: len(content) // 2],
    "flip": lambda content: content[:-5] + bytes([content[-5] ^ 16]) + content[-4:],
    "empty": lambda content: b"",
}


class Killed(BaseException):
    """Stands for a signal: nothing in the training catches it."""


def all_cells() -> list:
    """Every method with the same teacher, the plain student, and one with diagnostics."""
    short = recipe(epochs=EPOCHS)
    plain = [n for n in METHODS.names() if build_method(n).starts_from == "fresh"]
    return [*(cell(n, recipe=short) for n in plain), cell("fitnet", recipe=short, diagnostics=True)]


def until(events: int):
    """A report that is killed at the given epoch's end, counted over all students."""
    seen = []

    def report(*event: object) -> None:
        seen.append(event)
        if len(seen) == events:
            raise Killed

    return report


def killed(cells, folder: Path, events: int, every: float = 0.0) -> None:
    with pytest.raises(Killed):
        run(cells, folder, checkpoints=Checkpoints(folder / "kept", every), report=until(events))


def resumed(cells, folder: Path) -> dict[str, Record]:
    return run(cells, folder, checkpoints=Checkpoints(folder / "kept", 0))


def results(records: dict[str, Record], folder: Path) -> dict[str, object]:
    assert {record.status for record in records.values()} == {"finished"}
    return comparable(Store(folder), records)


def test_a_student_of_adamw_resumes_to_the_same_bits(tmp_path):
    mixed = recipe(epochs=EPOCHS, optimiser="adamw", betas=(0.8, 0.99), mixup=0.2, cutmix=1.0)
    cells = [cell("fitnet", recipe=mixed)]
    whole = results(run(cells, tmp_path / "whole"), tmp_path / "whole")
    for events in (1, 2, 3):
        killed(cells, tmp_path / str(events), events)
        assert results(resumed(cells, tmp_path / str(events)), tmp_path / str(events)) == whole


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return results(run(all_cells(), folder), folder)


def only(cells, everything: dict[str, object]) -> dict[str, object]:
    return {c.id: everything[c.id] for c in cells}


@pytest.mark.parametrize("events", [15, 32])
def test_every_method_resumes_to_the_same_bits(tmp_path, undisturbed, events):
    cells = all_cells()
    killed(cells, tmp_path, events)
    records = resumed(cells, tmp_path)
    assert results(records, tmp_path) == undisturbed
    # A kill in the first epoch comes before the first checkpoint: the training starts again.
    times = [r.conditions["resumed"] for r in records.values()]
    assert times == [1 if events > len(cells) else 0] * len(cells)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_student_goes_on_from_its_own_epoch_whoever_is_beside_it(tmp_path, undisturbed):
    cells = all_cells()[2:7]
    killed(cells, tmp_path, 2 * len(cells) + 1)
    some = cells[1:4]
    killed(some, tmp_path, 2 * len(some) + 1)  # each reports once when it resumes
    epochs = {c.id: sorted(p.stem for p in (tmp_path / "kept" / c.id).iterdir()) for c in cells}
    assert {tuple(epochs[c.id]) for c in some} == {("000002", "000003")}
    assert {tuple(epochs[c.id]) for c in cells if c not in some} == {("000001", "000002")}
    records = resumed(cells, tmp_path)
    assert results(records, tmp_path) == only(cells, undisturbed)
    assert [records[c.id].conditions["resumed"] for c in some] == [2, 2, 2]
    assert len(records[some[0].id].conditions["earlier"]) == 2


def test_a_record_is_written_when_its_cell_is_finished_not_when_its_cohort_is(tmp_path):
    short = plain_cell("cnn2", recipe=recipe(epochs=1))
    long = plain_cell("cnn3", recipe=recipe(epochs=3))
    killed([short, long], tmp_path, 3)
    assert Store(tmp_path).read(short.id) is not None
    assert Store(tmp_path).read(long.id) is None


@pytest.mark.parametrize("hurt", HURT.values(), ids=HURT.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path, undisturbed, caplog, hurt
):
    cells = all_cells()[3:5]
    killed(cells, tmp_path, 4 * len(cells))
    victim, other = cells
    latest = tmp_path / "kept" / victim.id / "000003.safetensors"
    for path in (latest, *(tmp_path / "kept" / other.id).iterdir()):
        path.write_bytes(hurt(path.read_bytes()))
    records = resumed(cells, tmp_path)
    assert results(records, tmp_path) == only(cells, undisturbed)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 3
    assert f"{victim.id}/000003.safetensors cannot be used" in "\n".join(lines)
    assert records[victim.id].conditions["resumed"] == 1
    assert records[other.id].conditions["resumed"] == 0


def test_any_flipped_bit_is_noticed(tmp_path):
    whole = pack({"x": torch.arange(5.0), "n": torch.tensor(3)}, json.dumps({"a": 1}))
    path = tmp_path / "file"
    for position in range(0, 8 * len(whole), 11):
        content = bytearray(whole)
        content[position // 8] ^= 1 << (position % 8)
        path.write_bytes(content)
        with pytest.raises(DamagedError):
            unpack(path)


def test_a_checkpoint_under_another_teacher_or_of_another_form_is_not_used(tmp_path, caplog):
    kept = Checkpoints(tmp_path, 0)
    state = State({"x": torch.ones(2)}, {})
    kept.write("abc", 1, {"teacher": "t"}, History("now"), state)
    kept.write("abc", 2, {"teacher": "u"}, History("now"), state)
    history, found = kept.read("abc", {"teacher": "t"})
    assert "another training" in caplog.text
    assert history == History("now")
    assert found.tensors["x"].tolist() == [1, 1]
    one = plain_cell("cnn2")
    Checkpoints(tmp_path / "kept", 0).write(one.id, 1, {"teacher": ""}, History("now"), state)
    assert resumed([one], tmp_path)[one.id].conditions["resumed"] == 0
    assert "another network" in caplog.text


def test_a_checkpoint_that_cannot_be_written_is_named_and_training_goes_on(tmp_path, caplog):
    one = plain_cell("cnn2")
    (tmp_path / "kept").write_text("not a folder")
    record = resumed([one], tmp_path)[one.id]
    assert record.status == "finished"
    assert "cannot be written (Not a directory)" in caplog.text


def test_short_trainings_write_no_checkpoint(tmp_path):
    one = plain_cell("cnn2")
    run([one], tmp_path, checkpoints=Checkpoints(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
