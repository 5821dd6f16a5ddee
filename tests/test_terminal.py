"""What is printed fits the terminal and its characters."""

import io
import sys

import pytest
from summary_grid import cost, plan, records

from bench.cli import COMMANDS, main
from bench.cli.terminal import say, show_what_it_can
from bench.cost.costs import Costs
from bench.report.card import result_lines, result_tables
from bench.report.results import findings


def test_a_terminal_without_the_characters_gets_plain_ones(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show_what_it_can()
    print("cnn16 → cnn4: 1.5 ± 0.2, cost ×2, Zürich", flush=True)
    assert written.getvalue() == b"cnn16 -> cnn4: 1.5 +/- 0.2, cost x2, Z?rich\n"


def test_long_lines_go_on_further_in_and_no_path_is_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    say(["  proven: nothing of all", f"open {30 * 'x'}.html"])
    wanted = ["  proven: nothing of", "      all", "open", f"    {30 * 'x'}.html"]
    assert capsys.readouterr().out.splitlines() == wanted


@pytest.mark.parametrize("words", [["list"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_lists_and_help_fit_80_columns(monkeypatch, capsys, words):
    monkeypatch.setenv("COLUMNS", "80")
    if words == ["list"]:
        assert main(words) == 0
    else:
        with pytest.raises(SystemExit):
            main(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_narrow_terminal_shows_gain_cost_and_verdict_and_then_the_answer():
    """Two seeds: +4.25 points of soft_logits, the mean of 0.040 and 0.045."""
    found = findings(plan(), records(), Costs((cost("soft_logits", 1.4),)))
    narrow, wide = (result_tables(found, width)[0].splitlines() for width in (80, 120))
    assert all(len(line) <= 80 for line in narrow)
    rows = [line.split()[0] for line in narrow[narrow.index("") + 4 :] if line]
    assert rows[0] == "soft_logits"
    assert not {"teacher", "no"} & set(rows)
    assert "+4.2" in next(line for line in narrow if line.startswith("soft_logits"))
    assert any("accuracy" in line for line in wide)
    lines = result_lines(found)
    assert any("hint loss is not finite" in line for line in lines)
    assert any(line.startswith("For a narrow student soft_logits is the best") for line in lines)
