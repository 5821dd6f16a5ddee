"""Small convolutional networks for small images, such as the 8x8 digits."""

from torch import nn

from bench.models.staged import StagedNetwork, conv_norm, draw_convolutions, repeated


class SmallCnn(StagedNetwork):
    """A stem and three stages of one 3x3 convolution each, of widths w, 2w and 4w.

    Maps of an 8x8 image: stem 8, stages 8, 4, 2. A stage is one block, so it has no entry tap.
    """

    def __init__(self, classes: int, image_shape: tuple[int, int, int], *, width: int) -> None:
        """Images are (C, H, W); `width` is w."""
        stem = nn.Sequential(*conv_norm(image_shape[0], width), nn.ReLU())
        widths = (width, 2 * width, 4 * width)
        stages = repeated(_block, width, widths, (1, 1, 1), (1, 2, 2))
        super().__init__(stem, stages, 4 * width, classes)
        draw_convolutions(self)


def _block(inputs: int, width: int, stride: int) -> nn.Sequential:
    return conv_norm(inputs, width, stride=stride)
