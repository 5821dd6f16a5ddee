"""The transfer loss of every method alone, forward and backward, on tensors that already exist.

`test_forms` runs it at the taps of resnet32x4 -> resnet8x4 on 32 x 32 images, as shipped and in
its textbook form. `test_growth` runs it while batch, channels or positions grow, on taps of one
shape in both networks, so that connectors have nothing to do. Every method has its defaults, and
its first stage with a transfer loss counts. On an idle machine, from the checkout:

    python -m tests.benchmarks        # all of it, and the tables in results/cost

With one thread on the CPU the clock is the processor's.
"""

import time
from functools import cache, partial

import pytest
import torch
from textbook_losses import in_textbook_form
from torch import Tensor

from bench.cost.counting import count, peak_bytes
from bench.cost.steps import LossAlone
from bench.hyperparameters import METHODS, build_method
from bench.method import Facts, Method, Pair, Shapes, Stage, View
from bench.models import zoo
from bench.models.network import tap_shapes

TEACHER, STUDENT, CLASSES, BATCH = "resnet32x4", "resnet8x4", 100, 64
FORMS = {"shipped": lambda method: method, "textbook": in_textbook_form}
BASE = {"batch": 64, "channels": 32, "positions": 64}  # sizes that stay while another one grows
SIZES = dict.fromkeys(BASE, (16, 32, 64, 128)) | {"positions": (16, 64, 256, 1024)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS, LONG_SECONDS = 7, 1.0


def first_loss(method: Method) -> Stage | None:
    return next((stage for stage in method.plan if stage.transfer is not None), None)


NAMES = [name for name in METHODS.names() if first_loss(build_method(name)) is not None]


@cache
def limits() -> dict[str, float]:
    """What the device reaches at best: float32 products, and the triad a = b + 3 c."""
    size, length = 1024 if DEVICE.type == "cpu" else 4096, 2**24
    left, right = torch.rand(2, size, size, device=DEVICE)
    b, c = torch.rand(2, length, device=DEVICE)
    a = torch.empty_like(b)
    product, triad = [], []
    for _ in range(ROUNDS):
        product.append(seconds(lambda: left @ right))
        triad.append(seconds(lambda: torch.add(b, c, alpha=3.0, out=a)))
    return {
        "matmul_gflop_per_s": 2 * size**3 / min(product) / 1e9,
        "triad_gb_per_s": 12 * length / min(triad) / 1e9,
    }


def clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(action) -> float:
    began = clock()
    action()
    return clock() - began


def bytes_of(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def measure(benchmark, loss: LossAlone, **about: object) -> None:
    """Times a loss; `extra_info` has its operations, memory, and what it must read and write."""
    taps = [x for view in (loss.pair.student, loss.pair.teacher) for x in view.taps.values()]
    benchmark._timer = clock
    rounds = ROUNDS if seconds(loss) < LONG_SECONDS else 2
    benchmark.pedantic(loss, rounds=rounds, iterations=1)
    benchmark.extra_info.update(
        **about,
        device=DEVICE.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        flops=count(loss),
        peak_bytes=peak_bytes(loss, DEVICE),
        moved_bytes=bytes_of(*taps, *loss.leaves),
        **limits(),
    )


def random_loss(
    method: Method, student_shapes: Shapes, teacher_shapes: Shapes, batch: int
) -> LossAlone:
    """The method's first transfer loss on random taps."""
    stage = first_loss(method)
    draws = torch.Generator().manual_seed(0)

    def draw(shapes: Shapes) -> dict[str, Tensor]:
        drawn = {tap: torch.randn(batch, *shapes[tap], generator=draws) for tap in stage.all_taps}
        return {tap: x.to(DEVICE) for tap, x in drawn.items()}

    student = View({tap: x.requires_grad_() for tap, x in draw(student_shapes).items()})
    index = torch.arange(batch, device=DEVICE)
    pair = Pair(student, View(draw(teacher_shapes)), index % CLASSES, index)
    connector = method.connector(student_shapes, teacher_shapes, facts(teacher_shapes)).to(DEVICE)
    return LossAlone([stage.transfer], pair, connector)


def facts(teacher: Shapes) -> Facts:
    """Those of a set of 50,000 images, and of a teacher's random head and BatchNorms."""
    labels = torch.arange(50_000, device=DEVICE) % CLASSES
    (width,), draw = teacher["embedding"], partial(torch.randn, device=DEVICE)
    norms = {tap: (draw(c), draw(c)) for tap, (c, *_) in teacher.items() if tap.endswith(".pre")}
    return Facts(len(labels), labels, CLASSES, (draw(CLASSES, width), draw(CLASSES)), norms)


@cache
def shapes_of(model: str) -> Shapes:
    return tap_shapes(zoo.build(model, CLASSES, (3, 32, 32)), (3, 32, 32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_forms(benchmark, name: str, form: str) -> None:
    method = FORMS[form](build_method(name))
    loss = random_loss(method, shapes_of(STUDENT), shapes_of(TEACHER), BATCH)
    benchmark.group = name
    measure(benchmark, loss, method=name, category=method.category, form=form)


@pytest.mark.parametrize(("axis", "size"), [(axis, n) for axis in SIZES for n in SIZES[axis]])
@pytest.mark.parametrize("name", NAMES)
def test_growth(benchmark, name: str, axis: str, size: int) -> None:
    method, sizes = build_method(name), {**BASE, axis: size}
    side, channels = round(sizes["positions"] ** 0.5), sizes["channels"]
    vectors = {"embedding": (channels,), "logits": (CLASSES,)}
    stage = first_loss(method)
    taps = (*stage.all_taps, *vectors)  # connectors may read the vectors' sizes
    shapes = {tap: vectors.get(tap, (channels, side, side)) for tap in taps}
    loss = random_loss(method, shapes, shapes, sizes["batch"])
    benchmark.group = f"{name}, {axis}"
    measure(benchmark, loss, method=name, category=method.category, axis=axis, size=size)
