"""What is printed fits the terminal and its characters."""

from __future__ import annotations

import io
import sys

import pytest

from bench.cli import COMMANDS, main
from bench.cli.terminal import say, show_what_it_can


def test_a_terminal_without_the_characters_gets_plain_ones(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show_what_it_can()
    print("cnn16 → cnn4: 1.5 ± 0.2, cost ×2, Zürich", flush=True)
    assert written.getvalue() == b"cnn16 -> cnn4: 1.5 +/- 0.2, cost x2, Z?rich\n"


def test_long_lines_go_on_further_in_and_no_path_is_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    say(["  proven: nothing of all", f"open {30 * 'x'}.html"])
    assert capsys.readouterr().out.splitlines() == [
        "  proven: nothing of", "      all", "open", f"    {30 * 'x'}.html",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["list"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_lists_and_help_fit_80_columns(monkeypatch, capsys, words):
    monkeypatch.setenv("COLUMNS", "80")
    if words == ["list"]:
        assert main(words) == 0
    else:
        with pytest.raises(SystemExit):
            main(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
