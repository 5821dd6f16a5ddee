"""The table of commands, and what runs one of them."""

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from bench.cli import options
from bench.cli.terminal import show_what_it_can
from bench.faults import UserError
from bench.plugin import plugged, read_plugins
from bench.registry import unknown

DEBUG = "--debug"
Command = Callable[[argparse.Namespace], int]
AddOptions = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, AddOptions, str]] = {
    "run": ("training.run", options.run, "train what is unfinished, then print the grid's tables"),
    "tune": ("training.tune", options.tune, "choose hyper-parameters on held-out training images"),
    "profile": ("profiling.profile", options.profile, "measure what each method costs, by itself"),
    "tables": ("results.tables", options.tables, "render a grid's tables again; nothing trains"),
    "recommend": ("recommending.recommend", options.recommend, "which row to choose, and why"),
    "sync": ("results.sync", options.sync, "send to MLflow the records that it lacks"),
    "export": ("results.export", options.export, "write a trained student to a file"),
    "list": ("results.list_all", options.listed, "what a grid can name, with its options"),
    "ui": ("results.ui", options.ui, "serve the MLflow UI on loopback"),
}
"""Name -> the function that runs it, what adds its options, and its help.

The function's module is imported when the command runs: each imports its own libraries.
"""

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
MENDABLE = (*FULL, *NOT_ALLOWED, *WRONG_PATH, errno.EADDRINUSE)
"""Errors of the operating system that the user can mend. Any other is a fault of the program."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with near matches, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`, as every other fault of the user's does."""
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            known = [o for action in self._actions for o in action.option_strings]
            message = unknown("option", words[2].split("=")[0], known)
        raise UserError(f"{message} (see: run_all.py {self.prog.split()[-1]} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's words; returns the exit code."""
    show_what_it_can()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command, chosen = parse(words)
        chosen.plugins = read_plugins(getattr(chosen, "plugin", ()))
        with plugged(chosen.plugins):
            return command(chosen)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in MENDABLE:
            raise
        if DEBUG in words:
            traceback.print_exc()
        full = isinstance(error, OSError) and error.errno in FULL
        cure = "; finished cells are kept: make room, and start the same command again"
        print(f"error: {error}{cure if full else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, and the same command continues", file=sys.stderr)
        return 130


def parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its options; without a command it is `run`."""
    if words[:1] in (["-h"], ["--help"]):
        top_parser().parse_args(["--help"])
    if not words or words[0].startswith("-") or "=" in words[0]:
        words = ["run", *words]
    if words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    function, add_options, text = COMMANDS[words[0]]
    parser = Parser(prog=f"run_all.py {words[0]}", description=text)
    add_options(parser)
    parser.add_argument(DEBUG, action="store_true", help="print the traceback of every error")
    chosen = parser.parse_intermixed_args(words[1:])
    module, _, name = function.partition(".")
    return getattr(import_module(f"bench.cli.{module}"), name), chosen


def top_parser() -> argparse.ArgumentParser:
    """The overview that `--help` prints."""
    lines = "\n".join(f"  {name:<9} {text}" for name, (_, _, text) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="run_all.py",
        usage="run_all.py [command] [options]",
        description="Trains grids of knowledge distillation (teacher, student, method, seed) "
        "under\none budget, and says which method to choose.",
        epilog=f"commands ('run' if none is given):\n{lines}\n\n"
        "'run_all.py COMMAND --help' lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
