"""Random crop and flip, drawn for each image and applied to a whole batch; lower resolution.

All draws of an epoch are made on the CPU from one seed, the same for every device. Those of an
image depend on the seed, the epoch and its position alone, not on the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.cell import Crop, RandAugment
from bench.seeds import derive


@dataclass(frozen=True)
class Augment:
    """Pads every side, crops at random to the original size, and mirrors with probability 1/2.

    The padding is "zeros" for black, which is 0 before normalisation, as in published recipes, or
    "reflect" to mirror about the edge pixel. Digits and letters must not be flipped. A `crop` and
    the operations of `randaugment` come after that.
    """

    pad: int
    padding: str = "zeros"
    flip: bool = True
    crop: Crop | None = None
    randaugment: RandAugment | None = None

    def draw(self, count: int, seed: int) -> Tensor:
        """The draws of an epoch with this seed, (3, count) on the CPU.

        They are each image's first row and column of its crop, and whether it is mirrored.
        """
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return torch.cat([offsets, (mirrored & self.flip)[None]])

    def pad_images(self, images: Tensor) -> Tensor:
        """Pads images (B, C, H, W) uint8 to (B, C, H + 2 pad, W + 2 pad), contiguous.

        ValueError if the padding is "reflect" and the pad is not below H and W.
        """
        if self.pad == 0:
            return images.contiguous()
        if self.padding == "zeros":
            return functional.pad(images, (self.pad,) * 4)
        height, width = images.shape[2:]
        if self.pad >= min(height, width):
            raise ValueError(
                f"data.pad {self.pad} reflects more than a {height}x{width} image has; "
                f"wanted at most {min(height, width) - 1}, or padding 'zeros'"
            )
        # torch's reflect padding does not support uint8.
        pad, out = self.pad, functional.pad(images, (self.pad,) * 4)
        for axis, size in ((3, width), (2, height)):
            out.narrow(axis, 0, pad).copy_(out.narrow(axis, pad + 1, pad).flip(axis))
            out.narrow(axis, pad + size, pad).copy_(out.narrow(axis, size - 1, pad).flip(axis))
        return out

    def distort(self, images: Tensor, positions: Tensor, seed: int) -> Tensor:
        """Crops, scales and distorts images (B, C, H, W) uint8 by torchvision, each by its draws.

        `seed` is the epoch's, `positions` (B,) are those of the images in the set, on the CPU.
        """
        if self.crop is None and self.randaugment is None:
            return images
        from torchvision.transforms import v2  # takes seconds, and few trainings need it

        steps = []
        if (crop := self.crop) is not None:
            steps.append(v2.RandomResizedCrop(tuple(images.shape[2:]), crop.scale, crop.ratio))
        if (how := self.randaugment) is not None:
            steps.append(v2.RandAugment(how.operations, how.magnitude))
        distorted, done = v2.Compose(steps), []
        with torch.random.fork_rng(devices=[]):
            for image, position in zip(images, positions.tolist(), strict=True):
                torch.default_generator.manual_seed(derive(seed, position))
                done.append(distorted(image))
        return torch.stack(done)


def crop_flip(padded: Tensor, draws: Tensor, size: tuple[int, int]) -> Tensor:
    """The images (B, C, H, W) uint8 of one batch, each with its own crop and flip.

    `padded` (B, C, H', W') are contiguous, see `Augment.pad_images`; `draws` (3, B) are on the same
    device. Whole rows are copied, then cut by a gather that runs backwards for mirrored images:
    half the time of indexing windows, of one gather over pixels, or of a loop over images.

    Example:
        >>> image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
        >>> crop_flip(image, torch.tensor([[1], [0], [True]]), (2, 2))[0, 0]
        tensor([[4, 3],
                [7, 6]], dtype=torch.uint8)
    """
    height, width = size
    batch, channels, padded_height, padded_width = padded.shape
    planes, down, along = (
        torch.arange(n, device=padded.device) for n in (batch * channels, height, width)
    )
    top, left, flip = draws[:, :, None]
    rows = planes.view(batch, channels, 1) * padded_height + (top + down)[:, None]
    lines = padded.view(-1, padded_width).index_select(0, rows.view(-1))
    columns = left + torch.where(flip.bool(), width - 1 - along, along)
    columns = columns[:, None, :].expand(-1, channels * height, -1)
    cut = lines.view(batch, channels * height, padded_width).gather(2, columns)
    return cut.view(batch, channels, height, width)


def mix(
    images: Tensor, targets: Tensor, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Each image of a batch mixed with the one before it, and their targets (B, K) likewise.

    By torchvision's MixUp or CutMix with these alphas, one of them drawn with equal chance if both
    are above 0. All draws follow from the seed.
    """
    from torchvision.transforms import v2  # see `Augment.distort`

    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    wanted = [kind(alpha=alpha) for kind, alpha in kinds if alpha > 0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return v2.RandomChoice(wanted)(images, targets)


def degrade(images: Tensor, factor: int) -> Tensor:
    """Images with the detail of a sensor that is `factor` times coarser, at the original size.

    Averages areas of factor x factor pixels and interpolates back bilinearly (pixel centres at
    half integers). Both steps keep an image's mean and, being linear, commute with normalisation.
    Images are (B, C, H, W), floating point; ValueError if the factor does not divide H and W.

    Example:
        >>> degrade(torch.tensor([[0.0, 4.0], [8.0, 4.0]]).view(1, 1, 2, 2), 2).flatten()
        tensor([4., 4., 4., 4.])
    """
    height, width = images.shape[2:]
    if height % factor or width % factor:
        raise ValueError(
            f"degrade: factor {factor} does not divide {height}x{width} images; "
            "choose a common divisor of both sides"
        )
    if factor == 1:
        return images
    coarse = functional.avg_pool2d(images, factor)
    return functional.interpolate(coarse, size=(height, width), mode="bilinear")
