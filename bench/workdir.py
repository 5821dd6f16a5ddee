"""The work directory: where caches, records, MLflow's files and tables lie."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.record import Store


class BusyError(ValueError):
    """Another training command is at work in the work directory."""


@dataclass(frozen=True)
class WorkDir:
    """Paths under one root. `store/` is shared by all grids; each grid has a folder of its own."""

    root: Path

    @property
    def store(self) -> Store:
        """The records of all cells of all grids."""
        return Store(self.root / "store" / "cells")

    @property
    def checkpoints(self) -> Path:
        """What unfinished cells go on from."""
        return self.root / "store" / "checkpoints"

    @property
    def cache(self) -> Path:
        """Decoded data sets, and downloads."""
        return self.root / "store" / "data"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other training commands out of this work directory, until they would be alone.

        Raises:
            BusyError: another one is at work here.
        """
        lock = self.root / "store" / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another run is at work in {self.root}; wait, or give another --work-dir"
                raise BusyError(message) from None
            yield

    def grid(self, name: str) -> Path:
        """The folder of a grid's plan, tables and figures."""
        return self.root / name

    def plan(self, name: str) -> Path:
        """The plan of the latest run of a grid."""
        return self.grid(name) / "plan.json"
