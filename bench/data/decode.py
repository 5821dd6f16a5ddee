"""From image files to pixels: which formats are read, how they are turned, flattened and scaled.

Nothing here needs torch, so that a process that only decodes starts at once.
"""

import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for; its other readers start programs or are rarely used."""

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
MOST_FILE_PIXELS = Image.MAX_IMAGE_PIXELS or 1 << 26
"""Larger images are refused: a small file can hold billions of equal pixels."""

SQUASH, CROP = "squash", "crop"
"""How an image becomes a square: without its aspect ratio, or cut to its middle."""

ORIENTATION = 0x0112
TURNED = range(5, 9)  # orientation tags that exchange width and height


class Entry(NamedTuple):
    """One image: a file, or a row of a row group of a Parquet file, in its column of images.

    The stamp is its relative path, with the size and the time of the last change of its file.
    """

    label: int
    stamp: str
    path: str
    column: str = ""
    group: int = -1
    row: int = -1


Chunk = Sequence[Entry]
"""Images that are decoded in one go: files, or rows of one row group of a Parquet file."""

Result = TypeVar("Result")

# For broken files, Pillow's decoders raise SyntaxError and ValueError as well as OSError.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


Header = tuple[bool, tuple[int, int]]  # whether a decoded image is grey, its width and height


def read_headers(chunk: Chunk, turn: bool) -> tuple[list[Header], list[str]]:
    """The headers of a chunk's images, and a line for each that cannot be read.

    Unless `turn`, sizes are those before an image is turned; to find its tag Pillow may have to
    decode it.
    """

    def header(image: Image.Image) -> Header:
        # Pillow exchanges the sides of a TIFF itself.
        turned = turn and image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
        width, height = image.size[::-1] if turned else image.size
        return _is_grey(image), (width, height)

    return _of_each(chunk, header)


def decode(
    chunk: Chunk, start: int, path: Path, shape: tuple[int, int, int], size: int | None, resize: str
) -> tuple[int, list[str]]:
    """Writes a chunk's pixels into a file in which `start` images come before them.

    Returns their CRC-32, and a line for each image that is broken.
    """

    def pixels(image: Image.Image) -> bytes:
        array = to_array(image, size, resize)
        # A grey image among colour ones fills all three channels.
        return np.broadcast_to(array, shape).tobytes()

    found, faults = _of_each(chunk, pixels)
    content = b"".join(found)
    if not faults:
        with open(path, "r+b") as out:
            out.seek(start * prod(shape))
            out.write(content)
    return zlib.crc32(content), faults


def _of_each(
    chunk: Chunk, action: Callable[[Image.Image], Result]
) -> tuple[list[Result], list[str]]:
    results, faults = [], []
    try:
        for name, source in _contents(chunk):
            try:
                with _opened(source) as image:
                    results.append(action(image))
            except _BROKEN as error:
                faults.append(f"{name}: {_said(error)}")
    except (OSError, ValueError) as error:  # a Parquet file that is damaged
        faults.append(str(error))
    return results, faults


def _contents(chunk: Chunk) -> Iterator[tuple[str, str | IO[bytes]]]:
    """Every image's name in messages, and what to read it from."""
    first = chunk[0]
    if not first.column:
        yield from ((entry.path, entry.path) for entry in chunk)
        return
    from pyarrow.parquet import ParquetFile

    rows, place = {entry.row for entry in chunk}, f"{first.path}, row group {first.group}, row"
    with ParquetFile(first.path) as file:
        batches = file.iter_batches(64, row_groups=[first.group], columns=[first.column])
        for row, value in enumerate(chain.from_iterable(batch.column(0) for batch in batches)):
            if row in rows:
                found = value.as_py()
                content = found.get("bytes") if isinstance(found, dict) else found
                yield f"{place} {row}", BytesIO(content or b"")
            if row == chunk[-1].row:
                return


def to_array(image: Image.Image, size: int | None = None, resize: str = SQUASH) -> np.ndarray:
    """An image as uint8: (1, H, W) if it is grey, else (3, H, W).

    It is turned as its orientation tag says, transparent parts are laid on white, and a size
    scales it to size x size: by `SQUASH` as a whole, by `CROP` its shorter side, of which the
    middle is kept. ValueError if it has more than 8 bits a channel.
    """
    flat = _flat(ImageOps.exif_transpose(image))
    if size is None:
        return np.stack([np.asarray(plane) for plane in flat.split()])
    width = height = size
    if resize == CROP:
        shorter = min(flat.size)
        width, height = (max(size, round(side * size / shorter)) for side in flat.size)
    left, top = (width - size) // 2, (height - size) // 2
    middle = slice(top, top + size), slice(left, left + size)
    return np.stack([scaled(plane, width, height)[middle] for plane in flat.split()])


def scaled(plane: Image.Image, width: int, height: int) -> np.ndarray:
    """One grey plane at another size, uint8: areas averaged where it shrinks, else bilinear.

    Bilinear interpolation alone would alias when an image shrinks.
    """
    # In float, so that values are rounded only once.
    sides = min(plane.width, width), min(plane.height, height)
    smaller = plane.convert("F").resize(sides, Image.Resampling.BOX)
    exact = np.asarray(smaller.resize((width, height), Image.Resampling.BILINEAR))
    return np.rint(exact).astype(np.uint8)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA")


def _flat(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    mode = "L" if _is_grey(image) else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    clear = image.convert(f"{mode}A")
    flat = Image.new(mode, clear.size, "white")
    flat.paste(clear.convert(mode), mask=clear.getchannel("A"))
    return flat


def _opened(source: str | IO[bytes]) -> Image.Image:
    """An image whose pixels are not decoded yet, of a format and size that is read."""
    if isinstance(source, str) and not S_ISREG(os.stat(source).st_mode):
        raise ValueError("it is no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
        image = Image.open(source, formats=FORMATS)
    if image.width * image.height > MOST_FILE_PIXELS:
        image.close()
        raise ValueError(f"it has {image.width} x {image.height} pixels, too many to be one image")
    if _is_deep(image):
        image.close()
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel; save it as 8-bit")
    return image


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow would clip values at 255 or drop lower bits, both in silence."""
    how = [tile[3] for tile in getattr(image, "tile", ())]  # of its decoders
    most = [each[1] for each in how if image.format == "PPM" and isinstance(each, tuple)]
    return image.mode.startswith(("I", "F")) or ";16" in str(how) or max(most, default=0) > 255


def _said(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return getattr(error, "strerror", None) or str(error)
