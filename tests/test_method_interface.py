"""What a method may ask of the engine apart from losses: facts, deployment, stages of its own."""

from dataclasses import replace

import pytest
import torch
from lessons import CPU, Lesson, cell, method_of, plain_cell, recipe, run, squared_gap
from torch import Tensor, nn

from bench.cell import DataSpec
from bench.hyperparameters import build_method
from bench.method import PARTS, Facts, NotApplicable, Pair, Stage
from bench.models import zoo
from bench.models.network import Network
from bench.train.cohort import SharedStateError
from bench.train.optim import SplitMomentum, make_optimiser
from bench.train.teacher import Teacher

DISTIL = Stage(name="distil", share=1.0, transfer=squared_gap, taps=("logits",))


@pytest.mark.parametrize(
    "spoils",
    [
        {"transfer": lambda pair, connector: pair.labels.zero_()},
        {"transfer": lambda pair, connector: torch.set_grad_enabled(False)},
        {"transfer": lambda pair, connector: setattr(torch.backends.mkldnn, "enabled", False)},
        {"clean": True, "prepare": lambda connector, view: view.logits.zero_()},
    ],
)
def test_a_method_that_changes_what_others_share_ends_its_cohort(spoils, monkeypatch, tmp_path):
    method = method_of(replace(DISTIL, **spoils))
    monkeypatch.setattr("bench.train.cohort.build_method", lambda name, **_: method)
    with torch.enable_grad(), pytest.raises(SharedStateError, match="method soft_logits on cnn2"):
        run([cell("soft_logits")], tmp_path)


# --- facts --------------------------------------------------------------------------------------


def test_a_connector_learns_of_the_training_set_and_the_teachers_head():
    found: list[Facts] = []

    def connect(student, teacher, facts: Facts) -> nn.Module:
        found.append(facts)
        return nn.Identity()

    one = cell("soft_logits", data=DataSpec(source="synthetic", pad=1, labels=0.5))
    lesson = Lesson(one, method=method_of(DISTIL, connect=connect))
    (facts,) = found
    assert (facts.images, facts.classes) == (40, 4)
    assert facts.labels.shape == (40,)
    assert int((facts.labels < 0).sum()) == 20
    seen = facts.labels >= 0
    assert torch.equal(facts.labels[seen], lesson.stream.train.labels[seen])
    weight, bias = facts.head
    assert bias.data_ptr() != lesson.teacher.network.head.bias.data_ptr()  # a copy
    embedding = torch.randn(3, weight.shape[1])
    logits = lesson.teacher.network.head(embedding)
    torch.testing.assert_close(embedding @ weight.T + bias, logits)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1"])
def test_the_norms_are_those_that_give_the_maps_before_the_relu(name: str):
    shape = (3, 32, 32)
    torch.manual_seed(0)
    network = zoo.build(name, 4, shape)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    norms = {tap: network.norm_of(tap) for tap in network.tap_names}
    before_relu = {tap for tap in network.tap_names if tap.endswith(".pre")}
    assert {tap for tap, norm in norms.items() if norm} == before_relu
    facts = Teacher(network, plain_cell("cnn2"), CPU, shape).facts(torch.zeros(5, dtype=torch.long))
    images, shown = torch.randn(8, *shape), {}
    for tap, norm in norms.items():
        if norm:
            norm.register_forward_hook(lambda m, x, out, tap=tap: shown.update({tap: out}))
    taps = network.eval().view(images, network.tap_names)
    for tap, (weight, bias) in facts.norms.items():
        assert torch.equal(weight, norms[tap].weight)
        assert torch.equal(bias, norms[tap].bias)
        # The tap is this map, or a sum or concatenation with another.
        channels = shown[tap].shape[1]
        assert shown[tap].shape[2:] == taps[tap].shape[2:]
        if channels == taps[tap].shape[1] and name in ("wrn_16_1", "vgg8"):
            assert torch.equal(shown[tap], taps[tap])


# --- a stage of the connector alone -------------------------------------------------------------


class Copy(nn.Module):
    """Learns the mean of the teacher's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(4))


def fit(pair: Pair, connector: Copy) -> Tensor:
    assert not pair.student.taps
    return (pair.teacher.logits - connector.mean).square().mean(dim=1)


def test_a_stage_without_the_student_does_not_run_it(monkeypatch):
    alone = Stage(
        name="fit", share=0.5, transfer=fit, taps=("logits",), task_weight=0.0,
        trains=frozenset({"connector"}), student=False,
    )  # fmt: skip
    method = method_of(alone, replace(DISTIL, share=0.5), connect=lambda *shapes: Copy())
    lesson = Lesson(cell("soft_logits"), method=method)
    passes: list[object] = []
    lesson.student.network.stem.register_forward_hook(lambda *call: passes.append(call))
    assert lesson.moved(2) == {"connector.mean"}
    assert not passes
    lesson.epoch()
    assert passes


@pytest.mark.parametrize("wrong", [{"task_weight": 1.0}, {"task_weight": 0.0, "trains": PARTS}])
def test_a_stage_without_the_student_trains_the_connector_alone(wrong):
    values = {"name": "fit", "share": 1.0, "transfer": fit, "taps": ("logits",), "student": False}
    with pytest.raises(ValueError, match="the student does not run"):
        Stage(**{**values, "trains": frozenset({"connector"}), **wrong})


# --- what is deployed ---------------------------------------------------------------------------


class Shifted(Network):
    """A student with what its method adds to it."""

    tap_names = ("logits",)

    def __init__(self, student: Network, shift: nn.Module) -> None:
        super().__init__()
        self.student, self.shift = student, shift

    @property
    def head(self) -> nn.Module:
        return self.student.head

    def view(self, images, taps):
        return {"logits": self.shift(self.student(images))}


def test_what_is_deployed_is_evaluated_counted_and_saved(tmp_path, monkeypatch):
    def connect(student, teacher) -> nn.Module:
        shift = nn.Linear(4, 4)
        nn.init.zeros_(shift.weight)
        shift.bias.data = torch.tensor([0.0, 0.0, 9.0, 0.0])  # always the third class
        return shift.requires_grad_(False)

    method = method_of(
        replace(DISTIL, task_weight=0.0, trains=frozenset({"trunk"})),
        connect=connect, deploy=Shifted,
    )  # fmt: skip
    monkeypatch.setattr("bench.train.cohort.build_method", lambda name, **_: method)
    one = cell("soft_logits", recipe=recipe(epochs=2, evaluate_every=1))
    record = run([one], tmp_path)[one.id]
    assert record.curves["test_accuracy"] == [0.25, 0.25]
    own = sum(p.numel() for p in zoo.build("cnn2", 4, (1, 8, 8)).parameters())
    assert record.final["student_parameters"] == own
    assert record.final["parameters"] == own + 20


# --- two momenta --------------------------------------------------------------------------------


def moved(split: float, task: list[float | None], transfer: list[float | None]) -> list[float]:
    parameters = [torch.zeros((), dtype=torch.float64) for _ in task]
    optimiser = SplitMomentum([{"params": parameters}], 0.1, 0.9, split, 0.0)
    gradients = [
        [None if g is None else torch.tensor(g, dtype=torch.float64) for g in of]
        for of in (task, transfer)
    ]
    for _ in range(3):
        optimiser.set_gradients(parameters, *gradients)
        optimiser.step()
    return [p.item() for p in parameters]


def test_split_momentum_by_hand():
    assert moved(0.075, [1.0], [2.0]) == pytest.approx([-1.7131875], abs=1e-12)
    assert moved(0.0, [1.0], [2.0]) == pytest.approx([-1.683], abs=1e-12)
    # What one loss alone reaches moves as under plain momentum: 1, 1.9, 2.71.
    assert moved(0.075, [1.0, None, None], [None, 1.0, None]) == pytest.approx([-0.561, -0.561, 0])


def test_split_momentum_decays_every_parameter_once():
    parameters = [torch.ones(1, dtype=torch.float64) for _ in range(3)]
    optimiser = SplitMomentum([{"params": parameters}], 1.0, 0.9, 0.05, 0.1)
    zero = torch.zeros(1, dtype=torch.float64)
    optimiser.set_gradients(parameters, [zero, zero, None], [zero, None, zero])
    optimiser.step()
    assert [p.item() for p in parameters] == pytest.approx([0.9, 0.9, 0.9])


def test_without_a_split_it_is_stochastic_gradient_descent():
    step = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    ours, theirs = torch.zeros(5, 3), torch.zeros(5, 3, requires_grad=True)
    stage, rec = replace(DISTIL, momentum_split=0.0), recipe(learning_rate=0.3)
    plain = make_optimiser(stage, {"trunk": [theirs]}, rec)
    split = SplitMomentum([{"params": [ours]}], 0.3, rec.momentum, 0.0, rec.weight_decay)
    for one, other in zip(step[::2], step[1::2], strict=True):
        split.set_gradients([ours], [one], [other])
        split.step()
        theirs.grad = one + other
        plain.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_the_switch_is_for_one_stage_with_both_losses_and_plain_momentum():
    method = build_method("soft_logits", momentum_split=0.075)
    assert method.plan[0].momentum_split == 0.075
    assert "DOT" in method.source
    for name in ("fitnet", "kd_svd", "student"):
        with pytest.raises(ValueError, match="momentum_split"):
            build_method(name, momentum_split=0.075)
    changed = {"hyperparameters": {"momentum_split": 0.075}}
    for wrong in ({"nesterov": True}, {"optimiser": "adamw"}, {"momentum": 0.05}):
        with pytest.raises(NotApplicable, match="momentum"):
            Lesson(cell("soft_logits", recipe=recipe(**wrong), **changed))
    lesson = Lesson(cell("soft_logits", **changed))
    lesson.epoch()
    keys = lesson.student.state().tensors
    assert {"momentum.0.task", "momentum.0.transfer"} <= keys.keys()


def test_a_split_momentum_resumes_to_the_same_bits():
    one = cell("soft_logits", hyperparameters={"momentum_split": 0.075})
    whole, first = Lesson(one), Lesson(one)
    whole.epochs(4)
    first.epochs(2)
    again = Lesson(one)
    again.student.restore(first.student.state(), again.clean_view, again.stream.train.labels)
    again.epochs(2)
    ended, expected = again.state(), whole.state()
    assert all(torch.equal(ended[key], expected[key]) for key in expected)
