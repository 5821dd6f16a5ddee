"""Checkpoints: what an unfinished cell needs to go on as if nothing had happened.

One file for each cell and epoch, so that it does not matter which cells train side by side after
a restart. The two latest epochs are kept: a file that was damaged meanwhile (its checksum tells)
costs the epochs since the one before it, not the cell.

Policy: a cohort saves at the end of an epoch if at least `every` seconds went by since the last
time, and if what the last time took is at most 2 % of that. A cell that trains for less than
`every` seconds never writes one. `every = 0` saves after every epoch, whatever it costs.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.checked import DamagedError, pack, unpack
from bench.record import write_atomically

VERSION = 1
"""Raise it when what is stored changes: older checkpoints are then not read."""

KEPT = 2
SECONDS = 60.0
SHARE = 0.02
logger = logging.getLogger(__name__)


class State(NamedTuple):
    """All that changes while a cell trains.

    Attributes:
        tensors: name -> tensor.
        values: JSON-able, NaN and infinity included.
    """

    tensors: Mapping[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class History:
    """What a cell's training took so far, in all the processes that had a part in it.

    Attributes:
        started: when the first of them began, ISO 8601.
        train_seconds: the cell's share of its cohorts' wall clock.
        evaluation_seconds: likewise.
        checkpoint_seconds: likewise; spent on writing and reading checkpoints.
        resumed: how often the training went on from a checkpoint.
        conditions: of each earlier process: device, versions, commit.
        nondeterministic: operations without a deterministic form that earlier processes ran.
    """

    started: str
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    resumed: int = 0
    conditions: list[dict[str, Any]] = field(default_factory=list)
    nondeterministic: list[str] = field(default_factory=list)

    def plus(self, **seconds: float) -> History:
        """With so many more seconds of each kind."""
        return replace(self, **{name: getattr(self, name) + s for name, s in seconds.items()})


class Checkpoints:
    """The checkpoints of all unfinished cells: `<root>/<cell id>/<epochs done>.safetensors`."""

    def __init__(self, root: Path, every: float = SECONDS) -> None:
        """Nothing is created before the first write.

        Args:
            root: their folder.
            every: seconds between two saves, at least; see the module.
        """
        self.root, self.every = root, every
        self._last = time.monotonic()
        self._pause = every

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= self._pause

    def saved(self, seconds: float) -> None:
        """Starts the wait for the next save.

        Args:
            seconds: that this one took.
        """
        self._last = time.monotonic()
        self._pause = max(self.every, seconds / SHARE) if self.every else 0.0

    def write(
        self, cell_id: str, epoch: int, key: Mapping[str, object], history: History, state: State
    ) -> None:
        """Saves one cell after `epoch` epochs, and drops all but the `KEPT` latest.

        A disk that cannot take it is named and costs nothing but this checkpoint.

        Args:
            cell_id: whose.
            epoch: epochs done.
            key: what the state depends on beside the cell; see `read`.
            history: so far.
            state: at the end of the epoch.
        """
        path = self._path(cell_id, epoch)
        if path.exists():  # the cell waits for others to catch up
            return
        about = {"version": VERSION, "cell_id": cell_id, "key": dict(key)}
        about |= {"history": asdict(history), "state": state.values}
        try:
            self._keep(path, pack(state.tensors, json.dumps(about)))
        except OSError as error:
            logger.warning(
                "checkpoint %s cannot be written (%s); training goes on, and the checkpoint "
                "before it is kept", path, error.strerror,
            )  # fmt: skip
            return
        for old in self._epochs(cell_id)[KEPT:]:
            self._drop(old)

    def read(self, cell_id: str, key: Mapping[str, object]) -> tuple[History, State] | None:
        """The cell's latest whole checkpoint; None if it has none.

        One that is damaged, or that does not belong to this training, is named and removed.

        Args:
            cell_id: whose.
            key: must equal what was written: a checkpoint under another teacher's weights is none
                of this training.
        """
        for path in self._epochs(cell_id):
            try:
                tensors, text = unpack(path)
                about = json.loads(text)
                wanted = {"version": VERSION, "cell_id": cell_id, "key": dict(key)}
                if any(about.get(name) != value for name, value in wanted.items()):
                    raise DamagedError("it is of another training")
            except FileNotFoundError:
                continue
            except DamagedError as error:
                logger.warning(
                    "checkpoint %s cannot be used (%s); going on from the one before it, or from "
                    "the start", path, error,
                )  # fmt: skip
                self._drop(path)
                continue
            return History(**about["history"]), State(tensors, about["state"])
        return None

    def reject(self, cell_id: str, reason: str) -> None:
        """Names why a cell's checkpoints do not fit, and removes them."""
        logger.warning("checkpoint of cell %s cannot be used: %s; starting again", cell_id, reason)
        self.discard(cell_id)

    def discard(self, cell_id: str) -> None:
        """Removes a cell's checkpoints: its record is safe."""
        shutil.rmtree(self.root / cell_id, ignore_errors=True)

    def cell_ids(self) -> list[str]:
        """The cells that have any."""
        return sorted(folder.name for folder in self.root.glob("*"))

    def _keep(self, path: Path, content: bytes) -> None:
        write_atomically(path, content)

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _path(self, cell_id: str, epoch: int) -> Path:
        return self.root / cell_id / f"{epoch:06d}.safetensors"

    def _epochs(self, cell_id: str) -> list[Path]:
        """The cell's files, latest first."""
        return sorted((self.root / cell_id).glob("*.safetensors"), reverse=True)
