"""Students without a training, for tests of what becomes of trained ones."""

from __future__ import annotations

import torch

from bench.data.dataset import DataSet
from bench.export import Card, Trained
from bench.models import zoo


def random_student(model: str, side: int) -> Trained:
    """A network with statistics and scales as lively as trained ones."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, side, side), generator=generator).to(torch.uint8)
    part = (images, torch.arange(12) % 10)
    data = DataSet.of("random", part, part, [str(i) for i in range(10)])
    torch.manual_seed(0)
    network = zoo.build(model, 10, (3, side, side)).train()
    with torch.no_grad():
        for _ in range(3):
            network((images.float() / 255 - 0.5) * 4)
    card = Card(
        name=model, cell_id="", model=model, method="", classes=data.classes,
        image_shape=(3, side, side), channels="RGB", mean=data.mean, std=data.std, resolution=2,
        preprocessing=("by hand",), last_accuracy=0.0, parameters=0, choice="", torch="",
    )  # fmt: skip
    return Trained(network.eval(), data, card)
