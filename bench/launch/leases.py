"""Leases: which command trains which cell, where several commands share one work directory.

A command holds a lease on every cell that it trains, and writes a heartbeat to a file of its own
every few seconds. Once that stops, exactly one other command gets the lease. Clocks of hosts
differ, so that only times written by the file system are compared. On one machine nobody waits: a
command locks its heartbeat file, and the kernel opens the lock when the process ends.

    <root>/hearts/<owner>              heartbeat, machine, process; locked while the owner lives
    <root>/held/<name>/<generation>    its owner, or "released"; the highest generation counts

To take a lease is to create the next generation: only one process can create a file, on network
file systems too. Nobody takes a lease over twice on old evidence.
"""

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
from typing import Any, Self

from bench.faults import UserError

RELEASED = "released"
NONE = f"{0:08d}"  # the generation of a lease that nobody ever held; there is no such file


class BusyError(UserError):
    """Another command works on the same thing; the message names it."""


class LeaseLostError(UserError):
    """Another command took over a lease of this process, which was suspended."""


class Leases:
    """The leases of this process. A context manager: they are released at its end."""

    def __init__(
        self, root: Path, *, beat: float = 5.0, expiry: float = 60.0, machine: str | None = None
    ) -> None:
        """Writes nothing before it is entered.

        Heartbeats are `beat` seconds apart, and a holder without one for `expiry` seconds counts as
        dead. `machine` identifies the running kernel; None to ask it.
        """
        self._hearts, self._names = root / "hearts", root / "held"
        self.beat_seconds, self.expiry = beat, expiry
        self.owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._machine = machine or _machine()
        self._held: dict[str, Path] = {}
        self._lost: LeaseLostError | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Starts the heartbeat."""
        self._hearts.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name: nobody may find it open and take its owner for dead.
        self._file, name = tempfile.mkstemp(dir=self._hearts, prefix=".")
        locked = _lock(self._file, fcntl.LOCK_EX)
        about = {"host": socket.gethostname(), "machine": self._machine, "pid": os.getpid()}
        self._about = json.dumps({**about, "locked": locked}).encode()
        os.write(self._file, self._about)
        os.rename(name, self.heart)
        self._thread = threading.Thread(target=self._live, daemon=True, name="heartbeat")
        self._thread.start()
        for path in self._hearts.iterdir():  # those that never got their names, too
            if path != self.heart and not self._lives(path.name):
                path.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Releases everything, and stops the heartbeat."""
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)
        self.heart.unlink(missing_ok=True)
        os.close(self._file)

    @property
    def heart(self) -> Path:
        """The heartbeat file. All who share the disk see it while this process lives."""
        return self._hearts / self.owner

    def commands(self) -> int:
        """How many living processes share the leases, this one among them."""
        return max(1, sum(self._lives(path.name) for path in self._hearts.glob("[!.]*")))

    def acquire(self, name: str) -> bool:
        """Takes a lease by a plain file name, unless a living process holds it; whether it did."""
        if name in self._held:
            return True
        folder = self._names / name
        folder.mkdir(parents=True, exist_ok=True)
        latest = _latest(folder)
        if self._owner_of(latest) is not None:
            return False
        path = folder / f"{int(latest.name) + 1:08d}"
        try:
            file = path.open("x")
        except (FileExistsError, FileNotFoundError):  # another was first, or removes the folder
            return False
        try:
            with file:
                file.write(self.owner)
        except OSError:  # a full disk: nobody holds it
            path.unlink(missing_ok=True)
            raise
        self._held[name] = path
        for old in _generations(folder):
            if old < path:
                old.unlink(missing_ok=True)
        return True

    def release(self, name: str, *, forget: bool = False) -> None:
        """Gives a lease back; `forget` if nobody needs it again, because the cell has a record."""
        path = self._held.pop(name, None)
        if path is None:
            return
        if forget:
            shutil.rmtree(path.parent, ignore_errors=True)
        elif _read(path) == self.owner:
            # In place, which a full disk does not refuse. Half written, it names nobody alive.
            with path.open("r+") as file:
                file.write(RELEASED)
                file.truncate()

    def generation(self, name: str) -> Path:
        """The file that stands for a lease of this process; see `check_held`."""
        return self._held[name].absolute()

    def holder(self, name: str) -> str | None:
        """The living process that holds the lease, in words; None if there is no other."""
        owner = self._owner_of(_latest(self._names / name))
        if owner is None or owner == self.owner:
            return None
        about: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            about = json.loads((self._hearts / owner).read_bytes())
        return f"process {about.get('pid', '?')} on {about.get('host', 'another host')}"

    def check(self) -> None:
        """Raises `LeaseLostError` if another process holds a lease of this one by now."""
        if self._lost is not None:
            raise self._lost

    def _live(self) -> None:
        while not self._ended.wait(self.beat_seconds):
            self.beat()

    def beat(self) -> None:
        """Writes a heartbeat, and looks whether this process still holds its leases."""
        # The same text in place: neither a full disk nor the lock prevents it. A heartbeat that
        # the file system refuses is left out; everything else needs a working disk, too.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, self._about, 0)
            os.fsync(self._file)
        for name, path in self._held.copy().items():  # another thread changes it meanwhile
            try:
                check_held(path)
            except LeaseLostError as error:
                if self._held.get(name) == path:
                    self._lost = error

    def _lives(self, owner: str) -> bool:
        try:
            with (self._hearts / owner).open("rb") as file:
                about: dict[str, Any] = {}
                with contextlib.suppress(ValueError):  # of another version
                    about = json.load(file)
                if about.get("machine") == self._machine and about["locked"]:
                    return not _lock(file.fileno(), fcntl.LOCK_SH)
                return self._is_recent(os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return False

    def _is_recent(self, written: float) -> bool:
        """Whether a time written by the file system is recent, by the file system's own clock."""
        return os.fstat(self._file).st_mtime - written < self.expiry

    def _owner_of(self, path: Path) -> str | None:
        """The living owner of a generation; None if there is none."""
        owner = _read(path)
        if owner == "":  # created, and not yet written
            with contextlib.suppress(FileNotFoundError):
                return "unknown" if self._is_recent(path.stat().st_mtime) else None
        return owner if owner and self._lives(owner) else None


def check_held(generation: Path) -> None:
    """LeaseLostError if the lease that this file stands for was taken over, or its folder is gone.

    A network disk may still show older generations alone: that is none.
    """
    latest = _latest(generation.parent)
    if latest.name == NONE or latest > generation:
        raise LeaseLostError(
            f"another launcher took over {generation.parent.name}: this process was suspended; "
            "start it again, finished cells are kept"
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _generations(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[0-9]*") if path.name.isdecimal()]


def _latest(folder: Path) -> Path:
    return max(_generations(folder), default=folder / NONE)


def _machine() -> str:
    """The running kernel: processes that name the same one see each other's locks open."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _lock(file: int, kind: int) -> bool:
    """Tries to lock an open file; returns False where the file system has no locks, too."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
