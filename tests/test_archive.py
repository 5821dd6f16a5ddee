"""Records that outlive their work directory: packed, read back, and what commands do with them."""

import gzip
from pathlib import Path

import pytest
from summary_grid import plan, records

from bench.cli import main
from bench.record import ARCHIVE, Store, read_archive, write_archive, write_atomically
from bench.report.build import build
from bench.report.results import findings


def test_what_is_packed_is_read_back_without_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    write_archive(plan(), records(), path)
    found_plan, found = read_archive(path)
    assert found_plan == plan()
    assert list(found) == [cell for cell in plan().cell_ids() if cell in records()]
    assert all(record.traceback == "" for record in found.values())
    assert {i: r.final for i, r in found.items()} == {i: r.final for i, r in records().items()}


def test_equal_records_give_equal_bytes_and_leave_an_equal_archive_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_archive(plan(), records(), first)
    write_archive(plan(), dict(reversed(records().items())), second)
    assert first.read_bytes() == second.read_bytes()
    other = gzip.compress(gzip.decompress(first.read_bytes()), compresslevel=1)
    second.write_bytes(other)
    write_archive(plan(), records(), second)
    assert second.read_bytes() == other


@pytest.mark.parametrize(
    "content",
    [b"", b"text", gzip.compress(b""), gzip.compress(b"{}\n")],
    ids=["empty", "no gzip", "nothing packed", "no plan"],
)
def test_a_damaged_archive_is_one_line(tmp_path: Path, content: bytes, refused) -> None:
    write_atomically(tmp_path / "made" / ARCHIVE, content)
    assert ARCHIVE in refused("recommend", "--grid", "made", "--work-dir", str(tmp_path))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A work directory that holds the archive of a grid and nothing else."""
    made = plan()
    write_archive(made, records(), tmp_path / made.name / ARCHIVE)
    return tmp_path


def test_tables_are_those_of_the_records(clone: Path, tmp_path_factory) -> None:
    made, folder = plan(), tmp_path_factory.mktemp("direct")
    build(findings(made, records(), None), Store(folder).root, folder)
    assert main(["tables", "--grid", made.name, "--work-dir", str(clone)]) == 0
    for name in ("summary.md", "cells.csv", "conditions.csv", "report.html"):
        assert (clone / made.name / name).read_bytes() == (folder / name).read_bytes()


def test_recommend_reads_the_archive(clone: Path, capsys) -> None:
    assert main(["recommend", "--grid", plan().name, "--work-dir", str(clone)]) == 0
    assert "still in the race:" in capsys.readouterr().out


def test_export_says_which_command_trains_the_cell(clone: Path, refused) -> None:
    words = ["export", "wide>narrow/soft_logits/0", "--grid", plan().name]
    error = refused(*words, "--work-dir", str(clone))
    assert "--methods soft_logits --pairs wide:narrow --seeds 0" in error
