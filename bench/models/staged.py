"""The base class of most networks: a stem, stages of blocks, a pooled embedding, a linear head."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.network import Network

Steps = Iterator[tuple[str, Tensor]]  # taps in the order of their computation: (name, tensor)


class StagedNetwork(Network):
    """Stem, stages of blocks with an activation after each, neck, mean over positions, head.

    A block returns its sum before the activation, and the network applies the activation. So
    "stageK.pre" and "stageK" are both available without running anything twice. No activation works
    in place, so that a tap is never overwritten.

    Taps: "stem"; for each stage K "stageK.entry" (the output of the first block after its
    activation, in stages of more than one block), "stageK.pre" and "stageK"; "embedding" (B, D);
    "logits" (B, classes).
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
        """`width`: D, channels after the neck, which maps the last map to the one that is pooled.

        A block of `stages` maps a map to the next one before the activation.
        """
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.neck = nn.Identity() if neck is None else neck
        self.head = nn.Linear(width, classes)
        taps = ["stem"]
        for name, blocks in self.named_stages():
            taps += [f"{name}.entry"] if len(blocks) > 1 else []
            taps += [f"{name}.pre", name] if self.pre_comes_first else [name, f"{name}.pre"]
        self.tap_names = (*taps, "embedding", "logits")

    def named_stages(self) -> Iterator[tuple[str, list[nn.Module]]]:
        """("stage1", its blocks), ("stage2", its blocks), ..."""
        for number, blocks in enumerate(self.stages, start=1):
            yield f"stage{number}", list(blocks.children())

    def norm_of(self, tap: str) -> nn.BatchNorm2d | None:
        """The last BatchNorm of a stage's last block for "stageK.pre", shortcuts apart."""
        found = None
        last = {f"{name}.pre": blocks[-1] for name, blocks in self.named_stages()}.get(tap)
        for path, module in last.named_modules() if last is not None else ():
            if isinstance(module, nn.BatchNorm2d) and not path.startswith("shortcut"):
                found = module
        return found

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        steps, wanted, shown = self.walk(images), set(taps), {}
        while shown.keys() != wanted:
            tap, value = next(steps)
            if tap in wanted:
                shown[tap] = value
        return shown

    def walk(self, images: Tensor) -> Steps:
        """Every tap from shallow to deep, each computed when it is asked for."""
        x = self.stem(images)
        yield "stem", x
        for name, (*earlier, last) in self.named_stages():
            for place, block in enumerate(earlier):
                x = self.activate(block(x))
                if place == 0:
                    yield f"{name}.entry", x
            x = last(x)
            yield f"{name}.pre", x
            x = self.activate(x)
            yield name, x
        yield from self.classify(x)

    def activate(self, pre: Tensor) -> Tensor:
        """The activation after every block: ReLU."""
        return F.relu(pre)

    def classify(self, x: Tensor) -> Steps:
        """The taps after the last stage: the neck's map averaged over positions, and the head."""
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
    """A convolution that keeps H and W at stride 1, followed by BatchNorm, without activation."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def repeated(
    block: Callable[..., nn.Module],
    inputs: int,
    widths: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
) -> Iterator[list[nn.Module]]:
    """Stages of one kind of block, (inputs, outputs, stride=) -> module.

    The first block of a stage takes its stride, and makes its width of the stage before, or of the
    stem's `inputs`; `depths` are numbers of blocks.
    """
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        first = block(inputs, width, stride=stride)
        yield [first, *(block(width, width, stride=1) for _ in range(1, depth))]
        inputs = width


def draw_weights(network: StagedNetwork, *, small_head: bool = False) -> None:
    """Draws the weights of every convolution from N(0, 2 / fan_out), as He et al.; biases are 0.

    Those of a small head are from N(0, 0.01^2), so that the first logits are near 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if small_head:
        nn.init.normal_(network.head.weight, std=0.01)
        nn.init.zeros_(network.head.bias)
