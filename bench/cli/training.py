"""The commands that train: run and tune."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console

from bench.cell import Cell
from bench.cli.options import command_of
from bench.cli.recorded import asked_grid, fetch_results, note_origin, render, try_to_send
from bench.cli.terminal import say
from bench.code_version import provenance
from bench.cost.costs import Costs, costs_of
from bench.data.sources import Library
from bench.decide.records import pairs_of
from bench.expansion import Expansion
from bench.faults import UserError, one_line
from bench.grid import Grid
from bench.launch import tune as tuning
from bench.launch.coordinator import Outcome, run_grid
from bench.launch.dry_run import estimate_rows, list_rows, teacher_notes
from bench.launch.job import WorkerConfig, unfinished
from bench.launch.launcher import Launcher
from bench.launch.ray_cluster import NodeCommands, RayCluster
from bench.launch.resources import process_bytes, usable_cpus, worker_room
from bench.launch.screening import assume_finalists, check_costs, choose, expand_chosen
from bench.plugin import plugged
from bench.progress import ProgressDisplay
from bench.record import FAILED, Record, WorkDir, write_archive, write_atomically
from bench.train.device import pick_device
from bench.train.preflight import check_cells
from bench.train.weights import import_weights


def run(options: argparse.Namespace) -> int:
    """Trains a grid and prints its table."""
    command = TrainingCommand(options)
    if options.dry_run:
        return _dry_run(command, command.grid, command.expand(command.grid))
    outcome, expansion = _train(command, command.grid)
    plan, work = expansion.plan, command.work
    results = fetch_results(work, plan.name, "records", command_of(options))
    found = map(results[1].get, expansion.cells)
    counts = Counter(record.status if record else "not run" for record in found)
    states = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.items())
    done = f"{outcome.trained} cells trained" if outcome.trained or outcome.elsewhere else ""
    done += f" and {outcome.elsewhere} by other commands" if outcome.elsewhere else ""
    done += f" in {outcome.seconds:.0f} s" if done else "nothing to train"
    print(f"{done}; in all: {states}")
    try_to_send(work, plan.name, render(work, results), results)
    return _end(command, expansion, results[1])


def tune(options: argparse.Namespace) -> int:
    """Searches hyper-parameters with an equal budget per row, on held-out training images."""
    command = TrainingCommand(options)
    grid, store = command.grid, command.work.store
    trials = tuning.trials_of(grid, options.trials)
    first = tuning.tuning_grid(grid, trials, 1, options.validation)
    train = command.expand if options.dry_run else lambda grid: _train(command, grid)[1]
    expansion = train(first)
    records = store.read_all(expansion.cells)
    results = tuning.collect(trials, expansion.plan, records)
    if options.dry_run:  # any trial may turn out to be one of the best
        results = [replace(trial, accuracy=trial.accuracy or 0.0) for trial in results]
    kept = tuning.promising(results)
    if kept and options.tuning_seeds > 1:
        second = tuning.tuning_grid(grid, kept, options.tuning_seeds, options.validation)
        expansion = tuning.joined(expansion, train(second))
        records = store.read_all(expansion.cells)
        results = tuning.collect(trials, expansion.plan, records)
    if options.dry_run:
        instead = "of trials that are not trained yet, any take the place of the best third"
        return _dry_run(command, first, expansion, instead)
    chosen, folder = tuning.best(results), command.work.grid(grid.name)
    write_atomically(folder / "tuning.csv", tuning.to_csv(results))
    # Without curves, which no table of trials shows and which are nine tenths of a record.
    without = {cell_id: replace(record, curves={}) for cell_id, record in records.items()}
    write_archive(expansion.plan, without, folder / "tuning.jsonl.gz")
    print(f"every trial: {folder / 'tuning.csv'}; the best ones, for the grid file:\n")
    print(tuning.to_yaml(chosen))
    for row, error in {t.row: t.error for t in results if t.row not in chosen}.items():
        print(f"no trial of {row} finished: {error or 'not run'}")
    return _end(command, expansion, records)


class TrainingCommand:
    """A checked grid and its data, ready to be expanded, and what workers need to know.

    `idle_bytes` are the memory of this process when it began, about that of a worker without a job.
    """

    def __init__(self, options: argparse.Namespace, grid: Grid | None = None) -> None:
        """Reads and checks what training the asked grid, or this one, needs, or UserError."""
        self.options, self.idle_bytes = options, process_bytes()
        self.work, self.grid = WorkDir(options.work_dir), grid or asked_grid(options)
        # What a dry run prints begins with the total: its progress is no part of it.
        self.console = Console(soft_wrap=True, stderr=options.dry_run)
        self.costs = costs_of(self.work, self.grid.name, self.grid.part_of)
        self.cluster, self.device = None, options.device
        if options.launcher == "ray":  # whose nodes have devices of their own
            how = options.workers, options.gpus_per_job, options.device, options.threads
            self.cluster = RayCluster(*how)
        else:
            picked = pick_device(options.device)
            self.device = picked.type if options.device == "auto" else options.device
        source, show = one_line(self.grid.data.source)[:80], self.console.print
        show(f"grid {self.grid.name}: reading {source}", markup=False, highlight=False)
        cache = self.work.cache
        self.library = Library(options.data_root, cache, random_if_absent=options.dry_run)
        data = self.library.read(self.grid.data)
        if not options.dry_run:  # which says so itself
            note_origin(self.work, self.grid, options.grid)
            show("\n".join([data.describe(), *data.notes]), markup=False, highlight=False)
        self.config = WorkerConfig(
            store=self.work.store.root.absolute(),
            cache=cache.absolute(),
            data_root=options.data_root and options.data_root.absolute(),
            threads=options.threads,
            provenance=provenance(),
            checkpoints=self.work.checkpoints.absolute(),
            checkpoint_seconds=options.checkpoint_seconds,
            plugins=options.plugins,
            cohort=options.cohort,
        )

    def expand(self, grid: Grid) -> Expansion:
        """The cells of a grid, as far as finalists are chosen; UserError if one cannot run."""
        fingerprint, extend = self.library.fingerprint, self.options.extend
        expansion = expand_chosen(grid, fingerprint, self.work, extend)
        check_costs(grid, expansion, self.costs, command_of(self.options, "profile"))
        if waiting := self.unfinished(expansion):
            check_cells(waiting, self.library.read)
            import_weights(waiting, grid.weights_files(), self.library.read, self.work.store)
        return expansion

    def unfinished(self, expansion: Expansion) -> list[Cell]:
        """The cells that are to be trained."""
        cells = expansion.cells.values()
        return unfinished(cells, self.work.store, self.options.retry_failed)


def _dry_run(command: TrainingCommand, grid: Grid, expansion: Expansion, assumed: str = "") -> int:
    """Says what would run, and what it would take: the total first."""
    options, library = command.options, command.library
    absent, data = library.absent, library.read(grid.data)
    notes = [f"{grid.data.source}: {data.describe()}", *data.notes]
    instead = "random images take the place of the data, and nothing counts as done"
    notes += [f"{instead}: {reason}" for reason in absent] + [assumed] * bool(assumed)
    if grid.screens and not expansion.plan.choices:
        expansion = assume_finalists(grid, expansion, library)
        notes.append("finalists: not chosen yet; the costliest rows take their place here")
    records = command.work.store.read_all(expansion.plan.cell_ids())
    for pair in pairs_of(expansion.plan, records, Costs()).values():
        notes += [f"{pair.name}: {pair.teacher_fault}"] if pair.teacher_fault else []
    waiting = command.unfinished(expansion)
    device = torch.device("cpu" if command.cluster is not None else command.device)
    notes += [] if absent else teacher_notes(waiting, library, command.work.store, device)
    if command.cluster is not None:
        notes.append("time and memory: not estimated, a cluster's nodes differ from this machine")
        text = list_rows(expansion, waiting)
    else:
        torch.set_num_threads(options.threads)
        devices = list_devices(command.device, options.workers)
        with ProgressDisplay(command.console) as display:
            how = command.config, devices, library, worker_room(devices), display
            text = estimate_rows(expansion, waiting, *how, idle_bytes=command.idle_bytes)
    first, *lines = text.splitlines()
    for line in [f"without the data, {first}" if absent else first, *lines, *notes]:
        print(line) if line.startswith("  ") else say([line])  # rows of a table stay whole
    return 0


def _train(
    command: TrainingCommand, grid: Grid, wanted: frozenset[str] | None = None
) -> tuple[Outcome, Expansion]:
    """Trains a grid: all of it, or what is screened, then the finalists.

    A node of a cluster trains the phase that is due, on data sets with the `wanted` fingerprints.
    """
    as_node = wanted is not None
    expansion = command.expand(grid)
    images = frozenset(cell.fingerprint for cell in expansion.cells.values())
    if as_node and images != wanted:
        raise UserError(
            f"its data set {grid.data.source!r} differs from the one where the grid was "
            f"started (data root: {command.options.data_root}); copy the same files to every node"
        )
    with command.cluster or contextlib.nullcontext() as cluster:
        if cluster is None:
            devices = list_devices(command.device, command.options.workers)
            part = min(1.0, command.options.gpus_per_job) if as_node else 1.0
            launch, room_bytes = partial(Launcher, devices), worker_room(devices, part)
        else:  # what is free here says nothing of its nodes
            devices, room_bytes = [cluster.device], None
            options = _node_options(command, cluster)
            launch = partial(NodeCommands, cluster, partial(_train_as_node, options, grid, images))
        train = partial(
            run_grid,
            work=command.work,
            config=command.config,
            devices=devices,
            retry_failed=command.options.retry_failed,
            console=command.console,
            launch=launch,
            room_bytes=room_bytes,
            mirrored=not as_node,
        )
        phase = "confirming" if expansion.plan.choices else "screening" if grid.screens else ""
        outcome = train(expansion, phase=phase)
        # On a cluster the driver chooses the finalists, and starts the nodes again.
        chooses = phase == "screening" and not as_node
        if chooses and unfinished(expansion.cells.values(), command.work.store, False):
            # What was killed is trained once more, so that it can be chosen.
            outcome = outcome.then(train(expansion, phase=phase, retry_failed=False))
        if chooses and choose(grid, expansion, command.work, command.costs):
            expansion = command.expand(grid)
            outcome = outcome.then(train(expansion, phase="confirming"))
        return outcome, expansion


def _node_options(command: TrainingCommand, cluster: RayCluster) -> argparse.Namespace:
    """The options of this command on a node of the cluster, where it trains one job at a time."""
    work_dir, data_root = command.options.work_dir, command.options.data_root
    changed = {
        "launcher": "local",
        "workers": 1,
        "device": cluster.device,
        "retry_failed": False,  # the records are discarded here, once
        # A task's current folder is another one.
        "work_dir": work_dir.absolute(),
        "data_root": data_root and data_root.absolute(),
    }
    return argparse.Namespace(**{**vars(command.options), **changed})


def _train_as_node(options: argparse.Namespace, grid: Grid, images: frozenset[str]) -> None:
    """Trains what no other node does; `images` are the fingerprints of the grid's data sets."""
    with plugged(options.plugins):
        _train(TrainingCommand(options, grid), grid, images)


def list_devices(device: str, workers: int | None) -> list[str]:
    """One entry for each worker process."""
    if device == "cpu":
        return ["cpu"] * (workers or usable_cpus())
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    return [gpus[i % len(gpus)] for i in range(workers or len(gpus))]


def _end(command: TrainingCommand, expansion: Expansion, records: Mapping[str, Record]) -> int:
    """Says how cells that failed are trained again; returns 1 if any did or is missing, else 0."""
    cells = expansion.cells.values()
    failed = [cell for cell in cells if (r := records.get(cell.id)) and r.status == FAILED]
    again = len(unfinished(failed, command.work.store, retry_failed=False))
    if again:
        print(f"ended from outside: {again}; the same command trains them again")
    if len(failed) > again:
        print(f"failed: {len(failed) - again}; with --retry-failed they are trained again")
    return 1 if failed or len(records) < len(cells) else 0
