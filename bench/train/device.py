"""Devices, determinism and precision."""

import contextlib
import os
import platform
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bench.cell import Cell
from bench.faults import UserError

CPUINFO = Path("/proc/cpuinfo")
LOST_SIGNS = ("CUDA error", "CUDA driver error", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
Module = TypeVar("Module", bound=nn.Module)


def pick_device(name: str) -> torch.device:
    """The device called `name` ("auto", "cpu", "cuda", "cuda:1"); UserError if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device: got {name!r}, wanted auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device: got {name!r}, but torch sees {count} CUDA devices here")
    return device


def to_device(module: Module, device: torch.device) -> Module:
    """The module on the device, its convolutions laid out channels last."""
    return module.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def seed_device(seed: int, device: torch.device) -> None:
    """Seeds the random generators of the CPU and of `device`.

    As long as CUDA is not initialised, `torch.manual_seed` stores every call with its traceback,
    which takes 50 microseconds and some memory for each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def set_numerics(cell: Cell, device: torch.device) -> None:
    """Sets torch's determinism and precision: TF32 for convolutions only, never in losses.

    The device becomes torch's current one: seeds and pinned memory are for that one alone.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if cell.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # An operation without a deterministic form causes a warning, not an error. The other way to
    # ask for this, use_deterministic_algorithms, imports torch's compiler, which takes seconds.
    torch.set_deterministic_debug_mode("warn" if cell.deterministic else "default")
    # Torch would fill all new memory, for code that reads what it never wrote: a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = not cell.deterministic
    torch.backends.cudnn.allow_tf32 = cell.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def note_nondeterministic(found: set[str]) -> Iterator[None]:
    """Adds each operation without a deterministic form to `found`, of which torch warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*deterministic.*")
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **more: Any) -> None:
            if "determin" in str(message):
                found.add(str(message).split(" ")[0])
            else:
                show(message, *rest, **more)

        warnings.showwarning = note
        yield


def is_device_lost(error: BaseException) -> bool:
    """Whether the process has lost its CUDA device: everything it runs there will fail."""
    return isinstance(error, RuntimeError) and str(error).startswith(LOST_SIGNS)


def autocast(cell: Cell, device: torch.device) -> torch.autocast:
    """The context in which networks, never losses, run: bfloat16 if the cell asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=cell.precision == "bf16")


def processor() -> str:
    """The CPU's model name, or else its architecture."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    found = re.search(r"^model name\s*: *(\S.*)", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine() or "cpu"


def conditions(device: torch.device) -> dict[str, object]:
    """Device, threads and versions, for the records."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
    }
