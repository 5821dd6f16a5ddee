"""What is wrong in a grid, a word, a record or a tree of images ends in one line, never else."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import malformed
import pytest
import yaml

from bench.cli import main

KINDS: dict[str, Callable[..., Iterator[malformed.Case]]] = {
    "grids": malformed.grid_cases,
    "texts": malformed.text_cases,
    "options": malformed.option_cases,
    "records": malformed.record_cases,
    "trees": malformed.tree_cases,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for cases; a first dry run has imported all that they need, and cached the data."""
    folder = tmp_path_factory.mktemp("malformed")
    malformed.hand_written(folder)
    (folder / "g.yaml").write_text(yaml.safe_dump(malformed.SMALL))
    words = ["--grid", str(folder / "g.yaml"), "--dry-run", "--work-dir", str(folder / "work")]
    assert main([*words, "--workers", "1"]) == 0
    return folder


@pytest.mark.parametrize(
    "step", [pytest.param(10, id="tenth"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_line_or_on_the_list_of_what_is_right(
    root: Path, tmp_path: Path, kind: str, step: int
) -> None:
    cases = list(KINDS[kind](*[root] if kind == "records" else []))
    wrong = [case for case in cases if not case.right]
    right = [case for case in cases if case.right]
    # What is right runs to its end, which takes longer.
    chosen = [*wrong[::step], *right[:: 10 * step if step > 1 else 1]]
    (tmp_path / "work").symlink_to(root / "work")
    told = malformed.faults(chosen, tmp_path)
    assert not told, f"{len(told)} of {len(chosen)}:\n" + "\n".join(told[:50])


def test_the_judge_sees_a_traceback_a_hang_and_a_wrong_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(options: object) -> int:
        raise KeyError("x")

    def hangs(options: object) -> int:
        signal.pause()
        return 0

    def said(run: Callable[[object], int], right: bool, folder: str) -> str:
        monkeypatch.setattr("bench.cli.results.list_all", run)
        (tmp_path / folder).mkdir()
        case = malformed.Case("it", ["list"], right)
        return " ".join(malformed.faults([case], tmp_path / folder))

    monkeypatch.setattr(malformed, "SECONDS", 1)
    assert "ended with KeyError" in said(broken, True, "a")
    assert "ended with Hang" in said(hangs, True, "b")
    assert "accepted" in said(lambda options: 0, False, "c")
    assert "not one line" in said(lambda options: 2, False, "d")
    assert said(lambda options: 0, True, "e") == ""
