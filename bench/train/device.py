"""Where and how precisely tensors are computed: devices, determinism, autocast."""

from __future__ import annotations

import contextlib
import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from bench.cell import Cell

CPUINFO = Path("/proc/cpuinfo")
Module = TypeVar("Module", bound=nn.Module)


def pick_device(name: str) -> torch.device:
    """The device called `name` ("auto", "cpu", "cuda", "cuda:1").

    Raises:
        ValueError: no such device on this machine, or no device's name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: got {name!r}, wanted auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {name!r}, wanted auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"--device: got {name!r}, but torch sees {count} CUDA devices here")
    return device


def to_device(module: Module, device: torch.device) -> Module:
    """The module on the device, its convolutions laid out channels last."""
    return module.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def seed_device(seed: int, device: torch.device) -> None:
    """Seeds the generators that code on this device draws from.

    `torch.manual_seed` seeds those of all devices. Where CUDA was never used it keeps every call,
    with its traceback, for the day when it is: 50 microseconds and some memory for each step.

    Example:
        >>> seed_device(3, torch.device("cpu"))
        >>> here = torch.rand(1)
        >>> _ = torch.manual_seed(3)
        >>> bool(here == torch.rand(1))
        True
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def set_numerics(cell: Cell) -> None:
    """Sets what is global in torch: determinism and the precision of products on CUDA.

    TF32 is given to convolutions only: relations and losses are matrix products and stay exact.
    """
    if cell.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # An operation without a deterministic form is named in a warning, not refused. The other call
    # for this, use_deterministic_algorithms, imports torch's whole compiler: seconds a process.
    torch.set_deterministic_debug_mode("warn" if cell.deterministic else "default")
    torch.backends.cudnn.benchmark = not cell.deterministic
    torch.backends.cudnn.allow_tf32 = cell.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left; less work beside may mend that.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator, the libraries' and CUDA's own calls have no type for it.
    signs = ("can't allocate memory", "_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def is_device_lost(error: BaseException) -> bool:
    """Whether the process can no longer use its CUDA device, whatever it runs next."""
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


def autocast(cell: Cell, device: torch.device) -> AbstractContextManager:
    """The context in which networks (never losses) run: bfloat16 where the cell says so."""
    if cell.precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def processor() -> str:
    """The CPU's name as the system knows it, or else its architecture."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.machine() or "cpu"


def conditions(device: torch.device) -> dict[str, object]:
    """What a result was obtained with: device, threads, versions."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
    }
