"""Files that are read back: whatever changed in them, they are refused or read as written."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from summary_grid import cost, plan, records

from bench.cli import main
from bench.cost.costs import Costs
from bench.faults import DamagedError, one_line
from bench.record import FINISHED, Plan, Record, Store, WorkDir

GRID = plan()
RECORD = replace(
    records()[GRID.rows[0].cell_id], cell={"model": "cnn8", "data": {"source": "digits"}},
    stages=[{"name": "distil", "epochs": 3}], curves={"loss": [0.5, None, 1e-17]},
    conditions={"device": "cpu"}, files={"weights": "weights.safetensors"}, digests={"a": "b"},
)  # fmt: skip
WRITTEN: dict[str, tuple[str, Callable[[str], object]]] = {
    "record": (RECORD.to_json(), Record.from_json),
    "plan": (replace(GRID, rows=GRID.rows[:2]).to_json(), Plan.from_json),
    "costs": (Costs([cost("soft_logits", 1.5)]).to_json(), Costs.from_json),
}
WRONG = [None, True, -3, 2.5, 10**400, "", "x", "\0", [], [[]], {}, {"a": []}, [1, "x"]]
each_file = pytest.mark.parametrize(("text", "read"), WRITTEN.values(), ids=WRITTEN)


@each_file
def test_what_is_written_is_read_back_with_and_without_its_checksum(text, read):
    values = json.loads(text)
    assert len(values.pop("sha256")) == 64
    found = read(text)
    assert found.to_json() == text
    assert read(json.dumps(values)) == found  # as earlier versions wrote it


@each_file
def test_any_flipped_bit_is_refused_or_changes_nothing(text, read):
    whole, found = text.encode(), read(text)
    for position in range(0, 8 * len(whole), 37):
        content = bytearray(whole)
        content[position // 8] ^= 1 << (position % 8)
        with contextlib.suppress(DamagedError, UnicodeDecodeError):
            assert read(content.decode()) == found


def changed(value: object) -> Iterator[object]:
    """The value with one of its parts, or the whole, in place of something else."""
    yield from WRONG
    if isinstance(value, dict):
        yield {**value, "unknown": 1}
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in changed(part))
    elif isinstance(value, list) and value:
        yield from ([other, *value[1:]] for other in changed(value[0]))


@each_file
def test_other_types_without_a_checksum_are_one_line_or_read_as_they_stand(text, read):
    values, tried, refused = json.loads(text), 0, []
    del values["sha256"]
    for other in changed(values):
        tried += 1
        try:
            read(json.dumps(other))
        except DamagedError as error:
            refused.append(error)
    assert 2 * len(refused) > tried > 300
    assert all(str(error) == one_line(error) != "" for error in refused)


@each_file
@pytest.mark.parametrize("depth", [500, 5000, 100_000])
def test_deep_nesting_is_one_line(text, read, depth):
    deep = "[" * depth + "]" * depth
    for wrong in (deep, text.replace("{", f'{{"deep": {deep},', 1), "[" * depth, '{"a":' * depth):
        with pytest.raises(DamagedError):
            read(wrong)


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    """A work directory with the grid's plan and records."""
    folder = WorkDir(tmp_path)
    for record in records().values():
        folder.store.write(record)
    folder.grid(GRID.name).mkdir()
    folder.plan(GRID.name).write_text(GRID.to_json())
    return folder


def test_a_record_of_another_cell_is_not_believed(work, refused):
    mine, other = (row.cell_id for row in GRID.rows[:2])
    path = work.store.folder(mine) / "record.json"
    path.write_text(records()[other].to_json())
    assert work.store.read(mine) is None
    for command in ("tables", "recommend", "sync"):
        said = refused(command, "--grid", GRID.name, "--work-dir", str(work.root))
        assert f"damaged: {path} (it is the record of cell {other})" in said
        assert f"run_all.py --grid {GRID.name} --work-dir {work.root}" in said


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{"])
@pytest.mark.parametrize("name", ["record.json", "plan.json", "cost.json"])
def test_a_damaged_file_is_named_and_never_taken_for_one_that_is_not_there(
    work, refused, name, content
):
    folder = work.store.folder(GRID.rows[0].cell_id) if name == "record.json" else None
    path = (folder or work.grid(GRID.name)) / name
    path.write_bytes(content)
    said = refused("tables", "--grid", GRID.name, "--work-dir", str(work.root))
    assert f"damaged: {path}" in said
    assert not (work.grid(GRID.name) / "summary.md").exists()


def test_a_file_of_a_cell_that_was_changed_or_swapped_is_refused(tmp_path):
    store = Store(tmp_path)
    made = [replace(RECORD, cell_id=name, status=FINISHED, digests={}) for name in ("a", "b")]
    for record in made:
        store.write(record, {"weights": record.cell_id.encode()})
    found = [store.load(record.cell_id) for record in made]
    path = store.file(found[0], "weights")
    assert path.read_bytes() == b"a"
    path.write_bytes(store.file(found[1], "weights").read_bytes())
    with pytest.raises(DamagedError, match="checksum differs"):
        store.file(found[0], "weights")
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        store.file(found[0], "weights")
    store.write(made[0])  # as earlier versions did: without digests
    path.write_bytes(b"anything")
    assert store.file(store.load("a"), "weights") == path


def test_whole_files_are_shown(work, capsys):
    assert main(["recommend", "--grid", GRID.name, "--work-dir", str(work.root)]) == 0
