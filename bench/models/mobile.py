"""MobileNetV2 and ShuffleNets for images of 32x32, as in the distillation literature.

Source:
    Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2, CVPR 2018.
    Zhang, Zhou, Lin, Sun: ShuffleNet, CVPR 2018.
    Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV 2018.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.staged import StagedNetwork, conv_norm, draw_weights, repeated

STEM = 24  # channels of a ShuffleNet's stem


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolution; a shortcut if shapes are equal."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        """The 3x3 convolution takes the stride, and `expansion` times `inputs` channels."""
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_norm(inputs, hidden, 1)
        self.spatial = conv_norm(hidden, hidden, stride=stride, groups=hidden)
        self.project = conv_norm(hidden, width, 1)
        self.residual = inputs == width and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        out = self.project(F.relu(self.spatial(F.relu(self.expand(x)))))
        return x + out if self.residual else out


class MobileNetV2(StagedNetwork):
    """MobileNetV2 at half width, with a stem of stride 2 and ReLU for ReLU6.

    The paper's seven groups of blocks make four stages: 1 and 2, then 3, then 4 and 5, then 6 and
    7; maps of a 32x32 image: stem 16, stages 16, 8, 4, 2. No activation follows a block, so that
    "stageK.pre" and "stageK" are the same tensor.
    """

    # (expansion, width, blocks, stride) of each group, by stage; the published widths halved.
    STAGES = (
        ((1, 8, 1, 1), (6, 12, 2, 1)),
        ((6, 16, 3, 2),),
        ((6, 32, 4, 2), (6, 48, 3, 1)),
        ((6, 80, 3, 2), (6, 160, 1, 1)),
    )

    def __init__(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """Images are (C, H, W)."""
        stem = nn.Sequential(*conv_norm(image_shape[0], 16, stride=2), nn.ReLU())
        neck = nn.Sequential(*conv_norm(160, 1280, 1), nn.ReLU())
        super().__init__(stem, self._stages(), 1280, classes, neck)
        draw_weights(self, small_head=True)

    def _stages(self) -> Iterator[list[nn.Module]]:
        inputs = 16
        for groups in self.STAGES:
            blocks: list[nn.Module] = []
            for expansion, width, count, stride in groups:
                blocks.append(InvertedResidual(inputs, width, stride, expansion))
                blocks += [InvertedResidual(width, width, 1, expansion) for _ in range(1, count)]
                inputs = width
            yield blocks

    def activate(self, pre: Tensor) -> Tensor:
        """The identity: bottlenecks are linear."""
        return pre


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of `groups` consecutive groups of x (B, C, H, W), C a multiple."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """ShuffleNet's bottleneck of 1x1 convolutions in 3 groups; returns the sum before its ReLU.

    At stride 2 the pooled input is concatenated instead of added, and the convolutions compute the
    remaining channels.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """The first convolution is not grouped after the stem."""
        super().__init__()
        made = width - inputs if stride == 2 else width
        hidden = made // 4
        self.stride, self.groups = stride, 1 if inputs == STEM else 3
        self.reduce = conv_norm(inputs, hidden, 1, groups=self.groups)
        self.spatial = conv_norm(hidden, hidden, stride=stride, groups=hidden)
        self.expand = conv_norm(hidden, made, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        inner = shuffle_channels(F.relu(self.reduce(x)), self.groups)
        # The ReLU after the 3x3 convolution is the distillation literature's, not the paper's.
        out = self.expand(F.relu(self.spatial(inner)))
        if self.stride == 1:
            return out + x
        return torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), dim=1)


class SplitUnit(nn.Module):
    """ShuffleNetV2's unit: convolves half of the channels, then shuffles all of them.

    At stride 2 both halves are convolved, each from the whole input. Returns both before the last
    ReLU; a half that is not convolved comes from a ReLU, so that the network's does not change it.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """The 3x3 convolutions take the stride."""
        super().__init__()
        self.stride, half = stride, width // 2
        if stride == 2:
            self.side_spatial = conv_norm(inputs, inputs, stride=2, groups=inputs)
            self.side_expand = conv_norm(inputs, half, 1)
        self.reduce = conv_norm(inputs if stride == 2 else half, half, 1)
        self.spatial = conv_norm(half, half, stride=stride, groups=half)
        self.expand = conv_norm(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        if self.stride == 2:
            kept, used = self.side_expand(self.side_spatial(x)), x
        else:
            kept, used = x.chunk(2, dim=1)
        made = self.expand(self.spatial(F.relu(self.reduce(used))))
        return shuffle_channels(torch.cat((kept, made), dim=1), 2)


class ShuffleNetV1(StagedNetwork):
    """ShuffleNet with three groups; a 1x1 stem at full size; every stage halves the maps.

    Convolutions keep torch's default initialisation, as in the distillation literature.
    """

    unit: type[ShuffleUnit | SplitUnit] = ShuffleUnit
    widths = (240, 480, 960)
    embedding = 960

    def __init__(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """Images are (C, H, W)."""
        stem = nn.Sequential(*conv_norm(image_shape[0], STEM, 1), nn.ReLU())
        last, neck = self.widths[-1], None
        if self.embedding != last:
            neck = nn.Sequential(*conv_norm(last, self.embedding, 1), nn.ReLU())
        stages = repeated(self.unit, STEM, self.widths, (4, 8, 4), (2, 2, 2))
        super().__init__(stem, stages, self.embedding, classes, neck)


class ShuffleNetV2(ShuffleNetV1):
    """ShuffleNetV2 at width 1, with a 1x1 convolution before the mean over positions."""

    unit = SplitUnit
    widths = (116, 232, 464)
    embedding = 1024
