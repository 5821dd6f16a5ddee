"""What a device reaches at best: the two limits of the roofline, measured by torch itself."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.cost.profiler import Clock, Progress, measured_with
from bench.cost.record import Machine, Quartiles
from bench.cost.steps import Setting
from bench.train.device import set_numerics

SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Of the square matrices; large enough for the units to be busy, and no more."""

TRIAD_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Of one of the triad's three vectors: several times the largest cache."""

REPEATS = 7


def measure_machine(setting: Setting, progress: Progress | None = None) -> Machine:
    """The float32 product and the triad on the setting's device, under its threads.

    TF32 stays off, as it does for losses. The triad is a = b + s c as STREAM has it: two vectors
    read, one written, the reading of what is overwritten not counted.

    Args:
        setting: gives the device.
        progress: called before each measurement.
    """
    set_numerics(setting.cell("none"))  # which model does not matter to it
    report = progress or (lambda what, done, total: None)
    kind = "cuda" if setting.device.type == "cuda" else "cpu"
    steps = len(SIZES[kind]) + 1
    products = {}
    for done, size in enumerate(SIZES[kind]):
        report("the machine's limits: matrix product", done, steps)
        products[size] = _matmul_gflops(size, setting.device)
    report("the machine's limits: triad", steps - 1, steps)
    triad = _triad_gbs(TRIAD_BYTES[kind], setting.device)
    best = max(products, key=lambda size: max(products[size]))
    where = measured_with(setting)
    return Machine(
        matmul_gflops=max(products[best]),
        matmul_size=best,
        matmul_repeats=Quartiles.of(products[best]),
        triad_gbs=max(triad),
        triad_bytes=TRIAD_BYTES[kind],
        triad_repeats=Quartiles.of(triad),
        conditions={k: v for k, v in where.items() if k not in ("batch", "image_shape", "classes")},
    )


def _matmul_gflops(size: int, device: torch.device) -> list[float]:
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return _rates(2 * size**3, lambda: torch.mm(left, right, out=out), device)


def _triad_gbs(vector_bytes: int, device: torch.device) -> list[float]:
    b, c = (torch.rand(vector_bytes // 4, device=device) for _ in range(2))
    a = torch.empty_like(b)
    return _rates(3 * vector_bytes, lambda: torch.add(b, c, alpha=3.0, out=a), device)


def _rates(work: int, action: Callable[[], object], device: torch.device) -> list[float]:
    """1e9 units of work a second, one entry a repeat, after a warm-up."""
    clock = Clock(device)
    action()
    return [work / clock.time(action) / 1e6 for _ in range(REPEATS)]
