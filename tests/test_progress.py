"""The display: what is left is told by what cells should take, where that was measured."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.cli.training import _say_outcome
from bench.launch import progress
from bench.launch.coordinator import Outcome
from bench.launch.progress import Display


def left_after(monkeypatch, seconds) -> str:
    """What is said after 10 s, when the long cell has had 1 of its 2 epochs, the short none."""
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said = io.StringIO()
    names, epochs = {"a": "long", "b": "short"}, {"a": 2, "b": 2}
    with Display(names, epochs, Console(file=said, width=200), seconds) as display:
        display._last_line = -100.0
        display.epoch("a", 1, 2, 0.5)
    return said.getvalue()


@pytest.mark.parametrize(
    ("seconds", "left"), [(None, 30), ({"a": 18.0, "b": 2.0}, 12), ({"a": 2.0, "b": 18.0}, 190)]
)
def test_the_time_left_is_that_of_the_cells_that_are_left(monkeypatch, seconds, left):
    said = left_after(monkeypatch, seconds)
    assert f"long 50.0%  epochs 1/4  10 s, about {left} s left" in said


def test_a_run_says_what_was_expected_of_it(capsys):
    _say_outcome(Outcome(3, 0, {"finished": 3}, 228.0, 1.0, 210.4))
    assert "3 cells trained in 228 s (estimated 210 s)" in capsys.readouterr().out
    _say_outcome(Outcome(3, 0, {"finished": 3}, 228.0, 1.0))
    assert "estimated" not in capsys.readouterr().out
