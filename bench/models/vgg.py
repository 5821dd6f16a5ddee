"""VGG for small images: five groups of 3x3 convolutions, max-pooling between, one linear layer.

Source:
    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition,
    ICLR 2015. As in the distillation literature: BatchNorm after each convolution (whose bias
    stays), a mean over positions and a single linear layer of 512 inputs.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from bench.models.staged import StagedNetwork, conv_norm, draw_convolutions, draw_small_head

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
        stem = (layer for unit in _units(channels, WIDTHS[0], depths[0]) for layer in unit)
        pooled = (True, True, True, min(height, width) >= 64)
        super().__init__(nn.Sequential(*stem), _stages(depths[1:], pooled), WIDTHS[-1], classes)
        draw_convolutions(self)
        draw_small_head(self.head)


def _units(inputs: int, width: int, depth: int) -> Iterator[nn.Sequential]:
    for place in range(depth):
        unit = conv_norm(inputs if place == 0 else width, width, bias=True)
        yield unit.append(nn.ReLU())


def _stages(depths: Sequence[int], pooled: Sequence[bool]) -> Iterator[list[nn.Module]]:
    for number, (depth, pool) in enumerate(zip(depths, pooled, strict=True), start=1):
        width = WIDTHS[number]
        opening = conv_norm(WIDTHS[number - 1], width, bias=True)
        if pool:
            opening.insert(0, nn.MaxPool2d(2))
        yield [opening, *(conv_norm(width, width, bias=True) for _ in range(depth - 1))]
