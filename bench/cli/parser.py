"""How a wrong command line is told: in one line, with the cure."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bench.registry import unknown


class UsageError(ValueError):
    """A wrong command line or a missing piece; one line with the cure."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with near matches, and no usage text."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`, so that every wrong call ends in one place."""
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            known = [o for action in self._actions for o in action.option_strings]
            message = unknown("option", words[2].split("=")[0], known)
        raise UsageError(f"{message} (see: run_all.py {self.prog.split()[-1]} --help)")
