"""Reading a class-per-folder tree: <root>/train/<class>/<image> and <root>/test/<class>/<image>."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.data.dataset import Classes, DataError, DataSet, Part, choose_classes, resize

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
WORKERS = min(16, os.cpu_count() or 1)
CHUNK = 64


class Entry(NamedTuple):
    """One image of a tree, not opened yet.

    Attributes:
        path: of the file.
        label: position of its class.
        stamp: relative path, bytes and time of last change.
    """

    path: Path
    label: int
    stamp: str


@dataclass(frozen=True)
class Tree:
    """What lies in a tree.

    Attributes:
        classes: the kept class names, sorted.
        train: the training images, by class and then by file name.
        test: likewise.
    """

    classes: tuple[str, ...]
    train: list[Entry]
    test: list[Entry]

    def fingerprint(self) -> str:
        """Another one if an image was added, removed, renamed or written again."""
        stamps = "\n".join(entry.stamp for entry in self.train + self.test)
        return hashlib.sha256(stamps.encode(errors="surrogateescape")).hexdigest()


def class_names(root: Path, part: str) -> list[str]:
    """Names of the class folders of one part, sorted by code point; hidden ones do not count.

    Raises:
        DataError: the part's folder is missing.
    """
    folder = root / part
    if not folder.is_dir():
        raise DataError(f"{root} has no {part}/ folder; wanted {folder}/<class>/<image>")
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")


def list_tree(root: Path, classes: Classes | None = None) -> Tree:
    """Finds the images of a tree. Links are followed; files that are no images are passed over.

    A class may be absent from test/; every class folder that is there must hold an image.

    Args:
        root: the folder that holds train/ and test/.
        classes: keeps these alone; None keeps all.

    Raises:
        DataError: train/ or test/ missing, fewer than two classes, a class in test/ that train/
            lacks, an empty class folder, no test image at all.
    """
    train, test = class_names(root, "train"), class_names(root, "test")
    if len(train) < 2:
        raise DataError(f"{root / 'train'} has {len(train)} class folders; wanted at least 2")
    if unknown := sorted(set(test) - set(train)):
        raise DataError(f"{root / 'test' / unknown[0]} is a class that {root / 'train'} lacks")
    if classes is not None:
        train = [train[position] for position in choose_classes(train, classes)]
    labels = {name: label for label, name in enumerate(train)}
    tested = {name: label for name, label in labels.items() if name in test}
    if not tested:
        raise DataError(f"{root / 'test'} has a folder for none of the classes {', '.join(train)}")
    return Tree(tuple(train), _list_part(root, "train", labels), _list_part(root, "test", tested))


def _list_part(root: Path, part: str, labels: Mapping[str, int]) -> list[Entry]:
    found = []
    for name, label in labels.items():
        folder = root / part / name
        files = [e for e in os.scandir(folder) if Path(e.name).suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(
                f"class folder {folder} holds no image ({', '.join(sorted(SUFFIXES))}); "
                "fill it or remove it"
            )
        for file in sorted(files, key=lambda e: e.name):
            status = _status(file)
            stamp = f"{part}/{name}/{file.name} {status.st_size} {status.st_mtime_ns}"
            found.append(Entry(Path(file.path), label, stamp))
    return found


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise DataError(f"unreadable image {entry.path}: {error.strerror}") from error


def read_tree(tree: Tree, name: str, size: int | None = None) -> DataSet:
    """Decodes every image of a tree.

    Images are RGB, or stay grey (C = 1) if all of them are. Alpha is dropped; a photograph's
    orientation tag is not applied.

    Args:
        tree: see `list_tree`.
        name: the data set's name.
        size: resizes each image to size x size; None wants them to be of one size already.

    Raises:
        DataError: an unreadable image, or images of different sizes and no `size`.
    """
    entries = tree.train + tree.test
    arrays = _decode_all([entry.path for entry in entries], size)
    channels = max(array.shape[0] for array in arrays)
    labels = torch.tensor([entry.label for entry in entries])
    count = len(tree.train)

    def part(chosen: slice) -> Part:
        return _stack(arrays[chosen], channels), labels[chosen].clone()

    return DataSet.of(name, part(slice(count)), part(slice(count, None)), tree.classes)


def _decode_all(paths: Sequence[Path], size: int | None) -> list[np.ndarray]:
    # A task for each small image would spend as long on handing over as on decoding.
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    arrays: list[np.ndarray] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for decoded in pool.map(partial(_decode_chunk, size=size), chunks):
            arrays += decoded
            _check_one_size(paths, arrays, len(arrays) - len(decoded))
    return arrays


def _check_one_size(paths: Sequence[Path], arrays: Sequence[np.ndarray], start: int) -> None:
    """Compares the images from `start` on with the first of all."""
    for path, array in zip(paths[start:], arrays[start:], strict=False):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"{path} is {_shape_text(array)} but {paths[0]} is {_shape_text(arrays[0])} pixels;"
                " give the data set a size to bring all images to size x size"
            )


def _decode_chunk(paths: Sequence[Path], size: int | None) -> list[np.ndarray]:
    return [_decode(path, size) for path in paths]


def _decode(path: Path, size: int | None) -> np.ndarray:
    """(1, H, W) of a grey image, (3, H, W) of any other, uint8."""
    try:
        with Image.open(path) as opened:
            image = _eight_bit(opened)
    # Pillow's decoders raise SyntaxError and ValueError for broken files besides OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"unreadable image {path}: {error}") from error
    if size is not None:
        return np.stack([resize(plane, size) for plane in image.split()])
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16-bit and float values at 255 without a word.
        raise ValueError(f"mode {image.mode} is more than 8 bits a channel; save it as 8-bit")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _shape_text(array: np.ndarray) -> str:
    return f"{array.shape[2]}x{array.shape[1]}"


def _stack(arrays: Sequence[np.ndarray], channels: int) -> Tensor:
    out = np.empty((len(arrays), channels, *arrays[0].shape[1:]), dtype=np.uint8)
    for position, array in enumerate(arrays):
        out[position] = array  # a grey image among colour ones fills all three channels
    return torch.from_numpy(out)
