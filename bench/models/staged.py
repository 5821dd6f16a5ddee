"""What most of the zoo shares: a stem, stages of blocks, a pooled embedding, a linear head.

Such a network is one lazy walk from shallow to deep: `walk` yields every tap as soon as it is
computed, and `view` stops asking after the deepest tap it wants. What lies deeper never runs.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.network import Network

Steps = Iterator[tuple[str, Tensor]]
"""Taps in the order they are computed: (name, tensor)."""


class StagedNetwork(Network):
    """Stem, stages of blocks with an activation after each, neck, mean over positions, head.

    A block returns its sum *before* the activation; the network applies the activation. So
    "stageK.pre" and "stageK" are both at hand without running anything twice, and no activation
    works in place: a tap that was shown stays as it was.

    Taps: "stem"; per stage K "stageK.entry" (the output of the stage's first block, after its
    activation; only where the stage has more than one block), "stageK.pre", "stageK";
    "embedding" (B, D), "logits" (B, classes).
    """

    head: nn.Linear
    pre_comes_first = True

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[Iterable[nn.Module]],
        width: int,
        classes: int,
        neck: nn.Module | None = None,
    ) -> None:
        """Puts the parts together; `width` is D, the channels that reach the head.

        Args:
            stem: images to the first map.
            stages: per stage its blocks, each from a map to the next map before the activation.
            width: channels after the neck.
            classes: K, outputs of the head.
            neck: from the last stage's map to the map that is pooled; none by default.
        """
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.neck = nn.Identity() if neck is None else neck
        self.head = nn.Linear(width, classes)
        self.tap_names = ("stem", *chain.from_iterable(self._stage_taps()), "embedding", "logits")

    def _stage_taps(self) -> Iterator[tuple[str, ...]]:
        for name, blocks in self.named_stages():
            entry = (f"{name}.entry",) if len(blocks) > 1 else ()
            ends = (f"{name}.pre", name)
            yield entry + (ends if self.pre_comes_first else ends[::-1])

    def named_stages(self) -> Iterator[tuple[str, list[nn.Module]]]:
        """("stage1", its blocks), ("stage2", its blocks), ..."""
        for number, blocks in enumerate(self.stages, start=1):
            yield f"stage{number}", list(blocks.children())

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        wanted, shown = set(taps), {}
        if not wanted:
            return shown
        for tap, value in self.walk(images):
            if tap in wanted:
                shown[tap] = value
                if len(shown) == len(wanted):
                    break
        return shown

    def walk(self, images: Tensor) -> Steps:
        """Every tap from shallow to deep, each computed only when it is asked for."""
        x = self.stem(images)
        yield "stem", x
        for name, blocks in self.named_stages():
            x = yield from self._walk_stage(name, blocks, x)
        yield from self.classify(x)

    def _walk_stage(
        self, name: str, blocks: Iterable[nn.Module], x: Tensor
    ) -> Generator[tuple[str, Tensor], None, Tensor]:
        *earlier, last = blocks
        for place, block in enumerate(earlier):
            x = self.activate(block(x))
            if place == 0:
                yield f"{name}.entry", x
        pre = last(x)
        yield f"{name}.pre", pre
        x = self.activate(pre)
        yield name, x
        return x

    def activate(self, pre: Tensor) -> Tensor:
        """What follows every block: ReLU."""
        return F.relu(pre)

    def classify(self, x: Tensor) -> Steps:
        """From the last stage on: the neck, its mean over positions, the head."""
        embedding = self.neck(x).mean(dim=(2, 3))
        yield "embedding", embedding
        yield "logits", self.head(embedding)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """A convolution that keeps H and W at stride 1, and its BatchNorm; no activation."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def draw_convolutions(network: nn.Module) -> None:
    """Draws every convolution from N(0, 2 / fan_out), biases 0, as He et al. do for ReLU nets."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def draw_small_head(head: nn.Linear) -> None:
    """Draws a classifier's weight from N(0, 0.01^2), bias 0: the first logits are near 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
