"""What images a folder holds: class-per-folder trees, and Parquet files as `datasets` writes them.

Listing decodes nothing. What is passed over is counted, so that nothing vanishes in silence.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.data.dataset import Classes, DataError, choose_classes
from bench.data.decode import SUFFIXES, Chunk, Entry
from bench.data.splits import hold_out
from bench.faults import is_utf8, one_line
from bench.record import digest

TRAIN = ("train", "training")
TEST = ("test", "testing", "validation", "valid", "val")
"""Names of the two parts, in any case; the first one that is there is used."""

FILES_AT_ONCE, ROWS_AT_ONCE = 64, 1000
MOST_CLASSES = 100_000  # of labels that are numbers: larger ones are no classes


class Listing(NamedTuple):
    """The images of a folder, sorted by class and name; `notes` say what is passed over."""

    classes: tuple[str, ...]
    train: list[Entry]
    test: list[Entry]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Hash that changes when an image is added, removed, renamed or written again."""
        stamps = "\n".join(entry.stamp for entry in [*self.train, *self.test])
        return digest(stamps.encode(errors="surrogateescape"))


def in_chunks(entries: Iterable[Entry]) -> Iterator[Chunk]:
    """The images in groups that are decoded in one go, in order."""
    for _, found in groupby(entries, key=lambda e: e.column and (e.path, e.group)):
        alike = list(found)
        most = ROWS_AT_ONCE if alike[0].column else FILES_AT_ONCE
        for first in range(0, len(alike), most):
            yield alike[first : first + most]


def find_part(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a part, by the first of its names that is there in any case."""
    found = {folder.name.lower(): folder for folder in _folders(root)}
    return next((found[name] for name in names if name in found), None)


def holds_images(root: Path) -> bool:
    """Whether a folder has a train/ folder or Parquet files, so that it is meant as a data set."""
    return root.is_dir() and (find_part(root, TRAIN) is not None or bool(_parquet_files(root)))


def class_names(root: Path) -> Sequence[str]:
    """Names of the classes of the training part."""
    files = _parquet_files(root)
    return _list_parquet(files, None).classes if files else _names(find_part(root, TRAIN))


def list_images(root: Path, classes: Classes | None = None, split: float | None = None) -> Listing:
    """Finds the images of a folder. Links are followed; files of other types are counted.

    `split` holds out a part of every class as the test set of a folder that has none. DataError,
    with the cure, for a folder that is no data set.
    """
    files = _parquet_files(root)
    found = _list_parquet(files, classes) if files else _list_tree(root, classes, split)
    if found.test and split is not None:
        raise DataError(f"data.split: {split:g} is for a folder without a test set; {root} has one")
    if found.test:
        return found
    if split is None:
        raise DataError(
            f"{root} has no test set: no {'/ or '.join(TEST)}/ was found; data.split=0.2 holds "
            "out a fifth of each class"
        )
    parts = hold_out(torch.tensor([entry.label for entry in found.train]), split, 0)
    train, test = ([found.train[i] for i in part.tolist()] for part in parts)
    if not test:
        raise DataError(f"data.split: no class of {root} has two images, so none can be held out")
    return found._replace(train=train, test=test)


# --- a folder for each class -----------------------------------------------------------------

Passed = dict[str, list[str]]  # what a listing passes over: kind -> paths


def _list_tree(root: Path, classes: Classes | None, split: float | None) -> Listing:
    train_root, test_root = find_part(root, TRAIN), find_part(root, TEST)
    if split is not None and not _names(train_root) and not _names(test_root):
        train_root, test_root = root, None  # where a folder "train" or "test" is a class
    if train_root is None:
        raise DataError(_no_train(root))
    train, test = _names(train_root), _names(test_root)
    if len(train) < 2:
        raise DataError(f"{train_root} has {len(train)} class folders; wanted at least 2")
    if test_root and (unknown := sorted(set(test) - set(train))):
        raise DataError(f"{test_root / unknown[0]} is a class that {train_root} lacks")
    if classes is not None:
        train = [train[position] for position in choose_classes(train, classes)]
    labels = {name: label for label, name in enumerate(train)}
    tested = {name: label for name, label in labels.items() if name in test}
    if test_root and not tested:
        raise DataError(f"{test_root} has no folder for any of the classes {', '.join(train)}")
    passed: Passed = defaultdict(list)
    if train_root != root:
        _pass_over(root, passed)
        others = {str(f) for f in _folders(root)} - {str(train_root), str(test_root)}
        passed["other folders"] += sorted(others)
    trained = _list_part(root, train_root, labels, passed)
    held = _list_part(root, test_root, tested, passed) if test_root else []
    told = "; ".join(f"{kind}: {len(p)}, such as {p[0]}" for kind, p in passed.items() if p)
    notes = (f"passed over: {told}",) if told else ()
    return Listing(tuple(train), trained, held, notes)


def _no_train(root: Path) -> str:
    """What was found in place of a training part, and the cure."""
    found = _names(root)
    line = f"{root} has no train/ folder; wanted {root}/train/<class>/<image>"
    if len(found) < 2:
        return line
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return (
        f"{line}. If its {len(found)} folders ({shown}) are the classes, data.split=0.2 holds out "
        "a fifth of each as the test set"
    )


def _list_part(root: Path, part: Path, labels: Mapping[str, int], passed: Passed) -> list[Entry]:
    _pass_over(part, passed)
    found = []
    for name, label in labels.items():
        files = sorted(_image_files(part / name, passed), key=lambda entry: entry.name)
        if not files:
            raise DataError(
                f"class folder {part / name} holds no image ({', '.join(sorted(SUFFIXES))}); "
                "fill it or remove it"
            )
        for file in files:
            try:
                status = file.stat()
            except OSError as error:
                raise DataError(f"unreadable image {file.path}: {error.strerror}") from error
            place = Path(file.path).relative_to(root)
            stamp = f"{place} {status.st_size} {status.st_mtime_ns}"
            found.append(Entry(label, stamp, file.path))
    return found


def _pass_over(folder: Path, passed: Passed) -> None:
    """Counts the files of a folder that holds parts or classes."""
    for entry in os.scandir(folder):
        if not entry.is_dir():
            kind = "hidden files" if entry.name[0] == "." else "files outside of class folders"
            passed[kind].append(entry.path)


def _image_files(folder: Path, passed: Passed) -> list[os.DirEntry[str]]:
    """The files of a class folder that are named like images; the others are counted."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            passed["hidden files"].append(entry.path)
        elif entry.is_dir():
            passed["folders within a class folder"].append(entry.path)
        elif Path(entry.name).suffix.lower() in SUFFIXES:
            found.append(entry)
        else:
            passed["files of other types"].append(entry.path)
    return found


def _folders(root: Path) -> list[Path]:
    return [Path(e.path) for e in os.scandir(root) if e.is_dir() and e.name[0] != "."]


def _names(part: Path | None) -> list[str]:
    names = sorted(folder.name for folder in _folders(part)) if part else []
    for name in names:
        if not is_utf8(name):
            raise DataError(f"class folder {name!r} of {part} is not named in UTF-8; rename it")
    return names


# --- Parquet files ---------------------------------------------------------------------------


def _parquet_files(root: Path) -> dict[str, list[Path]]:
    """The Parquet files of a folder or its data/: for "train", "test", and "other" ones.

    A folder train/ of classes comes first. Files of no part are for training if there are no
    others.
    """
    places = () if _names(find_part(root, TRAIN)) else (root, root / "data")
    found = sorted(path for place in places for path in place.glob("[!.]*.parquet"))
    files: dict[str, list[Path]] = {}
    for path in found:
        words = re.split("[^a-z]+", path.name.lower())
        files.setdefault(next((w for w in words if w in (*TRAIN, *TEST)), ""), []).append(path)
    train, test = (next((n for n in names if n in files), None) for names in (TRAIN, TEST))
    if train is None:
        return {"train": found, "test": [], "other": []} if found and test is None else {}
    used = {"train": files.pop(train), "test": files.pop(test) if test else []}
    return {**used, "other": [path for paths in files.values() for path in paths]}


class _Labels(NamedTuple):
    """A Parquet file: its column of images, the class names it gives, and its rows by class."""

    path: Path
    column: str
    names: list[str]
    rows: list[tuple[str, Entry]]  # without labels


def _list_parquet(files: Mapping[str, Sequence[Path]], classes: Classes | None) -> Listing:
    """Classes are those of the training files, in the order that these give or else sorted."""
    train, test = (list(map(_read_labels, files[part])) for part in ("train", "test"))
    known = {name for file in train for name, _ in file.rows}
    names = list(dict.fromkeys(name for file in train for name in file.names))
    names += sorted(known - set(names))
    for file in (*train, *test):
        if file.column != train[0].column:
            both = f"{file.column!r}, {train[0].path} in {train[0].column!r}"
            raise DataError(f"{file.path} has its images in the column {both}; wanted one name")
    for file in test:
        if lost := sorted({name for name, _ in file.rows} - known):
            raise DataError(f"{file.path}: no training image is of its class {lost[0]!r}")
    kept = choose_classes(names, classes) if classes is not None else range(len(names))
    labels = {names[old]: new for new, old in enumerate(kept)}
    trained, tested = (
        [e._replace(label=labels[n]) for file in part for n, e in file.rows if n in labels]
        for part in (train, test)
    )
    other = files["other"]
    told = f"passed over: other Parquet files: {len(other)}, such as {other[0]}" if other else ""
    return Listing(tuple(labels), trained, tested, (told,) if told else ())


def _read_labels(path: Path) -> _Labels:
    """What a Parquet file says of its images; DataError if it has none, or a row has no class."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            images = [f.name for f in schema if _holds_image(f.type)]
            label = next((n for n in ("label", "labels", "fine_label") if n in schema.names), None)
            if not images or label is None:
                raise DataError(
                    f"{path} has the columns {', '.join(schema.names)}; wanted one of images "
                    "(bytes) and one called label"
                )
            names = _features(schema.metadata).get(label, {}).get("names")
            groups = [
                file.read_row_group(group, columns=[label]).column(label).to_pylist()
                for group in range(file.num_row_groups)
            ]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"unreadable Parquet file {path}: {one_line(error)}") from error
    numbers = [value for group in groups for value in group if type(value) is int]
    names = list(names or map(str, range(min(max(numbers, default=-1) + 1, MOST_CLASSES))))
    status, column = path.stat(), "image" if "image" in images else images[0]
    rows = []
    for group, values in enumerate(groups):
        for row, value in enumerate(values):
            name = names[value] if type(value) is int and 0 <= value < len(names) else value
            if not isinstance(name, str):
                raise DataError(
                    f"{path}, row group {group}, row {row}: label {value!r}; wanted the name of "
                    f"a class or its number{f', 0 to {len(names) - 1}' if names else ''}"
                )
            stamp = f"{path.name} {group} {row} {status.st_size} {status.st_mtime_ns}"
            rows.append((name, Entry(-1, stamp, str(path), column, group, row)))
    return _Labels(path, column, names, rows)


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What the library `datasets` wrote of the columns; {} if it did not write the file."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}


def _holds_image(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return any(inner.name == "bytes" for inner in kind)
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
