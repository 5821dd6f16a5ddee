"""What this machine has for workers: CPUs, and memory, which limits the size of a cohort."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from joblib import cpu_count

CONTROLS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of a control group, version 2 and 1: limit, use, and the part of it that is given up."""

SAFE = 0.8  # part of the free memory that plans may fill: estimates are rough, and others need some


def usable_cpus() -> int:
    """The CPUs that this process may use: by affinity, a container's quota and its Slurm task."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cpu_count(), int(asked) if asked.isdecimal() else cpu_count()))


def worker_room(devices: Sequence[str], part: float = 1.0) -> int | None:
    """Bytes that the cells of one worker may fill, with one device each; None if unknown.

    `part` is that of each GPU which these workers may use.
    """
    if devices[0] == "cpu":
        free = free_memory()
        # A worker is a process of about the size of this one.
        return None if free is None else round(SAFE * free / len(devices)) - process_bytes()
    import torch

    free_on = {device: torch.cuda.mem_get_info(torch.device(device))[0] for device in devices}
    rooms = (SAFE * part * free / devices.count(device) for device, free in free_on.items())
    return round(min(rooms))


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that new processes may fill: what the system has, or what their groups may still use.

    None if the system does not say. `root` is the folder of `proc` and `sys`.
    """
    limits = []
    with contextlib.suppress(FileNotFoundError):
        limits.append(_kilobytes(root / "proc/meminfo", "MemAvailable") * 1024)
    for group in _memory_groups(root):
        for most, used, cache in CONTROLS:
            # "max" is no number: no limit.
            with contextlib.suppress(OSError, ValueError):
                left = int((group / most).read_text()) - int((group / used).read_text())
                with contextlib.suppress(OSError):
                    lines = (group / "memory.stat").read_text().splitlines()
                    left += int(dict(line.split() for line in lines).get(cache, 0))
                limits.append(max(0, left))
    return min(limits, default=None)


def _memory_groups(root: Path) -> Iterator[Path]:
    """The control groups that limit this process's memory: its own, and all that hold it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        version1 = "memory" in controllers.split(",")
        for mount in ("memory",) if version1 else () if controllers else ("", "unified"):
            group = root / "sys/fs/cgroup" / mount
            yield group
            # In a container the path may be the host's: then its own group is the first.
            for part in PurePosixPath(path).parts[1:]:
                group /= part
                yield group


def process_bytes() -> int:
    """Memory that this process holds for itself; 0 where the system does not say.

    What is mapped from files, such as libraries and images, is shared and can be given up.
    """
    try:
        return _kilobytes(Path("/proc/self/status"), "RssAnon") * 1024
    except FileNotFoundError:
        return 0


def _kilobytes(file: Path, name: str) -> int:
    lines = file.read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0])
