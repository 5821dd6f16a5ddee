"""The table of commands, and what runs one of them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from bench.cli.options import (
    add_export,
    add_plugin,
    add_profile,
    add_recommend,
    add_run,
    add_sync,
    add_tables,
    add_tune,
    add_ui,
)
from bench.cli.parser import Parser, UsageError
from bench.cli.profiling import profile
from bench.cli.results import export, list_all, recommend, sync, tables, ui
from bench.cli.training import run, tune
from bench.registry import unknown

Command = Callable[[argparse.Namespace], int]

COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (run, add_run, "train what is unfinished of a grid, then print its tables"),
    "tune": (tune, add_tune, "choose hyper-parameters on held-out training images"),
    "profile": (profile, add_profile, "measure what each method costs, by itself"),
    "tables": (tables, add_tables, "render a grid's tables again; nothing trains"),
    "recommend": (recommend, add_recommend, "which row to choose for each pair, and why"),
    "sync": (sync, add_sync, "send to MLflow the records that it lacks"),
    "export": (export, add_export, "write a trained student as a file to use elsewhere"),
    "list": (list_all, add_plugin, "methods, models, data sets and grids, with their options"),
    "ui": (ui, add_ui, "serve the MLflow UI on loopback"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command, options = parse(words)
        return _with_plugins(command, options)
    except (UsageError, OSError) as error:
        print(f"error: {error}{_cure(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, and the same command goes on with the others",
              file=sys.stderr)  # fmt: skip
        return 130


def _with_plugins(command: Command, options: argparse.Namespace) -> int:
    """Runs the command where the files that `--plugin` names are known."""
    from bench.plugin import PluginError, plugged, read_plugins

    try:
        options.plugins = read_plugins(getattr(options, "plugin", ()))
        with plugged(options.plugins):
            return command(options)
    except PluginError as error:
        raise UsageError(str(error)) from None


def _cure(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "; finished cells are kept: make room, and start the same command again" * full


def parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its options; without a command it is `run`."""
    if words[:1] in (["-h"], ["--help"]):
        top_parser().parse_args(["--help"])
    if not words or words[0].startswith("-") or "=" in words[0]:
        words = ["run", *words]
    if words[0] not in COMMANDS:
        raise UsageError(unknown("command", words[0], COMMANDS))
    command, add_options, text = COMMANDS[words[0]]
    parser = Parser(prog=f"run_all.py {words[0]}", description=text)
    add_options(parser)
    return command, parser.parse_intermixed_args(words[1:])


def top_parser() -> argparse.ArgumentParser:
    """The overview that `--help` prints."""
    lines = "\n".join(f"  {name:<9} {text}" for name, (_, _, text) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="run_all.py",
        usage="run_all.py [command] [options]",
        description="Trains teacher / student / method / seed grids of knowledge distillation "
        "under one budget and renders comparison tables.",
        epilog=f"commands ('run' if none is given):\n{lines}\n\n"
        "'run_all.py COMMAND --help' lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
