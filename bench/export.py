"""Export of a trained student: one file with the network, its preprocessing and its card."""

import copy
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.cell import Spec
from bench.data.augment import Augment, degrade
from bench.data.batches import Batches
from bench.data.dataset import DataSet
from bench.data.decode import CROP, SQUASH
from bench.data.sources import find_decoded
from bench.data.splits import spread
from bench.faults import UserError, reason
from bench.hyperparameters import build_method
from bench.models import zoo
from bench.models.network import Network
from bench.record import FINISHED, Plan, Record, Row, Store, WorkDir, weights_text
from bench.registry import unknown
from bench.train.device import to_device
from bench.train.stream import accuracy, evaluation_batch
from bench.train.weights import read_weights, untrained_deployment, weights_content

CARD = "student.json"  # the key under which every format holds the card
INSIDE = "inside the file, unless it is safetensors: "
TOLERANCE = 1e-4  # of a logit, relative to the largest one: rounding alone
PARITY_IMAGES, CALIBRATION_IMAGES = 1000, 256
Logits = Callable[[Tensor], Tensor]  # (B, C, H, W) uint8 images -> (B, K) logits


class ExportError(UserError):
    """The cell cannot be exported as asked; one line with the cure."""


class ParityError(ValueError):
    """The logits of the exported network differ from those of the trained one."""


class Card(Spec):
    """What a user of an exported network must know. It is in the exported file, as JSON.

    Attributes:
        name: teacher>student/method/seed; `method` is the row's name in tables.
        model: what `bench.models.zoo.build` builds it from.
        classes: names, in the order of the logits.
        image_shape: (C, H, W) of the input; C is 1 for grey, 3 for RGB.
        resize: how an image becomes H x W, see `bench.cell.ImageSpec`.
        mean, std: per channel, of pixels scaled to [0, 1].
        resolution: the factor by which images are reduced and scaled back; 1 leaves them alone.
        preprocessing: the steps in words, in order.
        last_accuracy: in [0, 1], as recorded, on the images that `measured_on` names.
        int8_accuracy: on the test set, if quantised.
        choice: why this network is the winner of its grid; empty if it was named by the user.
        teacher: its name, the file it came from if it has one, and its accuracy.
        added: what the method adds to the student's own network; empty for nothing.
    """

    name: str
    cell_id: str
    model: str | dict[str, Any]
    method: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    preprocessing: tuple[str, ...]
    last_accuracy: float
    choice: str
    measured_on: str = "test images"
    teacher: str = ""
    added: str = ""
    int8_accuracy: float | None = None


class Student(nn.Module):
    """A network with its preprocessing in front: pixels in, logits out."""

    def __init__(self, network: Network, card: Card) -> None:
        """Freezes the trained network, in evaluation mode."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.resolution = card.resolution
        # Training normalises levels from 0 to 255, so mean and std are scaled, not the images.
        self.mean, self.std = (
            nn.Buffer(255 * torch.tensor(values).view(-1, 1, 1)) for values in (card.mean, card.std)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits of (B, C, H, W) uint8 images."""
        values = (images.to(torch.float32) - self.mean) / self.std
        return self.network(degrade(values, self.resolution))


@dataclass(frozen=True)
class Format:
    """The suffix of a file format for students, and what writes its content and reads it.

    `quantise` replaces the compared content by a smaller, less exact one, and says how exact.
    """

    suffix: str
    pack: Callable[[Student, Card], bytes]
    unpack: Callable[[bytes], Logits]
    quantise: Callable[[bytes, "Trained"], tuple[bytes, str]] | None = None


def _pack_weights(student: Student, card: Card) -> bytes:
    if card.added:
        raise ExportError(
            f"{card.name}: a safetensors file holds a student's own network, and this one has "
            f"{card.added}; --format torch.export or onnx holds both"
        )
    return weights_content(student.network, {CARD: card.model_dump_json()})


def _unpack_weights(content: bytes) -> Logits:
    length = int.from_bytes(content[:8], "little")
    card = Card.model_validate_json(json.loads(content[8 : 8 + length])["__metadata__"][CARD])
    network = zoo.build(card.model, len(card.classes), card.image_shape)
    network.load_state_dict(safetensors.torch.load(content))
    return Student(network, card)


def trace(student: Student, card: Card) -> torch.export.ExportedProgram:
    """The student as a graph of torch operations, for any batch size; needs no code of bench."""
    # torch.export takes a batch size of 1 for a constant, so the example has two images. The first
    # forward lets a network that traces itself do so outside of the export.
    example = torch.zeros(2, *card.image_shape, dtype=torch.uint8)
    student(example)
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(student, (example,), dynamic_shapes=({0: batch},))
    except RuntimeError as error:  # the base class of its tracer's errors
        raise ExportError(
            f"{card.name}: torch.export cannot follow {card.model} ({reason(error)}); "
            "--format safetensors needs no graph"
        ) from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which files would hold
    return program


def _pack_program(student: Student, card: Card) -> bytes:
    file = io.BytesIO()
    torch.export.save(trace(student, card), file, extra_files={CARD: card.model_dump_json()})
    return file.getvalue()


def _unpack_program(content: bytes) -> Logits:
    return torch.export.load(io.BytesIO(content)).module()


def _pack_onnx(student: Student, card: Card) -> bytes:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise ExportError(
                f"an ONNX file needs {package}, which is not installed; "
                "install it with: pip install 'kd-bench[onnx]'"
            )
    from onnx import StringStringEntryProto  # pyright: ignore[reportMissingImports]

    # The exporter warns of optional packages that are missing.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        trace(student, card), verbose=False, input_names=["images"], output_names=["logits"]
    )
    assert program is not None
    model = program.model_proto
    model.metadata_props.append(StringStringEntryProto(key=CARD, value=card.model_dump_json()))
    return model.SerializeToString()


def _unpack_onnx(content: bytes) -> Logits:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        (found,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(found)

    return logits


def _quantise_onnx(content: bytes, trained: "Trained") -> tuple[bytes, str]:
    """An ONNX file in 8-bit integers, with its accuracy in the card and next to the float one's."""
    import onnx  # pyright: ignore[reportMissingImports]

    data, batch = trained.data, evaluation_batch(trained.card.image_shape[1:])
    chosen = data.train_images[spread(len(data.train_images), CALIBRATION_IMAGES)]
    small = _to_int8(content, chosen.split(batch))

    def accuracy_of(logits: Logits) -> float:
        found = torch.cat([logits(images).argmax(1) for images in data.test_images.split(batch)])
        return accuracy(found, data.test_labels)

    exact, rounded = map(accuracy_of, map(_unpack_onnx, (content, small)))
    model = onnx.load_model_from_string(small)
    card = trained.card.model_copy(update={"int8_accuracy": rounded})
    next(x for x in model.metadata_props if x.key == CARD).value = card.model_dump_json()
    return model.SerializeToString(), (
        f"int8, calibrated on {len(chosen)} training images: accuracy on {len(data.test_labels):,} "
        f"test images: float {exact:.1%}, int8 {rounded:.1%}"
    )


def _to_int8(content: bytes, batches: Sequence[Tensor]) -> bytes:
    """Quantised weights, for each channel, and activations, in the range that the batches have."""
    from onnxruntime import quantization as ort  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization.shape_inference import (  # pyright: ignore[reportMissingImports]
        quant_pre_process,
    )

    feeds = iter([{"images": images.numpy()} for images in batches])

    class Reader(ort.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    logging.disable(logging.WARNING)  # one for each weight that has no channels
    try:
        with TemporaryDirectory() as folder:
            exact, ready, small = (Path(folder, name) for name in ("exact", "ready", "small"))
            exact.write_bytes(content)
            # Of shapes, those that ONNX itself infers suffice for networks of images.
            quant_pre_process(exact, ready, skip_symbolic_shape=True)
            ort.quantize_static(ready, small, Reader(), per_channel=True)
            return small.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


FORMATS = {
    "safetensors": Format(".safetensors", _pack_weights, _unpack_weights),
    "onnx": Format(".onnx", _pack_onnx, _unpack_onnx),
    "onnx-int8": Format(".int8.onnx", _pack_onnx, _unpack_onnx, _quantise_onnx),
    "torch.export": Format(".pt2", _pack_program, _unpack_program),
}


@dataclass(frozen=True)
class Parity:
    """How close an exported network's logits are to the trained one's, on some test images.

    `quantised` says how accurate it is after quantisation; empty without.
    """

    images: int
    difference: float
    allowed: float
    accuracy: float
    quantised: str = ""

    def __str__(self) -> str:
        """One line, of the network before quantisation."""
        return (
            f"{self.images} test images: largest difference of a logit {self.difference:.1e}, "
            f"allowed {self.allowed:.1e}; accuracy {self.accuracy:.2%}"
        )


@dataclass(frozen=True)
class Trained:
    """The network of a finished cell, the data it is tested on, and its card."""

    network: Network
    data: DataSet
    card: Card


def find_row(plan: Plan, cell: str) -> Row:
    """The row of a cell id, the beginning of one, or a name; ExportError unless it is one row."""
    rows = {row.cell_id: row for row in reversed(plan.rows)}
    found = [row for row in rows.values() if cell in (row.name, row.cell_id)]
    found = found or [row for row in rows.values() if cell and row.cell_id.startswith(cell)]
    if len(found) == 1:
        return found[0]
    if found:
        which = "; ".join(f"{r.cell_id} is {r.name} on {r.data}, {r.axes}" for r in found[:3])
        raise ExportError(
            f"{cell!r} names {len(found)} cells of {plan.name}; give a whole id: {which}"
        )
    names = [row.name for row in rows.values()]
    raise ExportError(f"grid {plan.name}: {unknown('cell', cell, names)}")


def load_trained(row: Row, work: WorkDir, choice: str = "") -> Trained:
    """The network of a finished cell, with its data and card; `choice` is for the card."""
    record = work.store.load(row.cell_id)
    if record is None or record.status != FINISHED:
        state = f"{record.status}: {record.error}" if record else "not run"
        raise ExportError(f"{row.name} ({row.cell_id}) has no network: {state}")
    data = _data_of(record, work)
    statistics = data
    if record.cell["source"]:  # its weights expect images as its source saw them
        source = work.store.load(record.cell["source"]["cell_id"])
        if source is None:
            raise ExportError(f"{row.name}: the record of its source is not in {work.store.root}")
        statistics = _data_of(source, work)
    card = _card(row, record, data, statistics, choice)
    if record.cell["teacher"] and (taught_by := work.store.load(row.teacher_id)) is not None:
        told = weights_text(taught_by) or f"{taught_by.final['last_accuracy']:.1%}"
        card = card.model_copy(update={"teacher": f"{row.teacher}: {told}"})
    if record.cell.get("network_code", "") != zoo.model_code(card.model):
        what = "has changed since then" if zoo.base(card.model) in zoo.MODELS else "is not here"
        raise ExportError(
            f"{card.name}: the code of its model {card.model} {what}; name the file that it was "
            "trained with: --plugin FILE"
        )
    network = _network(card, record, work.store)
    if own := record.final.get("student_parameters"):
        more = record.final["parameters"] / own - 1
        card = card.model_copy(update={"added": f"{more:+.0%} parameters by {row.label}"})
    return Trained(network, data, card)


def _data_of(record: Record, work: WorkDir) -> DataSet:
    source = record.cell["data"]["source"]
    found = find_decoded(source, record.cell["fingerprint"], work.cache)
    if found is None:
        raise ExportError(
            f"the images of {source!r} that cell {record.cell_id} was trained on are not in "
            f"{work.cache}; start the grid again there, on the same images: it decodes them"
        )
    return found


def _card(row: Row, record: Record, data: DataSet, statistics: DataSet, choice: str) -> Card:
    spec, model = record.cell["data"], record.cell["model"]
    # Images that are left at their size are not cropped.
    resize = spec.get("resize", SQUASH) if spec["size"] else SQUASH
    channels, height, width = data.test_images.shape[1:]
    if isinstance(model, dict):
        model = {key: value for key, value in model.items() if key != "name"}
    return Card(
        name=row.name,
        cell_id=record.cell_id,
        model=model,
        method=row.label,
        classes=data.classes,
        image_shape=(channels, height, width),
        resize=resize,
        mean=statistics.mean,
        std=statistics.std,
        resolution=spec["resolution"],
        preprocessing=_steps(statistics, (height, width), resize, spec["resolution"]),
        last_accuracy=record.final["last_accuracy"],
        measured_on="held-out training images" if spec.get("validation") else "test images",
        choice=choice,
    )


def _steps(data: DataSet, size: tuple[int, int], resize: str, factor: int) -> tuple[str, ...]:
    mean, std = ([round(value, 6) for value in values] for values in (data.mean, data.std))
    side = f"{size[0]}x{size[1]}"
    scale = f"scale to {side} pixels"
    if resize == CROP:
        scale = f"scale the shorter side to {size[0]} pixels and keep the middle {side}"
    return (
        f"{'grey' if len(mean) == 1 else 'RGB'} image as uint8, turned by its orientation tag, "
        f"transparent parts on white; {scale} (an area average where it shrinks, bilinear where it "
        "grows), rounded once",
        f"{INSIDE}divide by 255, subtract mean {mean}, divide by std {std}",
        f"{INSIDE}average over {factor}x{factor} pixels, bilinear back to {side}",
    )[: 3 if factor > 1 else 2]


def _network(card: Card, record: Record, store: Store) -> Network:
    """What was evaluated: the student, or what its method made of it and of the teacher's head."""
    classes, shape, weights = len(card.classes), card.image_shape, read_weights(card.cell_id, store)
    network = zoo.build(card.model, classes, shape)
    if network.state_dict().keys() != weights.keys():
        teacher = store.load(record.cell["teacher"]["cell_id"])
        if teacher is None:
            raise ExportError(f"{card.name}: the record of its teacher is not in {store.root}")
        taught_by = zoo.build(teacher.cell["model"], classes, shape)
        method = build_method(record.cell["method"], **record.cell["hyperparameters"])
        network = untrained_deployment(method, network, taught_by, shape)
    network.load_state_dict(weights)
    return network.eval()


def pack(trained: Trained, format_name: str) -> tuple[bytes, Parity]:
    """The content of a student's file in one of `FORMATS`, and how close its logits are once read.

    What quantises is compared before that. ExportError if a package for the format is missing, or
    torch cannot trace the network; ParityError if a logit differs by more than `TOLERANCE`.
    """
    form = FORMATS[format_name]
    with torch.no_grad():
        content = form.pack(Student(trained.network, trained.card), trained.card)
        parity = compare(trained, form.unpack(content))
    # Written as "not <=", so that a NaN fails too.
    if not parity.difference <= parity.allowed:
        raise ParityError(f"{trained.card.name} as {format_name} is not the trained one: {parity}")
    if form.quantise is not None:
        content, told = form.quantise(content, trained)
        parity = replace(parity, quantised=told)
    return content, parity


def compare(trained: Trained, exported: Logits) -> Parity:
    """Compares the logits of an exported network with those of the evaluation in training."""
    card, batch = trained.card, evaluation_batch(trained.card.image_shape[1:])
    chosen = spread(len(trained.data.test_images), PARITY_IMAGES)
    images, labels = trained.data.test_images[chosen], trained.data.test_labels[chosen]
    how = {"augment": Augment(pad=0, flip=False), "batch_size": batch, "drop_last": False}
    batches = Batches(images, labels, card.mean, card.std, seed=0, **how).clean(batch)
    network = to_device(copy.deepcopy(trained.network), torch.device("cpu"))  # laid out as trained
    wanted = torch.cat([network(degrade(part.images, card.resolution)) for part in batches])
    # A batch of one comes first: the file must serve any batch size.
    found = torch.cat([exported(part) for part in (images[:1], *images[1:].split(batch))])
    return Parity(
        images=len(images),
        difference=(found - wanted).abs().max().item(),
        allowed=TOLERANCE * wanted.abs().max().item(),
        accuracy=accuracy(found.argmax(1), labels),
    )


def check_output(path: Path, format_name: str) -> Path:
    """The file to write, by links; ExportError for what is no file, or another format's name."""
    if path.exists() and not path.is_file():
        raise ExportError(f"--output {path}: got a folder or a device, wanted a file")
    endings = {name: f".{form.suffix.rpartition('.')[2]}" for name, form in FORMATS.items()}
    wanted = endings[format_name]
    if path.suffix != wanted and path.suffix in endings.values():
        raise ExportError(
            f"--output {path}: --format {format_name} writes {wanted} files; change one of the two"
        )
    return path.resolve()


def file_name(card: Card, format_name: str) -> str:
    """A file name without characters that are special to a shell or a file system."""
    name = card.name.replace(">", "-to-").replace("/", "_").replace(" ", "-")
    plain = "".join(c for c in name if c.isalnum() or c in "-_=.")
    return plain + FORMATS[format_name].suffix
