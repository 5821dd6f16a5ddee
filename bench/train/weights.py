"""A cell's network: freshly initialised, with saved weights, or with the trunk of a source."""

import safetensors.torch
import torch
from torch import Tensor

from bench.cell import Cell
from bench.method import NotApplicable
from bench.models import zoo
from bench.models.network import Network
from bench.record import Store, write_atomically
from bench.seeds import derive

FILE = "weights.safetensors"


def build_network(cell: Cell, classes: int, image_shape: tuple[int, int, int]) -> Network:
    """The cell's network, initialised from its own random stream of the cell's seed."""
    torch.manual_seed(derive(cell.seed, "init", cell.model_name))
    return zoo.build(cell.model, classes, image_shape)


def save_weights(cell: Cell, network: Network, store: Store) -> None:
    """Writes the network's parameters and buffers to the cell's folder."""
    state = network.state_dict()
    weights = {name: x.detach().cpu().contiguous() for name, x in state.items()}
    write_atomically(store.folder(cell.id) / FILE, safetensors.torch.save(weights))


def read_weights(cell: Cell, store: Store) -> dict[str, Tensor]:
    """The weights that a finished cell saved; ValueError if the file is missing or damaged."""
    path = store.folder(cell.id) / FILE
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{cell}: cannot read {path}: {error}") from None


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
    head = head_keys(network)
    weights = {k: v for k, v in read_weights(cell.source, store).items() if k not in head}
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    if weights.keys() != shapes.keys() - head or any(
        shapes[key] != tensor.shape for key, tensor in weights.items()
    ):
        raise ValueError(f"{cell.source}: its weights belong to another network than {cell}'s")
    network.load_state_dict(weights, strict=False)


def head_keys(network: Network) -> set[str]:
    """The state-dict keys of the classifier, wherever it is in the network."""
    inside = {id(module) for module in network.head.modules()}
    owners = {name for name, module in network.named_modules() if id(module) in inside}
    return {key for key in network.state_dict() if key.rpartition(".")[0] in owners}
