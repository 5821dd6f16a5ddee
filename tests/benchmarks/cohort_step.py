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
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from textbook_losses import in_textbook_form  # PYTHONPATH=tests
from torchvision import transforms

from bench.cell import Recipe
from bench.cost.record import Quartiles
from bench.cost.steps import Bench, Images, Scene, Setting, set_statistics
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.hyperparameters import build_method
from bench.method import View
from bench.train.device import conditions
from bench.train.step import Seen

ROWS = (
    "student", "soft_logits", "selective", "fitnet", "attention_transfer", "activation_boundary",
    "fsp", "kd_svd", "rkd",
)  # fmt: skip
CPU = torch.device("cpu")
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


class PlainScene(Scene):
    """A scene as a plain script has it: channels first, nothing folded."""

    def __init__(self, teacher: str, setting: Setting) -> None:
        super().__init__(teacher, setting)
        network = self.build(teacher)
        set_statistics(network, self.batch.images.contiguous())
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self.teacher.network = network.eval().requires_grad_(False)
        self.train = Images(self.train.images.contiguous(), self.train.labels)
        self.batch = Images(self.batch.images.contiguous(), self.batch.labels)


class Piece(NamedTuple):
    """One stage of one row, in both forms."""

    row: str
    share: float
    here: Bench
    plain: Bench

    @property
    def reads_teacher(self) -> bool:
        return self.here.student.reads_teacher


def pieces_of(pair: str, setting: Setting) -> tuple[list[Piece], Scene]:
    teacher, student = pair.split(":")
    here, plain = Scene(teacher, setting), PlainScene(teacher, setting)
    pieces = []
    for row in ROWS:
        method = build_method(row)
        textbook = in_textbook_form(method)
        for stage, old in zip(method.plan, textbook.plan, strict=True):
            mine = Bench(here, student, row, method, stage)
            theirs = Bench(plain, student, row, textbook, old)
            for part in (theirs.student.network, theirs.student.connector):
                part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            theirs.drop_faulty_gradients()
            pieces.append(Piece(row, stage.share, mine, theirs))
    return pieces, here


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def step(bench: Bench, view: View | None) -> None:
    scene = bench.scene
    bench.student.step(Seen(*scene.batch, scene.index, view, last=False))


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
            drop_last=True, seed=0, channels_last=True,
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


def measure(pieces: Sequence[Piece], scene: Scene, loaders: Loaders) -> Round:
    union = tuple(dict.fromkeys(t for p in pieces if p.reads_teacher for t in p.here.student.taps))
    view = scene.teacher.view(scene.batch.images, union)
    here, plain = dict.fromkeys(ROWS, 0.0), dict.fromkeys(ROWS, 0.0)
    for piece in pieces:
        seen = view if piece.reads_teacher else None
        here[piece.row] += piece.share * seconds(lambda p=piece, v=seen: step(p.here, v))
        plain[piece.row] += piece.share * seconds(piece.plain.step)
    old = pieces[0].plain.scene
    return Round(
        here, plain,
        teacher=seconds(lambda: scene.teacher.view(scene.batch.images, union)),
        plain_teacher=seconds(lambda: old.teacher.view(old.batch.images, union)),
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's seconds, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(
        data="random", classes=100, image_shape=(3, 32, 32), device=CPU,
        recipe=Recipe(epochs=100, batch_size=options.batch, learning_rate=0.1),
    )  # fmt: skip
    pieces, scene = pieces_of(options.pair, setting)
    loaders = Loaders(options.batch)
    measure(pieces, scene, loaders)  # warms up
    rounds = [measure(pieces, scene, loaders) for _ in range(options.rounds)]
    here = conditions(CPU)
    print(f"{options.pair}, batch {options.batch}, n = {options.rounds} rounds, one thread, "
          f"{here['device']}, torch {here['torch']}\n")  # fmt: skip
    found = [ratios(it) for it in rounds]
    print("| ratio | median | quartiles |\n|---|--:|--:|")
    for name in found[0]:
        it = Quartiles.of([each[name] for each in found])
        print(f"| {name} | {it.median:.2f} | {it.q1:.2f} to {it.q3:.2f} |")
    if options.json:
        content = {"conditions": here, "rounds": [it._asdict() for it in rounds]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
