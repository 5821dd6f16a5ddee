"""How fast a cohort's step is on a device, and what it waits for.

Nine rows: the plain student and eight methods with their defaults. In each setting (pair, batch,
precision) every stage of every row is stepped in turn, in a new order every round: by the harness,
by a plain script with the loss as shipped, and by one with its textbook form. So is the whole
cohort, all rows in their first stages and all in their last. Images and weights are random and on
the device: nothing loads an image. A sample is the mean of `STEPS` steps between two
synchronisations; medians and quartiles are over the rounds. What is slower than `SLOW_MS` has one
sample of one step. After the first setting come the profiler's trace of one step, summed by kernel,
and the rows divided among several workers on the device.

Each finding is a line of OUT/speed.jsonl as it is made; standard output has the tables.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cell import Recipe
from bench.cost.costs import Quartiles
from bench.cost.counting import count, peak_bytes
from bench.cost.profiler import milliseconds, steady
from bench.cost.steps import StudentStage, TeacherBatch, Workload
from bench.faults import CODE_FAULTS, name_and_reason
from bench.hyperparameters import METHODS, build_method
from bench.train.device import conditions, set_numerics
from tests.gpu.plain_script import PlainScript, PlainTeacher, plain_numerics
from tests.textbook_losses import TEXTBOOK, in_textbook_form

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
STEPS, ROUNDS, LEAST_ROUNDS = (3, 30, 3) if CUDA else (1, 3, 3)
SLOW_MS = 500.0
BLOCKS, PATIENCE = 5, 90.0  # of several workers; seconds until they are ready
ROWS = [name for name in METHODS.names() if build_method(name).starts_from == "fresh"]
PHASES = {"first": 0, "last": -1}
FORMS = ("harness", "shipped", "textbook")


class Setting(NamedTuple):
    pair: str
    batch: int
    precision: Any
    side: int = 32
    classes: int = 100

    def workload(self) -> Workload:
        recipe = Recipe(epochs=100, batch_size=self.batch, learning_rate=0.1, nesterov=True)
        shape, precision = (3, self.side, self.side), self.precision
        return Workload(
            classes=self.classes,
            image_shape=shape,
            device=DEVICE,
            recipe=recipe,
            precision=precision,
        )


PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20")
SETTINGS = [Setting(*each) for each in product(PAIRS, (64, 256), ("fp32", "bf16", "tf32"))]
TINY = [Setting("cnn4:cnn2", 8, "fp32", side=8, classes=5)]


@dataclass
class Form:
    """One way to step, and its milliseconds by round; the numerics are set before the clock."""

    numerics: Callable[[], None]
    action: Callable[[], object]
    steps: int = STEPS
    ms: list[float] = field(default_factory=list)

    def sample(self) -> float:
        self.numerics()
        several = partial(repeat, self.action, self.steps)
        self.ms.append(milliseconds(several, DEVICE) / self.steps)
        return self.ms[-1]

    def found(self) -> dict[str, float]:
        return Quartiles.of(self.ms)._asdict()


def repeat(action: Callable[[], object], times: int) -> None:
    for _ in range(times):
        action()


class Piece(NamedTuple):
    """One stage of one row."""

    about: dict[str, Any]
    harness: StudentStage
    forms: dict[str, Form]


class Cohort:
    """Rows in every form, ready to be stepped."""

    def __init__(self, setting: Setting, rows: Sequence[str] = ROWS, plain: bool = True) -> None:
        teacher, student = setting.pair.split(":")
        workload = setting.workload()
        self.numerics = partial(set_numerics, workload.cell(student))
        self.lesson, script = TeacherBatch(teacher, workload), PlainTeacher(teacher, workload)
        self.rows: list[list[Piece]] = []
        for row in rows:
            method = build_method(row)
            written_out = TEXTBOOK.keys() & vars(importlib.import_module(f"methods.{row}")).keys()
            # Decomposing every map whole takes seconds a step: once for each pair is enough.
            if row == "kd_svd" and (setting.batch == 256 or setting.precision != "fp32"):
                written_out = set()
            plans = {"shipped": method.plan} if plain else {}
            plans |= {"textbook": in_textbook_form(method).plan} if plain and written_out else {}
            self.rows.append([])
            for position, stage in enumerate(method.plan):
                harness = StudentStage(self.lesson, student, row, method, stage)
                forms = {"harness": Form(self.numerics, harness.step)}
                for name, plan in plans.items():
                    one = PlainScript(script, student, method, plan[position])
                    one.drops_faulty = (row, name) == ("kd_svd", "textbook")
                    forms[name] = Form(partial(plain_numerics, setting.precision), one.step)
                about = {"row": row, "stage": stage.name, "share": stage.share}
                self.rows[-1].append(Piece(about, harness, forms))
        self.whole = {p: Form(self.numerics, partial(self.step, p)) for p in PHASES}

    def warm_up(self) -> dict[str, str]:
        """Warms every row up; a row that fails leaves the cohort: row -> why."""
        failed = {}
        for stages in list(self.rows):
            try:
                for piece in stages:
                    piece.about["peak_mib"] = warm_up(piece.forms)
            except CODE_FAULTS as error:
                failed[stages[0].about["row"]] = name_and_reason(error)
                self.rows.remove(stages)
        return failed

    def step(self, phase: str = "last") -> None:
        """One step of all rows in their first or last stage, with one pass of the teacher."""
        stages = [stages[PHASES[phase]].harness for stages in self.rows]
        reading = [stage for stage in stages if stage.student.reads_teacher]
        taps = tuple(dict.fromkeys(tap for stage in reading for tap in stage.student.taps))
        view = self.lesson.view(taps) if taps else None
        for stage in stages:
            stage.step_on(view if stage.student.reads_teacher else None)

    def ratio(self, phase: str, name: str) -> float:
        """All rows' plain scripts one after another over the cohort, by the latest samples."""
        forms = [stages[PHASES[phase]].forms for stages in self.rows]
        plain = sum((each.get(name) or each["shipped"]).ms[-1] for each in forms)
        return plain / self.whole[phase].ms[-1]


def measure(setting: Setting, until: float, peak: float) -> dict:
    """All forms in one setting.

    Args:
        setting: what is stepped on.
        until: `time.monotonic()` at which no further round starts after the first three.
        peak: FLOP a second that the device reaches in this precision.
    """
    cohort = Cohort(setting)
    left_out = cohort.warm_up()
    memory = warm_up(cohort.whole)
    pieces = [piece for stages in cohort.rows for piece in stages]
    forms = [form for of in (cohort.whole, *(p.forms for p in pieces)) for form in of.values()]
    ratios: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() > until:
            break
        gc.collect()
        for form in random.sample(forms, len(forms)):
            if not form.ms or form.ms[0] < SLOW_MS:
                form.sample()
        for phase, name in product(PHASES, FORMS[1:]):
            ratios.setdefault(f"{phase}, {name}", []).append(cohort.ratio(phase, name))
    for piece in pieces:
        flops = count(piece.forms["shipped"].action)
        ms = {name: form.found() for name, form in piece.forms.items()}
        share = {name: flops / (1e-3 * x["median"]) / peak for name, x in ms.items()}
        piece.about.update(ms=ms, flops=flops, share_of_peak=share)
        piece.about["held_mib"] = piece.harness.trained_bytes / 2**20
    return {
        **setting._asdict(),
        "rows": [piece.about for piece in pieces],
        "left_out": left_out,
        "cohort_ms": {phase: form.found() for phase, form in cohort.whole.items()},
        "cohort_peak_mib": memory,
        "plain_over_cohort": {name: Quartiles.of(x)._asdict() for name, x in ratios.items()},
    }


def warm_up(forms: dict[str, Form]) -> dict[str, float]:
    """Two steps of each form, and its peak memory, MiB; a slow one keeps the second as sample."""
    for form in forms.values():
        form.steps = 1
        form.sample()
        form.ms.clear()
        if form.sample() < SLOW_MS:
            form.steps, form.ms = STEPS, []
    return {name: peak_bytes(form.action, DEVICE) / 2**20 for name, form in forms.items()}


def table(found: dict) -> str:
    text = "{median:.2f} [{q1:.2f}, {q3:.2f}]".format
    lines = [
        f"\n{found['pair']}, batch {found['batch']}, {found['precision']}; memory of each form",
        f"| row, stage | {' ms | '.join(FORMS)} ms | MiB | share of the device's peak |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        cells = [text(**row["ms"][form]) if form in row["ms"] else "" for form in FORMS]
        cells.append(", ".join(f"{mib:.1f}" for mib in row["peak_mib"].values()))
        share = row["share_of_peak"]["harness"]
        lines.append(f"| {row['row']}, {row['stage']} | {' | '.join(cells)} | {share:.3f} |")
    lines += [f"cohort, {phase} stages: {text(**x)} ms" for phase, x in found["cohort_ms"].items()]
    ratios = found["plain_over_cohort"].items()
    lines += [f"plain scripts / cohort, {name}: {text(**x)}, n = {x['n']}" for name, x in ratios]
    lines += [f"{row} was left out: {why}" for row, why in found["left_out"].items()]
    return "\n".join(lines)


def device_peaks() -> dict[str, float]:
    """FLOP a second of a large product in each precision, the best of six."""
    size, peaks = (8192 if CUDA else 512), {}
    for precision in ("fp32", "tf32", "bf16"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        left, right = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
        best = min(milliseconds(partial(torch.matmul, left, right), DEVICE) for _ in range(6))
        peaks[precision] = 2 * size**3 / (1e-3 * best)
    return peaks


def trace(setting: Setting) -> dict:
    """One step of the cohort under the profiler: time by kernel, and how long the device worked."""
    cohort = Cohort(setting, plain=False)
    cohort.numerics()
    repeat(cohort.step, 3)
    wall_ms = milliseconds(cohort.step, DEVICE)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        milliseconds(cohort.step, DEVICE)
    time_of = "self_device_time_total" if CUDA else "self_cpu_time_total"
    kernels = [
        {"kernel": event.key[:120], "count": event.count, "us": getattr(event, time_of)}
        for event in profiler.key_averages()
        if event.device_type.name == ("CUDA" if CUDA else "CPU")
    ]
    kernels.sort(key=lambda kernel: -kernel["us"])
    busy_ms, launches = sum(k["us"] for k in kernels) / 1e3, sum(k["count"] for k in kernels)
    print(f"\none step of the cohort: {wall_ms:.2f} ms, {launches} kernels of {busy_ms:.2f} ms")
    for kernel in kernels[:40]:
        print("{us:10.0f} us {count:6}  {kernel}".format(**kernel))
    return {**setting._asdict(), "wall_ms": wall_ms, "busy_ms": busy_ms, "kernels": kernels}


def serve(setting: Setting, rows: list[str], barrier: Any) -> None:
    """One worker: steps its rows, under a teacher of its own, whenever all workers are ready."""
    cohort = Cohort(setting, rows, plain=False)
    cohort.numerics()
    for _ in range(BLOCKS + 1):
        milliseconds(cohort.step, DEVICE)
        barrier.wait()
        milliseconds(partial(repeat, cohort.step, 5 * STEPS), DEVICE)
        barrier.wait()


def time_workers(setting: Setting, number: int) -> Quartiles:
    """Milliseconds until every row has made a step, over `BLOCKS` blocks of several steps.

    Raises:
        RuntimeError: a worker died or was not ready in time.
    """
    context = multiprocessing.get_context("spawn")
    barrier, ms = context.Barrier(number + 1, timeout=PATIENCE), []
    shares = [(setting, ROWS[n::number], barrier) for n in range(number)]
    workers = [context.Process(target=serve, args=share, daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    try:
        for _ in range(BLOCKS + 1):
            barrier.wait()
            ms.append(milliseconds(barrier.wait, torch.device("cpu")) / (5 * STEPS))
    except BrokenBarrierError:
        raise RuntimeError(f"one of {number} workers died, or took {PATIENCE:.0f} s") from None
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    return Quartiles.of(ms[1:])  # the first warms up


def compare_workers(setting: Setting, numbers: Sequence[int]) -> dict:
    """The rows divided among several workers on one device, against one worker."""
    found = {number: time_workers(setting, number) for number in numbers}
    for number, x in found.items():
        gain = found[numbers[0]].median / x.median
        print(f"\n{number} workers: {x.median:.2f} [{x.q1:.2f}, {x.q3:.2f}] ms, {gain:.2f} x")
    return {**setting._asdict(), "ms": {number: x._asdict() for number, x in found.items()}}


def attempt(out: Path, kind: str, action: Callable[[], dict]) -> None:
    """Writes what `action` found, or why it failed; its memory is free afterwards."""
    try:
        found = action()
    except CODE_FAULTS as error:
        found = {"error": name_and_reason(error)}
        print(f"\n{kind}: {found['error']}")
    with (out / "speed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **found}) + "\n")
    if "rows" in found:
        print(table(found))
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    settings, workers = (TINY, (1, 2)) if options.tiny else (SETTINGS, (1, 3, 9))
    until = time.monotonic() + 0.95 * float(os.environ.get("SECONDS_LEFT", "inf"))
    peaks, out = device_peaks(), options.out
    (out / "speed.jsonl").unlink(missing_ok=True)
    attempt(out, "device", lambda: {**conditions(DEVICE), "flop_per_s": peaks})
    print(f"products reach {', '.join(f'{p} {x:.3g}' for p, x in peaks.items())} FLOP/s")
    with steady():
        for number, setting in enumerate(settings):
            now, left = time.monotonic(), len(settings) - number
            if now > until:
                return print(f"\nno time for {left} more settings")
            end = now + (until - now) / (left + 2)
            attempt(out, "setting", partial(measure, setting, end, peaks[setting.precision]))
            if number == 0:
                attempt(out, "trace", partial(trace, setting))
                attempt(out, "workers", partial(compare_workers, setting, workers))


if __name__ == "__main__":
    main()
