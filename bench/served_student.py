"""How `mlflow models serve` runs an exported student. Travels with the model, alone.

It imports nothing of this package: a server needs torch and mlflow only. Nothing is unpickled.
"""

from __future__ import annotations

import numpy as np
import torch


class ServedStudent:
    """An exported program behind the interface that MLflow's servers call."""

    def __init__(self, program: torch.nn.Module) -> None:
        """Takes the program as it was exported, its preprocessing in front."""
        self.program = program

    def predict(self, images: np.ndarray, params: object = None) -> np.ndarray:
        """(B, K) float32 logits of (B, C, H, W) uint8 images; `params` is MLflow's and unused."""
        with torch.no_grad():
            return self.program(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def _load_pyfunc(path: str) -> ServedStudent:
    """MLflow calls this with the path of the exported program."""
    return ServedStudent(torch.export.load(path).module())
