"""Plain networks of 3x3 convolutions: small ones, for images such as the 8x8 digits, and VGG.

Source:
    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
    ICLR 2015. As in the distillation literature: BatchNorm after each convolution (whose bias
    stays), a mean over positions and a single linear layer of 512 inputs.
"""

from collections.abc import Sequence

from torch import nn

from bench.models.staged import StagedNetwork, conv_norm, draw_weights, repeated

WIDTHS = (64, 128, 256, 512, 512)


class SmallCnn(StagedNetwork):
    """A stem and three stages of one 3x3 convolution each, of widths w, 2w and 4w.

    Maps of an 8x8 image: stem 8, stages 8, 4, 2. A stage is one block, so it has no entry tap.
    """

    def __init__(self, classes: int, image_shape: tuple[int, int, int], *, width: int) -> None:
        """Images are (C, H, W); `width` is w."""
        stem = nn.Sequential(*conv_norm(image_shape[0], width), nn.ReLU())
        widths = (width, 2 * width, 4 * width)
        stages = repeated(conv_norm, width, widths, (1, 1, 1), (1, 2, 2))
        super().__init__(stem, stages, 4 * width, classes)
        draw_weights(self)


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
        (units,) = repeated(_pooled, channels, WIDTHS[:1], depths[:1], (1,))
        stem = [layer for unit in units for layer in (*unit.children(), nn.ReLU())]
        strides = (2, 2, 2, 2 if min(height, width) >= 64 else 1)
        stages = repeated(_pooled, WIDTHS[0], WIDTHS[1:], depths[1:], strides)
        super().__init__(nn.Sequential(*stem), stages, WIDTHS[-1], classes)
        draw_weights(self, small_head=True)


def _pooled(inputs: int, width: int, stride: int) -> nn.Sequential:
    unit = conv_norm(inputs, width, bias=True)
    return unit if stride == 1 else unit.insert(0, nn.MaxPool2d(stride))
