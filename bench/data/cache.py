"""The cache of decoded data sets: a folder each, with its images as raw bytes that are mapped.

`<name>-<digest>/` holds `train.images` and `test.images`, uint8 (N, C, H, W), and
`index.safetensors` with labels, statistics and a CRC-32 for each block of the images. All of them
are verified whenever a set is opened, so that a damaged one is decoded again and never used for
training. Mapped images take no memory of a process; processes share what the system has read.
"""

import fcntl
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor

from bench.checksum import DamagedError, pack, unpack
from bench.data.dataset import DataError, DataSet, Part, blocks
from bench.record import write_atomically

VERSION = 2  # of the decoding; sets of other versions are decoded again
INDEX, KEY = "index.safetensors", "key.json"
PARTS = ("train", "test")

logger = logging.getLogger(__name__)


def cached(folder: Path, key: Mapping[str, object], build: Callable[[Path], DataSet]) -> DataSet:
    """The data set stored in `folder`; built and stored first if it is not there.

    `build` is given a folder to write `<part>.images` into, which remains for the next try if it is
    interrupted; images that it returns in memory are written for it. Of several processes that ask
    at once one builds, and the others wait. The JSON-able key is all that the content depends on; a
    set with another key is replaced. DataError if the cache cannot be written.
    """
    wanted = {"version": VERSION, **key}
    try:
        with _locked(folder):
            found = open_cached(folder, key=wanted) if folder.exists() else None
            if found is None:
                work = _work_folder(folder, wanted)
                _write(work, build(work), wanted)
                shutil.rmtree(folder, ignore_errors=True)
                work.rename(folder)
                found = open_cached(folder)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {folder} ({error.strerror}); choose another --work-dir"
        ) from error
    if found is None:
        raise DataError(f"data cache {folder} was damaged while it was written; try again")
    return found


def _work_folder(folder: Path, key: Mapping[str, object]) -> Path:
    """Where a set is built: emptied, unless it was begun under the same key."""
    work, text = folder.with_name(f"{folder.name}.building"), json.dumps(key, sort_keys=True)
    if not (work / KEY).is_file() or (work / KEY).read_text(encoding="utf-8") != text:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_atomically(work / KEY, text)
    return work


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks `folder` for this process. The lock file remains, or two processes could lock it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            # Some network file systems have no locks. A set appears as a whole, so the worst case
            # is that two processes decode the same data.
            logger.warning("no file lock for the data cache %s (%s)", folder, error)
        yield


def map_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The images of a file as a tensor (N, C, H, W) that is read where and when it is used."""
    # Copy on write: what is written to the tensor, which nobody does, stays in the process.
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))


def open_cached(folder: Path, **wanted: object) -> DataSet | None:
    """A stored data set; None if it is damaged, or its "key" or "fingerprint" is not as wanted."""
    try:
        tensors, about = unpack(folder / INDEX)
        values = json.loads(about)
        if any(values[name] != value for name, value in wanted.items()):
            return None
        train, test = (_verified(folder, part, values["shape"], tensors) for part in PARTS)
    except (OSError, DamagedError) as error:
        logger.warning("data cache %s is damaged (%s)", folder, error)
        return None
    classes, mean, std = (tuple(values[name]) for name in ("classes", "mean", "std"))
    data = DataSet(values["name"], *train, *test, classes, mean, std)
    vars(data)["fingerprint"] = values["fingerprint"]  # of what the checksums have just verified
    return data


def _verified(folder: Path, part: str, shape: list[int], index: Mapping[str, Tensor]) -> Part:
    """A part whose blocks of images have the index's checksums; DamagedError if one has not."""
    path = folder / f"{part}.images"
    count, rest = divmod(path.stat().st_size, prod(shape))
    if rest or not count:
        raise DamagedError(f"{path.name} is cut off")
    images = map_images(path, (count, *shape))
    if not torch.equal(_checksums(images), index[f"{part}_checksums"]):
        raise DamagedError(f"{path.name}: checksum differs")
    return images, index[f"{part}_labels"]


def _checksums(images: Tensor) -> Tensor:
    """The CRC-32 of every block of images."""
    contents = (block.numpy().data for block in blocks(images))
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        return torch.tensor(list(pool.map(zlib.crc32, contents)))


def _write(work: Path, data: DataSet, key: Mapping[str, object]) -> None:
    """Writes the images that are in memory, and the index, which refers to all of them."""
    tensors: dict[str, Tensor] = {}
    for part, (images, labels) in zip(PARTS, (data.train, data.test), strict=True):
        if not (path := work / f"{part}.images").exists():
            with open(begun := path.with_suffix(".begun"), "wb") as out:
                out.writelines(block.numpy().data for block in blocks(images))
            begun.rename(path)
        tensors[f"{part}_checksums"] = _checksums(images)
        tensors[f"{part}_labels"] = labels
    about = {name: getattr(data, name) for name in ("name", "classes", "mean", "std")}
    about |= {"shape": data.train_images.shape[1:], "fingerprint": data.fingerprint, "key": key}
    write_atomically(work / INDEX, pack(tensors, json.dumps(about)))
