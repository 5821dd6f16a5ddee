"""How fast a cohort's step is on a device, and what it waits for.

Nine rows: the plain student and eight methods with their defaults. In each setting (pair, batch,
precision) every stage of every row is stepped in turn, in a new order every round: by the harness,
by a plain script with the loss as shipped, and by one with its textbook form. So is the whole
cohort, all rows in their first stages and all in their last. Images and weights are random and on
the device: nothing loads an image. A sample is the mean of `STEPS` steps between two
synchronisations; medians and quartiles are over the rounds. What is slower than `SLOW_MS` has one
sample of one step. The settings of most interest come first. After the first one comes the
profiler's trace of one step, summed by kernel. Last, if time is left, come the first setting with
every row and the textbook form of kd_svd, which may take seconds, and the nine rows divided among
several workers on the device.

Each finding is a line of OUT/speed.jsonl as it is made; standard output has the tables.
"""

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
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
BLOCKS, PATIENCE = 5, 40.0  # of several workers; seconds until they are ready
ROWS = (
    *("student", "soft_logits", "selective", "fitnet", "attention_transfer"),
    *("activation_boundary", "fsp", "kd_svd", "rkd"),
)
EVERY_ROW = [name for name in METHODS.names() if build_method(name).starts_from == "fresh"]


class Setting(NamedTuple):
    pair: str
    batch: int
    precision: Any
    side: int = 32
    classes: int = 100

    def workload(self) -> Workload:
        return Workload(
            classes=self.classes,
            image_shape=(3, self.side, self.side),
            device=DEVICE,
            recipe=Recipe(epochs=100, batch_size=self.batch, learning_rate=0.1, nesterov=True),
            precision=self.precision,
        )


PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20")
FIRST = ((64, "fp32"), (256, "bf16"))
REST = ((64, "bf16"), (256, "fp32"), (64, "tf32"), (256, "tf32"))
SETTINGS = [Setting(pair, *each) for part in (FIRST, REST) for pair in PAIRS for each in part]
TINY = [Setting("cnn4:cnn2", 8, "fp32", side=8, classes=5)]


@dataclass
class Form:
    """One way to step a stage of a row; `phases` says whether it is the row's first or last one."""

    row: str
    stage: str
    name: str
    phases: Sequence[str]
    numerics: Callable[[], None]  # set before the clock starts
    action: Callable[[], object]
    about: dict[str, Any] = field(default_factory=dict)
    ms: list[float] = field(default_factory=list)
    steps: int = 1

    def sample(self) -> None:
        self.numerics()
        several = partial(repeat, self.action, self.steps)
        self.ms.append(milliseconds(several, DEVICE) / self.steps)

    def warm_up(self) -> None:
        self.sample()
        if self.ms[0] > 10 * SLOW_MS:
            return  # more steps would take the time of all others
        self.ms.clear()
        self.sample()
        self.about["peak_mib"] = peak_bytes(self.action, DEVICE) / 2**20
        if self.ms[0] < SLOW_MS:
            self.steps, self.ms = STEPS, []


def repeat(action: Callable[[], object], times: int) -> None:
    for _ in range(times):
        action()


Phases = Mapping[str, dict[str, StudentStage]]


def forms_of(
    setting: Setting, rows: Sequence[str] = ROWS, plain: bool = True
) -> tuple[list[Form], Phases]:
    """Every form of every stage, the whole cohort last; the cohort's stages by phase and row."""
    teacher, student = setting.pair.split(":")
    workload, forms, phases = setting.workload(), [], {"first": {}, "last": {}}
    lesson, script = TeacherBatch(teacher, workload), PlainTeacher(teacher, workload)
    numerics = partial(set_numerics, workload.cell(student), workload.device)
    for row in rows:
        method = build_method(row)
        written_out = TEXTBOOK.keys() & vars(importlib.import_module(f"methods.{row}")).keys()
        # A step that decomposes every map whole may take seconds: it comes with every row, late.
        slow = row == "kd_svd" and rows is not EVERY_ROW
        plans = {"shipped": method.plan} if plain else {}
        if plain and written_out and not slow:
            plans["textbook"] = in_textbook_form(method).plan
        for position, stage in enumerate(method.plan):
            harness = StudentStage(lesson, student, row, method, stage)
            ends = {"first": 0, "last": len(method.plan) - 1}
            where = [phase for phase, end in ends.items() if end == position]
            for phase in where:
                phases[phase][row] = harness
            about = {"share": stage.share, "held_mib": harness.trained_bytes(workload.images) / 2**20}
            form = partial(Form, row, stage.name)
            forms.append(form("harness", where, numerics, harness.step, about))
            for name, plan in plans.items():
                one = PlainScript(script, student, method, plan[position])
                one.drops_faulty = (row, name) == ("kd_svd", "textbook")
                numbers = partial(plain_numerics, setting.precision)
                forms.append(form(name, where, numbers, one.step))
    for phase, stages in phases.items():
        step = partial(cohort_step, lesson, stages)
        forms.append(Form("cohort", f"{phase} stages", "harness", [phase], numerics, step))
    return forms, phases


def cohort_step(lesson: TeacherBatch, stages: Mapping[str, StudentStage]) -> None:
    """One step of all rows, with one pass of the teacher."""
    reading = [stage for stage in stages.values() if stage.student.reads_teacher]
    taps = tuple(dict.fromkeys(tap for stage in reading for tap in stage.student.taps))
    view = lesson.view(taps) if taps else None
    for stage in stages.values():
        stage.step_on(view if stage.student.reads_teacher else None)


def cohort_alone(setting: Setting, rows: Sequence[str] = ROWS) -> Callable[[], object]:
    """The step of a cohort in its last stages, warmed up."""
    form = forms_of(setting, rows, plain=False)[0][-1]
    form.numerics()
    repeat(form.action, 3)
    return form.action


def ratio(forms: Sequence[Form], phase: str, name: str) -> float:
    """All rows' plain scripts one after another over the cohort, by the latest samples.

    A row without the form called `name` counts as shipped.
    """
    found = [form for form in forms if phase in form.phases]
    plain = {form.row: form.ms[-1] for form in found if form.name == "shipped"}
    plain |= {form.row: form.ms[-1] for form in found if form.name == name}
    return sum(plain.values()) / next(form.ms[-1] for form in found if form.row == "cohort")


def warm_up(forms: Sequence[Form], phases: Phases) -> dict[str, str]:
    """Warms all forms up; a row of which one fails leaves the cohort: row -> why."""
    failed = {}
    for form in forms:
        try:
            form.warm_up()
        except CODE_FAULTS as error:
            failed[form.row] = f"{form.stage}, {form.name}: {name_and_reason(error)}"
            for stages in phases.values():
                stages.pop(form.row, None)
    return failed


def measure(setting: Setting, rows: Sequence[str], peak: float, until: float) -> dict:
    """All forms in one setting; a row that fails is left out of the cohort.

    Args:
        setting: what is stepped on.
        rows: the methods.
        peak: FLOP a second that the device reaches in this precision.
        until: `time.monotonic()` at which no further round starts after the first three.
    """
    forms, phases = forms_of(setting, rows)
    left_out = warm_up(forms, phases)
    forms = [form for form in forms if form.row not in left_out]
    ratios: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.monotonic() > until:
            break
        gc.collect()
        for form in random.sample(forms, len(forms)):
            if not form.ms or form.ms[0] < SLOW_MS:
                form.sample()
        for phase, name in product(phases, ("shipped", "textbook")):
            ratios.setdefault(f"{phase} stages, {name}", []).append(ratio(forms, phase, name))
    flops = {(f.row, f.stage): count(f.action) for f in forms if f.name == "shipped"}
    found = []
    for form in forms:
        about = {"row": form.row, "stage": form.stage, "form": form.name, **form.about}
        about |= {"ms": Quartiles.of(form.ms)._asdict(), "flops": flops.get((form.row, form.stage))}
        if about["flops"]:
            about["share_of_peak"] = about["flops"] / (1e-3 * about["ms"]["median"]) / peak
        found.append(about)
    over = {name: Quartiles.of(x)._asdict() for name, x in ratios.items()}
    return {**setting._asdict(), "rows": found, "left_out": left_out, "plain_over_cohort": over}


def table(found: dict) -> str:
    text = "{median:.2f} [{q1:.2f}, {q3:.2f}]".format
    lines = [
        f"\n{found['pair']}, batch {found['batch']}, {found['precision']}",
        "| row | stage | form | ms | MiB | share of the device's peak |\n|---|---|---|--:|--:|--:|",
    ]
    for row in found["rows"]:
        share = f"{row['share_of_peak']:.3f}" if row["flops"] else ""
        cells = (row["row"], row["stage"], row["form"], text(**row["ms"]))
        peak = f"{row['peak_mib']:.1f}" if "peak_mib" in row else ""
        lines.append(f"| {' | '.join(cells)} | {peak} | {share} |")
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
    step = cohort_alone(setting)
    wall_ms = milliseconds(step, DEVICE)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        milliseconds(step, DEVICE)
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


def serve(setting: Setting, rows: Sequence[str], barrier: Any) -> None:
    """One worker: steps its rows, under a teacher of its own, whenever all workers are ready."""
    try:
        step = cohort_alone(setting, rows)
        for _ in range(BLOCKS + 1):
            milliseconds(step, DEVICE)
            barrier.wait()
            milliseconds(partial(repeat, step, 5 * STEPS), DEVICE)
            barrier.wait()
    except BaseException:
        barrier.abort()  # nobody waits for a dead worker
        raise


def time_workers(setting: Setting, number: int) -> dict[str, float]:
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
    found = Quartiles.of(ms[1:])._asdict()  # the first warms up
    print("\n{} workers: {median:.2f} [{q1:.2f}, {q3:.2f}] ms".format(number, **found))
    return found


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
    jobs: list[tuple[str, Callable[[float], dict]]] = [
        ("setting", partial(measure, setting, ROWS, peaks[setting.precision]))
        for setting in settings
    ]
    first = settings[0]
    jobs.insert(1, ("trace", lambda end: trace(first)))
    jobs.append(("every row", partial(measure, first, EVERY_ROW, peaks[first.precision])))
    jobs += [(f"{n} workers", lambda end, n=n: time_workers(first, n)) for n in workers]
    with steady():
        for number, (kind, job) in enumerate(jobs):
            now, left = time.monotonic(), jobs[number:]
            if now > until:
                return print(f"\nno time for {', '.join(kind for kind, _ in left)}")
            attempt(out, kind, partial(job, now + (until - now) / len(left)))


if __name__ == "__main__":
    main()
