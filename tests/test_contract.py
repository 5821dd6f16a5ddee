"""What every method, model and data source must satisfy; a new method is tested without an edit."""

import json
from functools import cache, partial
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import safetensors.torch
import torch
from lessons import Lesson, cell, dataset, run
from torch import Tensor

from bench.cell import Cell
from bench.data import sources
from bench.hyperparameters import (
    METHODS,
    build_method,
    default_hyperparameters,
    resolve_hyperparameters,
    search_space,
)
from bench.method import Facts, MaskedLoss, Method, Pair, Stage, View
from bench.models import zoo
from bench.models.network import Network, check_network, tap_shapes
from bench.train.weights import untrained_deployment

NAMES = METHODS.names()
PLANNED = {name: build_method(name) for name in NAMES}
TAUGHT = [name for name, method in PLANNED.items() if method.needs_teacher]
each_transfer = pytest.mark.parametrize(
    ("method", "stage"),
    [
        pytest.param(method, stage, id=f"{name}, {stage.name}")
        for name, method in PLANNED.items()
        for stage in method.plan
        if stage.transfer is not None
    ],
)
B, K = 6, 4
FEW = dataset(train=20)
BOTH = ("student", "teacher")


def zero_row(view: View) -> View:
    return View({tap: x.index_fill(0, torch.tensor(2), 0.0) for tap, x in view.taps.items()})


def ruled_out(view: View, *classes: int) -> View:
    logits = view.logits.index_fill(1, torch.tensor(classes), -torch.inf)
    return View({**view.taps, "logits": logits})


SPOILT = {
    "student's row zero": (("student",), zero_row),
    "teacher's row zero": (("teacher",), zero_row),
    "both row zero": (BOTH, zero_row),
    "a class ruled out by the teacher": (("teacher",), lambda view: ruled_out(view, 0)),
    "all classes but one": (("teacher",), lambda view: ruled_out(view, 0, 1, 3)),
    "a class ruled out by both": (BOTH, lambda view: ruled_out(view, 2)),
}


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    return dict(tap_shapes(zoo.build(f"cnn{width}", K, (1, 8, 8)), (1, 8, 8)))


def facts() -> Facts:
    """Those of a set of 4 batches and a random teacher."""
    generator = torch.Generator().manual_seed(6)
    draw = partial(torch.randn, generator=generator)
    (width,) = shapes(3)["embedding"]
    norms = {tap: (draw(c), draw(c)) for tap, (c, *_) in shapes(3).items() if tap.endswith(".pre")}
    return Facts(4 * B, torch.arange(4 * B) % K, K, (draw(K, width), draw(K)), norms)


def random_pair(seed: int, scale: float = 1.0) -> Pair:
    generator = torch.Generator().manual_seed(seed)

    def view(width: int) -> View:
        drawn = {tap: torch.randn(B, *x, generator=generator) for tap, x in shapes(width).items()}
        return View({tap: scale * x for tap, x in drawn.items()})

    labels = torch.randint(K, (B,), generator=generator)
    return Pair(view(2), view(3), labels, torch.arange(B))


def connector_for(method, stage: Stage, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    connector = method.connector(shapes(2), shapes(3), facts())
    if stage.prepare is not None:
        many = View({tap: torch.randn(32, *shape) for tap, shape in shapes(3).items()})
        stage.prepare(connector, many)
    # Evaluation mode: BatchNorm in a connector would couple the samples of a batch.
    return connector.eval()


def take(pair: Pair, index: Tensor) -> Pair:
    def part(view: View) -> View:
        return View({tap: x[index] for tap, x in view.taps.items()})

    return Pair(part(pair.student), part(pair.teacher), pair.labels[index], pair.index[index])


def loss_of(stage: Stage, pair: Pair, connector: torch.nn.Module) -> Tensor:
    """The transfer loss; where it names masked samples, they are some of the batch."""
    loss, masked = MaskedLoss.of(stage.transfer(pair, connector))
    assert masked is None or (masked.dtype, masked.shape) == (torch.bool, pair.labels.shape)
    return loss


def with_gradient(view: View) -> View:
    return View({tap: x.clone().requires_grad_() for tap, x in view.taps.items()})


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_are_keyword_only_with_json_able_defaults(name):
    for key, default in default_hyperparameters(name).items():
        assert json.loads(json.dumps(default)) == default, key
    assert resolve_hyperparameters(name, {}) == default_hyperparameters(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_source_names_a_paper(name):
    source = PLANNED[name].source
    assert len(source) > 20
    assert name == "student" or any(str(year) in source for year in range(2013, 2027)), source


@each_transfer
def test_permuting_the_batch_permutes_the_losses(method: Method, stage: Stage):
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    connector, pair = connector_for(method, stage), random_pair(1)
    loss = loss_of(stage, pair, connector)
    moved = loss_of(stage, take(pair, order), connector)
    torch.testing.assert_close(moved, loss[order] if loss.dim() else loss)


@each_transfer
def test_halves_of_a_batch_have_the_losses_of_the_whole(method: Method, stage: Stage):
    connector, pair = connector_for(method, stage), random_pair(2)
    loss = loss_of(stage, pair, connector)
    if loss.dim() == 0:
        return  # couples the batch by definition
    parts = (take(pair, half) for half in (torch.arange(3), torch.arange(3, B)))
    halves = [loss_of(stage, part, connector) for part in parts]
    torch.testing.assert_close(torch.cat(halves), loss)


@each_transfer
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("zero", 0.0), ("equal", 1.0), ("huge", 1e4), *((kind, 1.0) for kind in SPOILT)],
)
def test_extreme_inputs_give_finite_losses_and_gradients(method: Method, stage: Stage, kind, scale):
    pair = random_pair(4, scale)
    if kind == "equal":
        pair = take(pair, torch.zeros(B, dtype=torch.long))
    networks, spoil = SPOILT.get(kind, ((), zero_row))
    for network in networks:
        pair = pair._replace(**{network: spoil(getattr(pair, network))})
    pair = pair._replace(student=with_gradient(pair.student))
    loss = loss_of(stage, pair, connector_for(method, stage))
    assert loss.isfinite().all()
    loss.sum().backward()
    for tap, x in pair.student.taps.items():
        assert x.grad is None or x.grad.isfinite().all(), tap


@each_transfer
def test_the_transfer_loss_falls_on_one_batch(method: Method, stage: Stage):
    connector, pair = connector_for(method, stage), random_pair(5)
    pair = pair._replace(student=with_gradient(pair.student))
    read = [pair.student[tap] for tap in stage.taps]
    optimiser = torch.optim.Adam([*read, *connector.parameters()], lr=0.01)
    losses = []
    for _ in range(30):
        loss = loss_of(stage, pair, connector).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_only_named_parts_move_and_the_teacher_stays_bit_equal(name):
    lesson = Lesson(cell(name), FEW)
    student, teacher = lesson.student, lesson.teacher
    digest = teacher.digest() if teacher else ""
    for stage, epochs in zip(student.method.plan, student.stage_epochs, strict=True):
        moved = lesson.moved(epochs)
        assert student.stage is stage
        network = {key for key in lesson.state() if key.startswith("network.")}
        head = {key for key in network if key.startswith("network.head.")}
        trunk = network - head
        for part, keys in (("head", head), ("trunk", trunk)):
            assert bool(moved & keys) <= (part in stage.trains), (stage.name, part)
        if stage.task_weight > 0:
            assert moved & head
        if stage.task_weight == 0 and "logits" not in stage.taps:
            assert not moved & head, "weight decay must not reach a head outside the graph"
        if teacher:
            assert teacher.digest() == digest, stage.name


@pytest.mark.parametrize("name", TAUGHT)
def test_layers_above_the_deepest_tap_stay_bit_equal_without_labels(name):
    lesson = Lesson(cell(name), FEW)
    first = lesson.student.method.plan[0]
    if first.task_weight > 0 or "logits" in first.taps:
        return  # nothing of the student lies above the logits
    # The same stage, cut down to its shallowest tap where it reads several.
    moved, network = lesson.moved(), lesson.student.network
    deepest = max(lesson.student.taps, key=network.tap_names.index)
    network.requires_grad_(True)
    shown = network.view(torch.randn(2, *lesson.stream.image_shape), (deepest,))[deepest]
    named = dict(network.named_parameters())
    gradients = torch.autograd.grad(shown.sum(), list(named.values()), allow_unused=True)
    beyond = {f"network.{key}" for key, g in zip(named, gradients, strict=True) if g is None}
    assert beyond, "at least the head lies beyond"
    assert not moved & beyond


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_other_seed_other_bits(name, tmp_path):
    first, again, other = cell(name), cell(name), cell(name, seed=1)
    results = [run([c], tmp_path / f"{i}", FEW)[c.id] for i, c in enumerate((first, again, other))]
    weights = [load(tmp_path / f"{i}", c) for i, c in enumerate((first, again, other))]
    assert results[0].curves == results[1].curves
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_trained_side_by_side_equals_trained_alone_bit_for_bit(tmp_path):
    cells = [cell(name) for name in NAMES]
    cells.append(cell("soft_logits", student="cnn3"))
    together = run(cells, tmp_path / "together", FEW)
    for one in cells:
        alone = run([one], tmp_path / one.id, FEW)[one.id]
        assert together[one.id].status == alone.status == "finished", together[one.id].error
        assert together[one.id].curves == alone.curves, one
        assert load(tmp_path / "together", one) == load(tmp_path / one.id, one), one
        network = deployed(one.method, one.model)
        assert alone.final["parameters"] == sum(p.numel() for p in network.parameters())


def deployed(name: str, student: str = "cnn2") -> Network:
    """The student alone, but for a method that deploys more."""
    networks = (zoo.build(model, K, (1, 8, 8)) for model in (student, "cnn3"))
    return untrained_deployment(PLANNED[name], *networks, (1, 8, 8))


def load(folder, cell: Cell) -> bytes:
    """The weights saved, which are those of what is deployed."""
    saved = (folder / cell.id / "weights.safetensors").read_bytes()
    assert set(safetensors.torch.load(saved)) == set(deployed(cell.method).state_dict())
    return saved


# --- every hyper-parameter does something ---------------------------------------------------------

# Hyper-parameters that have an effect only under certain values of others.
TOGETHER_WITH = {
    ("selective", "selection_seed"): {"selection": "random"},
    ("selective", "unary"): {"keep": 0.5},
    ("selective", "neighbours"): {"keep": 0.75},
    ("selective", "pairwise"): {"keep": 0.75},
    ("fitnet", "regressor_relu"): {"regressor": "conv"},
}
# A stage has inner points only if it has several blocks.
NETWORKS = {("fsp", "points"): "resnet14"}


def alternatives(name: str, key: str) -> list[object]:
    """Other values of a hyper-parameter, from its search, its default and its annotation."""
    default, module = default_hyperparameters(name)[key], METHODS.get(name)()
    options = list(getattr(module, "SEARCH", {}).get(key, []))
    if isinstance(default, float):
        # Halfway to 1, too: an eighth of a stage's few epochs and a quarter are the same one.
        options += [*(default * factor for factor in (0.01, 0.5, 2.0, 30.0)), (1 + default) / 2]
    elif isinstance(default, list):
        options += [default[:1], default[1:]]
    elif isinstance(default, int) and not isinstance(default, bool):
        options += [default + 1, max(default // 3, 1), 1]
    wanted = get_type_hints(module.method)[key]
    kinds = (wanted, *get_args(wanted))
    options += [v for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]
    options += [True, False] if bool in kinds else []
    if key == "points":
        options += [["stage1"], ["stage1.pre"], ["stage1", "stage2"]]
    return [v for v in options if v != default] or [0.3]


@cache
def trained(name: str, network: str, changes: str) -> bytes:
    """The student's weights after its whole plan, for hyper-parameters given as JSON."""
    one = cell(name, network, network, hyperparameters=json.loads(changes))
    lesson = Lesson(one, FEW if name != "selective" else None)  # it needs images to choose from
    while not lesson.student.finished:
        lesson.epoch()
    state = lesson.student.network.state_dict()
    return b"".join(state[key].numpy().tobytes() for key in sorted(state))


# "connectors" off makes a pair of unequal widths not applicable: tested with the engine.
HYPERPARAMETERS = [
    (name, key) for name in NAMES for key in default_hyperparameters(name) if key != "connectors"
]


@pytest.mark.parametrize(("name", "key"), HYPERPARAMETERS)
def test_every_hyper_parameter_changes_what_is_trained(name, key):
    others = getattr(METHODS.get(name)(), "READ_WHEN", {}).get(key, {})
    others = {**others, **TOGETHER_WITH.get((name, key), {})}
    network = NETWORKS.get((name, key), "cnn2")
    before, tried = trained(name, network, json.dumps(others)), []
    for value in alternatives(name, key):
        changed = {**others, key: value}
        try:
            build_method(name, **changed)
        except ValueError:
            continue  # out of its range
        tried.append(value)
        if trained(name, network, json.dumps(changed)) != before:
            return
    pytest.fail(f"{key}: the student is bit-equal for {tried}; name more values in SEARCH")


UNREAD = [(name, key) for name in NAMES for key in getattr(METHODS.get(name)(), "READ_WHEN", {})]


@pytest.mark.parametrize(("name", "key"), UNREAD)
def test_what_read_when_rules_out_changes_nothing(name, key):
    ((other, wanted),) = METHODS.get(name)().READ_WHEN[key].items()
    off = next(v for v in alternatives(name, other) if v != wanted)
    without = trained(name, "cnn2", json.dumps({other: off}))
    for value in alternatives(name, key):
        changed = {other: off, key: value}
        try:
            build_method(name, **changed)
        except ValueError:
            continue  # out of its range
        assert trained(name, "cnn2", json.dumps(changed)) == without
    assert key not in search_space(name, {other: off})
    assert key in search_space(name, {})


# --- models and data sources of files that `--plugin` names, and some of the harness ------------

MODELS = ["cnn4", "resnet8", *filter(zoo.MODELS.code, zoo.MODELS.names())]
OWN_SOURCES = [name for name in sources.names() if sources.SOURCES.code(name)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 48)])
def test_a_network_shows_its_taps_and_survives_saving(name: str, shape):
    check_network(lambda: zoo.build(name, K, shape), K, shape)


@pytest.mark.parametrize("name", MODELS)
def test_a_networks_shallow_tap_does_not_depend_on_deeper_ones(name: str):
    network = zoo.build(name, K, (3, 32, 32)).eval()
    images = torch.randn(B, 3, 32, 32)
    whole = network.view(images, network.tap_names)
    for tap in network.tap_names:
        torch.testing.assert_close(network.view(images, (tap,))[tap], whole[tap])
    halves = torch.cat([network(images[:2]), network(images[2:])])
    torch.testing.assert_close(halves, whole["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", *OWN_SOURCES])
def test_a_source_gives_the_same_usable_images_every_time(name: str, tmp_path):
    first, second = (sources.load(name, data_root=None, cache=tmp_path / part) for part in "ab")
    assert first.fingerprint == second.fingerprint
    train, test = (first.train_images, first.train_labels), (first.test_images, first.test_labels)
    for images, labels in (train, test):
        assert (images.dtype, images.dim()) == (torch.uint8, 4)
        assert (labels.dtype, labels.shape) == (torch.int64, (len(images),))
        assert set(labels.tolist()) == set(range(len(first.classes)))
