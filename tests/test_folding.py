"""BatchNorms folded into convolutions: the same taps, fewer operations."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from bench.models import zoo
from bench.models.folding import folded
from bench.models.small import SmallCnn


def trained(model: str, shape: tuple[int, int, int]):
    torch.manual_seed(0)
    network = zoo.build(model, 5, shape).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, *shape) + 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return network.eval()


@pytest.mark.parametrize(
    ("model", "norms_left"),
    [("cnn4", 0), ("resnet8", 0), ("vgg8", 0), ("MobileNetV2", 0), ("wrn_16_1", 7)],
)
def test_every_tap_stays_what_it_was(model, norms_left):
    shape = (3, 32, 32)
    network = trained(model, shape)
    lean = folded(network, shape)
    assert lean is not network
    assert sum(isinstance(m, nn.BatchNorm2d) for m in lean.modules()) == norms_left
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    images = torch.randn(4, *shape)
    taps = network.tap_names
    with torch.no_grad():
        before, after = network.view(images, taps), lean.view(images, taps)
    for tap in taps:
        torch.testing.assert_close(after[tap], before[tap], rtol=1e-3, atol=1e-3, msg=tap)


class Watched(SmallCnn):
    """Shows the tensor between its first convolution and BatchNorm."""

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        return {"stem": self.stem[0](images)}  # pyright: ignore[reportIndexIssue]


def test_a_network_that_shows_what_lies_between_stays_whole():
    network = trained("cnn4", (1, 8, 8))
    network.__class__, network.tap_names = Watched, ("stem",)
    assert folded(network, (1, 8, 8)) is network
