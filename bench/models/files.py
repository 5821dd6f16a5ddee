"""Weights from a user's own file: found, read, and fitted to a network of other classes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.faults import UserError, reason
from bench.record import digest
from bench.registry import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.network import Network

SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPED = ("state_dict", "model_state_dict", "model_state", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
IMAGENET = "imagenet"
SHOWN = 3  # names of a message

Rows = str | Sequence[int] | Sequence[str] | None
"""The file's classes: "imagenet", their names in the file's order, or for each class of the data
its position in the file; None where they are the data's."""


class WeightsError(UserError):
    """A file of weights cannot be used; one line with what it holds and what was wanted."""


def find_weights(text: str, folder: Path, torchvision: str | None) -> Path:
    """The file that a grid names: a path relative to the grid's `folder`, or torchvision's name.

    `torchvision` is the name of the network there. Such weights are read from torch's cache;
    nothing is downloaded.
    """
    path = folder / Path(text).expanduser()
    if path.suffix in SUFFIXES or torchvision is None:
        if path.suffix not in SUFFIXES:
            raise WeightsError(f"weights: got {text!r}, wanted a file ending in {SUFFIXES}")
        if not path.is_file():
            raise WeightsError(f"weights: no file {path}")
        return path
    from torch.hub import get_dir
    from torchvision.models import get_model_weights

    known = {weights.name: weights.url for weights in get_model_weights(torchvision)}
    if text not in known:
        raise WeightsError(f"weights: {unknown('weights of torchvision', text, known)}")
    path = Path(get_dir()) / "checkpoints" / known[text].rpartition("/")[2]
    if not path.is_file():
        raise WeightsError(f"weights: {text} is not in torch's cache: put {known[text]} at {path}")
    return path


def checksum_file(path: Path) -> Path:
    """Where the SHA-256 of an exported file is: next to it, in the form of sha256sum."""
    return path.with_name(f"{path.name}.sha256")


def read_state(path: Path, sha256: str) -> dict[str, Tensor]:
    """The state dict in a file; WeightsError for other bytes than `sha256` says, or without one."""
    import safetensors.torch
    import torch

    content, written = path.read_bytes(), checksum_file(path)
    if digest(content) != sha256:
        raise WeightsError(f"{path} changed while it was read; start the command again")
    if written.is_file() and not written.read_bytes().startswith(sha256.encode()):
        raise WeightsError(f"damaged: {path} (its checksum is not the one in {written.name})")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path} is no state dict ({reason(error)[:80]}); write one with "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    for key in WRAPPED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} holds a {type(state).__name__}, wanted a state dict")
    if odd := [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise WeightsError(f"{path} holds {odd[0]!r}, which is no tensor; wanted a state dict")
    return dict(state)


def fitted(
    state: Mapping[str, Tensor], network: Network, names: Sequence[str], rows: Rows, what: str
) -> dict[str, Tensor]:
    """The state as `network` takes it: without prefixes, its head's rows those of the data.

    `names` are the data's classes, `rows` the file's, and `what` is the file, for messages.
    WeightsError if keys, classes or shapes differ.
    """
    wanted, prefix = network.own_state()
    head = next(n for n, module in network.named_modules() if module is network.head)
    head = head.removeprefix(prefix)
    found = _without_prefixes(state, wanted)
    for key in wanted.keys() - found.keys():
        if key.endswith("num_batches_tracked"):  # files older than torch 0.4.1 have none
            found[key] = wanted[key]
    missing, more = [k for k in wanted if k not in found], [k for k in found if k not in wanted]
    if missing or more:
        differ = {"it lacks": missing, "it has besides": more}
        parts = [f"{kind} {_some(keys)}" for kind, keys in differ.items() if keys]
        raise WeightsError(f"{what} is of another network: {'; '.join(parts)}")
    chosen = _rows(len(found[f"{head}.weight"]), names, rows, what)
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in found and chosen is not None:
            found[key] = found[key][chosen]
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            theirs, ours = ("x".join(map(str, t.shape)) for t in (found[key], tensor))
            raise WeightsError(f"{what}: {key} is {theirs} in the file, {ours} in the network")
    return {f"{prefix}{key}": found[key].to(tensor.dtype) for key, tensor in wanted.items()}


def _without_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    found = dict(state)
    while found.keys() != wanted.keys():
        shared = next((p for p in PREFIXES if all(key.startswith(p) for key in found)), None)
        if shared is None or all(key.startswith(shared) for key in wanted):
            break
        found = {key.removeprefix(shared): value for key, value in found.items()}
    return found


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if keys[SHOWN:] else "")


def _rows(count: int, names: Sequence[str], rows: Rows, what: str) -> list[int] | None:
    """The head's row of each class of the data; None for all in order."""
    if rows is None:
        if count == len(names):
            return None
        raise WeightsError(
            f"{what} has {count} classes, the data {len(names)}; name the file's by classes"
        )
    if isinstance(rows, str):
        from torchvision.models import ResNet18_Weights

        rows = [str(name) for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    if all(isinstance(row, int) for row in rows):
        chosen = [int(row) for row in rows]
        if len(chosen) != len(names) or not all(0 <= row < count for row in chosen):
            raise WeightsError(
                f"classes: {len(chosen)} positions up to {max(chosen)}, wanted {len(names)} below "
                f"the {count} classes of {what}"
            )
        return chosen
    listed = [str(name) for name in rows]
    if len(listed) != count:
        raise WeightsError(f"classes: {len(listed)} names, but {what} has {count} classes")
    if absent := [name for name in names if name not in listed]:
        raise WeightsError(f"classes: {unknown('class of the data', absent[0], listed)[:200]}")
    return [listed.index(name) for name in names]
