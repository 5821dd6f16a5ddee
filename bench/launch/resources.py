"""What this machine has for workers: CPUs, and memory, which limits the size of a cohort."""

import contextlib
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


def worker_room(devices: Sequence[str]) -> int | None:
    """Bytes that the cells of one worker may fill, with one device each; None if unknown."""
    if devices[0] == "cpu":
        free = free_memory()
        # A worker is a process of about the size of this one.
        return None if free is None else round(SAFE * free / len(devices)) - process_bytes()
    import torch

    free_on = {device: torch.cuda.mem_get_info(torch.device(device))[0] for device in devices}
    return min(round(SAFE * free / devices.count(device)) for device, free in free_on.items())


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Bytes that new processes may fill: what the system has, or what its container may still use.

    `meminfo` is the kernel's table, `cgroup` the folder of the container, version 2.
    """
    limits = []
    with contextlib.suppress(FileNotFoundError):
        found = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(found["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(FileNotFoundError):
        most = (cgroup / "memory.max").read_text().strip()
        if most != "max":
            used = int((cgroup / "memory.current").read_text())
            limits.append(max(0, int(most) - used))
    return min(limits, default=None)


def process_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
