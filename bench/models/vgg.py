"""VGG for small images: five groups of 3x3 convolutions, max-pooling between, one linear layer.

Source:
    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
    ICLR 2015. As in the distillation literature: BatchNorm after each convolution (whose bias
    stays), a mean over positions and a single linear layer of 512 inputs.
"""

from collections.abc import Sequence

from torch import nn

from bench.models.staged import (
    StagedNetwork,
    conv_norm,
    draw_convolutions,
    draw_small_head,
    repeated,
)

WIDTHS = (64, 128, 256, 512, 512)


class Vgg(StagedNetwork):
    """Group 0 is the stem, groups 1 to 4 are stages 1 to 4.

    Maps of a 32x32 image: stem 32, stages 16, 8, 4, 4. The last two groups share a size, except
    for images of 64 or more, where a fourth pooling comes between them.
    """

    def __init__(
        self, classes: int, image_shape: tuple[int, int, int], *, depths: Sequence[int]
    ) -> None:
        """`depths`: convolutions in each of the five groups. ValueError for images below 8x8."""
        channels, height, width = image_shape
        if min(height, width) < 8:
            raise ValueError(f"a VGG pools three times: images of {height}x{width}, wanted 8x8 up")
        (units,) = repeated(_unit, channels, WIDTHS[:1], depths[:1], (1,))
        stem = [layer for unit in units for layer in (*unit.children(), nn.ReLU())]
        strides = (2, 2, 2, 2 if min(height, width) >= 64 else 1)
        stages = repeated(_unit, WIDTHS[0], WIDTHS[1:], depths[1:], strides)
        super().__init__(nn.Sequential(*stem), stages, WIDTHS[-1], classes)
        draw_convolutions(self)
        draw_small_head(self.head)


def _unit(inputs: int, width: int, stride: int) -> nn.Sequential:
    unit = conv_norm(inputs, width, bias=True)
    return unit if stride == 1 else unit.insert(0, nn.MaxPool2d(stride))
