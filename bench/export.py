"""The student to take home: one file that holds the network and what must be known to use it.

Whatever the format, the file is read back and its logits are compared with the trained network's
before it is written.
"""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.cell import DataSpec
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.data.dataset import DataSet
from bench.data.resolution import degrade
from bench.data.sources import find_decoded
from bench.faults import UserError, reason
from bench.models import zoo
from bench.models.network import Network
from bench.record import FINISHED, Plan, Record, Row, Store, dump_json
from bench.registry import unknown
from bench.train.device import to_device
from bench.workdir import WorkDir

CARD = "student.json"
"""Under this key every format holds the `Card`."""

TOLERANCE = 1e-4
"""Largest difference of a logit that passes, as a part of the largest logit: rounding, not more."""

PARITY_IMAGES, BATCH = 1000, 250
Logits = Callable[[Tensor], Tensor]


class ExportError(UserError):
    """Nothing can be exported as asked; one line with the cure."""


class ParityError(ValueError):
    """The exported network does not compute what the trained one does."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What must be known to use an exported network. Travels inside its file as JSON.

    Attributes:
        name: teacher>student/method/seed.
        cell_id: of the record that it comes from.
        model: what `bench.models.zoo.build` builds it from.
        method: the row's name in tables.
        classes: names, in the order of the logits.
        image_shape: (C, H, W) of the input.
        channels: "grey" or "RGB".
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, likewise.
        resolution: images are averaged over this many pixels squared and scaled back; 1: they
            are left alone.
        preprocessing: all of it in words, first to last.
        last_accuracy: on the test set, in [0, 1], as recorded.
        parameters: how many.
        choice: why this network, if it was chosen as its grid's winner: "proven: ..." or "best
            bet, not proven: ..."; else empty.
        torch: the version that wrote the file.
    """

    name: str
    cell_id: str
    model: str | dict[str, object]
    method: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    preprocessing: tuple[str, ...]
    last_accuracy: float
    parameters: int
    choice: str
    torch: str

    def to_json(self) -> str:
        """One stable text for equal cards."""
        return dump_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Card:
        """The card written by `to_json`."""
        values: dict[str, Any] = json.loads(text)
        wanted = {field.name for field in fields(cls)}
        if set(values) != wanted:
            raise ValueError(f"{CARD} has the fields {sorted(values)}; wanted {sorted(wanted)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)


class Student(nn.Module):
    """A network with its preprocessing in front: pixels in, logits out.

    Attributes:
        mean: (C, 1, 1), in levels from 0 to 255.
        std: (C, 1, 1), likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, card: Card) -> None:
        """Takes the network over, in evaluation mode and frozen.

        Args:
            network: trained.
            card: names mean, deviation and resolution.
        """
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.resolution = card.resolution
        # As the training batches are made: levels 0 to 255, so both numbers are scaled instead.
        self.register_buffer("mean", 255 * torch.tensor(card.mean).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(card.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits of (B, C, H, W) uint8 images."""
        values = (images.to(torch.float32) - self.mean) / self.std
        return self.network(degrade(values, self.resolution))


# --- formats -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One way to write a student down.

    Attributes:
        suffix: of the file's name.
        pack: the file's content.
        unpack: from that content alone, what maps (B, C, H, W) uint8 images to (B, K) logits.
    """

    suffix: str
    pack: Callable[[Student, Card], bytes]
    unpack: Callable[[bytes], Logits]


def _pack_weights(student: Student, card: Card) -> bytes:
    state = {name: x.contiguous() for name, x in student.network.state_dict().items()}
    return safetensors.torch.save(state, {CARD: card.to_json()})


def _unpack_weights(content: bytes) -> Logits:
    length = int.from_bytes(content[:8], "little")
    card = Card.from_json(json.loads(content[8 : 8 + length])["__metadata__"][CARD])
    network = zoo.build(card.model, len(card.classes), card.image_shape)
    network.load_state_dict(safetensors.torch.load(content))
    return Student(network, card)


def trace(student: Student, card: Card) -> torch.export.ExportedProgram:
    """The student as a graph of operations that needs no code of ours, for any batch size.

    Raises:
        ExportError: torch cannot follow the network.
    """
    # Two images: a batch of one would be taken for a constant. The first forward lets a network
    # that traces itself do so outside of the export.
    example = torch.zeros(2, *card.image_shape, dtype=torch.uint8)
    student(example)
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(student, (example,), dynamic_shapes=({0: batch},))
    except RuntimeError as error:  # the base of all that its tracer raises
        raise ExportError(
            f"{card.name}: torch.export cannot follow {card.model} ({reason(error)}); "
            "--format safetensors needs no graph"
        ) from None


def _pack_program(student: Student, card: Card) -> bytes:
    file = io.BytesIO()
    torch.export.save(trace(student, card), file, extra_files={CARD: card.to_json()})
    return file.getvalue()


def _unpack_program(content: bytes) -> Logits:
    return torch.export.load(io.BytesIO(content)).module()


def _pack_onnx(student: Student, card: Card) -> bytes:
    _need_onnx()
    from onnx import StringStringEntryProto  # pyright: ignore[reportMissingImports]

    # It reports on packages that it could also have used.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        trace(student, card), dynamo=True, verbose=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    model.metadata_props.append(StringStringEntryProto(key=CARD, value=card.to_json()))
    return model.SerializeToString()


def _unpack_onnx(content: bytes) -> Logits:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        (found,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(found)

    return logits


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ExportError(
            f"--format onnx needs {error.name}, which is not installed; "
            "install it with: pip install 'kd-bench[onnx]'"
        ) from None


FORMATS = {
    "safetensors": Format(".safetensors", _pack_weights, _unpack_weights),
    "onnx": Format(".onnx", _pack_onnx, _unpack_onnx),
    "torch.export": Format(".pt2", _pack_program, _unpack_program),
}


# --- from a record to a file ---------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """How close an exported network is to the trained one.

    Attributes:
        images: of the test set, evenly spaced; how many were compared.
        difference: the largest one of any logit.
        allowed: `TOLERANCE` times the largest logit.
        accuracy: of the exported network on these images, in [0, 1].
    """

    images: int
    difference: float
    allowed: float
    accuracy: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.images} test images: largest difference of a logit {self.difference:.1e}, "
            f"allowed {self.allowed:.1e}; accuracy {self.accuracy:.2%}"
        )


@dataclass(frozen=True)
class Trained:
    """A finished cell's network, the data that it is tested on, and its card."""

    network: Network
    data: DataSet
    card: Card


def find_row(plan: Plan, cell: str) -> Row:
    """The row that a user means.

    Args:
        plan: of a grid.
        cell: a cell id, the beginning of one, or teacher>student/method/seed.

    Raises:
        ExportError: none, with near names; or several, with their cell ids.
    """
    rows = {row.cell_id: row for row in reversed(plan.rows)}
    found = [row for row in rows.values() if cell in (row.name, row.cell_id)]
    found = found or [row for row in rows.values() if cell and row.cell_id.startswith(cell)]
    if len(found) == 1:
        return found[0]
    if found:
        which = "; ".join(f"{row.cell_id} is {_place(row)}" for row in found[:3])
        raise ExportError(
            f"{cell!r} names {len(found)} cells of {plan.name}; give a whole id: {which}"
        )
    names = [row.name for row in rows.values()]
    raise ExportError(f"grid {plan.name}: {unknown('cell', cell, names)}")


def _place(row: Row) -> str:
    axes = "".join(f" {name}={value:g}" for name, value in row.axes.items())
    return f"{row.name} on {row.data}{axes}"


def load_trained(row: Row, work: WorkDir, choice: str = "") -> Trained:
    """The network of a finished cell with what it was trained on.

    Args:
        row: of the cell.
        work: where it was trained.
        choice: see `Card.choice`.

    Raises:
        ExportError: the cell is not finished, its weights or its decoded data are not here.
    """
    record = work.store.read(row.cell_id)
    if record is None or record.status != FINISHED:
        state = f"{record.status}: {record.error}" if record else "not run"
        raise ExportError(f"{row.name} ({row.cell_id}) has no network: {state}")
    data = _data_of(record, work)
    statistics = data
    if record.cell["source"]:  # its weights expect images as its source saw them
        source = work.store.read(record.cell["source"]["cell_id"])
        if source is None:
            raise ExportError(f"{row.name}: the record of its source is not in {work.store.root}")
        statistics = _data_of(source, work)
    card = replace(_card(row, record, data, statistics), choice=choice)
    _check_code(card, record)
    return Trained(_network(card, work.store), data, card)


def _check_code(card: Card, record: Record) -> None:
    """Refuses a network whose code is not here, or not what was trained."""
    if record.cell.get("network_code", "") == zoo.model_code(card.model):
        return
    what = "has changed since then" if card.model in zoo.MODELS else "is not here"
    raise ExportError(
        f"{card.name}: the code of its model {card.model} {what}; name the file that it was "
        "trained with: --plugin FILE"
    )


def _data_of(record: Record, work: WorkDir) -> DataSet:
    spec = DataSpec(**record.cell["data"])
    found = find_decoded(spec.source, record.cell["fingerprint"], work.cache)
    if found is None:
        raise ExportError(
            f"the images of {spec.source!r} that cell {record.cell_id} was trained on are not in "
            f"{work.cache}; start the grid again there: it trains nothing and decodes them"
        )
    return found


def _card(row: Row, record: Record, data: DataSet, statistics: DataSet) -> Card:
    spec, model = DataSpec(**record.cell["data"]), record.cell["model"]
    channels, height, width = data.test_images.shape[1:]
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key != "name"}
    card = Card(
        name=row.name, cell_id=record.cell_id, model=model, method=row.label,
        classes=data.classes, image_shape=(channels, height, width),
        channels="grey" if channels == 1 else "RGB", mean=statistics.mean, std=statistics.std,
        resolution=spec.resolution, preprocessing=(),
        last_accuracy=record.final["last_accuracy"], parameters=int(record.final["parameters"]),
        choice="", torch=torch.__version__,
    )  # fmt: skip
    return replace(card, preprocessing=_steps(card))


def _steps(card: Card) -> tuple[str, ...]:
    _, height, width = card.image_shape
    mean, std = ([round(value, 6) for value in values] for values in (card.mean, card.std))
    steps = [
        f"{card.channels} image as uint8, {height}x{width} pixels (an area average where it "
        "shrinks, bilinear where it grows)",
        f"divide by 255, subtract mean {mean}, divide by std {std}",
    ]
    if card.resolution > 1:
        q = card.resolution
        steps.append(f"average over {q}x{q} pixels, bilinear back to {height}x{width}")
    return tuple(steps)


def _network(card: Card, store: Store) -> Network:
    path = store.folder(card.cell_id) / "weights.safetensors"
    network = zoo.build(card.model, len(card.classes), card.image_shape)
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ExportError(
            f"{card.name}: the weights in {path} cannot be used ({reason(error)}); start the grid "
            "again to train it again"
        ) from None
    return network.eval()


def pack(trained: Trained, format_name: str) -> tuple[bytes, Parity]:
    """A student's file, read back and compared with the trained network.

    Args:
        trained: what to export.
        format_name: one of `FORMATS`.

    Returns:
        The file's content, and how close it is.

    Raises:
        ExportError: a package for the format is missing.
        ParityError: a logit differs by more than rounding explains.
    """
    form = FORMATS[format_name]
    with torch.no_grad():
        content = form.pack(Student(trained.network, trained.card), trained.card)
        parity = compare(trained, form.unpack(content))
    # Written so that a NaN fails, too.
    if not parity.difference <= parity.allowed:
        raise ParityError(
            f"{trained.card.name} as {format_name} differs from the trained: {parity}"
        )
    return content, parity


def compare(trained: Trained, exported: Logits) -> Parity:
    """Holds an exported network's logits against those of the evaluation that training did.

    Args:
        trained: the network as trained, with its data.
        exported: (B, C, H, W) uint8 images -> (B, K) logits.
    """
    card, total = trained.card, len(trained.data.test_images)
    count = min(total, PARITY_IMAGES)
    chosen = torch.arange(count) * total // count
    images, labels = trained.data.test_images[chosen], trained.data.test_labels[chosen]
    batches = Batches(
        images, labels, card.mean, card.std, augment=Augment(pad=0, padding="zeros", flip=False),
        batch_size=BATCH, drop_last=False, seed=0,
    )  # fmt: skip
    network = to_device(copy.deepcopy(trained.network), torch.device("cpu"))  # laid out as trained
    wanted = torch.cat(
        [network(degrade(batch.images, card.resolution)) for batch in batches.clean(BATCH)]
    )
    # A batch of one first: no size may be built in.
    parts: Iterable[Tensor] = [images[:1], *images[1:].split(BATCH)]
    found = torch.cat([exported(part) for part in parts])
    return Parity(
        images=count,
        difference=(found - wanted).abs().max().item(),
        allowed=TOLERANCE * wanted.abs().max().item(),
        accuracy=(found.argmax(1) == labels).double().mean().item(),
    )


def file_name(card: Card, format_name: str) -> str:
    """A name for the file, without characters that a shell or a file system minds.

    Example:
        >>> from types import SimpleNamespace
        >>> file_name(SimpleNamespace(name="cnn32>cnn8/fitnet (stage2=ce)/0"), "onnx")
        'cnn32-to-cnn8_fitnet-stage2=ce_0.onnx'
    """
    name = card.name.replace(">", "-to-").replace("/", "_").replace(" ", "-")
    plain = "".join(c for c in name if c.isalnum() or c in "-_=.")
    return plain + FORMATS[format_name].suffix
