"""Command lines whose faults are told in one line, with the cure."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bench.faults import UserError
from bench.registry import unknown


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with near matches, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`, as every other fault of the user's does."""
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            known = [o for action in self._actions for o in action.option_strings]
            message = unknown("option", words[2].split("=")[0], known)
        raise UserError(f"{message} (see: run_all.py {self.prog.split()[-1]} --help)")
