"""The display of a long command: plain lines where there is no terminal."""

import io

from rich.console import Console

from bench.progress import ProgressDisplay, TrainingProgress


def test_a_finished_cell_shows_cells_epochs_and_the_time_left():
    said = io.StringIO()
    names = {"a": "first", "b": "second"}
    with ProgressDisplay(Console(file=said, width=200), "epochs") as display:
        progress = TrainingProgress(names, 4, display)
        progress.epoch("a", 1, 2, None)
        progress.epoch("a", 2, 2, 0.5)
        assert said.getvalue() == ""  # it is too soon for another line
        progress.finished({"a": 2})
        progress.finished({"b": 2})  # by another command, which reports no epochs here
    first, last = said.getvalue().splitlines()
    assert first == "cells 1/2  first 50.0%  2/4 epochs, 0 s, about 0 s left"
    assert last.startswith("cells 2/2  first 50.0%  4/4 epochs")


def test_epochs_of_an_earlier_command_say_nothing_of_the_time_left():
    said = io.StringIO()
    with ProgressDisplay(Console(file=said, width=200), "epochs") as display:
        progress = TrainingProgress({"a": "first"}, 10**9, display)
        progress.epoch("a", 10**9 - 1, 10**9, 0.5)
        progress.finished({})
    assert f"{10**9 - 1}/{10**9} epochs" in said.getvalue()
    assert "about 0 s left" in said.getvalue()
