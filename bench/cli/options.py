"""The options of every command. An option that several commands have is defined once."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli.argument_types import names, number, path, seeds

DEFAULT_GRID = "digits"
Parser = argparse.ArgumentParser


# --- shared by several commands ------------------------------------------------------------------


def add_work_dir(parser: Parser) -> None:
    """Where everything is kept."""
    parser.add_argument(
        "--work-dir",
        type=path,
        default=Path("results"),
        metavar="DIR",
        help="holds data caches, weights, records, MLflow's files and tables (default: results)",
    )


def add_grid(parser: Parser) -> None:
    """Which grid, and where its results are."""
    parser.add_argument(
        "--grid",
        default=DEFAULT_GRID,
        metavar="NAME|FILE",
        help=f"a grid that comes with the harness, or a YAML file (default: {DEFAULT_GRID})",
    )
    add_work_dir(parser)


def add_plugin(parser: Parser) -> None:
    """Files that bring methods, models or data sources."""
    parser.add_argument(
        "--plugin",
        type=path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="a Python file that adds a method, models or data sources; may be repeated",
    )


def _add_part_of_grid(parser: Parser) -> None:
    add_grid(parser)
    add_plugin(parser)
    add = parser.add_argument
    add("--methods", type=names, metavar="A,B", help="only these methods; 'all' for every one")
    add("--pairs", type=names, metavar="T:S,...", help="only these teacher:student pairs")
    add(
        "--data-root",
        type=path,
        metavar="DIR",
        help="where your data sets are, and where downloads go (default: in the work directory)",
    )


def _add_device(parser: Parser) -> None:
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add(
        "--threads",
        type=number(int, at_least=1, at_most=1024),
        default=1,
        metavar="N",
        help="torch threads of a process on the CPU; results are bit-equal for equal numbers of "
        "threads (default: 1)",
    )


# --- one function for each command ---------------------------------------------------------------


def add_run(parser: Parser) -> None:
    """The options of `run`."""
    _add_part_of_grid(parser)
    _add_device(parser)
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        metavar="FIELD=VALUE",
        help="fields of the grid to replace, such as recipe.epochs=10",
    )
    add("--seeds", type=seeds, metavar="0-4", help="only these seeds, such as 0-4 or 0,2,7")
    add(
        "--dry-run",
        action="store_true",
        help="say what would run and what it takes, measured on a few steps of every row, and stop",
    )
    add("--retry-failed", action="store_true", help="train failed cells again")
    add(
        "--workers",
        type=number(int, at_least=1),
        metavar="N",
        help="processes (default: one per core on the CPU, one per GPU on CUDA)",
    )
    add(
        "--cohort",
        type=number(int, at_least=1),
        metavar="N",
        help="most cells that train side by side in one job; changes no number (default: as many "
        "as memory holds)",
    )
    add(
        "--checkpoint-seconds",
        type=number(float, at_least=0),
        default=60.0,
        metavar="S",
        help="least time between two checkpoints of a training; 0 for one after every epoch "
        "(default: 60)",
    )
    _add_cluster(parser)


def _add_cluster(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--launcher",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or a Ray cluster (default: local)",
    )
    add(
        "--address",
        metavar="auto|HOST:PORT",
        help="of the Ray cluster, from one of its nodes (default: auto)",
    )
    add(
        "--gpus-per-job",
        type=number(float, at_least=0),
        default=1.0,
        metavar="X",
        help="GPUs of a job on the Ray cluster, such as 0.5 (default: 1)",
    )


def add_tune(parser: Parser) -> None:
    """The options of `tune`: those of `run` and its own."""
    add_run(parser)
    add, count = parser.add_argument, number(int, at_least=1)
    add("--trials", type=count, default=8, help="settings tried for each row (default: 8)")
    add("--tuning-seeds", type=count, default=1, help="seeds for each setting (default: 1)")
    add(
        "--validation",
        type=number(float, at_least=0.01, at_most=0.99),
        default=0.2,
        help="part of the training images held out to choose on (default: 0.2)",
    )


def add_profile(parser: Parser) -> None:
    """The options of `profile`."""
    _add_part_of_grid(parser)
    _add_device(parser)
    add = parser.add_argument
    add(
        "--batch",
        type=number(int, at_least=2),
        metavar="B",
        help="batch size (default: the grid's)",
    )
    add(
        "--rounds",
        type=number(int, at_least=1),
        default=20,
        metavar="N",
        help="times that each step is measured (default: 20)",
    )


def add_tables(parser: Parser) -> None:
    """The options of `tables`."""
    add_grid(parser)
    add = parser.add_argument
    add(
        "--plugin",
        dest="unread",
        action="append",
        metavar="FILE.py",
        help="not needed here and not run: the records hold all that is shown",
    )
    add(
        "--from",
        dest="origin",
        choices=("records", "mlflow"),
        default="records",
        help="where results are read (default: records)",
    )


def add_recommend(parser: Parser) -> None:
    """The options of `recommend`."""
    add_tables(parser)
    add = parser.add_argument
    add("--pair", metavar="T:S", help="only this teacher:student pair (default: every pair)")
    add(
        "--max-cost",
        type=number(float),
        metavar="X",
        help="whole training at most X times the plain student's, such as 1.3",
    )
    add(
        "--max-memory-mib",
        type=number(float),
        metavar="X",
        help="peak memory of a step at most X MiB above the plain student's",
    )
    add(
        "--min-gain",
        type=number(float),
        metavar="X",
        help="proven to be better than the plain student by more than X, an accuracy: 0.01 is one "
        "percentage point",
    )


def add_sync(parser: Parser) -> None:
    """The options of `sync`."""
    add_grid(parser)
    add_plugin(parser)


def add_export(parser: Parser) -> None:
    """The options of `export`."""
    add_grid(parser)
    add_plugin(parser)
    add = parser.add_argument
    add(
        "cell",
        metavar="CELL",
        nargs="?",
        help="a cell id or its beginning (cells.csv has them), or teacher>student/method/seed, "
        "quoted",
    )
    add(
        "--winner",
        action="store_true",
        help="in place of CELL: the recommended student of the pair with the highest accuracy",
    )
    add(
        "--format",
        choices=("safetensors", "onnx", "torch.export"),
        default="safetensors",
        help="weights alone, or a graph that runs without this package (default: safetensors)",
    )
    add(
        "--output",
        type=path,
        metavar="FILE",
        help="where to write (default: DIR/GRID/students/<name> with the format's suffix)",
    )


def add_ui(parser: Parser) -> None:
    """The options of `ui`."""
    add_work_dir(parser)
    parser.add_argument(
        "--port",
        type=number(int, at_least=1, at_most=65535),
        default=5000,
        help="on loopback (default: 5000)",
    )
