"""Lower resolution at the same image size."""

from torch import Tensor
from torch.nn import functional


def degrade(images: Tensor, factor: int) -> Tensor:
    """Images with the detail of a sensor that is `factor` times coarser, at the original size.

    Averages areas of factor x factor pixels and interpolates back bilinearly (pixel centres at
    half integers). Both steps keep an image's mean and, being linear, commute with normalisation.

    Args:
        images: (B, C, H, W), floating point.
        factor: side of the averaged areas in pixels; 1 returns `images` itself.

    Returns:
        (B, C, H, W), in the images' unit.

    Raises:
        ValueError: the factor does not divide H and W.

    Example:
        >>> import torch
        >>> degrade(torch.tensor([[0.0, 4.0], [8.0, 4.0]]).view(1, 1, 2, 2), 2).flatten()
        tensor([4., 4., 4., 4.])
    """
    height, width = images.shape[2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"degrade: factor {factor} does not divide {height}x{width} images; "
            "choose a common divisor of both sides"
        )
    if factor == 1:
        return images
    coarse = functional.avg_pool2d(images, factor)
    return functional.interpolate(
        coarse, size=(height, width), mode="bilinear", align_corners=False
    )
