"""One step of every row as one cohort, and one after another as plain scripts run them.

Each row has its default hyper-parameters and is stepped in its longest stage. As a cohort: images
and networks channels last, the teacher's BatchNorms folded, losses as shipped, one forward pass of
the teacher for all rows. One by one: eager and channels first, BatchNorms as trained, textbook
losses, a forward pass of the teacher for every row that reads it, and images loaded by PIL as
torchvision's reference scripts do. Images and weights are random. On an idle machine:

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_cohort.py --benchmark-only
"""

import numpy as np
import pytest
import torch
from PIL import Image
from textbook_losses import in_textbook_form
from torchvision import transforms

from bench.cell import Recipe
from bench.cost.steps import StudentStage, TeacherBatch, Workload
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.hyperparameters import build_method
from bench.method import Method, Stage
from tests.gpu.plain_script import PlainScript, PlainTeacher
from tests.gpu.speed import ROWS, cohort_step

BATCH, ROUNDS, MEAN, STD = 64, 3, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
RAW = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
WORKLOAD = Workload(
    classes=100, image_shape=(3, 32, 32), device=torch.device("cpu"),
    recipe=Recipe(epochs=100, batch_size=BATCH, learning_rate=0.1),
)  # fmt: skip


def longest_stage(method: Method) -> Stage:
    return max(method.plan, key=lambda stage: stage.share)


def as_one_cohort(teacher: str, student: str):
    lesson, methods = TeacherBatch(teacher, WORKLOAD), {row: build_method(row) for row in ROWS}
    rows = {
        row: StudentStage(lesson, student, row, method, longest_stage(method))
        for row, method in methods.items()
    }
    batches = Batches(
        torch.from_numpy(RAW).permute(0, 3, 1, 2), torch.zeros(BATCH, dtype=torch.int64), MEAN, STD,
        augment=Augment(pad=4), batch_size=BATCH, drop_last=True, seed=0,
    )  # fmt: skip

    def step() -> None:
        next(iter(batches.epoch(0)))
        cohort_step(lesson, rows)

    return step


def one_by_one(teacher: str, student: str):
    plain, methods = PlainTeacher(teacher, WORKLOAD), map(in_textbook_form, map(build_method, ROWS))
    rows = [PlainScript(plain, student, method, longest_stage(method)) for method in methods]
    pictures = [Image.fromarray(picture) for picture in RAW]
    load = transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip

    def step() -> None:
        for row in rows:
            torch.stack([load(picture) for picture in pictures])
            row.drops_faulty = True
            row.step()

    return step


@pytest.mark.parametrize("form", [as_one_cohort, one_by_one], ids=lambda form: form.__name__)
@pytest.mark.parametrize("pair", ["resnet32x4:resnet8x4", "resnet56:resnet20"])
def test_step(benchmark, pair: str, form) -> None:
    benchmark.group = pair
    benchmark.pedantic(form(*pair.split(":")), rounds=ROUNDS, warmup_rounds=1)
