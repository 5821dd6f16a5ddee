"""ResNets for small images: three stages of blocks, ResNet50 in its CIFAR form, and wide ResNets.

Source:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016. As in the
    distillation literature, a shortcut that changes the shape is a 1x1 convolution with BatchNorm
    (option B; the paper's CIFAR networks pad with zeros), and `x4` widens stem and stages to 32,
    64, 128, 256.
    Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016; no dropout.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.staged import StagedNetwork, Steps, conv_norm, draw_weights, repeated


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut around a block: the identity, or a 1x1 convolution if the shape changes."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return conv_norm(inputs, outputs, 1, stride=stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; returns the sum before its ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """The first convolution takes the stride."""
        super().__init__()
        self.first = conv_norm(inputs, width, stride=stride)
        self.second = conv_norm(width, width)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        return self.second(F.relu(self.first(x))) + self.shortcut(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; returns the sum before its ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """The 3x3 convolution takes the stride, and a quarter of the outputs."""
        super().__init__()
        width = outputs // 4
        self.reduce = conv_norm(inputs, width, 1)
        self.spatial = conv_norm(width, width, stride=stride)
        self.expand = conv_norm(width, outputs, 1)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        inner = F.relu(self.spatial(F.relu(self.reduce(x))))
        return self.expand(inner) + self.shortcut(x)


class ResNet(StagedNetwork):
    """A residual network without the ImageNet stem: the first stage keeps the image's size."""

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        *,
        depths: Sequence[int],
        widths: Sequence[int],
        bottleneck: bool = False,
    ) -> None:
        """`depths`: blocks in each stage. `widths`: channels of the stem and the stages."""
        stem = nn.Sequential(*conv_norm(image_shape[0], widths[0]), nn.ReLU())
        strides = (1, *[2] * (len(depths) - 1))
        block = Bottleneck if bottleneck else BasicBlock
        stages = repeated(block, widths[0], widths[1:], depths, strides)
        super().__init__(stem, stages, widths[-1], classes)
        draw_weights(self)


class PreActivationBlock(nn.Module):
    """ReLU, 3x3 convolution, BatchNorm, ReLU, 3x3 convolution, around a shortcut.

    The BatchNorm that opens a block in the paper belongs here to the block before it (`after`): it
    normalises that block's sum, and its output is that block's feature before the ReLU.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """The first convolution, and the 1x1 of a shortcut that changes shape, take the stride."""
        super().__init__()
        same = inputs == width and stride == 1
        self.first = conv_norm(inputs, width, stride=stride)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.after = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, pre: Tensor) -> Tensor:
        """The next raw sum, from the last one `x` and its normalised form `pre`."""
        active = F.relu(pre)
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.second(F.relu(self.first(active)))


class WideResNet(StagedNetwork):
    """A pre-activation network of `depth` layers, `widen` times as wide as a plain ResNet.

    Taps: "stem" is the first convolution's output, without BatchNorm or ReLU; "stageK" and
    "stageK.entry" are raw residual sums; "stageK.pre" is the following BatchNorm of the stage's
    sum, so here it is deeper than "stageK".
    """

    pre_comes_first = False

    def __init__(
        self, classes: int, image_shape: tuple[int, int, int], *, depth: int, widen: int
    ) -> None:
        """`depth`: 6 n + 4, for n blocks a stage. `widen`: factor on the stages' 16, 32, 64."""
        stem = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        widths = (16 * widen, 32 * widen, 64 * widen)
        stages = repeated(PreActivationBlock, 16, widths, ((depth - 4) // 6,) * 3, (1, 2, 2))
        super().__init__(stem, stages, widths[-1], classes)
        self.stem_norm = nn.BatchNorm2d(16)
        draw_weights(self)
        nn.init.zeros_(self.head.bias)

    def walk(self, images: Tensor) -> Steps:
        """See `StagedNetwork.walk`."""
        x = self.stem(images)
        yield "stem", x
        pre = self.stem_norm(x)
        for name, blocks in self.named_stages():
            for place, block in enumerate(blocks):
                x = block(x, pre)
                if place == len(blocks) - 1:
                    yield name, x
                elif place == 0:
                    yield f"{name}.entry", x
                pre = block.after(x)  # pyright: ignore[reportCallIssue]
            yield f"{name}.pre", pre
        yield from self.classify(F.relu(pre))
