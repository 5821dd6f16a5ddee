"""What this machine has for workers: CPUs, and memory, which limits the size of a cohort."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SAFE = 0.8
"""Part of the free memory that plans may fill: estimates are rough, and others need some."""


def usable_cpus() -> int:
    """The CPUs that this process may run on; all of the machine where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def room(device: str, workers: int) -> int | None:
    """Bytes that one worker may fill, None where that is not known.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        workers: how many share the device.
    """
    free = _free_on_cuda(device) if device.startswith("cuda") else free_memory()
    return None if free is None else round(SAFE * free / workers)


def worker_room(devices: Sequence[str]) -> int | None:
    """Bytes that the cells of one worker may fill; None where that is not known.

    Args:
        devices: one entry for each worker, such as ["cpu", "cpu"] or ["cuda:0", "cuda:1"].
    """
    rooms = [room(device, devices.count(device)) for device in set(devices)]
    known = [size for size in rooms if size is not None]
    if not known:
        return None
    # Device memory holds no process; main memory holds the worker's own.
    return min(known) - (process_bytes() if devices[0] == "cpu" else 0)


def _free_on_cuda(device: str) -> int:
    import torch

    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return free


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that new processes can have: what the system has, or what the container may still use.

    Args:
        meminfo: the kernel's table.
        cgroup: the container's folder, version 2.
    """
    limits = [_available(meminfo), _left_in(cgroup)]
    return min((limit for limit in limits if limit is not None), default=None)


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None


def _left_in(cgroup: Path) -> int | None:
    try:
        most = (cgroup / "memory.max").read_text(encoding="utf-8").strip()
        used = int((cgroup / "memory.current").read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - used)


def process_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
