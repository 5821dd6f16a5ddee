"""Tensor files with a checksum: safetensors with a SHA-256 of the content.

Damaged files are refused. Nothing is unpickled, so a file from elsewhere cannot run code.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.faults import DamagedError


def pack(tensors: Mapping[str, Tensor], about: str) -> bytes:
    """A file's content: tensors, stored contiguous, a text, and the checksum of both."""
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    return save(plain, {"about": about, "sha256": _digest(plain, about)})


def unpack(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text of a file; DamagedError if it was truncated or changed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise DamagedError(str(error)) from error
    about = metadata.get("about", "")
    if metadata.get("sha256") != _digest(tensors, about):
        raise DamagedError("checksum differs")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    """Hex SHA-256 over the text and each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        # As bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
