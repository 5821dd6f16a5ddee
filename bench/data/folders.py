"""Reads a class-per-folder tree: <root>/train/<class>/<image> and <root>/test/<class>/<image>."""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
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


class ImageFile(NamedTuple):
    """One image of a tree; the stamp is its relative path, size and time of the last change."""

    path: Path
    label: int
    stamp: str


@dataclass(frozen=True)
class Tree:
    """The images of a tree, sorted by class and file name."""

    classes: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]

    def fingerprint(self) -> str:
        """Hash that changes when an image is added, removed, renamed or written again."""
        stamps = "\n".join(file.stamp for file in self.train + self.test)
        return hashlib.sha256(stamps.encode(errors="surrogateescape")).hexdigest()


def class_names(root: Path, part: str) -> list[str]:
    """Names of the class folders of one part, sorted; DataError if its folder is missing."""
    folder = root / part
    if not folder.is_dir():
        raise DataError(f"{root} has no {part}/ folder; wanted {folder}/<class>/<image>")
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")


def list_tree(root: Path, classes: Classes | None = None) -> Tree:
    """Finds the images of a tree. Links are followed; files of other types are ignored.

    DataError if train/ or test/ is missing, there are fewer than two classes, test/ has a class
    that train/ lacks, a class folder is empty, or there is no test image.
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
        raise DataError(f"{root / 'test'} has no folder for any of the classes {', '.join(train)}")
    return Tree(tuple(train), _list_part(root, "train", labels), _list_part(root, "test", tested))


def _list_part(root: Path, part: str, labels: Mapping[str, int]) -> list[ImageFile]:
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
            try:
                status = file.stat()
            except OSError as error:
                raise DataError(f"unreadable image {file.path}: {error.strerror}") from error
            if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                raise DataError(f"unreadable image {file.path}: no file")
            stamp = f"{part}/{name}/{file.name} {status.st_size} {status.st_mtime_ns}"
            found.append(ImageFile(Path(file.path), label, stamp))
    return found


def read_tree(tree: Tree, name: str, size: int | None = None) -> DataSet:
    """Decodes every image of a tree.

    The images become grey (C = 1) if all of them are grey, else RGB. Alpha channels are dropped.
    The orientation tag of a photograph is not applied. A size resizes each image to size x size.
    DataError if an image is unreadable, or the images differ in size and `size` is None.
    """
    files = tree.train + tree.test
    arrays = _decode_all([file.path for file in files], size)
    channels = max(array.shape[0] for array in arrays)
    labels = torch.tensor([file.label for file in files])
    count = len(tree.train)

    def part(chosen: slice) -> Part:
        return _stack(arrays[chosen], channels), labels[chosen].clone()

    return DataSet.of(name, part(slice(count)), part(slice(count, None)), tree.classes)


def _decode_all(paths: Sequence[Path], size: int | None) -> list[np.ndarray]:
    # With one task per image, handing over small images would take as long as decoding them.
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(WORKERS) as pool:
        decoded = pool.map(lambda chunk: [_decode(path, size) for path in chunk], chunks)
        arrays = list(chain.from_iterable(decoded))
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            (height, width), (first_height, first_width) = array.shape[1:], arrays[0].shape[1:]
            raise DataError(
                f"{path} is {width}x{height} but {paths[0]} is {first_width}x{first_height} pixels;"
                " data.size resizes all images to size x size"
            )
    return arrays


def _decode(path: Path, size: int | None) -> np.ndarray:
    """One image as uint8: (1, H, W) if it is grey, else (3, H, W)."""
    try:
        with Image.open(path) as opened:
            image = _eight_bit(opened)
    # For broken files, Pillow's decoders raise SyntaxError and ValueError as well as OSError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"unreadable image {path}: {error}") from error
    if size is not None:
        return np.stack([resize(plane, size) for plane in image.split()])
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would silently clip 16-bit and float values at 255.
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel; save it as 8-bit")
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _stack(arrays: Sequence[np.ndarray], channels: int) -> Tensor:
    out = np.empty((len(arrays), channels, *arrays[0].shape[1:]), dtype=np.uint8)
    for position, array in enumerate(arrays):
        out[position] = array  # a grey image among colour ones fills all three channels
    return torch.from_numpy(out)
