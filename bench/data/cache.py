"""The cache of decoded data sets: one file of uint8 tensors with a checksum for each.

The SHA-256 is verified at every load (about 0.15 s for CIFAR-100), so that a damaged file is
decoded again and never used for training.
"""

import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.checksum import DamagedError, pack, unpack
from bench.data.dataset import DataError, DataSet
from bench.record import write_atomically

VERSION = 1
"""Version of the decoding. Files of other versions are decoded again."""

logger = logging.getLogger(__name__)


def cached(path: Path, key: Mapping[str, object], build: Callable[[], DataSet]) -> DataSet:
    """The data set stored at `path`; built and stored first if it is not there.

    If several processes ask at once, one builds (and downloads) and the others wait for its file.
    The JSON-able key is all that the content depends on; a file with another key is replaced.
    DataError if the cache cannot be written, or `build` fails.
    """
    wanted = {"version": VERSION, **key}
    with _locked(path):
        stored = open_cached(path) if path.exists() else None
        if stored is not None and stored[1] == wanted:
            return stored[0]
        built = build()
        _write(path, built, wanted)
    return built


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks `path` for this process. The lock file remains, or two processes could lock it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - closed by the with below
    except OSError as error:
        raise _unwritable(path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            # Some network file systems have no locks. The file is written atomically, so the worst
            # case is that two processes decode the same data.
            logger.warning("no file lock for the data cache %s (%s)", path, error)
        yield


def open_cached(path: Path) -> tuple[DataSet, dict[str, object]] | None:
    """A cache file's data set and key; None if the file is damaged."""
    try:
        tensors, about = unpack(path)
    except (FileNotFoundError, DamagedError) as error:
        logger.warning("data cache %s is damaged (%s)", path, error)
        return None
    values = json.loads(about)
    lists = {name: tuple(values[name]) for name in ("classes", "mean", "std")}
    fields: dict[str, Any] = {**tensors, **lists}
    return DataSet(name=values["name"], **fields), values["key"]


def _write(path: Path, data: DataSet, key: Mapping[str, object]) -> None:
    values = vars(data)
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    about = {name: value for name, value in values.items() if name not in tensors}
    try:
        write_atomically(path, pack(tensors, json.dumps({"key": key, **about})))
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the data cache {path} ({error.strerror}); choose another --work-dir"
    )
