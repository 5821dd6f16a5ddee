"""Records go to MLflow while a grid trains, in a thread, so that training never waits.

What is new is sent every minute, less often where sending takes long, and at the end. A store that
is away is named once. One process at a time sends the records of a grid.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console

from bench.cost.costs import FILE as COSTS
from bench.cost.costs import read_costs
from bench.decide.records import numbers_of_cells
from bench.faults import UserError
from bench.launch.leases import BusyError, Leases
from bench.record import Plan
from bench.tracking import Mirror
from bench.workdir import WorkDir

SEND_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.2


@contextlib.contextmanager
def sole_mirror(
    work: WorkDir, grid: str, leases: Leases, patience: float = PATIENCE_SECONDS
) -> Iterator[Mirror]:
    """The mirror of a grid for one command; BusyError if another sends longer than `patience`."""
    with _lease(f"mlflow-{grid}", leases, patience):
        # The first to open the store makes the database, whatever the grid.
        with _lease("mlflow", leases, PATIENCE_SECONDS):
            mirror = Mirror(work.root, grid)
        yield mirror


@contextlib.contextmanager
def _lease(name: str, leases: Leases, patience: float) -> Iterator[None]:
    until = time.monotonic() + patience
    while not leases.acquire(name):
        if time.monotonic() >= until:
            who = leases.holder(name) or "another command"
            raise BusyError(f"{who} is sending records to MLflow from this work directory")
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        leases.release(name)


def send_records(mirror: Mirror, work: WorkDir, plan: Plan) -> int:
    """Sends what the mirror lacks, with gains and costs; returns the number of records sent."""
    records = work.store.read_all(plan.cell_ids())
    numbers = numbers_of_cells(plan, records, read_costs(work.grid(plan.name) / COSTS))
    return mirror.send(plan, work.store, numbers, records)


@contextlib.contextmanager
def mirroring(
    work: WorkDir, plan: Plan, leases: Leases, console: Console, every: float = SEND_SECONDS
) -> Iterator[None]:
    """Sends the records of a grid before, while and after it trains; after an error no more.

    What is new is looked for at most once in `every` seconds. The console shows warnings.
    """
    ended, warned = threading.Event(), False

    def send(patience: float) -> None:
        nonlocal warned
        try:
            with sole_mirror(work, plan.name, leases, patience) as mirror:
                send_records(mirror, work, plan)
        except (BusyError, UserError, OSError) as error:  # OSError: the work directory's disk
            if warned or (isinstance(error, BusyError) and not patience):
                return
            warned = True
            text = (
                f"MLflow lacks records: {error}. Training goes on; what is not sent at its end, "
                "send with: run_all.py sync"
            )
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def send_repeatedly() -> None:
        pause = 0.0
        while not ended.wait(pause):
            began = time.monotonic()
            send(patience=0.0)
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
