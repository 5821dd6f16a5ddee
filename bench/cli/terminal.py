"""How text reaches a terminal: within its width, and in characters that it can show."""

import codecs
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable

PLAIN = {"→": "->", "±": "+/-", "×": "x", "−": "-", "–": "-", "…": "..."}
"""What takes the place of a character that the terminal's encoding lacks; of others, a `?`."""


def show_what_it_can() -> None:
    """Makes output fall back to plain characters where the encoding lacks one, or nobody reads."""
    codecs.register_error("plain", _plain)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; the next file that opens would take its place
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in text), error.end


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def say(lines: Iterable[str]) -> None:
    """Prints lines, long ones over several; what follows is indented further."""
    # Paths and options stay whole.
    text = textwrap.TextWrapper(width(), break_on_hyphens=False, break_long_words=False)
    for line in lines:
        text.subsequent_indent = " " * (len(line) - len(line.lstrip()) + 4)
        print(text.fill(line))
