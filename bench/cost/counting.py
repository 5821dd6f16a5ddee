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

_PASSES = {
    2: "linalg_vector_norm mse_loss _foreach_norm",
    3: "addcmul mse_loss_backward std var",
    4: "huber_loss_backward std_mean var_mean _log_softmax_backward_data _softmax_backward_data",
    5: "huber_loss _log_softmax _softmax",  # maximum, difference, exponential, sum, quotient
    # Mean 1, variance 3, two to normalise, two to scale and shift.
    8: "cudnn_batch_norm native_batch_norm",
    11: "cudnn_batch_norm_backward native_batch_norm_backward",
}
PASSES = {name: passes for passes, names in _PASSES.items() for name in names.split()}
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operator and counts it."""
        out = func(*args, **(kwargs or {}))
        self.flops += _flops(func, args, kwargs or {}, out)
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """FLOP of one operator."""
    name = func.overloadpacket.__name__
    if func.is_view or name in MOVES:
        return 0
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    if name in DECOMPOSITIONS:
        return _decomposition(name, args[0])
    if name.startswith("_foreach"):
        return PASSES.get(name, 1) * sum(x.numel() for x in args[0])
    sizes = (x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
    return PASSES.get(name, 1) * max(sizes, default=0)


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
        self._followed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operator and follows what it made."""
        out = func(*args, **(kwargs or {}))
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


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of all tensors."""
    return sum(x.nbytes for x in tensors)


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
