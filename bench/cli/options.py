"""The options of every command."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.arguments import names, number, parts, path

DEFAULT_GRID = "digits"


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Which grid, and where its files are."""
    parser.add_argument(
        "--grid", default=DEFAULT_GRID, metavar="NAME|FILE",
        help=f"a grid that comes with the harness, or a YAML file (default: {DEFAULT_GRID})",
    )  # fmt: skip
    parser.add_argument(
        "--work-dir", type=path, default=Path("results"), metavar="DIR",
        help="holds data caches, weights, records, MLflow's files and tables (default: results)",
    )  # fmt: skip


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Files that bring methods, models or data sources."""
    parser.add_argument(
        "--plugin", type=path, action="append", default=[], metavar="FILE.py",
        help="a Python file of your own that adds a method, models or data sources; again for "
        "more of them",
    )  # fmt: skip


def _add_unread_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", dest="unread", action="append", metavar="FILE.py",
        help="not needed here and not run: the records hold all that is shown",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    add_grid(parser)
    add_plugin(parser)
    add = parser.add_argument
    add("--methods", type=names, metavar="A,B", help="only these methods; 'all' for every one")
    add("--pairs", type=names, metavar="T:S,...", help="only these teacher:student pairs")
    add("--seeds", type=_numbers, metavar="0-4", help="only these seeds: 0-4 or 0,2,7")
    add("--data-root", type=path, metavar="DIR", help="where your data sets lie, and where "
        "downloads go (default: inside the work directory)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--workers", type=int, metavar="N",
        help="processes (default: one per core on the CPU, one per GPU on CUDA)")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N",
        help="torch threads per process on the CPU; results are bit-equal for equal numbers of "
        "threads (default: 1)")  # fmt: skip
    add("--checkpoint-seconds", type=number(at_least=0), default=60.0, metavar="S",
        help="at least so long between two checkpoints of a training; 0 for one after every epoch "
        "(default: 60)")  # fmt: skip
    add("--launcher", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster (default: local)")  # fmt: skip
    add("--address", metavar="auto|HOST:PORT", help="of the Ray cluster, from one of its nodes "
        "(default: starts Ray on this machine, and stops it at the end)")  # fmt: skip
    add("--gpus-per-job", type=number(at_least=0), default=1.0, metavar="X",
        help="GPUs that a job on the Ray cluster takes, such as 0.5 (default: 1)")  # fmt: skip
    add("--retry-failed", action="store_true", help="train failed cells again")
    add("--cohort", type=_cohort, metavar="auto|N",
        help="at most so many cells side by side in one job; no number depends on it (default: "
        "auto, as many as memory holds)")  # fmt: skip
    add("--dry-run", action="store_true", help="say what would run and what it takes, measured on "
        "a few steps of every row, and stop")  # fmt: skip
    add("overrides", nargs="*", metavar="FIELD=VALUE",
        help="fields of the grid to replace, such as recipe.epochs=10")  # fmt: skip


def add_tune(parser: argparse.ArgumentParser) -> None:
    """The options of `tune`: those of `run` and its own."""
    add_run(parser)
    add = parser.add_argument
    add("--trials", type=int, default=8, help="settings tried for each row (default: 8)")
    add("--tuning-seeds", type=int, default=1, help="seeds for each setting (default: 1)")
    add("--validation", type=number(at_least=0), default=0.2,
        help="part of the training images held out to choose on (default: 0.2)")  # fmt: skip


def add_profile(parser: argparse.ArgumentParser) -> None:
    """The options of `profile`."""
    add_grid(parser)
    add_plugin(parser)
    add = parser.add_argument
    add("--pairs", type=names, metavar="T:S,...", help="these teacher:student pairs instead")
    add("--methods", type=names, metavar="A,B", help="these methods instead; 'all' for every one")
    add("--batch", type=int, metavar="B", help="batch size (default: the grid's)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=int, default=1, metavar="N", help="of torch on the CPU (default: 1)")
    add("--rounds", type=int, default=20, metavar="N", help="of every step (default: 20)")
    add("--seconds", type=number(at_least=0), default=60.0, metavar="S", help="time after which "
        "no further round of a pair starts, except for the first three (default: 60)")  # fmt: skip
    add("--image-shape", type=_shape, metavar="CxHxW",
        help="measure without the data set, on images of this shape; needs --classes and "
        "--train-images")  # fmt: skip
    add("--classes", type=int, metavar="K", help="see --image-shape")
    add("--train-images", type=int, metavar="N", help="see --image-shape")
    add("--name", metavar="NAME", help="results go to DIR/NAME (default: the grid's name)")
    add("--data-root", type=path, metavar="DIR", help="where your data sets are")


def add_tables(parser: argparse.ArgumentParser) -> None:
    """The options of `tables`."""
    add_grid(parser)
    _add_unread_plugin(parser)
    parser.add_argument("--from", dest="origin", choices=("records", "mlflow"), default="records",
                        help="where results are read (default: records)")  # fmt: skip


def add_recommend(parser: argparse.ArgumentParser) -> None:
    """The options of `recommend`."""
    add_tables(parser)
    add = parser.add_argument
    add("--pair", metavar="T:S", help="only this teacher:student pair (default: every one)")
    add("--max-cost", type=number(), metavar="X",
        help="whole training at most X times the plain student's, such as 1.3")  # fmt: skip
    add("--max-memory-mib", type=number(), metavar="X",
        help="a step's peak memory at most X MiB above the plain student's")  # fmt: skip
    add("--min-gain", type=number(), metavar="X",
        help="better than the plain student by more than X beyond doubt; an accuracy: 0.01 is one "
        "percentage point")  # fmt: skip
    add("--category", metavar="C", help="only methods of this category, and plain students")
    add("--no-extra-parameters", action="store_true",
        help="no parameters trained beside the student")  # fmt: skip
    add("--data-fraction", type=number(), metavar="F",
        help="only where students see this part of the training images")  # fmt: skip


def add_sync(parser: argparse.ArgumentParser) -> None:
    """The options of `sync`."""
    add_grid(parser)
    add_plugin(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add_grid(parser)
    add_plugin(parser)
    add = parser.add_argument
    add("cell", metavar="CELL", nargs="?", help="a cell id or its beginning (cells.csv has them), "
        "or teacher>student/method/seed; quote it")  # fmt: skip
    add(
        "--winner",
        action="store_true",
        help="instead of CELL: the recommended student of the pair with the highest accuracy",
    )
    add(
        "--format",
        choices=("safetensors", "onnx", "torch.export"),
        default="safetensors",
        help="weights alone, or a graph that runs without this package (default: safetensors)",
    )
    add("--output", type=path, metavar="FILE",
        help="where to (default: DIR/GRID/students/<name> with the format's suffix)")  # fmt: skip


def add_ui(parser: argparse.ArgumentParser) -> None:
    """The options of `ui`."""
    parser.add_argument("--work-dir", type=path, default=Path("results"), metavar="DIR")
    parser.add_argument("--port", type=int, default=5000, help="on loopback (default: 5000)")


def _shape(text: str) -> tuple[int, int, int]:
    """ "3x32x32" -> (3, 32, 32)."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted CxHxW such as 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def _numbers(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    numbers: list[int] = []
    for part in parts(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted seeds such as 0-4 or 0,2,7")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise argparse.ArgumentTypeError(f"got {text!r}, which names no seed")
    return numbers


def _cohort(text: str) -> int | None:
    """ "auto" -> None, "4" -> 4."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted auto or a number of at least 1")
    return int(text)
