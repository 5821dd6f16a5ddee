"""The work directory: paths of caches, records, MLflow's files and tables."""

from dataclasses import dataclass
from pathlib import Path

from bench.record import Store


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
        """The checkpoints of unfinished cells."""
        return self.root / "store" / "checkpoints"

    @property
    def cache(self) -> Path:
        """Decoded data sets and downloads."""
        return self.root / "store" / "data"

    @property
    def leases(self) -> Path:
        """The leases that commands sharing this work directory hold on cells."""
        return self.root / "store" / "leases"

    def grid(self, name: str) -> Path:
        """The folder of a grid's plan, tables and figures."""
        return self.root / name

    def plan(self, name: str) -> Path:
        """The plan of the latest run of a grid."""
        return self.grid(name) / "plan.json"

    def origin(self, name: str) -> Path:
        """Where the folder of a grid's file is noted: weights in it are relative to that folder."""
        return self.root / "store" / "grids" / name

    def choices(self, name: str, digest: str) -> Path:
        """The finalists of a grid that these screened cells led to; see `bench.design`."""
        return self.root / "store" / "finalists" / f"{name}-{digest}.json"
