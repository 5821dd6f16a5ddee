"""Several networks of one architecture computed as one, with as many times the channels.

Small networks keep a processor busy with the overhead of operations rather than with arithmetic.
S of them side by side are one network whose convolutions have S groups: the same sums, a fraction
of the operations. The networks keep their parameters and buffers, which become parts of the
stacked ones; optimisers, checkpoints and evaluation see no difference.

What a network computes here does not depend on who is beside it, bit for bit: on the CPU grouped
convolutions over planes (channels first) give every group the same sums, however many groups there
are. One and two groups may take another path, so that fewer than three networks get idle copies
as neighbours. To a network's own form all of it is equal within rounding only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.network import Network

FEWEST = 3
"""Groups from which on their number decides no bit (of three channels, two groups still do)."""

STATELESS = (nn.ReLU, nn.ReLU6, nn.Identity, nn.MaxPool2d, nn.AvgPool2d)


class NotStackable(ValueError):
    """The networks differ in architecture, or hold a module that mixes or hides channels."""


class Stack:
    """S networks of one architecture and mode, computed side by side.

    From here on the networks' parameters and buffers are parts of larger tensors: changing them
    in place changes the stack. A later stack of the same networks replaces this one.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        """Takes the networks' state over.

        Args:
            networks: at least one; each part in the same mode, frozen or not, in all of them.

        Raises:
            NotStackable: naming the module at fault.
        """
        if not networks[0].channelwise:
            raise NotStackable(f"{type(networks[0]).__name__} is not computed channel by channel")
        self.count = len(networks)
        idle = [copy.deepcopy(networks[0]) for _ in range(FEWEST - self.count)]
        self.size = self.count + len(idle)
        self._gradients: list[tuple[nn.Parameter, list[nn.Parameter]]] = []
        self._network: Network = self._stacked([*networks, *idle], "network")

    def views(self, images: Tensor, taps: Collection[str]) -> list[dict[str, Tensor]]:
        """What every network shows of one batch, as `Network.view` of each.

        Args:
            images: (B, C, H, W), the same for all.
            taps: what is wanted of each.
        """
        wide = images[:, None].expand(-1, self.size, -1, -1, -1)
        shown = self._network.view(wide.contiguous().flatten(1, 2), taps)
        parts = {tap: _Apart.apply(x, self.size) for tap, x in shown.items()}
        return [{tap: xs[i] for tap, xs in parts.items()} for i in range(self.count)]  # pyright: ignore[reportOptionalSubscript]

    def hand_out_gradients(self) -> None:
        """Gives every network's parameters their parts of the gradient, and forgets it.

        Parameters that no loss reaches have None.
        """
        for shared, owners in self._gradients:
            gradient, shared.grad = shared.grad, None
            for i, owner in enumerate(owners[: self.count]):
                step = len(owner)
                owner.grad = None if gradient is None else gradient[i * step : (i + 1) * step]

    def gradients(self, loss: Tensor) -> list[dict[nn.Parameter, Tensor]]:
        """Every network's gradient of a sum of their losses, without keeping it.

        Args:
            loss: (), of the latest `views`; its graph is kept.

        Returns:
            per network: parameter -> gradient, for those that any network's loss reaches.
        """
        wholes = [shared for shared, _ in self._gradients]
        found = torch.autograd.grad(loss, wholes, retain_graph=True, allow_unused=True)
        each: list[dict[nn.Parameter, Tensor]] = [{} for _ in range(self.count)]
        for (_, owners), gradient in zip(self._gradients, found, strict=True):
            if gradient is not None:
                parts = gradient.split(len(owners[0]))
                for i in range(self.count):
                    each[i][owners[i]] = parts[i]
        return each

    # --- building -------------------------------------------------------------------------------

    def _stacked(self, modules: Sequence[Any], name: str) -> Any:
        first = modules[0]
        if any(type(module) is not type(first) for module in modules):
            raise NotStackable(f"{name} is of several kinds: the architectures differ")
        for kind, build in _KINDS.items():
            if type(first) is kind:
                return build(modules, lambda part: self._share(modules, part))
        children = list(first.named_children())
        if type(first) in STATELESS:
            return first
        own = [*first.parameters(recurse=False), *first.buffers(recurse=False)]
        if own or not (children or isinstance(first, nn.Sequential)):
            raise NotStackable(f"{name} is a {type(first).__name__}, which has no stacked form")
        whole = copy.copy(first)
        whole._modules = {
            child: self._stacked([getattr(module, child) for module in modules], f"{name}.{child}")
            for child, _ in children
        }
        return whole

    def _share(self, modules: Sequence[nn.Module], name: str) -> Tensor | None:
        """One tensor of all modules' `name`, of which theirs become parts."""
        owners = [getattr(module, name) for module in modules]
        if owners[0] is None:
            return None
        if len({(owner.shape, owner.requires_grad) for owner in owners}) > 1:
            raise NotStackable(f"{name}: shapes or frozen parts differ")
        shape = (len(owners) * len(owners[0]), *owners[0].shape[1:])
        # Not by contiguous(), which lets strides of single channels or 1x1 kernels be, and these
        # decide the layout of all that follows.
        whole = torch.empty(shape, dtype=owners[0].dtype, device=owners[0].device)
        torch.cat([owner.detach() for owner in owners], out=whole)
        for owner, part in zip(owners, whole.split(len(owners[0])), strict=True):
            owner.data = part
        if owners[0].requires_grad:
            whole = nn.Parameter(whole)
            self._gradients.append((whole, owners))
        return whole


Share = Callable[[str], Tensor | None]


class _Convolutions(nn.Module):
    """S convolutions as one: (B, S C, H, W) -> (B, S C', H', W')."""

    def __init__(self, convolutions: Sequence[nn.Conv2d], share: Share) -> None:
        super().__init__()
        first = convolutions[0]
        if first.padding_mode != "zeros":
            raise NotStackable(f"a convolution pads with {first.padding_mode}")
        self.weight, self.bias = share("weight"), share("bias")
        self.geometry = (
            first.stride, first.padding, first.dilation, first.groups * len(convolutions)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self.geometry)  # pyright: ignore[reportArgumentType, reportCallIssue]


class _Norms(nn.Module):
    """S BatchNorms as one over S times the channels; each goes on counting its own batches."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d], share: Share) -> None:
        super().__init__()
        first = norms[0]
        if first.momentum is None or first.running_mean is None:
            raise NotStackable("a BatchNorm without running statistics or momentum")
        self.momentum, self.eps, self.training = first.momentum, first.eps, first.training
        self.weight, self.bias = share("weight"), share("bias")
        self.mean, self.variance = share("running_mean"), share("running_var")
        self.counters: list[Any] = [norm.num_batches_tracked for norm in norms]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            torch._foreach_add_(self.counters, 1)  # pyright: ignore[reportCallIssue, reportPrivateImportUsage]
        return F.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, self.training, self.momentum,
            self.eps,
        )  # fmt: skip


class _Linears(nn.Module):
    """S linear layers as one batched product: (B, S D) -> (B, S K)."""

    def __init__(self, layers: Sequence[nn.Linear], share: Share) -> None:
        super().__init__()
        self.size = (len(layers), layers[0].out_features, layers[0].in_features)
        self.weight, self.bias = share("weight"), share("bias")

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.weight, Tensor)
        count, _, inputs = self.size
        each = x.reshape(len(x), count, inputs).transpose(0, 1)
        found = torch.bmm(each, self.weight.view(self.size).transpose(1, 2))
        found = found.transpose(0, 1).flatten(1)
        return found if self.bias is None else _AddBias.apply(found, self.bias)  # pyright: ignore[reportReturnType]


_KINDS: Mapping[type[nn.Module], Callable[[Sequence[Any], Share], nn.Module]] = {
    nn.Conv2d: _Convolutions,
    nn.BatchNorm2d: _Norms,
    nn.Linear: _Linears,
}


class _AddBias(torch.autograd.Function):
    """(B, N) + (N,), with a gradient that sums each column by itself.

    The sum over B that addition comes with takes columns together in the processor's vectors, and
    rounds those left over at the end in another way: N would decide.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.t().contiguous().sum(1)


class _Apart(torch.autograd.Function):
    """(B, S C, ...) -> S tensors (B, C, ...), laid out as the teacher's are.

    Losses then see the same whatever S is, and the way back is a single tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> tuple[Tensor, ...]:
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        return tuple(part.clone(memory_format=layout) for part in x.chunk(count, dim=1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        known = next((g for g in gradients if g is not None), None)
        if known is None:
            return None, None
        whole = torch.empty(ctx.shape, dtype=known.dtype, device=known.device)
        for part, gradient in zip(whole.chunk(len(gradients), dim=1), gradients, strict=True):
            part.zero_() if gradient is None else part.copy_(gradient)
        return whole, None
