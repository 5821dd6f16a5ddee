"""Leases: who does what, where several launchers share one work directory.

A launcher holds a lease on every cell that it trains. Its heart beats: a file of its own is written
every few seconds. A lease whose holder's heart stopped is free again, and exactly one other
launcher gets it.

Clocks of hosts differ, so only times that the file system wrote are compared: the age of a
heartbeat is the time of one's own latest beat minus the time of the other's. On one machine nobody
has to wait for that: a launcher keeps a lock on its heartbeat file, which the kernel opens when the
process ends, however it ends.

    <root>/hearts/<owner>              beat, machine, process; locked while the owner lives
    <root>/held/<name>/<generation>    its owner, or "released"; the highest generation counts

Taking a lease is creating the next generation, which succeeds for one only, on network file systems
too. Generations never run backwards, so that nobody takes a lease over twice on old evidence.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
RELEASED = "released"
COUNTER = 20


class BusyError(ValueError):
    """Another command is at work here; the message says which."""


class LeaseLostError(RuntimeError):
    """Another launcher took over what this one holds: it was suspended for too long."""


class Leases:
    """What this process holds. A context manager: on leaving it everything is released.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Leases(Path(folder)) as mine, Leases(Path(folder)) as theirs:
        ...         print(mine.acquire("a"), theirs.acquire("a"), theirs.holder("a") is not None)
        ...         mine.release("a")
        ...         print(theirs.acquire("a"), mine.holder("b"))
        True False True
        True None
    """

    def __init__(
        self,
        root: Path,
        *,
        beat: float = BEAT_SECONDS,
        expiry: float = EXPIRY_SECONDS,
        machine: str | None = None,
    ) -> None:
        """Nothing is written before it is entered.

        Args:
            root: their folder, shared by all who ask.
            beat: seconds between two heartbeats.
            expiry: age in seconds of a heartbeat whose owner counts as dead.
            machine: identifies the running kernel; None to ask it.
        """
        self._hearts, self._names = root / "hearts", root / "held"
        self.beat_seconds, self.expiry = beat, expiry
        self.owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._machine = machine or _machine()
        self._held: dict[str, Path] = {}
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Leases:
        """Starts the heart."""
        self._hearts.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name: nobody may find it open and think its owner dead.
        self._heart, name = tempfile.mkstemp(dir=self._hearts, prefix=".")
        locked = _lock(self._heart, fcntl.LOCK_EX)
        about = {"host": socket.gethostname(), "machine": self._machine, "pid": os.getpid()}
        text = f"{0:0{COUNTER}d}\n" + json.dumps({**about, "locked": locked})
        os.write(self._heart, text.encode())
        os.rename(name, self._hearts / self.owner)
        self._beats = 0
        self._thread = threading.Thread(target=self._live, daemon=True, name="heartbeat")
        self._thread.start()
        self._bury()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases everything and stops the heart."""
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        (self._hearts / self.owner).unlink(missing_ok=True)
        os.close(self._heart)

    @property
    def heart(self) -> Path:
        """The heartbeat file, there for all who share the disk as long as this process lives."""
        return self._hearts / self.owner

    # --- what others see ------------------------------------------------------------------------

    def acquire(self, name: str) -> bool:
        """Takes the lease called `name`, if nobody alive holds it.

        Args:
            name: a plain file name.

        Returns:
            Whether this process holds it now.
        """
        if name in self._held:
            return True
        folder = self._names / name
        folder.mkdir(parents=True, exist_ok=True)
        latest = self._latest(folder)
        if latest is not None and self._owner_of(latest) is not None:
            return False
        path = folder / f"{int(latest.name) + 1 if latest else 1:08d}"
        try:
            file = path.open("x")
        except (FileExistsError, FileNotFoundError):  # another was first; or it cleans up here
            return False
        try:
            with file:
                file.write(self.owner)
        except OSError:  # a full disk: nobody holds it
            path.unlink(missing_ok=True)
            raise
        with self._guard:
            self._held[name] = path
        for old in self._generations(folder):
            if old < path:
                old.unlink(missing_ok=True)
        return True

    def release(self, name: str, *, forget: bool = False) -> None:
        """Gives a lease back.

        Args:
            name: as acquired.
            forget: whether nobody will need it again (a record tells that the cell is done).
        """
        with self._guard:
            path = self._held.pop(name, None)
        if path is None:
            return
        if forget:
            shutil.rmtree(path.parent, ignore_errors=True)
        elif self._read(path) == self.owner:
            # In place, which a full disk does not refuse. Half of it done, it names nobody alive.
            with path.open("r+") as file:
                file.write(RELEASED)
                file.truncate()

    def holder(self, name: str) -> str | None:
        """Who alive holds the lease, in words; None if it is free or this process's own."""
        latest = self._latest(self._names / name)
        owner = None if latest is None else self._owner_of(latest)
        if owner is None or owner == self.owner:
            return None
        about = self._about(owner)
        return f"process {about.get('pid', '?')} on {about.get('host', 'another host')}"

    def check(self) -> None:
        """Raises `LeaseLostError` if a lease of this process is another's by now."""
        if self._lost is not None:
            raise LeaseLostError(
                f"another launcher took over {self._lost}: this process was suspended for more "
                f"than {self.expiry:g} s; start it again, finished cells are kept"
            )

    def pause(self, seconds: float) -> None:
        """Waits, or until the leases end."""
        self._ended.wait(seconds)

    # --- the heart ------------------------------------------------------------------------------

    def _live(self) -> None:
        while not self._ended.wait(self.beat_seconds):
            self.beat()

    def beat(self) -> None:
        """Shows that this process lives, and looks whether its leases are still its own."""
        self._beats += 1
        # In place: neither a full disk nor the lock on it stands in the way. A beat that the
        # file system refuses is left out; a working disk is needed for everything else too.
        with contextlib.suppress(OSError):
            os.pwrite(self._heart, f"{self._beats:0{COUNTER}d}".encode(), 0)
            os.fsync(self._heart)
        with self._guard:
            held = dict(self._held)
        for name, path in held.items():
            latest = self._latest(path.parent)
            mine = latest == path and self._read(path) == self.owner
            if not mine and self._held.get(name) == path:
                self._lost = name

    def _bury(self) -> None:
        """Removes the hearts that stopped: a missing one counts as dead."""
        for path in self._hearts.glob("[!.]*"):
            if path.name != self.owner and not self._lives(path.name):
                path.unlink(missing_ok=True)

    def _lives(self, owner: str) -> bool:
        path = self._hearts / owner
        try:
            with path.open("rb") as file:
                about = json.loads(file.read()[COUNTER + 1 :])
                if about["machine"] == self._machine and about["locked"]:
                    return not _lock(file.fileno(), fcntl.LOCK_SH)
                return self._fresh(os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return False

    def _fresh(self, written: float) -> bool:
        """Whether a time that the file system wrote is recent, by the file system's own clock."""
        return os.fstat(self._heart).st_mtime - written < self.expiry

    def _about(self, owner: str) -> dict[str, Any]:
        try:
            return json.loads((self._hearts / owner).read_bytes()[COUNTER + 1 :])
        except (FileNotFoundError, ValueError):
            return {}

    # --- generations ----------------------------------------------------------------------------

    def _owner_of(self, path: Path) -> str | None:
        """Who alive holds this generation; None if nobody does."""
        owner = self._read(path)
        if owner == "":  # between its creation and its content
            with contextlib.suppress(FileNotFoundError):
                return "unknown" if self._fresh(path.stat().st_mtime) else None
        if owner in (None, "", RELEASED):
            return None
        return owner if self._lives(str(owner)) else None

    @staticmethod
    def _read(path: Path) -> str | None:
        try:
            return path.read_text()
        except FileNotFoundError:
            return None

    def _latest(self, folder: Path) -> Path | None:
        return max(self._generations(folder), default=None)

    @staticmethod
    def _generations(folder: Path) -> list[Path]:
        return [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]


def _machine() -> str:
    """The kernel this process runs on: equal where locks of dead processes are seen to open."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _lock(file: int, kind: int) -> bool:
    """Whether the lock could be had; False as well where the file system has none."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
