"""What a run would do: its time, memory and cells, before anything trains."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from bench.cell import Cell
from bench.cost.costs import MIB
from bench.cost.estimate import WORKER_SECONDS, Estimate
from bench.cost.footprint import total_epochs
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.data.sources import Library
from bench.data.splits import spread
from bench.decide.evidence import guess
from bench.decide.records import group_by_pair
from bench.design import PairId
from bench.expansion import Expansion
from bench.faults import counted
from bench.launch.job import WorkerConfig
from bench.launch.schedule import makespan, plan_training
from bench.progress import ProgressDisplay, duration
from bench.record import Row, Store
from bench.train.device import to_device
from bench.train.stream import accuracy, open_stream, predictions
from bench.train.weights import open_network

SOME = 500  # test images on which a teacher from a file is tried, evenly over all of them


def list_rows(expansion: Expansion, waiting: Sequence[Cell]) -> str:
    """The number of cells, those that wait, and the rows of each pair, without time and memory."""
    lines = [_counts(expansion, waiting)]
    for pair, rows in group_by_pair(expansion.plan).items():
        lines.append(f"{_title(pair, rows)}: {', '.join(dict.fromkeys(row.label for row in rows))}")
    return "\n".join(lines)


def estimate_rows(
    expansion: Expansion,
    waiting: Sequence[Cell],
    config: WorkerConfig,
    devices: Sequence[str],
    library: Library,
    room_bytes: int | None,
    display: ProgressDisplay,
    idle_bytes: int,
) -> str:
    """The same with time and memory, from a few steps of every row, with one device a worker.

    `idle_bytes` are those of a worker without a job.
    """
    if not waiting:
        return list_rows(expansion, waiting)
    device = torch.device(devices[0])
    estimate = Estimate(library.read, device)
    estimate.measure(waiting, display.show)
    jobs = plan_training(waiting, config, devices, library, room_bytes)
    work = sum(estimate.seconds(job.cells) for job in jobs)
    total = WORKER_SECONDS + makespan(jobs, len(devices), estimate.seconds)
    peak = max(estimate.bytes(job.cells) for job in jobs)
    peak += idle_bytes if device.type == "cpu" else 0
    shared = sum(estimate.shared_seconds(job.cells) for job in jobs)
    cells = {cell.id: cell for cell in waiting}
    lines = [
        f"time: about {duration(total)} on {len(devices)} workers ({devices[0]}) if nothing else "
        f"runs; {duration(work)} of work",
        f"memory: at most {peak / MIB:.0f} MiB for a worker; images, shared: "
        f"{library.mapped_bytes() / MIB:.0f} MiB",
        _counts(expansion, waiting),
    ]
    refused = Counter(
        (f"{row.teacher} > {row.student}, {row.label}", reason)
        for row in expansion.plan.rows
        if row.cell_id in cells and (reason := estimate.student(cells[row.cell_id]).refused)
    )
    for (name, why), n in refused.items():
        lines.append(f"cannot run: {name} ({counted(n, 'cell')}): {why}")
    for pair, rows in group_by_pair(expansion.plan).items():
        lines += [_title(pair, rows), *_table(rows, cells, estimate)]
    lines.append(f"shared by the rows (data, teachers' forward passes): {duration(shared)}")
    return "\n".join(lines)


def teacher_notes(
    cells: Iterable[Cell], library: Library, store: Store, device: torch.device
) -> Iterator[str]:
    """What teachers that are used as their files have them reach, on some of the test images."""
    for cell in (cell for cell in cells if not cell.trains):
        data = library.read(cell.data)
        stream = open_stream(cell, data, torch.device("cpu"))
        how = {"augment": Augment(pad=0, flip=False), "batch_size": 1, "drop_last": False}
        how |= {"device": device, "part": spread(len(data.test_labels), SOME)}
        some = Batches(*data.test, stream.mean, stream.std, **how, seed=0)
        network = to_device(open_network(cell, stream, store), device)
        share, count = accuracy(predictions(network, some), some.labels), len(some.labels)
        text = guess(share, stream.classes, count) or f"{share:.1%} right on {count:,} test images."
        yield f"teacher {cell.model_name}, as its file has it: {text}"


def _counts(expansion: Expansion, waiting: Sequence[Cell]) -> str:
    total, epochs = len(expansion.cells), sum(map(total_epochs, waiting))
    return (
        f"cells: {total}, done already: {total - len(waiting)}, to train: "
        f"{len(waiting)} ({epochs} epochs in all)"
    )


def _title(pair: PairId, rows: Sequence[Row]) -> str:
    return f"{pair.title}; seeds {', '.join(map(str, sorted({row.seed for row in rows})))}"


def _table(rows: Sequence[Row], waiting: Mapping[str, Cell], estimate: Estimate) -> Iterator[str]:
    """The rows of one pair; epochs and seconds are those of the cells to train."""
    width = max(len(row.label) for row in rows)
    yield f"  {'row':<{width}} {'cells':>5} {'done':>5} {'epochs':>7} {'seconds':>8} {'MiB':>7}"
    for label in dict.fromkeys(row.label for row in rows):
        # Seeds may share a teacher, and pairs a student.
        ids = list(dict.fromkeys(row.cell_id for row in rows if row.label == label))
        cells = [waiting[cell_id] for cell_id in ids if cell_id in waiting]
        students = list(map(estimate.student, cells))
        seconds = sum(student.seconds for student in students)
        peak = max((s.held_bytes + s.step_bytes for s in students), default=0)
        yield (
            f"  {label:<{width}} {len(ids):>5} {len(ids) - len(cells):>5} "
            f"{sum(map(total_epochs, cells)):>7} {seconds:>8.1f} {peak / MIB:>7.1f}"
        )
