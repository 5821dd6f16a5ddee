"""ResNets for small images: three stages of basic blocks, and ResNet50 in its CIFAR form.

Source:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016. As in the
    distillation literature, a shortcut that changes the shape is a 1x1 convolution with BatchNorm
    (option B; the paper's CIFAR networks pad with zeros), and `x4` widens stem and stages to 32,
    64, 128, 256.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.staged import StagedNetwork, conv_norm, draw_convolutions, repeated


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

    block: type[BasicBlock | Bottleneck] = BasicBlock

    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        *,
        depths: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        """`depths`: blocks in each stage. `widths`: channels of the stem and the stages."""
        stem = nn.Sequential(*conv_norm(image_shape[0], widths[0]), nn.ReLU())
        strides = (1, *[2] * (len(depths) - 1))
        stages = repeated(self.block, widths[0], widths[1:], depths, strides)
        super().__init__(stem, stages, widths[-1], classes)
        draw_convolutions(self)


class BottleneckResNet(ResNet):
    """A `ResNet` of bottleneck blocks, such as ResNet50."""

    block = Bottleneck
