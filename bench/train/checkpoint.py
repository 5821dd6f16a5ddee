"""Checkpoints, from which an unfinished cell resumes with the same result.

Each cell has files of its own, so that it may resume next to other cells than before. The files of
the two latest epochs are kept: if one is damaged, the cell resumes from the other.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.checksum import DamagedError, pack, unpack
from bench.record import write_atomically

VERSION = 3  # of the content; checkpoints of other versions are not read
KEPT = 2
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """Everything that changes while a cell trains; `values` are JSON-able, or not finite."""

    tensors: Mapping[str, Tensor]
    values: dict[str, Any]


@dataclass
class History:
    """A cell's training so far, in all processes that took part in it; seconds are its share.

    Attributes:
        started: when the first process began, ISO 8601.
        resumed: how often the training resumed from a checkpoint.
        conditions: device, versions and commit of each earlier process.
        nondeterministic: operations without a deterministic form that earlier processes ran.
    """

    started: str
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    resumed: int = 0
    conditions: list[dict[str, Any]] = field(default_factory=list)
    nondeterministic: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of all unfinished cells: `<root>/<cell id>/<epochs done>.safetensors`."""

    def __init__(self, root: Path, every: float = 60.0) -> None:
        """Creates nothing yet. `every`: least seconds between two saves; 0 saves each epoch."""
        self.root, self.every = root, every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= self.every

    def write(
        self, cell_id: str, epoch: int, key: Mapping[str, object], history: History, state: State
    ) -> None:
        """Saves one cell after `epoch` epochs, and removes all but its `KEPT` latest checkpoints.

        `key` is what the state depends on other than the cell. A disk that refuses the file is a
        warning.
        """
        path, self._last = self.root / cell_id / f"{epoch:06d}.safetensors", time.monotonic()
        if path.exists():  # the cell is waiting for others to catch up
            return
        about = {**_identity(cell_id, key), "history": asdict(history), "state": state.values}
        try:
            write_atomically(path, pack(state.tensors, json.dumps(about)))
        except OSError as error:
            logger.warning("checkpoint %s cannot be written (%s)", path, error.strerror)
            return
        for old in self._epochs(cell_id)[KEPT:]:
            old.unlink(missing_ok=True)

    def read(self, cell_id: str, key: Mapping[str, object]) -> tuple[History, State] | None:
        """The cell's latest checkpoint; None if there is none.

        One that is damaged, or has another key (another teacher's weights), is named and removed.
        """
        for path in self._epochs(cell_id):
            try:
                tensors, text = unpack(path)
                about = json.loads(text)
                if not _identity(cell_id, key).items() <= about.items():
                    raise DamagedError("it belongs to another training")
            except FileNotFoundError:
                continue
            except DamagedError as error:
                logger.warning("checkpoint %s cannot be used (%s)", path, error)
                path.unlink(missing_ok=True)
                continue
            return History(**about["history"]), State(tensors, about["state"])
        return None

    def discard(self, cell_id: str) -> None:
        """Removes a cell's checkpoints."""
        shutil.rmtree(self.root / cell_id, ignore_errors=True)

    def _epochs(self, cell_id: str) -> list[Path]:
        """The cell's files, latest first."""
        return sorted((self.root / cell_id).glob("*.safetensors"), reverse=True)


def _identity(cell_id: str, key: Mapping[str, object]) -> dict[str, object]:
    return {"version": VERSION, "cell_id": cell_id, "key": dict(key)}
