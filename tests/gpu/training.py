"""Real training of grid `deck`, one seed, in the time that is left; a later call goes on.

The environment says on what: DATA, a folder {train,test}/<class>/<image> or a tar of it (digits
without it); PAIR, teacher:student; EPOCHS, in the place of the grid's; WORKERS, processes on the
device; COHORT, the most cells in one job. STATE is the OUT of an earlier call with the same data,
pair and epochs.

OUT/state.0 to state.2 are parts of one tar of 45 MiB at most, packed whenever a job ends and every
`PACK_SECONDS`: all records, the teachers' weights, then the checkpoints of unfinished cells, those
with the most epochs first, as far as they fit. What does not fit starts anew.
"""

import argparse
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from bench.cell import Cell
from bench.code_version import provenance
from bench.data.sources import Library
from bench.expansion import expand
from bench.grid import Grid, load_grid, narrow
from bench.launch.job import WorkerConfig
from bench.launch.launcher import Launcher
from bench.launch.leases import Leases
from bench.launch.schedule import plan_training
from bench.record import Record, WorkDir
from bench.train.preflight import check_cells

PACK_SECONDS = 20.0
PART_BYTES, PARTS = 15 * 2**20, 3
CUDA = torch.cuda.is_available()
TINY = ("data.fraction=0.1", "data.classes=3", "recipe.batch_size=16")


class TimeIsUpError(Exception):
    """Raised between two epochs."""


def worth_keeping(work: WorkDir, teachers: Sequence[Cell]) -> Iterator[Path]:
    """What a later call needs, the most important first."""
    yield from sorted(work.store.root.glob("*/record.json"))
    yield from (weights_of(work, cell) for cell in teachers)
    latest = {path.parent.name: path for path in sorted(work.checkpoints.glob("*/*.safetensors"))}
    unfinished = [path for cell_id, path in latest.items() if work.store.read(cell_id) is None]
    yield from sorted(unfinished, key=lambda path: path.name, reverse=True)


def weights_of(work: WorkDir, cell: Cell) -> Path:
    return work.store.folder(cell.id) / "weights.safetensors"


def pack(work: WorkDir, out: Path, teachers: Sequence[Cell]) -> None:
    """Writes OUT/state.0 and so on, with no other file in OUT; names what does not fit."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in worth_keeping(work, teachers):
            if not path.exists():  # a teacher that is not finished, or a cell that just is
                continue
            if buffer.tell() + path.stat().st_size > PART_BYTES * PARTS - 2**16:
                print(f"no room in the state for {path.parent.name}")
                continue
            tar.add(path, str(path.relative_to(work.root)))
    whole = buffer.getvalue()
    parts = [work.root / f"state.{number}" for number in range(PARTS)]
    for number, part in enumerate(parts):
        part.write_bytes(whole[number * PART_BYTES : (number + 1) * PART_BYTES])
    for part in parts:
        shutil.move(part, out / part.name)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpacks what is data alone, where Python knows how: from 3.11.4."""
    if hasattr(tarfile, "data_filter"):
        tar.extraction_filter = tarfile.data_filter
    tar.extractall(folder)


def unpack(state: Path, work: WorkDir) -> None:
    """Brings an earlier call's state into the work directory."""
    whole = b"".join(path.read_bytes() for path in sorted(state.glob("state.*")))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        _extract(tar, work.root)
    print(f"going on from {state} with {len(list(work.store.root.glob('*')))} records")


def find_images(data: str, scratch: Path) -> Path | None:
    """The folder with train/ and test/; None to train on digits."""
    if not data:
        print("DATA names no images: digits take the place of CIFAR-100")
        return None
    if Path(data).is_dir():
        return Path(data)
    with tarfile.open(data) as tar:
        _extract(tar, scratch)
    return next(path.parent for path in sorted(scratch.rglob("train")))


def make_grid(root: Path | None, tiny: bool) -> Grid:
    """The deck's rows with one seed, on the images that are here."""
    usual, epochs = load_grid("deck").recipe.epochs, os.environ.get("EPOCHS", "3" if tiny else "30")
    changes = [f"recipe.epochs={epochs}", "seeds=1", *(TINY if tiny else ())]
    changes += ["data.source=folder"] if root else ["data.source=digits", "data.flip=false"]
    changes += [] if root or tiny else ["data.size=32"]
    pair = os.environ.get("PAIR", "cnn4:cnn2" if tiny else "resnet32x4:resnet8x4")
    print(f"deck on {pair}: {epochs} epochs in the place of {usual}")
    return narrow(load_grid("deck", changes), pairs=[pair])


def result(record: Record | None) -> str:
    if record is None or not record.curves:
        return "not finished" if record is None else f"{record.status}: {record.error}"
    reached = [x for x in record.curves["test_accuracy"] if x is not None]
    epochs = len(record.curves["test_accuracy"])
    return f"{100 * reached[-1]:.2f} % after {epochs} epochs ({record.status})"


def train(out: Path, work: WorkDir, root: Path | None, tiny: bool, until: float) -> None:
    """Trains what has no record, until the time is up; students' weights are not kept."""
    library = Library(root, work.cache)
    expansion = expand(make_grid(root, tiny), library.fingerprint)
    cells = list(expansion.cells.values())
    data = library.read(cells[0].data)
    print(f"{len(data.classes)} classes, {len(data.train_labels)} training images")
    teachers = list({need.id: need for cell in cells for need in cell.needs}.values())
    lost = [cell.id for cell in teachers if not weights_of(work, cell).exists()]
    waiting = [cell for cell in cells if work.store.read(cell.id) is None or cell.id in lost]
    check_cells(waiting, library.read)
    config = WorkerConfig(
        store=work.store.root,
        cache=work.cache,
        data_root=root,
        provenance=provenance(),
        checkpoints=work.checkpoints,
        checkpoint_seconds=10.0,
        cohort=int(os.environ.get("COHORT", 2 if CUDA else 8)),
    )
    devices = ["cuda:0" if CUDA else "cpu"] * int(os.environ.get("WORKERS", 4 if CUDA else 1))
    packed = time.monotonic()

    def report(cell_id: str, done: int, total: int, accuracy: float | None) -> None:
        nonlocal packed
        if time.monotonic() > until:
            raise TimeIsUpError
        if time.monotonic() - packed > PACK_SECONDS:
            packed = time.monotonic()
            print(f"{until - packed:.0f} s left: {expansion.cells[cell_id]}, {done} of {total}")
            pack(work, out, teachers)

    try:
        with Leases(work.leases) as leases:
            jobs = plan_training(waiting, config, devices, library) if waiting else []
            launcher = Launcher(devices, config, report, leases)
            with closing(launcher.run(jobs)) as all_done:
                for done in all_done:
                    print(f"done: {', '.join(map(str, done.cells))}")
                    pack(work, out, teachers)
    except TimeIsUpError:
        print("the time is up")
    pack(work, out, teachers)
    for row in expansion.plan.rows:
        print(f"{row.label}: {result(work.store.read(row.cell_id))}")
    print(f"{len(work.store.read_all(expansion.cells))} of {len(cells)} cells have a record")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    seconds = float(os.environ.get("SECONDS_LEFT", "1e6"))
    until = time.monotonic() + seconds - max(25.0, 0.05 * seconds)
    with tempfile.TemporaryDirectory() as folder:
        work = WorkDir(Path(folder) / "work")
        if state := os.environ.get("STATE"):
            unpack(Path(state), work)
        root = find_images(os.environ.get("DATA", ""), Path(folder) / "images")
        train(options.out, work, root, options.tiny, until)


if __name__ == "__main__":
    main()
