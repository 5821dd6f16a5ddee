"""From options to what a training command needs: a checked grid, its data, devices, a launcher."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.faults import UserError
from bench.workdir import WorkDir

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.library import Library
    from bench.expansion import Expansion
    from bench.grid import Grid
    from bench.launch.coordinator import Launch
    from bench.launch.job import WorkerConfig
    from bench.launch.ray_cluster import RayCluster


@dataclass(frozen=True)
class Prepared:
    """A checked grid and its data, ready to be expanded, and what workers need to know."""

    grid: Grid
    library: Library
    work: WorkDir
    device: str
    console: Console
    cluster: RayCluster | None
    config: WorkerConfig


def prepare(options: argparse.Namespace) -> Prepared:
    """Reads and checks all that a training command needs, before anything starts.

    Raises:
        UserError: an option, the grid or its data is wrong.
    """
    from rich.console import Console

    from bench.code_version import provenance
    from bench.data.library import Library
    from bench.grid import load_grid, name_part, narrow
    from bench.launch.job import WorkerConfig
    from bench.train.device import pick_device

    # What a dry run prints begins with the total: its progress is no part of it.
    work, console = WorkDir(options.work_dir), Console(soft_wrap=True, stderr=options.dry_run)
    grid = load_grid(options.grid, options.overrides)
    grid = narrow(grid, options.methods, options.pairs, options.seeds)
    grid = name_part(grid, load_grid(options.grid))
    cluster, device = _cluster(options), options.device
    if cluster is None:  # a cluster's nodes have devices of their own
        device = pick_device(device).type if device == "auto" else device
        pick_device(device)
    console.print(f"grid {grid.name}: reading {grid.data.source}", highlight=False)
    library = Library(options.data_root, work.cache, random_if_absent=options.dry_run)
    library.read(grid.data)
    config = WorkerConfig(
        store=work.store.root,
        cache=work.cache,
        data_root=options.data_root,
        threads=options.threads,
        provenance=provenance(),
        checkpoints=work.checkpoints,
        checkpoint_seconds=options.checkpoint_seconds,
        plugins=options.plugins,
        cohort=options.cohort,
    )
    return Prepared(grid, library, work, device, console, cluster, config)


def _cluster(options: argparse.Namespace) -> RayCluster | None:
    """The Ray cluster that is asked for; nothing is connected yet."""
    if options.launcher == "local":
        if options.address is not None:
            raise UserError("--address is of a Ray cluster: add --launcher ray")
        return None
    from bench.launch import ray_cluster

    return ray_cluster.RayCluster(
        options.address or "auto",
        options.workers,
        options.gpus_per_job,
        options.device,
        options.threads,
    )


def expand_grid(
    prepared: Prepared, grid: Grid, retry_failed: bool, extend: bool = False
) -> Expansion:
    """A grid's cells, as far as its finalists are chosen.

    Those that are to be trained fit their data and their network.

    Args:
        prepared: what the command needs.
        grid: that of the command, or one made from it.
        retry_failed: whether failed cells run again.
        extend: whether to train the second look's seeds, too. Once they are, they remain.

    Raises:
        UserError: a cell does not fit, or the grid plans no second look.
    """
    from bench.launch.job import unfinished
    from bench.launch.screening import expand_chosen

    expansion = expand_chosen(grid, prepared.library.fingerprint, prepared.work, extend)
    waiting = unfinished(expansion.cells.values(), prepared.work.store, retry_failed)
    if waiting:
        from bench.train.preflight import check_cells

        check_cells(waiting, prepared.library.read)
    return expansion


@contextlib.contextmanager
def open_launcher(
    options: argparse.Namespace, prepared: Prepared
) -> Iterator[tuple[list[str], Launch, int | None]]:
    """One device for each job that runs at once, what runs jobs, and the memory of a worker."""
    from bench.launch.resources import worker_room
    from bench.launch.workers import run_processes

    if prepared.cluster is None:
        devices = list_devices(prepared.device, options.workers)
        yield devices, run_processes, worker_room(devices)
        return
    with prepared.cluster as cluster:  # what is free here says nothing of its nodes
        yield cluster.devices, cluster.run, None


def list_devices(device: str, workers: int | None) -> list[str]:
    """One entry for each worker process."""
    if device == "cpu":
        from bench.launch.resources import usable_cpus

        return ["cpu"] * (workers or usable_cpus())
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    count = workers or len(gpus)
    return [gpus[i % len(gpus)] for i in range(count)]
