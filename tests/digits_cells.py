"""Cells on two digits, and jobs of them: what tests of the launchers train."""

from pathlib import Path

from bench.cell import Cell, DataSpec, Recipe
from bench.data.sources import Library
from bench.hyperparameters import method_code, resolve_hyperparameters
from bench.launch.job import WorkerConfig

DATA = DataSpec(source="digits", classes=2, fraction=0.3, pad=1, flip=False)
EPOCHS = 3


def digits_cell(
    model: str,
    cache: Path,
    method: str = "student",
    teacher: Cell | None = None,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> Cell:
    """A cell that trains for some milliseconds an epoch; `cache` is of decoded data sets."""
    return Cell(
        model=model, data=DATA, fingerprint=Library(None, cache).fingerprint(DATA), method=method,
        recipe=Recipe(epochs=epochs, batch_size=16, learning_rate=0.05), seed=seed,
        code=method_code(method), hyperparameters=resolve_hyperparameters(method, {}),
        teacher=teacher,
    )  # fmt: skip


def worker_config(work: Path, cache: Path, **changes: object) -> WorkerConfig:
    """For workers that write a checkpoint after every epoch."""
    values = {
        "store": work / "cells", "cache": cache, "data_root": None,
        "checkpoints": work / "checkpoints", "checkpoint_seconds": 0.0,
    }  # fmt: skip
    return WorkerConfig(**{**values, **changes})
