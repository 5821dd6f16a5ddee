"""What workers on other nodes reach of the coordinator: its display, and its files if need be.

Nodes that share the work directory only report through it. Nodes that do not keep a job's files in
a folder of their own: what the job needs is fetched before, and every record, weight and checkpoint
is sent as it is written, so that a lost node takes nothing with it. Files alone travel (safetensors
and JSON); the coordinator's copy is the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.cell import Cell
from bench.record import Record, Store, check_file_names, write_atomically
from bench.train.checkpoint import Checkpoints

CELLS, CHECKPOINTS = "cells", "checkpoints"
Call = Callable[..., Any]
Event = tuple[str, tuple[Any, ...]]


class SupersededError(Exception):
    """This attempt at a job counts no more: its node was given up, and another has the job."""


class Depot:
    """Lives beside the coordinator, sees its disk, and answers workers one call at a time."""

    def __init__(self, store: Path, checkpoints: Path | None) -> None:
        """Nothing is read or written yet.

        Args:
            store: folder of the coordinator's records.
            checkpoints: folder of its checkpoints; None for none.
        """
        self._roots = {CELLS: store, CHECKPOINTS: checkpoints}
        self._events: list[Event] = []
        self._over: set[str] = set()

    # --- for the coordinator --------------------------------------------------------------------

    def events(self) -> list[Event]:
        """What was reported since the last time: kinds ("begin", "epoch", "say") and values."""
        news, self._events = self._events, []
        return news

    def end(self, attempt: str) -> None:
        """From here on nothing of an attempt is taken: its node may live on, cut off."""
        self._over.add(attempt)

    # --- for workers ----------------------------------------------------------------------------

    def report(self, attempt: str, kind: str, *values: Any) -> None:
        """Something to show.

        Raises:
            SupersededError: the attempt was given up; it must end.
        """
        self._check(attempt)
        self._events.append((kind, values))

    def names(self, area: str, cell_id: str) -> list[str]:
        """The files that there are of a cell."""
        folder = self._folder(area, cell_id)
        return sorted(path.name for path in folder.glob("[!.]*")) if folder else []

    def read(self, area: str, cell_id: str, name: str) -> bytes | None:
        """A file of a cell; None if it is not there."""
        check_file_names("depot", [name])
        folder = self._folder(area, cell_id)
        try:
            return (folder / name).read_bytes() if folder else None
        except FileNotFoundError:
            return None

    def write(self, attempt: str, area: str, cell_id: str, name: str, content: bytes) -> None:
        """Keeps a file of a cell.

        Raises:
            SupersededError: the attempt was given up.
            OSError: the coordinator's disk does not take it.
        """
        self._check(attempt)
        check_file_names("depot", [name])
        if (folder := self._folder(area, cell_id)) is not None:
            write_atomically(folder / name, content)

    def remove(self, attempt: str, area: str, cell_id: str, name: str) -> None:
        """Drops a file of a cell.

        Raises:
            SupersededError: the attempt was given up.
        """
        self._check(attempt)
        check_file_names("depot", [name])
        if (folder := self._folder(area, cell_id)) is not None:
            (folder / name).unlink(missing_ok=True)

    def discard_checkpoints(self, attempt: str, cell_id: str) -> None:
        """Drops all checkpoints of a cell.

        Raises:
            SupersededError: the attempt was given up.
        """
        self._check(attempt)
        if (folder := self._folder(CHECKPOINTS, cell_id)) is not None:
            Checkpoints(folder.parent).discard(cell_id)

    def _check(self, attempt: str) -> None:
        if attempt in self._over:
            raise SupersededError(f"attempt {attempt} was given up")

    def _folder(self, area: str, cell_id: str) -> Path | None:
        check_file_names("depot", [cell_id])
        root = self._roots[area]
        return None if root is None else root / cell_id


# --- on a node without the coordinator's disk ----------------------------------------------------


class SentStore(Store):
    """Records in a folder of the node's own, each sent with its files as it is written."""

    def __init__(self, root: Path, attempt: str, call: Call) -> None:
        """Nothing is created before the first write.

        Args:
            root: the folder.
            attempt: at a job, see `Depot.end`.
            call: (name of a method of `Depot`, arguments) -> its result.
        """
        super().__init__(root)
        self._attempt, self._call = attempt, call

    def fetch(self, needs: Iterable[Cell]) -> None:
        """Brings the weights of teachers and sources here."""
        for need in needs:
            content = self._call("read", CELLS, need.id, "weights.safetensors")
            if content is not None:  # else it is missed where it is read, by name
                write_atomically(self.folder(need.id) / "weights.safetensors", content)

    def write(self, record: Record) -> None:
        """Writes the record here, then sends the cell's files, the record last."""
        super().write(record)
        files = self.folder(record.cell_id).glob("[!.]*")
        for path in sorted(files, key=lambda path: path.name == "record.json"):
            self._call("write", self._attempt, CELLS, record.cell_id, path.name, path.read_bytes())


class SentCheckpoints(Checkpoints):
    """Checkpoints in a folder of the node's own, each sent as it is written.

    Sending counts as writing: a slow network makes them rarer, not the training slower.
    """

    def __init__(self, root: Path, every: float, attempt: str, call: Call) -> None:
        """Nothing is created before the first write.

        Args:
            root: the folder.
            every: seconds between two saves, at least.
            attempt: at a job, see `Depot.end`.
            call: (name of a method of `Depot`, arguments) -> its result.
        """
        super().__init__(root, every)
        self._attempt, self._call = attempt, call

    def fetch(self, cells: Iterable[Cell]) -> None:
        """Brings the checkpoints of cells here."""
        for cell in cells:
            for name in self._call("names", CHECKPOINTS, cell.id):
                content = self._call("read", CHECKPOINTS, cell.id, name)
                if content is not None:
                    super()._keep(self.root / cell.id / name, content)

    def discard(self, cell_id: str) -> None:
        """Removes a cell's checkpoints, here and there."""
        super().discard(cell_id)
        self._call("discard_checkpoints", self._attempt, cell_id)

    def _keep(self, path: Path, content: bytes) -> None:
        super()._keep(path, content)
        self._call("write", self._attempt, CHECKPOINTS, path.parent.name, path.name, content)

    def _drop(self, path: Path) -> None:
        super()._drop(path)
        self._call("remove", self._attempt, CHECKPOINTS, path.parent.name, path.name)
