"""Rows of cells, and students with random weights, for tests of export."""

import torch

from bench.cell import Cell
from bench.data.dataset import DataSet
from bench.export import Card, Trained
from bench.models import zoo
from bench.record import Row


def row_of(cell: Cell, label: str) -> Row:
    return Row(
        role="method" if cell.teacher else "student", data=cell.data.source,
        axes={"resolution": cell.data.resolution}, category="response", label=label,
        method=cell.method, teacher="cnn3", student="cnn2", seed=cell.seed, cell_id=cell.id,
    )  # fmt: skip


def random_student(model: str, side: int) -> Trained:
    """A network with the statistics of a few batches."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, side, side), generator=generator).to(torch.uint8)
    part = (images, torch.arange(12) % 10)
    data = DataSet.of("random", part, part, [str(i) for i in range(10)])
    torch.manual_seed(0)
    network = zoo.build(model, 10, (3, side, side)).train()
    with torch.no_grad():
        for _ in range(3):
            network((images.float() / 255 - 0.5) * 4)
    shown = {"classes": data.classes, "mean": data.mean, "std": data.std}
    made = {"last_accuracy": 0.0, "choice": ""}
    card = Card(
        name=model, cell_id="", model=model, method="", image_shape=(3, side, side), resolution=2,
        resize="squash", preprocessing=("by hand",), **shown, **made,
    )  # fmt: skip
    return Trained(network.eval(), data, card)
