"""Wide residual networks: pre-activation blocks, three stages.

Source:
    Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016; no dropout.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.staged import StagedNetwork, Steps, conv_norm, draw_convolutions, repeated


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
        draw_convolutions(self)
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
