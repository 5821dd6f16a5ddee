"""Trees of images, whole and spoilt, for `malformed`."""

import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def _picture(path: Path, mode: str = "L", size: tuple[int, int] = (8, 8), **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(str(path).encode(errors="surrogateescape"))
    shape = (*size[::-1], *{"L": (), "RGB": (3,), "CMYK": (4,), "RGBA": (4,), "LA": (2,)}[mode])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, **how)


def write_tree(folder: Path) -> Path:
    for part, count in (("train", 20), ("test", 5)):
        for name in "ab":
            for number in range(count):
                _picture(folder / "d" / part / name / f"{number}.png")
    return folder / "d" / "train" / "a" / "0.png"


def _bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    path.write_bytes(start + struct.pack(">I", zlib.crc32(chunk)))


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # a longer name is none of a socket's
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def _renamed(tree: Path) -> None:
    for part in ("train", "test"):
        (tree / part / "a").rename(tree / part / "b ü'\"#?%20")


def _file_for(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
TREES: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "whole": (True, lambda path: None),
    "empty": (False, lambda path: path.write_bytes(b"")),
    "text": (False, lambda path: path.write_text("no image")),
    "svg": (False, lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "eps": (False, lambda path: path.write_text(EPS)),
    "cut": (False, lambda path: path.write_bytes(path.read_bytes()[:60])),
    "half": (False, lambda path: path.write_bytes(path.read_bytes()[:-30])),
    "bomb": (False, _bomb),
    "directory": (True, _instead(lambda path: path.mkdir())),  # a nested folder without an image
    "fifo": (False, _instead(os.mkfifo)),
    "socket": (False, _instead(_socket)),
    "device": (False, _instead(lambda path: path.symlink_to("/dev/zero"))),
    "null": (False, _instead(lambda path: path.symlink_to("/dev/null"))),
    "broken link": (False, _instead(lambda path: path.symlink_to("nowhere"))),
    "loop": (False, _instead(lambda path: path.symlink_to(path))),
    "link": (True, _instead(lambda path: path.symlink_to(path.with_name("1.png")))),
    "other size": (False, lambda path: _picture(path, size=(9, 8))),
    "16 bits": (False, lambda path: Image.new("I;16", (8, 8)).save(path)),
    "float": (False, lambda path: Image.new("F", (8, 8)).save(path.with_suffix(".tif"))),
    "colour": (True, lambda path: _picture(path, "RGB")),
    "alpha": (True, lambda path: _picture(path, "RGBA")),
    "CMYK": (True, lambda path: _picture(path.with_suffix(".tif"), "CMYK")),
    "jpeg named png": (True, lambda path: _picture(path, format="JPEG")),
    "gif": (True, lambda path: _picture(path.with_suffix(".gif"))),
    "other files": (True, lambda path: path.with_suffix(".txt").write_text("a note")),
    "upper case": (True, lambda path: path.rename(path.with_suffix(".PNG"))),
    "hidden class": (True, lambda path: (path.parents[1] / ".cache").mkdir()),
    "name of class": (True, lambda path: _renamed(path.parents[2])),
    "name of file": (True, lambda path: path.rename(path.with_name("\udcff.png"))),
    "line break": (True, lambda path: path.rename(path.with_name("a\nb.png"))),
    "broken line break": (False, lambda path: path.with_name("a\nb.png").write_text("x")),
    "broken name": (False, lambda path: path.with_name("\udcff.png").write_text("x")),
    "empty class": (False, lambda path: (path.parents[1] / "c").mkdir()),
    "test alone": (False, lambda path: _picture(path.parents[2] / "test" / "c" / "0.png")),
    "train alone": (True, lambda path: _picture(path.parents[1] / "c" / "0.png")),
    "one class": (False, lambda path: shutil.rmtree(path.parents[1] / "b")),
    "no class": (False, lambda path: [shutil.rmtree(path.parents[1] / name) for name in "ab"]),
    "no test": (False, lambda path: shutil.rmtree(path.parents[2] / "test")),
    "empty test": (False, lambda path: [shutil.rmtree(path.parents[2] / "test" / n) for n in "ab"]),
    "no train": (False, lambda path: shutil.rmtree(path.parents[1])),
    "file for train": (False, lambda path: _file_for(path.parents[1])),
    "file for tree": (False, lambda path: _file_for(path.parents[2])),
    "nothing": (False, lambda path: shutil.rmtree(path.parents[2])),
    "class is a loop": (False, lambda path: (path.parents[1] / "c").symlink_to("c")),
}  # fmt: skip
"""What is done to a tree, by its first image -> whether it is right."""
