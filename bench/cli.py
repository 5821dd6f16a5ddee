"""The command line. The only module that knows all the others; each command imports its own.

Exit code 0: every cell finished. 1: some cell failed, the others ran. 2: a wrong command or grid,
one line that says what came, what was wanted and the cure.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

    from bench.cost.record import Costs
    from bench.grid import Expansion, Grid
    from bench.launch.coordinator import Launch, Outcome
    from bench.launch.job import Library, Setting
    from bench.launch.ray_cluster import RayCluster
    from bench.record import Plan, Record, Row
    from bench.tracking import Mirror
    from bench.workdir import WorkDir

DEFAULT_GRID = "digits"
CHECKOUT = Path(__file__).resolve().parents[1]


class UsageError(ValueError):
    """A wrong command line or a missing piece; one line with the cure."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with near matches, and no usage text."""

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`, so that every wrong call ends in one place."""
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            known = [o for action in self._actions for o in action.option_strings]
            near = difflib.get_close_matches(words[2].split("=")[0], known, n=1)
            message = f"unknown option {words[2]}" + (f"; did you mean {near[0]}?" if near else "")
        raise UsageError(f"{message} (see: run_all.py {self.prog.split()[-1]} --help)")


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


Command = Callable[[argparse.Namespace], int]


def parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its options; without a command it is `run`."""
    if words[:1] in (["-h"], ["--help"]):
        top_parser().parse_args(["--help"])
    if not words or words[0].startswith("-") or "=" in words[0]:
        words = ["run", *words]
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}; {hint}")
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


# --- options -------------------------------------------------------------------------------------


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grid", default=DEFAULT_GRID, metavar="NAME|FILE",
        help=f"a grid that comes with the harness, or a YAML file (default: {DEFAULT_GRID})",
    )  # fmt: skip
    parser.add_argument(
        "--work-dir", type=Path, default=Path("results"), metavar="DIR",
        help="holds data caches, weights, records, MLflow's files and tables (default: results)",
    )  # fmt: skip


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE.py",
        help="a Python file of your own that adds a method, models or data sources; again for "
        "more of them",
    )  # fmt: skip


def _add_unread_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", dest="unread", action="append", metavar="FILE.py",
        help="not needed here and not run: the records hold all that is shown",
    )  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    _add_plugin(parser)
    add = parser.add_argument
    add("--methods", type=_names, metavar="A,B", help="only these methods; 'all' for every one")
    add("--pairs", type=_names, metavar="T:S,...", help="only these teacher:student pairs")
    add("--seeds", type=_numbers, metavar="0-4", help="only these seeds: 0-4 or 0,2,7")
    add("--data-root", type=Path, metavar="DIR", help="where your data sets lie, and where "
        "downloads go (default: inside the work directory)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--workers", type=int, metavar="N",
        help="processes (default: one per core on the CPU, one per GPU on CUDA)")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N",
        help="torch threads per process on the CPU; results are bit-equal for equal numbers of "
        "threads (default: 1)")  # fmt: skip
    add("--stack", choices=("auto", "on", "off"), default="auto",
        help="compute students of one architecture as one network where that is measured to be "
        "faster (auto), wherever it can be done, or never; numbers differ by rounding, and each "
        "record says which it was (default: auto)")  # fmt: skip
    add("--checkpoint-seconds", type=float, default=60.0, metavar="S",
        help="at least so long between two checkpoints of a training; 0 for one after every epoch "
        "(default: 60)")  # fmt: skip
    add("--launcher", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster (default: local)")  # fmt: skip
    add("--address", metavar="auto|HOST:PORT", help="of the Ray cluster, from one of its nodes "
        "(default: starts Ray on this machine, and stops it at the end)")  # fmt: skip
    add("--gpus-per-job", type=float, default=1.0, metavar="X",
        help="GPUs that a job on the Ray cluster takes, such as 0.5 (default: 1)")  # fmt: skip
    add("--node-dir", metavar="DIR", help="for Ray nodes that do not share the work directory: "
        "a folder of each node's own, such as '$TMPDIR/kd-bench'")  # fmt: skip
    add("--retry-failed", action="store_true", help="train failed cells again")
    add("--cohort", type=_cohort, metavar="auto|N",
        help="at most so many cells side by side in one job; no number depends on it (default: "
        "auto, as many as memory holds)")  # fmt: skip
    add("--dry-run", action="store_true", help="say what would run and what it should cost, and "
        "stop; takes some seconds once, with large networks on a CPU minutes")  # fmt: skip
    add("--calibrate-seconds", type=float, default=30.0, metavar="S",
        help="--dry-run: measure no further row after so long, but extrapolate; 0 only lists the "
        "cells, at once (default: 30)")  # fmt: skip
    add("overrides", nargs="*", metavar="FIELD=VALUE",
        help="fields of the grid to replace, such as recipe.epochs=10")  # fmt: skip


def _add_tables(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    _add_unread_plugin(parser)
    parser.add_argument("--from", dest="origin", choices=("records", "mlflow"), default="records",
                        help="where results are read (default: records)")  # fmt: skip


def _add_recommend(parser: argparse.ArgumentParser) -> None:
    _add_tables(parser)
    add = parser.add_argument
    add("--pair", metavar="T:S", help="only this teacher:student pair (default: every one)")
    add("--max-cost", type=float, metavar="X",
        help="whole training at most X times the plain student's, such as 1.3")  # fmt: skip
    add("--max-memory-mib", type=float, metavar="X",
        help="a step's peak memory at most X MiB above the plain student's")  # fmt: skip
    add("--min-gain", type=float, metavar="X",
        help="better than the plain student by more than X beyond doubt; an accuracy: 0.01 is one "
        "percentage point")  # fmt: skip
    add("--category", metavar="C", help="only methods of this category, and plain students")
    add("--no-extra-parameters", action="store_true",
        help="no parameters trained beside the student")  # fmt: skip
    add("--data-fraction", type=float, metavar="F",
        help="only where students see this part of the training images")  # fmt: skip


def _add_tune(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("--trials", type=int, default=8, help="settings tried for each row (default: 8)")
    add("--tuning-seeds", type=int, default=1, help="seeds for each setting (default: 1)")
    add("--validation", type=float, default=0.2,
        help="part of the training images held out to choose on (default: 0.2)")  # fmt: skip


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("--gpus", type=_counts, metavar="1,2,4,...",
        help="numbers of workers (default: powers of 2 to 512, and 1000)")  # fmt: skip
    add("--tflops", type=float, metavar="X", help="sustained by a worker, an assumption: nothing "
        "is timed, operations are counted (default: timed on this machine)")  # fmt: skip
    add("--startup-seconds", type=float, metavar="S",
        help="before a worker's first job (default: as measured; with --tflops 0)")  # fmt: skip
    parser.set_defaults(dry_run=True)


def _counts(text: str) -> list[int]:
    """ "1,2,1000" -> [1, 2, 1000]."""
    parts = _names(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted counts such as 1,2,4,1000")
    return [int(part) for part in parts]


def _add_sync(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    _add_plugin(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    _add_plugin(parser)
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
    add("--output", type=Path, metavar="FILE",
        help="where to (default: DIR/GRID/students/<name> with the format's suffix)")  # fmt: skip


def _add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work-dir", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--port", type=int, default=5000, help="on loopback (default: 5000)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _cohort(text: str) -> int | None:
    """ "auto" -> None, "4" -> 4."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted auto or a number of at least 1")
    return int(text)


def _numbers(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    numbers: list[int] = []
    for part in _names(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted seeds such as 0-4 or 0,2,7")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise argparse.ArgumentTypeError(f"got {text!r}, which names no seed")
    return numbers


# --- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A checked grid and its data, ready to be expanded."""

    grid: Grid
    library: Library
    work: WorkDir
    device: str
    console: Console
    cluster: RayCluster | None


def _prepare(options: argparse.Namespace) -> Prepared:
    """Reads and checks all that a training command needs, before anything starts."""
    from rich.console import Console

    from bench.grid import load_grid, name_part, narrow
    from bench.launch.job import Library
    from bench.train.device import pick_device
    from bench.workdir import WorkDir

    work, console = WorkDir(options.work_dir), Console(soft_wrap=True)
    try:
        grid = load_grid(options.grid, options.overrides)
        grid = narrow(grid, options.methods, options.pairs, options.seeds)
        grid = name_part(grid, load_grid(options.grid))
        cluster, device = _cluster(options), options.device
        if cluster is None:  # a cluster's nodes have devices of their own
            device = pick_device(device).type if device == "auto" else device
            pick_device(device)
        console.print(f"grid {grid.name}: reading {grid.data.source}", highlight=False)
        library = Library(options.data_root, work.cache, stand_in=options.dry_run)
        library.read(grid.data)
        if options.threads < 1 or options.threads > 1024:
            raise ValueError(f"--threads: got {options.threads}, wanted 1 to 1024")
    except ValueError as error:  # GridError and DataError are ValueErrors: all are the caller's
        raise UsageError(str(error)) from None
    return Prepared(grid, library, work, device, console, cluster)


def _cluster(options: argparse.Namespace) -> RayCluster | None:
    """The Ray cluster that is asked for; nothing is connected yet."""
    if options.launcher == "local":
        if options.address is not None or options.node_dir is not None:
            raise UsageError("--address and --node-dir are of a Ray cluster: add --launcher ray")
        return None
    from bench.launch import ray_cluster

    asked = ray_cluster.Options(
        options.address, options.workers, options.gpus_per_job, options.node_dir
    )
    return ray_cluster.RayCluster(asked, options.device, options.threads)


def _expand(prepared: Prepared, grid: Grid) -> Expansion:
    from bench.grid import expand
    from bench.train.cohort import check_fit
    from bench.train.stream import check_sizes, check_sources

    try:
        expansion = expand(grid, prepared.library.fingerprint)
        check_sizes(expansion.cells.values(), prepared.library.read)
        check_sources(expansion.cells.values(), prepared.library.read)
        check_fit(expansion.cells.values(), prepared.library.read)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return expansion


def _train(
    options: argparse.Namespace, prepared: Prepared, grid: Grid
) -> tuple[Outcome, Expansion]:
    from bench.launch.coordinator import run_grid
    from bench.launch.job import unfinished
    from bench.launch.lease import LeaseLostError
    from bench.launch.ray_cluster import ClusterError

    expansion, work = _expand(prepared, grid), prepared.work
    setting = _setting(options, work)
    if unfinished(expansion.cells.values(), work.store, options.retry_failed):
        setting = replace(setting, forms=_forms(options, prepared, expansion))
    retry, console = options.retry_failed, prepared.console
    try:
        with _launcher(options, prepared) as (devices, launch):
            outcome = run_grid(
                expansion, work, setting, devices,
                retry_failed=retry, console=console, launch=launch,
            )  # fmt: skip
    except (LeaseLostError, ClusterError) as error:
        raise UsageError(str(error)) from None
    return outcome, expansion


def _forms(options: argparse.Namespace, prepared: Prepared, expansion: Expansion) -> frozenset[str]:
    """Whose networks are stacked in this run."""
    import torch

    from bench.launch.forms import settle
    from bench.train.device import pick_device

    if prepared.cluster is not None and options.stack == "auto":
        return frozenset()  # what is faster on the nodes cannot be measured here
    torch.set_num_threads(options.threads)
    device = pick_device(prepared.device if prepared.cluster is None else "cpu")
    return settle(
        expansion.cells.values(), prepared.library.read, device,
        options.stack, prepared.work.stacking,
        lambda line: prepared.console.print(line, highlight=False),
    )  # fmt: skip


@contextlib.contextmanager
def _launcher(
    options: argparse.Namespace, prepared: Prepared
) -> Iterator[tuple[list[str], Launch]]:
    """What runs jobs, and one device for each that runs at once."""
    from bench.launch.local import run_processes

    if prepared.cluster is None:
        yield _devices(prepared.device, options.workers), run_processes
        return
    with prepared.cluster as cluster:
        yield cluster.devices, cluster.run


def _setting(options: argparse.Namespace, work: WorkDir) -> Setting:
    from bench.launch.job import Setting, provenance

    return Setting(
        store=work.store.root, cache=work.cache, data_root=options.data_root,
        threads=options.threads, provenance=provenance(CHECKOUT), checkpoints=work.checkpoints,
        checkpoint_seconds=options.checkpoint_seconds, plugins=options.plugins,
        cohort=options.cohort,
    )  # fmt: skip


def _preview(options: argparse.Namespace, prepared: Prepared, grid: Grid) -> int:
    """Says what would run; measures what it would cost, unless it is told not to."""
    from bench.launch.calibrate import CalibrationError
    from bench.launch.preview import preview, preview_costs

    local = prepared.cluster is None
    devices = _devices(prepared.device, options.workers) if local else []
    expansion, work = _expand(prepared, grid), prepared.work
    for reason in prepared.library.absent.values():
        print(f"random images stand in for the data, and nothing counts as done: {reason}")
    if options.calibrate_seconds <= 0 or not local:  # nodes differ from this machine
        print(preview(expansion, work.store, options.retry_failed))
        return 0
    console = prepared.console
    setting = replace(_setting(options, work), forms=_forms(options, prepared, expansion))
    try:
        print(preview_costs(
            expansion, work, setting, devices, prepared.library, options.calibrate_seconds,
            retry_failed=options.retry_failed,
            report=lambda what: console.print(f"calibrating: {what}", highlight=False),
        ))  # fmt: skip
    except CalibrationError as error:
        raise UsageError(str(error)) from None
    return 0


def run(options: argparse.Namespace) -> int:
    """Trains a grid and prints its table."""
    prepared = _prepare(options)
    work = prepared.work
    if options.dry_run:
        return _preview(options, prepared, prepared.grid)
    outcome, expansion = _train(options, prepared, prepared.grid)
    plan = expansion.plan
    records = work.store.read_all(plan.cell_ids())
    costs = _read_costs(work, plan.name, "records")
    _mirror_results(work, plan, records, costs, _render(work, plan, records, costs))
    _say_outcome(outcome)
    return exit_code(outcome.counts)


def tune(options: argparse.Namespace) -> int:
    """Searches hyper-parameters with an equal budget per row, on held-out training images."""
    from bench.launch import tune as tuning
    from bench.record import write_atomically

    if options.trials < 1 or options.tuning_seeds < 1 or not 0 < options.validation < 1:
        raise UsageError("wanted --trials and --tuning-seeds of at least 1, 0 < --validation < 1")
    prepared = _prepare(options)
    trials = tuning.trials_of(prepared.grid, options.trials)
    grid = tuning.tuning_grid(prepared.grid, trials, options.tuning_seeds, options.validation)
    if options.dry_run:
        return _preview(options, prepared, grid)
    outcome, expansion = _train(options, prepared, grid)
    records = prepared.work.store.read_all(expansion.plan.cell_ids())
    results = tuning.collect(trials, expansion.plan, records)
    chosen, folder = tuning.best(results), prepared.work.grid(prepared.grid.name)
    write_atomically(folder / "tuning.csv", tuning.to_csv(results))
    print(f"every trial: {folder / 'tuning.csv'}; the best ones, for the grid file:\n")
    print(tuning.to_yaml(chosen))
    for row in dict.fromkeys(trial.row for trial in trials if trial.row not in chosen):
        print(f"no trial of {row} finished")
    return exit_code(outcome.counts)


def scaling(options: argparse.Namespace) -> int:
    """Says how a grid's time falls with the number of workers, by simulation."""
    from bench.launch.calibrate import CalibrationError
    from bench.launch.scaling import WORKERS, Asked, command

    if options.tflops is not None and not 0 < options.tflops < float("inf"):
        raise UsageError(f"--tflops: got {options.tflops:g}, wanted a number above 0")
    prepared = _prepare(options)
    if prepared.cluster is not None:
        raise UsageError("scaling simulates any number of workers: leave --launcher out")
    devices = _devices(prepared.device, options.workers)
    asked = Asked(
        options.gpus or WORKERS, options.tflops, options.startup_seconds, options.calibrate_seconds
    )
    expansion, setting = _expand(prepared, prepared.grid), _setting(options, prepared.work)
    if options.tflops is None:  # else nothing is timed
        setting = replace(setting, forms=_forms(options, prepared, expansion))
    try:
        files = command(
            expansion, prepared.work, setting, devices, prepared.library, asked,
            report=lambda what: prepared.console.print(what, highlight=False),
        )  # fmt: skip
    except CalibrationError as error:
        raise UsageError(str(error)) from None
    print(files[1].read_text(encoding="utf-8"))
    print(f"table and figure: {prepared.work.grid(prepared.grid.name)}")
    return 0


def _devices(device: str, workers: int | None) -> list[str]:
    """One entry for each worker process."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: got {workers}, wanted 1 or more")
    if device == "cpu":
        return ["cpu"] * (workers or len(os.sched_getaffinity(0)))
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    count = workers or len(gpus)
    return [gpus[i % len(gpus)] for i in range(count)]


def _render(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Prints the summary, writes tables, figures and the report; returns what to mirror."""
    from bench.report.summary import summarise

    try:
        print(summarise(plan, records).to_text())
    except ValueError as error:  # something that lies beside the records is damaged
        raise UsageError(str(error)) from None
    return _write(work, plan, records, costs)


def _write(work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs) -> list[Path]:
    """Writes tables, figures and the report of a grid; returns what to mirror."""
    from bench.report.build import build

    folder = work.grid(plan.name)
    try:
        files = build(plan, records, costs, work.store.root, folder)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"tables and figures: {folder}")
    return [*files, *_measured(folder)]


def _write_costs(work: WorkDir, name: str, costs: Costs) -> list[Path]:
    """The same of a grid that was profiled and not trained."""
    from bench.report.build import build_costs

    folder = work.grid(name)
    files = build_costs(costs, folder)
    print(f"tables and figures: {folder}")
    return [*files, *_measured(folder)]


def _measured(folder: Path) -> list[Path]:
    """What the profiler wrote, if it ran."""
    from bench.cost.command import FILE

    return [folder / FILE] if (folder / FILE).is_file() else []


def _read_costs(work: WorkDir, grid: str, origin: str) -> Costs:
    """What the profiler measured of a grid, empty if it did not run."""
    from bench.cost.command import FILE
    from bench.cost.record import Costs, read_costs

    try:
        if origin == "records":
            return read_costs(work.grid(grid) / FILE)
        from bench.tracking import Mirror, TrackingError

        try:
            text = Mirror(work.root, grid).read_summary_file(FILE)
        except TrackingError as error:
            raise UsageError(f"--from mlflow: {error}") from None
        return Costs() if text is None else Costs.from_json(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _mirror_results(
    work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs, files: list[Path]
) -> None:
    """Puts tables and figures into MLflow, and the winner into its registry."""
    from bench.launch.lease import BusyError, Leases
    from bench.launch.mirroring import sole_mirror
    from bench.report.cost import cost_metrics
    from bench.tracking import TrackingError

    try:
        with Leases(work.leases) as leases, sole_mirror(work, plan.name, leases) as mirror:
            mirror.send_summary(work.grid(plan.name), files, cost_metrics(costs))
            _crown(mirror, work, plan, records, costs)
    except (BusyError, TrackingError) as error:
        print(f"tables are not in MLflow: {error}", file=sys.stderr)


def _mirror_costs(work: WorkDir, name: str, files: list[Path], costs: Costs) -> None:
    """Puts the tables and figures of costs into MLflow."""
    from bench.launch.lease import BusyError, Leases
    from bench.launch.mirroring import sole_mirror
    from bench.report.cost import cost_metrics
    from bench.tracking import TrackingError

    try:
        with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
            mirror.send_summary(work.grid(name), files, cost_metrics(costs))
    except (BusyError, TrackingError) as error:
        print(f"tables are not in MLflow: {error}", file=sys.stderr)


def _crown(
    mirror: Mirror, work: WorkDir, plan: Plan, records: dict[str, Record], costs: Costs
) -> None:
    """Registers the student that won, if it is another one than before; see `winner`."""
    from bench.report.winner import winner
    from bench.tracking import ServableStudent

    best, before = winner(plan, records, costs), mirror.champion()
    if best is None and before is not None:
        mirror.withdraw()
    if best is None or before == best.row.cell_id:
        return
    from bench.export import ExportError, ParityError, load_trained, pack

    try:
        trained = load_trained(best.row, work)
        content, _ = pack(trained, "torch.export")
    except (ExportError, ParityError) as error:
        print(f"the winner is not in MLflow's registry: {error}", file=sys.stderr)
        return
    mirror.crown(ServableStudent(best.row, content, trained.card.to_json(), best.why))
    print(f"MLflow model {mirror.model_name}@champion: {best.row.name}")


def _say_outcome(outcome: Outcome) -> None:
    counts = outcome.counts.items()
    states = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts)
    if not outcome.trained and not outcome.elsewhere:
        print(f"nothing to train, every cell has a result; in all: {states}")
        return
    share = outcome.recording_seconds / outcome.seconds
    others = f" and {outcome.elsewhere} by other commands" if outcome.elsewhere else ""
    expected = outcome.estimated_seconds
    known = expected is not None and not outcome.elsewhere
    estimate = f" (estimated {expected:.0f} s)" if known else ""
    print(
        f"{outcome.trained} cells trained{others} in {outcome.seconds:.0f} s{estimate}; the "
        f"coordinator spent {outcome.recording_seconds:.1f} s ({share:.1%}) recording to MLflow; "
        f"in all: {states}"
    )


def exit_code(counts: dict[str, int]) -> int:
    """0 if no cell failed and none is missing, else 1."""
    return 1 if counts.get("failed", 0) or counts.get("not run", 0) else 0


def tables(options: argparse.Namespace) -> int:
    """Renders a grid's tables again from what is recorded."""
    work = _work_dir(options)
    name = _grid_name(options.grid)
    costs = _read_costs(work, name, options.origin)
    if costs and options.origin == "records" and not work.plan(name).is_file():
        _write_costs(work, name, costs)
        return 0
    plan, records = _read(work, name, options.origin)
    _render(work, plan, records, costs)
    return 0


def recommend(options: argparse.Namespace) -> int:
    """Says which row to choose for each pair, and why; 2 if the evidence answers for none."""
    from bench.report.overall import answer
    from bench.report.recommend import Question
    from bench.report.recommend import recommend as choose

    work, name = _work_dir(options), _grid_name(options.grid)
    try:
        question = Question(
            pair=options.pair, max_cost=options.max_cost, max_memory_mib=options.max_memory_mib,
            min_gain=options.min_gain, category=options.category,
            extra_parameters=not options.no_extra_parameters, fraction=options.data_fraction,
        )  # fmt: skip
        plan, records = _read(work, name, options.origin)
        costs = _read_costs(work, name, options.origin)
        print(answer(choose(plan, records, costs, question)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return 0


def sync(options: argparse.Namespace) -> int:
    """Sends to MLflow the records that it lacks."""
    from bench.launch.lease import BusyError, Leases
    from bench.launch.mirroring import sole_mirror
    from bench.tracking import TrackingError, mirror_all

    work = _work_dir(options)
    name = _grid_name(options.grid)
    plan, records = _read(work, name, "records")
    try:
        with Leases(work.leases) as leases, sole_mirror(work, name, leases, 0.0) as mirror:
            sent = mirror_all(mirror, plan, work.store)
    except BusyError as error:
        raise UsageError(f"{error}; it sends these too") from None
    except TrackingError as error:
        raise UsageError(f"the MLflow store failed, nothing is lost: {error}") from None
    costs = _read_costs(work, name, "records")
    _mirror_results(work, plan, records, costs, _render(work, plan, records, costs))
    print(f"{sent} records sent")
    return 0


def export(options: argparse.Namespace) -> int:
    """Writes one trained network with its preprocessing, after comparing it with the original."""
    from bench.export import ExportError, ParityError, file_name, find_row, load_trained, pack
    from bench.record import write_atomically

    work = _work_dir(options)
    if (options.cell is None) != options.winner:
        raise UsageError("wanted either a CELL or --winner (see: run_all.py export --help)")
    plan, records = _read(work, _grid_name(options.grid), "records")
    try:
        row = _winner_row(work, plan, records) if options.winner else find_row(plan, options.cell)
        trained = load_trained(row, work)
        content, parity = pack(trained, options.format)
    except ExportError as error:
        raise UsageError(str(error)) from None
    except ParityError as error:
        print(f"error: nothing is written: {error}", file=sys.stderr)
        return 1
    card = trained.card
    path = options.output or work.grid(plan.name) / "students" / file_name(card, options.format)
    write_atomically(path, content)
    print(f"{card.name} ({card.cell_id}), {card.parameters} parameters: {path}")
    print(f"compared with the trained network on {parity} (recorded: {card.last_accuracy:.2%})")
    print("preprocessing:", *(f"  {step}" for step in card.preprocessing), sep="\n")
    print(f"classes, in the order of the logits: {', '.join(card.classes)}")
    return 0


def _winner_row(work: WorkDir, plan: Plan, records: dict[str, Record]) -> Row:
    from bench.report.winner import winner

    best = winner(plan, records, _read_costs(work, plan.name, "records"))
    if best is None:
        raise UsageError(
            f"no row of {plan.name} beats the plain student beyond doubt (see: run_all.py "
            "recommend); name a CELL instead"
        )
    print(best.why)
    return best.row


def list_all(options: argparse.Namespace) -> int:
    """Prints what a grid can name."""
    from bench.catalogue import catalogue

    print(catalogue())
    return 0


def ui(options: argparse.Namespace) -> int:
    """Serves the MLflow UI on loopback until it is stopped."""
    from bench.tracking import serve

    return serve(options.work_dir, options.port)


def _work_dir(options: argparse.Namespace) -> WorkDir:
    from bench.workdir import WorkDir

    return WorkDir(options.work_dir)


def _grid_name(name_or_path: str) -> str:
    from bench.record import check_file_names

    yaml = name_or_path.endswith((".yaml", ".yml"))
    name = Path(name_or_path).stem if yaml else name_or_path
    try:
        check_file_names("--grid", [name])
    except ValueError as error:
        raise UsageError(f"{error}; wanted a grid's name or a .yaml file") from None
    return name


def _read(work: WorkDir, grid: str, origin: str) -> tuple[Plan, dict[str, Record]]:
    """A grid's plan and records, from the work directory or from MLflow alone."""
    from bench.record import Plan

    if origin == "mlflow":
        from bench.tracking import Mirror, TrackingError

        try:
            return Mirror(work.root, grid).fetch()
        except TrackingError as error:
            raise UsageError(f"--from mlflow: {error}") from None
    try:
        plan = Plan.from_json(work.plan(grid).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"no results of grid {grid!r} under {work.root}; run: run_all.py --grid {grid}"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{work.plan(grid)} is damaged ({error}); run the grid again") from None
    return plan, work.store.read_all(plan.cell_ids())


def profile(options: argparse.Namespace) -> int:
    """Measures what each method's loss and step cost, each method by itself."""
    from bench.cost import command
    from bench.report.cost import costs_to_text

    work = _work_dir(options)
    try:
        name, costs = command.run(options)
    except ValueError as error:  # GridError and DataError are ValueErrors: all are the caller's
        raise UsageError(str(error)) from None
    print(costs_to_text(costs))
    if work.plan(name).is_file():
        plan, records = _read(work, name, "records")
        files = _write(work, plan, records, costs)
    else:
        files = _write_costs(work, name, costs)
    _mirror_costs(work, name, files, costs)
    return 0


def _add_profile(parser: argparse.ArgumentParser) -> None:
    from bench.cost import command

    command.add_options(parser)
    _add_plugin(parser)


COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (run, _add_run, "train what is unfinished of a grid, then print its tables"),
    "tune": (tune, _add_tune, "choose hyper-parameters on held-out training images"),
    "profile": (profile, _add_profile, "measure what each method costs, by itself"),
    "scaling": (scaling, _add_scaling, "a grid's time on 1 to 1,000 GPUs, simulated"),
    "tables": (tables, _add_tables, "render a grid's tables again; nothing trains"),
    "recommend": (recommend, _add_recommend, "which row to choose for each pair, and why"),
    "sync": (sync, _add_sync, "send to MLflow the records that it lacks"),
    "export": (export, _add_export, "write a trained student as a file to use elsewhere"),
    "list": (list_all, _add_plugin, "methods, models, data sets and grids, with their options"),
    "ui": (ui, _add_ui, "serve the MLflow UI on loopback"),
}
