"""Records go to MLflow while a grid trains, in a thread, so that training never waits.

What is new is sent every minute, less often where sending takes long, and at the end. A store that
is away is named once. One process at a time sends the records of a work directory.
"""

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console

from bench.cost.costs import costs_of
from bench.decide.records import numbers_of_cells
from bench.faults import UserError
from bench.launch.leases import BusyError, Leases
from bench.record import Plan, Record, WorkDir
from bench.tracking import Mirror

SEND_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.2
LEASE = "mlflow"


@contextlib.contextmanager
def sole_mirror(
    work: WorkDir, grid: str, leases: Leases, patience: float = PATIENCE_SECONDS
) -> Iterator[Mirror]:
    """The mirror of a grid for one command; BusyError if another sends longer than `patience`.

    Whatever the grid: they share a database, which lets one write at a time.
    """
    until = time.monotonic() + patience
    while not leases.acquire(LEASE):
        if time.monotonic() >= until:
            who = leases.holder(LEASE) or "another command"
            raise BusyError(f"{who} is sending records to MLflow from this work directory")
        time.sleep(POLL_SECONDS)
    try:
        yield Mirror(work.root, grid)
    finally:
        leases.release(LEASE)


def send_records(
    mirror: Mirror,
    work: WorkDir,
    plan: Plan,
    records: Mapping[str, Record],
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Sends what the mirror lacks, with gains and costs; returns the number of records sent."""
    costs = costs_of(work, plan.name, plan.config.get("part_of", "")).of_plan(plan, records)
    numbers = numbers_of_cells(plan, records, costs)
    return mirror.send(plan, work.store, numbers, records, stopped)


def how_to_send(work: WorkDir, grid: str) -> str:
    """The command that sends what MLflow lacks."""
    return shlex.join(["run_all.py", "sync", "--grid", grid, "--work-dir", str(work.root)])


@contextlib.contextmanager
def mirroring(
    work: WorkDir, plan: Plan, leases: Leases, console: Console, every: float = SEND_SECONDS
) -> Iterator[None]:
    """Sends the records of a grid before, while and after it trains, at most once in `every` s."""
    ended, warned = threading.Event(), False

    def send(patience: float, stopped: Callable[[], bool] = lambda: False) -> None:
        nonlocal warned
        try:
            with sole_mirror(work, plan.name, leases, patience) as mirror:
                records = work.store.read_all(plan.cell_ids())
                send_records(mirror, work, plan, records, stopped)
        except (BusyError, UserError, MemoryError, OSError) as error:  # OSError: a full disk
            if warned or (isinstance(error, BusyError) and not patience):
                return
            warned = True
            text = (
                f"MLflow lacks records: {error}. Training goes on; what is not sent at its end, "
                f"send with: {how_to_send(work, plan.name)}"
            )
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def send_repeatedly() -> None:
        pause = 0.0
        while not ended.wait(pause):
            began = time.monotonic()
            send(0.0, stopped=ended.is_set)
            # Looking for what is new takes longer the more runs there are: a tenth of the time.
            pause = max(every, 9 * (time.monotonic() - began))

    thread = threading.Thread(target=send_repeatedly, daemon=True, name="mirroring")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    send(PATIENCE_SECONDS)
