"""One of several processes that send records to one MLflow server; light to import."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench.record import Plan
from bench.tracking import Mirror, TrackingError, mirror_all
from bench.workdir import WorkDir


@dataclass(frozen=True)
class Sent:
    """What a writer came to.

    Attributes:
        records: sent; 0 if the store failed.
        seconds: of sending, from the opened store on.
        error: of the store; "" if it did not fail.
    """

    records: int
    seconds: float
    error: str = ""


def send(root: Path, grid: str) -> Sent:
    """Sends what the server lacks of a work directory's grid, as `run_all.py sync` does."""
    work = WorkDir(root)
    plan = Plan.from_json(work.plan(grid).read_text(encoding="utf-8"))
    began = time.monotonic()
    try:
        mirror = Mirror(root, grid)
        began = time.monotonic()
        sent = mirror_all(mirror, plan, work.store)
    except TrackingError as error:
        return Sent(0, time.monotonic() - began, str(error))
    return Sent(sent, time.monotonic() - began)
