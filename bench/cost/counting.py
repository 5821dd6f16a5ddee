"""Operations and peak memory of the code inside a `with`, counted operator by operator.

Torch's dispatcher names every operator that runs, forward and backward, with its tensors.

| operators | FLOP |
|---|---|
| products and convolutions | torch's own formulas; 1 multiply-add = 2 |
| eigh, svd, qr, solve | by formula, see `DECOMPOSITIONS` |
| views, copies, lookups, random draws | 0 |
| all others | 1 per element, times `PASSES` for those of several |

The number of elements is that of the largest tensor that the operator reads or writes. An
exponential counts 1, like an addition.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_MOVES = """
    arange cat clone constant_pad_nd copy_ diagonal_backward embedding empty empty_like
    empty_strided fill_ flip full full_like gather index index_put index_put_ index_select
    lift_fresh masked_fill masked_fill_ new_empty new_empty_strided new_full new_ones new_zeros
    normal_ ones ones_like pixel_shuffle rand randn repeat roll scalar_tensor scatter
    select_backward select_scatter set_ slice_backward slice_scatter split_with_sizes_copy stack
    unbind_copy unfold_backward uniform_ zero_ zeros zeros_like _foreach_copy_ _foreach_zero_
    _record_function_enter_new _record_function_exit _to_copy _unsafe_view
"""
MOVES = frozenset(_MOVES.split())
"""Operators that compute nothing."""

PASSES = {
    "_softmax": 5,  # maximum, difference, exponential, sum, quotient
    "_log_softmax": 5,
    "_softmax_backward_data": 4,
    "_log_softmax_backward_data": 4,
    "native_batch_norm": 8,  # mean 1, variance 3, two to normalise, two to scale and shift
    "cudnn_batch_norm": 8,
    "native_batch_norm_backward": 11,
    "cudnn_batch_norm_backward": 11,
    "var": 3,
    "var_mean": 4,
    "std": 3,
    "std_mean": 4,
    "linalg_vector_norm": 2,
    "mse_loss": 2,
    "mse_loss_backward": 3,
    "huber_loss": 5,
    "huber_loss_backward": 4,
    "addcmul": 3,
    "_foreach_norm": 2,
}
"""Operations per element of operators that do several."""


class CountingMode(TorchDispatchMode):
    """Counts what runs inside it.

    Attributes:
        flops: of all operators so far.

    Example:
        >>> with CountingMode() as counter:
        ...     product = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counter.flops                                       # 2 * 2 * 3 * 4
        48
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs one operator and counts it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name != "_unsafe_view":
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.flops += _flops(func, name, args, kwargs or {}, out, tensors)
        return out


def _flops(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any,
    tensors: list[Tensor],
) -> int:  # fmt: skip
    """FLOP of one operator."""
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    if name in DECOMPOSITIONS:
        return _decomposition(name, args[0])
    if name in MOVES or not tensors:
        return 0
    foreach = name.startswith("_foreach")
    sizes = [x.numel() for x in (args[0] if foreach else tensors)]
    return PASSES.get(name, 1) * (sum(sizes) if foreach else max(sizes))


DECOMPOSITIONS: dict[str, Callable[[int, int], float]] = {
    "_linalg_eigh": lambda m, n: 9 * n**3,
    "_linalg_svd": lambda m, n: 14 * m * n**2 + 8 * n**3,
    "linalg_qr": lambda m, n: 4 * m * n**2 - 4 / 3 * n**3,
    "_linalg_solve_ex": lambda m, n: 2 / 3 * n**3 + 2 * n**2,
}
"""Operations per m x n matrix, m >= n: with all vectors, Q formed, and one right-hand side."""


def _decomposition(name: str, matrices: Tensor) -> int:
    long, short = max(matrices.shape[-2:]), min(matrices.shape[-2:])
    each = round(DECOMPOSITIONS[name](long, short))
    return each * (matrices.numel() // (long * short))


class AllocationMode(TorchDispatchMode):
    """Follows the tensors that operators make inside it, until they are freed.

    The result is the same in every run and on every machine. An operator's workspace is left out.

    Attributes:
        live_bytes: of tensors that were made inside and still exist.
        peak_bytes: the maximum of `live_bytes`.

    Example:
        >>> with AllocationMode() as memory:
        ...     for _ in range(3):
        ...         kept = torch.ones(1000)               # the old one lives until the new is there
        >>> memory.peak_bytes, memory.live_bytes
        (8000, 4000)
    """

    def __init__(self) -> None:
        """Nothing allocated yet."""
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._followed: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs one operator and follows what it made."""
        out = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            place, size = storage.data_ptr(), storage.nbytes()
            if size and place not in given and place not in self._followed:
                self._followed[place] = weakref.ref(storage, self._forget(place, size))
                self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return out

    def _forget(self, place: int, size: int) -> Callable[[object], None]:
        def freed(_: object) -> None:
            del self._followed[place]
            self.live_bytes -= size

        return freed


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of all tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)


def count(action: Callable[[], object]) -> int:
    """FLOP of a function."""
    with CountingMode() as counter:
        action()
    return counter.flops


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Peak memory of a function, on top of what existed before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with AllocationMode() as memory:
        action()
    return memory.peak_bytes
