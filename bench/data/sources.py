"""Data sources: scikit-learn's digits, torchvision's sets, folders of images and plugins."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from bench.cell import ImageSpec
from bench.data.build import build_images
from bench.data.cache import cached, open_cached
from bench.data.dataset import Classes, DataError, DataSet, MissingDataError, Part, choose_classes
from bench.data.decode import CROP, SQUASH
from bench.data.folders import class_names, holds_images, list_images
from bench.data.splits import stratified_order
from bench.faults import LOAD_FAULTS, name_and_reason, reason
from bench.record import check_file_names, digest
from bench.registry import Registry, unknown
from bench.seeds import derive

FOLDER = "folder"
DIGITS_TEST_PER_CLASS = 50
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set with a name.

    Attributes:
        read: (name, folder for downloads) -> the whole data set.
        classes: K; a class-per-folder tree with another number of classes is another data set.
        as_tree: whether a class-per-folder tree under the data root replaces the download.
        sizes: ((C, H, W), training images, test images); None if not known in advance.
    """

    read: Callable[[str, Path], DataSet]
    classes: int
    as_tree: bool = True
    sizes: tuple[tuple[int, int, int], int, int] | None = None


def names() -> list[str]:
    """The names of all sources; a folder under the data root has its own name as well."""
    return [*SOURCES.names(), FOLDER]


def load(
    source: str,
    *,
    data_root: Path | None,
    cache: Path,
    size: int | None = None,
    classes: Classes | None = None,
    resize: str = SQUASH,
    split: float | None = None,
) -> DataSet:
    """A data set as uint8 tensors, decoded at most once.

    A folder of images takes precedence over a download. It is `<data_root>/<source>`, or the data
    root if that has the source's name. The source "folder" is always the data root.

    Downloads go to the data root, or else into `cache`, with all that is decoded. `size` resizes
    every image to size x size; see `bench.data.decode.to_array`. `classes` keeps the first n, or
    some by name or position; labels follow the source's own order. `split` holds out a test set
    where a folder has none. DataError if the name is unknown, or the data cannot be downloaded or
    is faulty; see `bench.data.folders.list_images`.
    """
    if resize == CROP and size is None:
        raise DataError("data.resize: crop needs data.size, the side of the square to keep")
    try:
        check_file_names("data source", [source])
    except ValueError as error:
        raise DataError(f"{error}; --data-root names the folder of your data sets") from None
    if data_root is not None and not data_root.is_dir():
        raise DataError(f"--data-root {data_root} is not a folder")
    root = _tree_root(source, data_root)
    asked: dict[str, object] = {"source": source, "size": size, "classes": _canonical(classes)}
    if root is not None:
        listing = list_images(root, classes, split)
        logger.info("data set %s: %d classes from %s", source, len(listing.classes), root)
        # What was trained on a tree before it changed is still tested and exported with its images.
        asked |= {"tree": str(root.resolve()), "resize": resize, "split": split}
        asked["fingerprint"] = listing.fingerprint()
        build = partial(build_images, listing, source, size, resize)
        return cached(_cache_path(cache, asked), asked, build).with_notes(listing.notes)
    if source not in SOURCES:
        place = data_root or "D"
        raise DataError(
            f"{unknown('data source', source, names())} (images of your own: --data-root {place} "
            f"with {place}/{source}/{{train,test}}/<class>/<image>)"
        )
    if split is not None:
        raise DataError(f"data.split: {split:g} is for a folder without a test set, not {source}")
    if resize == CROP:
        raise DataError(f"data.resize: crop is for images in a folder, not {source}")
    if code := SOURCES.code(source):
        asked["code"] = code

    def read(_: Path) -> DataSet:
        read_whole = _read_added if code else SOURCES.get(source).read
        data = read_whole(source, data_root or cache / "downloads")
        data = data if classes is None else data.only(classes)
        return data if size is None else data.resized(size)

    return cached(_cache_path(cache, asked), asked, read)


class Library:
    """Data sets by source, size and classes, each decoded and hashed once in a process.

    `absent`: why random images replace some of them.
    """

    def __init__(self, data_root: Path | None, cache: Path, random_if_absent: bool = False) -> None:
        """Reads nothing yet; arguments as for `load`.

        `random_if_absent`: whether random images replace a data set that is not here; for
        estimates, never for training.
        """
        self.data_root, self.cache, self.random_if_absent = data_root, cache, random_if_absent
        self.absent: list[str] = []
        self._sets: dict[str, DataSet] = {}

    def read(self, spec: ImageSpec) -> DataSet:
        """The decoded data set; DataError if it is missing or unusable."""
        asked = spec.model_dump(include={"source", "size", "classes", "resize", "split"})
        if (key := repr(asked)) not in self._sets:
            try:
                found = load(**asked, data_root=self.data_root, cache=self.cache)
            except MissingDataError as error:
                if not self.random_if_absent or SOURCES.get(spec.source).sizes is None:
                    raise
                self.absent.append(str(error))
                found = random_data(spec.source, size=spec.size, classes=spec.classes)
            self._sets[key] = found
        return self._sets[key]

    def fingerprint(self, spec: ImageSpec) -> str:
        """The hash of a data set's content; "absent" where random images replace it."""
        return self.read(spec).fingerprint

    def mapped_bytes(self) -> int:
        """Bytes of the images of all sets that were read."""
        parts = ((data.train_images, data.test_images) for data in self._sets.values())
        return sum(images.numel() for part in parts for images in part)


def find_decoded(source: str, content: str, cache: Path) -> DataSet | None:
    """The data set of this source and fingerprint in the cache; None if it is not there."""
    for folder in sorted(cache.glob(f"{_label(source)}-????????????")):
        if (found := open_cached(folder, fingerprint=content)) is not None:
            return found
    return None


def _tree_root(source: str, data_root: Path | None) -> Path | None:
    """The folder of the source's images; None if there is no such folder."""
    if source == FOLDER:
        if data_root is None:
            raise DataError("source 'folder' needs --data-root D with D/{train,test}/<class>/")
        return data_root
    known = SOURCES.get(source) if source in SOURCES else None
    if data_root is None or (known and not known.as_tree):
        return None
    places = [data_root / source]
    if data_root.resolve().name == source:
        places.append(data_root)
    # A folder that has the name of a known set may hold that set's own files.
    is_meant = holds_images if known else Path.is_dir
    root = next((place for place in places if is_meant(place)), None)
    names = class_names(root) if root and known else []
    if known and names and len(names) != known.classes:
        raise DataError(
            f"{root} has {len(names)} classes, {source} has {known.classes}; "
            "rename the folder to use it as a data set of its own"
        )
    return root


def _canonical(classes: Classes | None) -> object:
    """The same JSON value for equal selections."""
    if classes is None or isinstance(classes, (int, str)):
        return classes
    return sorted(map(repr, classes))


def _cache_path(cache: Path, asked: dict[str, object]) -> Path:
    hashed = digest(json.dumps(asked, sort_keys=True))
    return cache / f"{_label(str(asked['source']))}-{hashed[:12]}"


def _label(source: str) -> str:
    return re.sub(r"[^\w.-]", "_", source)


def _read_added(source: str, downloads: Path) -> DataSet:
    try:
        data = SOURCES.get(source).read(source, downloads)
    except DataError:
        raise
    except LOAD_FAULTS as error:
        raise DataError(f"data source {source!r}: {name_and_reason(error)}") from error
    if not isinstance(data, DataSet):
        raise DataError(f"data source {source!r} gave a {type(data).__name__}, wanted a DataSet")
    if len(data.classes) != (wanted := SOURCES.get(source).classes):
        raise DataError(f"data source {source!r} gave {len(data.classes)} classes, said {wanted}")
    parts: list[Part] = []
    for part, (images, labels) in {"train": data.train, "test": data.test}.items():
        if images.ndim != 4 or images.dtype != torch.uint8 or not 0 < len(images) == len(labels):
            raise DataError(
                f"data source {source!r}: its {part} images are {tuple(images.shape)} "
                f"{images.dtype} with {len(labels)} labels; wanted (N, C, H, W) uint8 with N, at "
                "least 1"
            )
        last = len(data.classes) - 1
        if labels.dtype != torch.int64 or labels.min() < 0 or labels.max() > last:
            raise DataError(
                f"data source {source!r}: its {part} labels must be int64 from 0 to {last}"
            )
        # Copied because the cache takes no views.
        parts.append((images.clone(memory_format=torch.contiguous_format), labels.clone()))
    return DataSet.of(source, parts[0], parts[1], data.classes)


def _read_digits(name: str, downloads: Path) -> DataSet:
    """scikit-learn's 1,797 grey 8x8 digits, with levels 0 to 16 scaled to 0 to 255.

    The set has no official split. Here a fixed seed chooses 50 images of each class as the test
    set (500 in all); the other 1,297 are the training set. Both keep the set's own order.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    tested = torch.zeros(len(labels), dtype=torch.bool)
    for positions in stratified_order(labels, derive(0, "digits", "split")):
        tested[positions[:DIGITS_TEST_PER_CLASS]] = True
    train, test = (images[~tested], labels[~tested]), (images[tested], labels[tested])
    return DataSet.of(name, train, test, [str(label) for label in bunch.target_names])


def _read_torchvision(kind: str, name: str, downloads: Path) -> DataSet:
    """A data set that torchvision downloads and verifies."""
    from torchvision import datasets

    dataset = getattr(datasets, kind)
    try:
        train, test = (dataset(root=downloads, train=part, download=True) for part in (True, False))
    except (RuntimeError, OSError, HTTPException) as error:
        for place in {
            downloads / getattr(dataset, key, kind) for key in ("base_folder", "filename")
        }:
            if any(path.is_file() for path in (place, *place.rglob("*"))):
                raise DataError(
                    f"{place} of data set {name!r} is damaged or not whole ({reason(error)}); "
                    "delete it to download it again"
                ) from error
        raise MissingDataError(
            f"data set {name!r} is not here and cannot be downloaded to {downloads} "
            f"({reason(error)}); give --data-root D with torchvision's own files in D, or with "
            f"images in D/{name}/{{train,test}}/<class>/<image>"
        ) from error
    return DataSet.of(name, _part(train), _part(test), train.classes)


def _part(dataset: Any) -> Part:
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64)


def random_data(source: str, *, size: int | None = None, classes: Classes | None = None) -> DataSet:
    """Random images in the number and shape of a source's, to estimate costs without it.

    Their fingerprint is "absent".
    """
    known = SOURCES.get(source)
    assert known.sizes is not None
    (channels, *sides), *counts = known.sizes
    wanted = known.classes if classes is None else classes
    kept = wanted if isinstance(wanted, int) else len(wanted)
    if isinstance(wanted, int) or all(isinstance(chosen, int) for chosen in wanted):
        # Names are not known without the data, numbers are.
        choose_classes([str(label) for label in range(known.classes)], wanted)
    sides = sides if size is None else (size, size)
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        count = count * kept // known.classes
        shape = (count, channels, *sides)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return images, torch.arange(count) % kept

    train, test = map(part, counts)
    data = DataSet.of(source, train, test, [str(label) for label in range(kept)])
    vars(data)["fingerprint"] = "absent"
    return data


def _check_added(name: str, source: Source) -> None:
    if name == FOLDER:
        raise ValueError(f"a data source {name} exists already; choose another name")
    if not isinstance(source, Source):
        raise TypeError(f"data source {name} is {source!r}, wanted a bench.data.sources.Source")


_CIFAR, _MNIST = ((3, 32, 32), 50_000, 10_000), ((1, 28, 28), 60_000, 10_000)
_OWN = {
    "cifar10": Source(partial(_read_torchvision, "CIFAR10"), 10, sizes=_CIFAR),
    "cifar100": Source(partial(_read_torchvision, "CIFAR100"), 100, sizes=_CIFAR),
    "digits": Source(_read_digits, 10, False, ((1, 8, 8), 1297, 500)),
    "fashion_mnist": Source(partial(_read_torchvision, "FashionMNIST"), 10, sizes=_MNIST),
    "mnist": Source(partial(_read_torchvision, "MNIST"), 10, sizes=_MNIST),
}

SOURCES: Registry[Source] = Registry("data source", _OWN, _check_added)
