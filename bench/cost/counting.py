"""Operations and peak memory of a function, counted operator by operator as torch runs them."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

DECOMPOSITIONS: dict[str, Callable[[int, int], float]] = {
    "_linalg_eigh": lambda m, n: 9 * n**3,
    "_linalg_svd": lambda m, n: 14 * m * n**2 + 8 * n**3,
    "linalg_qr": lambda m, n: 4 * m * n**2 - 4 / 3 * n**3,
    "_linalg_solve_ex": lambda m, n: 2 / 3 * n**3 + 2 * n**2,
}
"""Operations per m x n matrix, m >= n: with all vectors, Q formed, and one right-hand side."""


class CountingMode(TorchDispatchMode):
    """Counts what operators do inside it: the same in every run and on every machine.

    `flops` are those of products, convolutions (1 multiply-add = 2) and decompositions; elementwise
    operations and copies count 0. Torch's own `FlopCounterMode` has the same formulas, but its
    hooks on modules forbid `torch.autograd.grad`. `live_bytes` and `peak_bytes` are of the tensors
    that operators make, until they are freed, without an operator's workspace.

    Example:
        >>> with CountingMode() as counter:
        ...     for _ in range(3):
        ...         kept = torch.ones(1000)               # the old one lives until the new is there
        >>> counter.peak_bytes, counter.live_bytes
        (8000, 4000)
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.flops = self.live_bytes = self.peak_bytes = 0
        self._followed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operator, counts it and follows what it made."""
        out = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        if operator in flop_registry:
            self.flops += flop_registry[operator](*args, **(kwargs or {}), out_val=out)
        elif operator.__name__ in DECOMPOSITIONS:
            *batch, rows, columns = args[0].shape
            each = DECOMPOSITIONS[operator.__name__](max(rows, columns), min(rows, columns))
            self.flops += round(each) * math.prod(batch)
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            place, size = storage.data_ptr(), storage.nbytes()
            if size and place not in given and place not in self._followed:
                self._followed.add(place)
                self.live_bytes += size
                weakref.finalize(storage, self._forget, place, size).atexit = False
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return out

    def _forget(self, place: int, size: int) -> None:
        self._followed.remove(place)
        self.live_bytes -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor))


def count(action: Callable[[], object]) -> int:
    """FLOP of a function, see `CountingMode`.

    Example:
        >>> count(lambda: torch.ones(2, 3) @ torch.ones(3, 4))        # 2 * 2 * 3 * 4
        48
    """
    with CountingMode() as counter:
        action()
    return counter.flops


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of all tensors."""
    return sum(x.nbytes for x in tensors)


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Peak memory of a function, on top of what existed before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with CountingMode() as counter:
        action()
    return counter.peak_bytes
