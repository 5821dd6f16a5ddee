"""The options of every command, and the types that refuse other text in one line."""

import argparse
import contextlib
import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.faults import is_utf8
from bench.seeds import MOST_SEEDS

DEFAULT_GRID = "digits"
CELL = "a cell id or its beginning (in cells.csv), or teacher>student/method/seed, quoted"
LIMIT = 2**31 - 1
SIDE = re.compile("[1-9][0-9]{0,4}")
SEEDS = re.compile("([0-9]{1,10})(?:-([0-9]{1,10}))?")
Add = Callable[..., object]
"""The `add_argument` of a command's parser."""

Number = TypeVar("Number", int, float)


# --- types ---------------------------------------------------------------------------------------


def names(text: str) -> list[str]:
    """Names between commas, at least one: none at all would mean all of them."""
    if found := [part.strip() for part in text.split(",") if part.strip()]:
        return found
    cure = "leave the option out for all that the grid has"
    raise argparse.ArgumentTypeError(f"got {text!r}, which names nothing; {cure}")


def number(kind: type[Number], at_least: float, at_most: float = LIMIT) -> Callable[[str], Number]:
    """The type of a finite number from `at_least` to `at_most`, both included.

    Example:
        >>> number(float, at_least=0)("2.5")
        2.5
        >>> number(int, at_least=1)("0")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: got '0', wanted a whole number of at least 1
    """
    wanted = f"a {'whole' if kind is int else 'finite'} number of at least {at_least:g}"
    wanted += f" and at most {at_most:g}" if at_most < LIMIT else ""

    def read(text: str) -> Number:
        with contextlib.suppress(ValueError):
            # Python reads 1_0 and digits of any script.
            if text.isascii() and "_" not in text and at_least <= (value := kind(text)) <= at_most:
                return value
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted {wanted}")

    return read


def seeds(text: str) -> list[int]:
    """Seeds and ranges of seeds between commas.

    Example:
        >>> seeds("0-2,7")
        [0, 1, 2, 7]
    """
    found: list[int] = []
    for part in names(text):
        if (ends := SEEDS.fullmatch(part)) is None:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted seeds such as 0-4 or 0,2,7")
        first, last = map(int, ends.groups(ends[1]))
        found += range(first, min(last, first + MOST_SEEDS) + 1)
    if not 1 <= len(found) <= MOST_SEEDS or max(found) > LIMIT:
        wanted = f"wanted 1 to {MOST_SEEDS} seeds of at most {LIMIT}"
        raise argparse.ArgumentTypeError(f"got {text!r}, {wanted}")
    return found


def path(text: str) -> Path:
    """A file or a folder, named in UTF-8: records and MLflow keep names as text.

    Empty text, as of an unset variable, would mean the current folder.
    """
    if not is_utf8(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path in UTF-8; rename it")
    if not text.strip():
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a path; . is the current folder")
    return Path(text)


def image_shape(text: str) -> tuple[int, int, int]:
    """Channels, height and width.

    Example:
        >>> image_shape("64x96"), image_shape("1x8x8")
        ((3, 64, 96), (1, 8, 8))
    """
    sides = text.lower().split("x")
    if len(sides) not in (2, 3) or not all(SIDE.fullmatch(s) for s in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a size such as 64x64 or 1x8x8")
    channels, height, width = map(int, ["3", *sides][-3:])
    return channels, height, width


def command_of(options: argparse.Namespace, name: str = "", **changes: object) -> str:
    """The command `name`, or else `run`, on what the options name, as a shell takes it."""
    given = {**vars(options), **changes}
    lists = {f"--{part}": given[part] for part in ("methods", "pairs", "seeds")}
    said = [(part, ",".join(map(str, values))) for part, values in lists.items() if values]
    said += [("--data-root", str(given["data_root"]))] if given.get("data_root") else []
    said += [("--plugin", str(file)) for file in given.get("plugin") or given.get("unread") or ()]
    words = [name] * bool(name) + ["--grid", given["grid"], *itertools.chain(*said)]
    return shlex.join(["run_all.py", *words, *work_words(options), *given["overrides"]])


def work_words(options: argparse.Namespace) -> list[str]:
    """The words for a work directory that is not the default one."""
    default = options.work_dir == Path("results")
    return [] if default else ["--work-dir", str(options.work_dir)]


# --- shared by several commands ------------------------------------------------------------------


def _work_dir(add: Add) -> None:
    text = "holds data caches, weights, records, MLflow's files and tables (default: results)"
    add("--work-dir", type=path, default=Path("results"), metavar="DIR", help=text)


def _grid(add: Add, first: str = "") -> None:
    """Which grid, and which part or variant of it; `first`: what may stand before the fields."""
    text = "a grid of the harness, a YAML file, or a folder of results"
    add("--grid", default=DEFAULT_GRID, metavar="NAME", help=f"{text} (default: {DEFAULT_GRID})")
    _work_dir(add)
    add("--methods", type=names, metavar="A,B", help="only these methods; 'all' for every one")
    add("--pairs", type=names, metavar="T:S,...", help="only these teacher:student pairs")
    add("--seeds", type=seeds, metavar="0-4", help="only these seeds, such as 0-4 or 0,2,7")
    text = "fields of the grid to replace, such as recipe.epochs=10"
    metavar = f"{first} FIELD=VALUE".strip()
    add("overrides", nargs="*", metavar=metavar, help=f"{CELL}; {text}" if first else text)


def plugin(add: Add) -> None:
    """Files that bring methods, models or data sources."""
    text = "a Python file that adds a method, models or data sources; may be repeated"
    add("--plugin", type=path, action="append", default=[], metavar="FILE.py", help=text)


def _part_of_grid(add: Add) -> None:
    """Which part of a grid is computed, and on what."""
    sync(add)
    text = "where your data sets are, and where downloads go (default: in the work directory)"
    add("--data-root", type=path, metavar="DIR", help=text)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    text = "torch threads of a process on the CPU; equal numbers give equal bits (default: 1)"
    add("--threads", type=number(int, 1, 1024), default=1, metavar="N", help=text)


# --- one function for each command ---------------------------------------------------------------


def run(add: Add) -> None:
    """The options of `run`."""
    _part_of_grid(add)
    text = "say what would run and what it takes, measured on a few steps of every row, and stop"
    add("--dry-run", action="store_true", help=text)
    text = "train the finalists on the seeds that the grid planned for a second look"
    add("--extend", action="store_true", help=text)
    add("--retry-failed", action="store_true", help="train failed cells again")
    text = "processes (default: one per core on the CPU, one per GPU on CUDA)"
    add("--workers", type=number(int, 1, 1024), metavar="N", help=text)
    text = "most cells in one job, if memory holds them; changes no number (default: no limit)"
    add("--cohort", type=number(int, 1), metavar="N", help=text)
    text = "least seconds between two checkpoints; 0 for one after every epoch (default: 60)"
    add("--checkpoint-seconds", type=number(float, 0), default=60.0, metavar="S", help=text)
    text = "processes of this machine, or the Ray cluster of this node (default: local)"
    add("--launcher", choices=("local", "ray"), default="local", help=text)
    text = "GPUs of a job on the Ray cluster, such as 0.5 (default: 1)"
    add("--gpus-per-job", type=number(float, 0), default=1.0, metavar="X", help=text)


def tune(add: Add) -> None:
    """The options of `tune`: its own, and those of `run` but for the seeds, which it replaces."""
    run(lambda name, **how: name in ("--extend", "--seeds") or add(name, **how))
    trials = number(int, 1, 1000)
    text = "settings tried for each row (default: 8)"
    add("--trials", type=trials, default=8, help=text)
    text = "seeds of the best third of a row's settings; the others have one (default: 3)"
    add("--tuning-seeds", type=trials, default=3, help=text)
    text = "part of the training images held out to choose on (default: 0.2)"
    add("--validation", type=number(float, 0.01, 0.99), default=0.2, help=text)


def profile(add: Add) -> None:
    """The options of `profile`."""
    _part_of_grid(add)
    text = "times that each step is measured (default: 20)"
    add("--rounds", type=number(int, 1, 10_000), default=20, metavar="N", help=text)


def tables(add: Add) -> None:
    """The options of `tables`."""
    _grid(add)
    text = "not needed here and not run: the records hold all that is shown"
    add("--plugin", dest="unread", action="append", metavar="FILE.py", help=text)
    text = "where results are read (default: records)"
    add("--from", dest="origin", choices=("records", "mlflow"), default="records", help=text)


def recommend(add: Add) -> None:
    """The options of `recommend`."""
    tables(add)
    text = "results of any code base: columns row, seed, accuracy; optional pair, cost, phase"
    add("--csv", type=path, metavar="FILE", help=text)
    text = "row of the CSV file that gains are over (default: student)"
    add("--baseline", metavar="ROW", help=text)
    text = "row that the others are held against (default: the plain student)"
    add("--against", metavar="ROW", help=text)
    add("--pair", metavar="T:S", help="only this teacher:student pair (default: every pair)")
    text = "whole training at most X times the plain student's, such as 1.3"
    add("--max-cost", type=number(float, at_least=1), metavar="X", help=text)


def sync(add: Add) -> None:
    """The options of `sync`."""
    _grid(add)
    plugin(add)


def export(add: Add) -> None:
    """The options of `export`."""
    _grid(add, "CELL")
    plugin(add)
    formats = ("safetensors", "onnx", "onnx-int8", "torch.export")
    text = "in place of CELL: the recommended student of the pair with the highest accuracy"
    add("--winner", action="store_true", help=text)
    text = "weights alone, or a graph that runs without this package (default: safetensors)"
    add("--format", choices=formats, default="safetensors", help=text)
    text = "where to write (default: DIR/GRID/students/<name> with the format's suffix)"
    add("--output", type=path, metavar="FILE", help=text)


def listed(add: Add) -> None:
    """The options of `list`."""
    plugin(add)
    add("--model", metavar="NAME", help="the taps of one model, with their shapes")
    text = "of its images: HxW, or CxHxW (default: 3x32x32)"
    add("--size", type=image_shape, default=(3, 32, 32), metavar="SIZE", help=text)


def ui(add: Add) -> None:
    """The options of `ui`."""
    _work_dir(add)
    add("--port", type=number(int, 1, 65535), default=5000, help="on loopback (default: 5000)")
