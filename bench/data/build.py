"""Decodes the images of a folder into files of raw bytes, by several processes, with progress."""

import signal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, chain
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from joblib import cpu_count
from rich.console import Console

from bench.data.cache import PARTS, map_images
from bench.data.dataset import DataError, DataSet, Part
from bench.data.decode import Chunk, Entry, decode, read_headers
from bench.data.folders import Listing, in_chunks
from bench.faults import one_line
from bench.progress import ProgressDisplay

WORKERS = min(16, cpu_count())
MANY = 2_000  # images from which on processes are worth their start: threads share one interpreter
SHOWN = 10  # broken images that a message names
Result = TypeVar("Result")


def build_images(
    listing: Listing, name: str, size: int | None, resize: str, folder: Path
) -> DataSet:
    """Decodes every image of a folder into `<part>.images` of a folder of the cache.

    Images become grey (C = 1) if all of them are grey, else RGB. What an interrupted build has
    decoded into the same folder is kept. DataError if images are unreadable, all of them named, or
    if they differ in size and `size` is None.
    """
    display = ProgressDisplay(Console(stderr=True), "images")
    with _pool(len(listing.train) + len(listing.test)) as pool, display:
        builder = _Builder(pool, listing, size, resize, display)
        shape = builder.shape()
        train, test = (
            builder.part(entries, folder / f"{part}.images", shape)
            for part, entries in zip(PARTS, (listing.train, listing.test), strict=True)
        )
        for part in PARTS:
            (folder / f"{part}.done").unlink()
        return DataSet.of(name, train, test, listing.classes)


@contextmanager
def _pool(images: int) -> Iterator[Executor]:
    """Threads for a few images, processes for many; Ctrl-C is for the process that asked."""
    if images < MANY:
        pool = ThreadPoolExecutor(WORKERS)
    else:
        ignored = signal.SIGINT, signal.SIG_IGN
        pool = ProcessPoolExecutor(WORKERS, get_context("spawn"), signal.signal, ignored)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Builder(NamedTuple):
    """What is decoded, how, and by whom."""

    pool: Executor
    listing: Listing
    size: int | None
    resize: str
    display: ProgressDisplay

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the decoded images, from their headers."""
        entries = [*self.listing.train, *self.listing.test]
        chunks = list(in_chunks(entries))
        results = self.pool.map(partial(read_headers, turn=self.size is None), chunks)
        headers = list(chain.from_iterable(self._run(results, chunks, "reading headers")))
        channels = 1 if all(grey for grey, _ in headers) else 3
        if self.size is not None:
            return channels, self.size, self.size
        width, height = headers[0][1]
        for entry, (_, size) in zip(entries, headers, strict=True):
            if size != (width, height):
                raise DataError(
                    f"{entry.path} is {size[0]}x{size[1]} but {entries[0].path} is "
                    f"{width}x{height} pixels; data.size resizes all images to size x size"
                )
        return channels, height, width

    def part(self, entries: Sequence[Entry], path: Path, shape: tuple[int, int, int]) -> Part:
        """Decodes one part into a file of the cache."""
        done, each = path.with_suffix(".done"), prod(shape)
        chunks = list(in_chunks(entries))
        starts = [0, *accumulate(map(len, chunks))]
        with open(path, "ab") as out:
            out.truncate(len(entries) * each)
        before = _decoded_before(done, path, chunks, each)
        waiting = chunks[len(before) :]
        write = partial(decode, path=path, shape=shape, size=self.size, resize=self.resize)
        results = self.pool.map(write, waiting, starts[len(before) :])
        with open(done, "w", encoding="utf-8") as log:
            log.writelines(f"{checksum}\n" for checksum in before)
            for checksum in self._run(results, waiting, f"decoding {path.stem} images"):
                print(checksum, file=log, flush=True)
        labels = torch.tensor([entry.label for entry in entries])
        return map_images(path, (len(entries), *shape)), labels

    def _run(
        self, results: Iterable[tuple[Result, list[str]]], chunks: Sequence[Chunk], what: str
    ) -> Iterator[Result]:
        """The chunks' results, one after another; DataError at the end if any image is broken."""
        total, done, faults = sum(map(len, chunks)), 0, list[str]()
        for chunk, (result, broken) in zip(chunks, results, strict=True):
            done += len(chunk)
            self.display.show(what, done, total)
            faults += broken
            yield result
        if faults:
            named = "; ".join(map(one_line, faults[:SHOWN]))
            more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            images = "image" if len(faults) == 1 else f"images, {len(faults)} in all:"
            raise DataError(f"unreadable {images} {named}{more}; mend or remove what is broken")


def _decoded_before(done: Path, images: Path, chunks: Sequence[Chunk], each: int) -> list[int]:
    """The checksums of the first chunks, as far as an interrupted build has written them."""
    whole = []
    told = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    with open(images, "rb") as pixels:
        for chunk, line in zip(chunks, told, strict=False):
            checksum = zlib.crc32(pixels.read(len(chunk) * each))
            if line != str(checksum):
                break
            whole.append(checksum)
    return whole
