"""Weights from a user's own file: found, read, and fitted to a network of other classes."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.faults import CODE_FAULTS, UserError, reason, shortened
from bench.record import digest
from bench.registry import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.network import Network

SUFFIXES = (".pth", ".pt", ".safetensors")
WRAPPED = ("state_dict", "model_state_dict", "model_state", "model", "net")
WRAPPED += ("state_dict_ema", "model_ema")  # where there is no plain one
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
SEEN = {"scale", "shift"}  # besides "network." in an exported network of its own `normalise`
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception, built without them
IMAGENET, FRESH = "imagenet", "fresh"
SHOWN = 3  # names of a message

Rows = str | Sequence[int] | Sequence[str] | None
"""The file's classes: "imagenet", their names in the file's order, or for each class of the data
its position in the file; None where they are the data's, FRESH where the head may stay fresh."""


class WeightsError(UserError):
    """A file of weights cannot be used; one line with what it holds and what was wanted."""


def find_weights(text: str, folder: Path, torchvision: str | None) -> Path:
    """The file that a grid names: a path relative to the grid's `folder`, or torchvision's name.

    `torchvision` is the name of the network there. Such weights are read from torch's cache;
    nothing is downloaded.
    """
    path = folder / Path(text).expanduser()
    if torchvision is None or not text.isidentifier():
        if path.suffix not in SUFFIXES:
            raise WeightsError(f"weights: got {text!r}, wanted a file ending in {SUFFIXES}")
        if not path.is_file():
            raise WeightsError(f"weights: no file {path}")
        return path
    from torch.hub import get_dir
    from torchvision.models import get_model_weights

    known = {name: w.url for name, w in get_model_weights(torchvision).__members__.items()}
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
    import torch

    content, written = path.read_bytes(), checksum_file(path)
    if digest(content) != sha256:
        raise WeightsError(f"{path} changed while it was read; start the command again")
    if written.is_file() and not written.read_bytes().startswith(sha256.encode()):
        raise WeightsError(f"damaged: {path} (its checksum is not the one in {written.name})")
    state = _load(path, content)
    for key in WRAPPED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        held = "no tensor" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise WeightsError(f"{path} holds {held}, wanted a state dict")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise WeightsError(f"{path} is no state dict: {key!r} in it is no name of a tensor")
    return dict(state)


def _load(path: Path, content: bytes) -> object:
    """What a file holds, read as tensors and plain values alone; WeightsError if it is no such."""
    import safetensors.torch
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            if path.suffix == ".safetensors":
                return safetensors.torch.load(content)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        why = reason(error).partition(". ")[0]
    except (*CODE_FAULTS, EOFError, pickle.UnpicklingError, struct.error) as error:
        why = "torch.save did not write it"
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            why = f"it holds more than tensors: pickled objects, such as {found[1]}, are not loaded"
    cure = "write one with torch.save(model.state_dict(), FILE)"
    raise WeightsError(f"{path} is no state dict ({why}); {cure}")


def fitted(
    state: Mapping[str, Tensor], network: Network, names: Sequence[str], rows: Rows, what: str
) -> dict[str, Tensor]:
    """The state as `network` takes it: without prefixes, its head's rows those of the data.

    `names` are the data's classes, `rows` the file's, and `what` is the file, for messages. A
    head of another size is left out if it may stay fresh. WeightsError if keys, classes or shapes
    differ, or numbers are not finite.
    """
    wanted = network.get_submodule(network.bare).state_dict()
    prefix = f"{network.bare}." if network.bare else ""
    head = next(n for n, module in network.named_modules() if module is network.head)
    head = head.removeprefix(prefix)
    found = _without_prefixes(state, wanted)
    # Files older than torch 0.4.1 have no such counts.
    found = {k: x for k, x in wanted.items() if k.endswith("num_batches_tracked")} | found
    more = [key for key in found if key not in wanted and not key.startswith(AUXILIARY)]
    differ = {"it lacks": [key for key in wanted if key not in found], "it has besides": more}
    if parts := [f"{kind} {_some(keys)}" for kind, keys in differ.items() if keys]:
        raise WeightsError(f"{what} is of another network: {'; '.join(parts)}")
    count, ends = len(found[f"{head}.weight"]), (f"{head}.weight", f"{head}.bias")
    if rows == FRESH and count != len(names):
        wanted = {key: tensor for key, tensor in wanted.items() if key not in ends}
    elif (chosen := _rows(count, names, rows, what)) is not None:
        found |= {key: found[key][chosen] for key in ends if key in wanted}
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            theirs, ours = ("x".join(map(str, t.shape)) for t in (found[key], tensor))
            raise WeightsError(f"{what}: {key} is {theirs} in the file, {ours} in the network")
        found[key] = found[key].to(tensor.dtype)
        if tensor.isfinite().all() and not found[key].isfinite().all():
            raise WeightsError(f"{what}: {key} holds numbers that are not finite; take other ones")
    return {f"{prefix}{key}": found[key] for key in wanted}


def _without_prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    found = dict(state)
    while found.keys() != wanted.keys():
        if {key for key in found if not key.startswith("network.")} == SEEN:
            found = {key: value for key, value in found.items() if key not in SEEN}
        shared = next((p for p in PREFIXES if all(key.startswith(p) for key in found)), None)
        if shared is None or all(key.startswith(shared) for key in wanted):
            break
        found = {key.removeprefix(shared): value for key, value in found.items()}
    return found


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if keys[SHOWN:] else "")


def _rows(count: int, names: Sequence[str], rows: Rows, what: str) -> list[int] | None:
    """The head's row of each class of the data; None for all in order."""
    if rows is None or rows == FRESH:
        if count == len(names):
            return None
        raise WeightsError(
            f"{what} has {count} classes, the data {len(names)}; name the file's by classes, or "
            "train from it with fine_tune"
        )
    if isinstance(rows, str):
        from torchvision.models import ResNet18_Weights

        rows = [str(name) for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    if all(isinstance(row, int) for row in rows):
        chosen = [int(row) for row in rows]
        if not len(names) == len(chosen) == len({*chosen} & {*range(count)}):
            raise WeightsError(
                f"classes: got {shortened(str(chosen), 60)}, wanted {len(names)} different "
                f"positions below the {count} classes of {what}"
            )
        return chosen
    listed = [str(name) for name in rows]
    if len(listed) != count:
        raise WeightsError(f"classes: {len(listed)} names, but {what} has {count} classes")
    if absent := [name for name in names if name not in listed]:
        raise WeightsError(f"classes: {unknown('class of the data', absent[0], listed)[:200]}")
    return [listed.index(name) for name in names]
