"""A cell's network: freshly initialised, with saved weights, or with the trunk of a source."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.cell import Cell, DataSpec
from bench.checksum import pack, unpack
from bench.data.dataset import DataSet
from bench.faults import DamagedError
from bench.method import Facts, Method, NotApplicable
from bench.models import zoo
from bench.models.files import FRESH, fitted, read_state
from bench.models.network import Network, Normalised, tap_shapes
from bench.record import Store, write_atomically
from bench.seeds import derive
from bench.train.stream import Stream

WEIGHTS, FILE = "weights", "weights.safetensors"


def build_network(cell: Cell, classes: int, image_shape: tuple[int, int, int]) -> Network:
    """The cell's network, initialised from its own random stream of the cell's seed."""
    torch.manual_seed(derive(cell.seed, "init", cell.model_name))
    return zoo.build(cell.model, classes, image_shape)


def open_network(cell: Cell, stream: Stream, store: Store) -> Network:
    """The cell's network for the images of a stream, with the weights of its file if it has one."""
    network = build_network(cell, stream.classes, stream.image_shape)
    if (path := _start(cell, store)) is not None:
        network.load_state_dict(unpack(path)[0], strict=False)  # a head that it lacks stays fresh
    if isinstance(network, Normalised):
        network.see(stream.mean, stream.std)
    return network


def import_weights(
    cells: Iterable[Cell],
    files: Mapping[str, Path],
    read: Callable[[DataSpec], DataSet],
    store: Store,
) -> None:
    """Writes the weights that checked cells start from where workers find them, fitted to the data.

    `files` maps SHA-256 to the path of the user's file. UserError if one cannot be read, or is of
    another network or other classes.
    """
    for cell in cells:
        path = _start(cell, store)
        with contextlib.suppress(FileNotFoundError, DamagedError):
            if path is None or unpack(path):
                continue
        assert path is not None and isinstance(cell.model, dict)  # noqa: PT018
        file, data = files[cell.model["weights"]], read(cell.data)
        channels, height, width = data.train_images.shape[1:]
        network = build_network(cell, len(data.classes), (channels, height, width))
        rows = cell.model.get("classes", FRESH if cell.trains else None)
        state = read_state(file, cell.model["weights"])
        state = fitted(state, network, data.classes, rows, f"{file} for {cell.model_name}")
        whole = head_keys(network) <= state.keys()
        write_atomically(path, pack(state, file.name if whole else f"{file.name} but its head"))


def weights_facts(cell: Cell, store: Store) -> dict[str, str]:
    """Name and SHA-256 of the file that a cell starts from, for its record; empty without one."""
    path = _start(cell, store)
    if path is None or not isinstance(cell.model, dict):
        return {}
    return {"weights_file": unpack(path)[1], "weights_sha256": cell.model["weights"]}


def _start(cell: Cell, store: Store) -> Path | None:
    """Where the weights that a cell starts from are, fitted to its data; None if it has no file."""
    if not isinstance(cell.model, dict) or "weights" not in cell.model:
        return None
    model = {key: value for key, value in cell.model.items() if key != "name"}
    text = json.dumps([model, cell.fingerprint, cell.trains], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return store.root.parent / "weights" / f"{name}.safetensors"


def weights_content(network: nn.Module, about: Mapping[str, str] | None = None) -> bytes:
    """The content of a file of the network's parameters and buffers, and of texts by name."""
    plain = {name: x.detach().cpu().contiguous() for name, x in network.state_dict().items()}
    return safetensors.torch.save(plain, dict(about or {}) or None)


def read_weights(cell_id: str, store: Store) -> dict[str, Tensor]:
    """The weights that a finished cell saved; DamagedError if they are missing or changed."""
    record = store.load(cell_id)
    if record is None or WEIGHTS not in record.files:
        raise DamagedError(f"damaged: {store.folder(cell_id)} (no weights)")
    try:
        return safetensors.torch.load_file(store.file(record, WEIGHTS))
    except safetensors.SafetensorError as error:  # of an earlier version, without a checksum
        raise DamagedError(f"damaged: {store.folder(cell_id) / FILE} ({error})") from None


def untrained_deployment(
    method: Method, network: Network, teacher: Network, image_shape: tuple[int, int, int]
) -> Network:
    """What a method deploys, before weights are read into it; `network` if it adds nothing."""
    if method.deploy is None:
        return network
    shapes, theirs = (tap_shapes(one, image_shape) for one in (network, teacher))
    unlabelled = torch.empty(0, dtype=torch.long)
    facts = Facts(0, unlabelled, shapes["logits"][0], linear(teacher.head))
    return method.deploy(network, method.connector(shapes, theirs, facts))


def linear(head: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Copies of weight (K, D) and bias (K,) of a linear classifier; None for another."""
    if not isinstance(head, nn.Linear):
        return None
    bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias
    return head.weight.detach().clone(), bias.detach().clone()


def start_from_source(cell: Cell, network: Network, store: Store) -> None:
    """Copies all parameters and buffers from the source's network, except those of the head.

    NotApplicable if the cell names no source, ValueError if it has another architecture.
    """
    if cell.source is None:
        raise NotApplicable("the grid names no source to start from; add `source:` to it")
    if cell.source.model != cell.model:
        raise ValueError(
            f"transfer copies parameters, so source and target need the same architecture; "
            f"got {cell.source.model_name} for {cell.model_name}"
        )
    weights, head = read_weights(cell.source.id, store), head_keys(network)
    network.load_state_dict({k: v for k, v in weights.items() if k not in head}, strict=False)


def head_keys(network: Network) -> set[str]:
    """The state-dict keys of the classifier, wherever it is in the network."""
    inside = {id(module) for module in network.head.modules()}
    owners = {name for name, module in network.named_modules() if id(module) in inside}
    return {key for key in network.state_dict() if key.rpartition(".")[0] in owners}
