"""What a cohort's step costs against its rows one after another, each as a plain script runs it.

    PYTHONPATH=tests python -m tests.benchmarks.cohort_step --pair resnet32x4:resnet8x4 --rounds 5

Rows: the plain student and the eight methods with their default hyper-parameters. Every stage of
every row is stepped in two forms, in turn, in one process:

- here: images and networks channels last, the teacher's BatchNorms folded, losses as shipped, one
  forward pass of the teacher for all rows;
- plain: eager and channels first, BatchNorms as trained, losses in their textbook form, a forward
  pass of the teacher for every row that reads it, and images loaded by PIL (crop, flip, to tensor,
  normalise, as torchvision's reference scripts do), measured by themselves.

A row's step is the mean over its stages by their shares of the epochs. Printed: medians and
quartiles over the rounds of each round's ratio. Images and weights are random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from textbook_losses import in_textbook_form  # PYTHONPATH=tests
from torchvision import transforms

from bench.cell import Recipe
from bench.cost.costs import Quartiles
from bench.cost.steps import Images, StudentStage, TeacherBatch, Workload, set_statistics
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.hyperparameters import build_method
from bench.train.device import conditions

ROWS = (
    "student", "soft_logits", "selective", "fitnet", "attention_transfer", "activation_boundary",
    "fsp", "kd_svd", "rkd",
)  # fmt: skip
CPU = torch.device("cpu")
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


class PlainTeacherBatch(TeacherBatch):
    """A teacher and a batch as a plain script has them: channels first, nothing folded."""

    def __init__(self, teacher: str, workload: Workload) -> None:
        super().__init__(teacher, workload)
        network = workload.build(teacher)
        set_statistics(network, self.batch.images.contiguous())
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self.teacher.network = network.eval().requires_grad_(False)
        self.train = Images(self.train.images.contiguous(), self.train.labels)
        self.batch = Images(self.batch.images.contiguous(), self.batch.labels)


class Piece(NamedTuple):
    """One stage of one row, in both forms."""

    row: str
    share: float
    here: StudentStage
    plain: StudentStage

    @property
    def reads_teacher(self) -> bool:
        return self.here.student.reads_teacher


def pieces_of(pair: str, workload: Workload) -> tuple[list[Piece], TeacherBatch]:
    teacher, student = pair.split(":")
    here, plain = TeacherBatch(teacher, workload), PlainTeacherBatch(teacher, workload)
    pieces = []
    for row in ROWS:
        method = build_method(row)
        textbook = in_textbook_form(method)
        for stage, old in zip(method.plan, textbook.plan, strict=True):
            mine = StudentStage(here, student, row, method, stage)
            theirs = StudentStage(plain, student, row, textbook, old)
            for part in (theirs.student.network, theirs.student.connector):
                part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            drop_faulty_gradients(theirs)
            pieces.append(Piece(row, stage.share, mine, theirs))
    return pieces, here


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def drop_faulty_gradients(stage: StudentStage) -> None:
    """Sets gradients that are not finite to 0: textbook forms have some, and would end here."""

    def clean(optimiser: torch.optim.Optimizer, *_: object) -> None:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)

    stage.student.optimiser.register_step_pre_hook(clean)


class Loaders:
    """The same random images, loaded in both ways."""

    def __init__(self, batch: int) -> None:
        raw = np.random.default_rng(0).integers(0, 256, (4 * batch, 32, 32, 3), dtype=np.uint8)
        self.batch, self.pictures = batch, [Image.fromarray(picture) for picture in raw]
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(MEAN, STD),
        ])  # fmt: skip
        self.batches = Batches(
            torch.from_numpy(raw).permute(0, 3, 1, 2), torch.zeros(len(raw), dtype=torch.int64),
            MEAN, STD, augment=Augment(pad=4, padding="zeros", flip=True), batch_size=batch,
            drop_last=True, seed=0,
        )  # fmt: skip

    def plain(self) -> None:
        torch.stack([self.transform(picture) for picture in self.pictures[: self.batch]])

    def here(self) -> None:
        """An epoch of four batches; a quarter of it is a batch."""
        for _ in self.batches.epoch(0):
            pass


class Round(NamedTuple):
    """Seconds of one round."""

    here: dict[str, float]
    plain: dict[str, float]
    teacher: float
    plain_teacher: float
    loading: float
    plain_loading: float


def measure(pieces: Sequence[Piece], lesson: TeacherBatch, loaders: Loaders) -> Round:
    union = tuple(dict.fromkeys(t for p in pieces if p.reads_teacher for t in p.here.student.taps))
    view = lesson.view(union)
    here, plain = dict.fromkeys(ROWS, 0.0), dict.fromkeys(ROWS, 0.0)
    for piece in pieces:
        seen = view if piece.reads_teacher else None
        here[piece.row] += piece.share * seconds(partial(piece.here.step_on, seen))
        plain[piece.row] += piece.share * seconds(piece.plain.step)
    old = pieces[0].plain.lesson
    return Round(
        here, plain,
        teacher=seconds(lambda: lesson.view(union)),
        plain_teacher=seconds(lambda: old.view(union)),
        loading=seconds(loaders.here) / 4,
        plain_loading=seconds(loaders.plain),
    )  # fmt: skip


def ratios(it: Round) -> dict[str, float]:
    """What is reported of a round."""
    whole = sum(it.here.values()) + it.teacher + it.loading
    one_by_one = sum(it.plain.values()) + len(ROWS) * it.plain_loading
    own = len(ROWS) * it.here["student"]
    return {
        "nine rows, one by one / as one cohort": one_by_one / whole,
        "the same if losses and images cost nothing": one_by_one / (own + it.teacher),
        "teacher and all losses / nine plain steps": (whole - it.loading - own) / own,
        "soft_logits alone, plain / here": (it.plain["soft_logits"] + it.plain_loading)
        / (it.here["soft_logits"] + it.teacher + it.loading),
        "student alone, plain / here": (it.plain["student"] + it.plain_loading)
        / (it.here["student"] + it.loading),
        "teacher's pass, plain / here": it.plain_teacher / it.teacher,
        "a batch of images, plain / here": it.plain_loading / it.loading,
        **{f"{row}'s own step, plain / here": it.plain[row] / it.here[row] for row in ROWS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="resnet32x4:resnet8x4", metavar="T:S")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(
        classes=100, image_shape=(3, 32, 32), device=CPU,
        recipe=Recipe(epochs=100, batch_size=options.batch, learning_rate=0.1),
    )  # fmt: skip
    pieces, lesson = pieces_of(options.pair, workload)
    loaders = Loaders(options.batch)
    measure(pieces, lesson, loaders)  # warms up
    found = [ratios(measure(pieces, lesson, loaders)) for _ in range(options.rounds)]
    here = conditions(CPU)
    print(f"{options.pair}, batch {options.batch}, n = {options.rounds} rounds, one thread, "
          f"{here['device']}, torch {here['torch']}\n")  # fmt: skip
    print("| ratio | median | quartiles |\n|---|--:|--:|")
    for name in found[0]:
        it = Quartiles.of([each[name] for each in found])
        print(f"| {name} | {it.median:.2f} | {it.q1:.2f} to {it.q3:.2f} |")


if __name__ == "__main__":
    main()
