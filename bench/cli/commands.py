"""The table of commands, and what runs one of them."""

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from bench.cli import options
from bench.cli.terminal import show_what_it_can
from bench.faults import UserError, is_out_of_memory, one_line
from bench.plugin import plugged, read_plugins
from bench.registry import unknown

DEBUG = "--debug"

COMMANDS: dict[str, tuple[str, Callable[[options.Add], None], str]] = {
    "run": ("training.run", options.run, "train what is unfinished, then print the grid's tables"),
    "tune": ("training.tune", options.tune, "choose hyper-parameters on held-out training images"),
    "profile": ("profiling.profile", options.profile, "measure what each method costs, by itself"),
    "tables": ("results.tables", options.tables, "render a grid's tables again; nothing trains"),
    "recommend": ("results.recommend", options.recommend, "which row to choose, and why"),
    "sync": ("results.sync", options.sync, "send to MLflow the records that it lacks"),
    "export": ("results.export", options.export, "write a trained student to a file"),
    "list": ("results.list_all", options.listed, "what a grid can name, with its options"),
    "ui": ("results.ui", options.ui, "serve the MLflow UI on loopback"),
}
"""Name -> the function that runs it, what adds its options, and its help.

The function's module is imported when the command runs: each imports its own libraries.
"""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
WRONG_PATH = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
KEPT = "finished cells are kept"
LONGEST_LINE = 1000
MENDABLE = (*FULL, *NOT_ALLOWED, *WRONG_PATH, errno.EADDRINUSE)
"""Errors of the operating system that the user can mend. Any other is a fault of the program."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with near matches, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`, as every other fault of the user's does."""
        if message.startswith("unrecognized arguments:"):
            word = "".join(message.split()[2:3]).partition("=")[0]
            message = unknown("option", word, self._option_string_actions)
        raise UserError(f"{message} (see: run_all.py {self.prog.split()[-1]} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's words; returns the exit code.

    SIGTERM and SIGHUP end it as Ctrl-C does, with 128 and the signal's number. So does a pipe that
    nobody reads any more, in silence.
    """
    show_what_it_can()
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _stopped_by_signals() as received:
        try:
            command, chosen = parse(words)
            chosen.plugins = read_plugins(getattr(chosen, "plugin", ()))
            with plugged(chosen.plugins):
                code = command(chosen)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            _drop_output()
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            more = "" if words[:1] == ["ui"] else f"; {KEPT}, and the same command continues"
            print(f"stopped{more}", file=sys.stderr)
            return 128 + (received or [signal.SIGINT])[0]
        except (UserError, OSError, MemoryError, ImportError, RuntimeError) as error:
            if (line := _mendable(error)) is None:
                raise
            _drop_output()
            if DEBUG in words:
                traceback.print_exc()
            print(f"error: {line}", file=sys.stderr)
            return 2


def _drop_output() -> None:
    """Drops what standard output does not take: the interpreter would fail on it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mendable(error: BaseException) -> str | None:
    """What the user can mend, in one line; None for a fault of the program."""
    line = one_line(error)
    if len(line) > LONGEST_LINE:  # what came is in front, what was wanted at the end
        line = f"{line[: LONGEST_LINE - 300]} ... {line[-300:]}"
    if is_out_of_memory(error):
        said = f" ({line[:300]})" if line else ""
        return f"out of memory{said}; {KEPT}: give it more, or take fewer --workers"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{line}; {KEPT}: make room in the work directory, and start the same command again"
    return line if isinstance(error, UserError) or getattr(error, "errno", 0) in MENDABLE else None


@contextmanager
def _stopped_by_signals() -> Iterator[list[int]]:
    """Makes signals that end a process raise KeyboardInterrupt, unless they are ignored.

    Yields those received: Ray raises a KeyboardInterrupt of its own, which has no number.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one would end the first one's cleaning up
        received.append(number)
        raise KeyboardInterrupt

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, stop)
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def parse(words: list[str]) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """The command and its options; without a command it is `run`."""
    if words[:1] in (["-h"], ["--help"]):
        _overview().parse_args(["--help"])
    if not words or words[0].startswith("-") or "=" in words[0]:
        words = ["run", *words]
    if words[0] not in COMMANDS:
        raise UserError(unknown("command", words[0], COMMANDS))
    function, add_options, text = COMMANDS[words[0]]
    parser = Parser(prog=f"run_all.py {words[0]}", description=text)
    parser.set_defaults(extend=False, seeds=None)  # for a command without these options
    add_options(parser.add_argument)
    parser.add_argument(DEBUG, action="store_true", help="print the traceback of every error")
    chosen = parser.parse_intermixed_args(words[1:])
    module, _, name = function.partition(".")
    return getattr(import_module(f"bench.cli.{module}"), name), chosen


def _overview() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<9} {text}" for name, (_, _, text) in COMMANDS.items())
    return argparse.ArgumentParser(
        usage="run_all.py [command] [options]",
        description="Trains grids of knowledge distillation (teacher, student, method, seed) "
        "under\none budget, and says which method to choose.",
        epilog=f"commands ('run' if none is given):\n{lines}\n\n"
        "'run_all.py COMMAND --help' lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
