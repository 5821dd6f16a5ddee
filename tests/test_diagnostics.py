"""Diagnostics: measured to their definitions, and without a trace in what trains."""

import math

import pytest
import torch
from lessons import Lesson, cell, dataset, method_of, plain_cell, recipe, run
from torch import nn

from bench.expansion import expand
from bench.grid import load_grid
from bench.hyperparameters import METHODS, build_method
from bench.launch.tune import trials_of, tuning_grid
from bench.method import Facts, Method, NoConnector, Pair, Stage, View
from bench.models import zoo
from bench.models.network import tap_shapes
from bench.record import FINISHED, Store
from bench.train.diagnostics import (
    attention_variation,
    constrained_directions,
    gradient_cosine,
    knowledge_facts,
    own_stage,
    total_variation,
)
from methods.attention_transfer import attention_transfer_loss

CURVES = ("gradient_cosine",)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(folder, cells):
    """Record and weights of every cell, from one cohort."""
    records = run(cells, folder, dataset(train=20))
    store = Store(folder)
    weights = [(store.folder(c.id) / "weights.safetensors").read_bytes() for c in cells]
    return [records[c.id] for c in cells], weights


@pytest.mark.parametrize("name", METHODS.names())
def test_training_is_bit_equal_with_diagnostics_on_and_off(name, tmp_path):
    plain = cell(name, recipe=recipe(epochs=2))
    examined = plain.model_copy(update={"diagnostics": True})
    (alone,), (weights,) = trained(tmp_path / "off", [plain])
    # Examined first in the cohort: whatever it disturbed would reach the plain one.
    (with_it, without), both = trained(tmp_path / "on", [examined, plain])
    assert alone.status == with_it.status == without.status == FINISHED
    assert both == [weights, weights]
    assert without.curves == alone.curves
    assert {k: v for k, v in with_it.curves.items() if k not in CURVES} == alone.curves


def test_random_layers_and_statistics_are_left_as_they_were():
    states = []
    for examined in (False, True):
        lesson = Lesson(cell("fitnet", diagnostics=examined))
        lesson.student.network.stem.append(nn.Dropout(0.5))
        lesson.epochs(4)
        states.append(lesson.state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_cell_with_diagnostics_is_another_one_with_the_same_teacher_and_batches():
    plain, examined = cell("fitnet"), cell("fitnet", diagnostics=True)
    assert examined.id != plain.id
    assert examined.stream == plain.stream
    assert examined.resolved() == {**plain.resolved(), "diagnostics": True}


def test_a_grid_examines_students_and_leaves_teachers_alone():
    off, on = load_grid("digits-transfer"), load_grid("digits-transfer", ["diagnostics=true"])
    plans = (expand(grid, lambda d: "x").plan for grid in (off, on))
    for before, after in zip(*(plan.rows for plan in plans), strict=True):
        assert (before.cell_id == after.cell_id) == (before.role in ("teacher", "source"))
        assert before.teacher_id == after.teacher_id


def test_tuning_examines_nothing():
    grid = load_grid("smoke", ["diagnostics=true"])
    assert not tuning_grid(grid, trials_of(grid, 2), seeds=1, validation=0.2).diagnostics


def test_a_two_stage_method_is_measured_in_both_stages(tmp_path):
    (record,), _ = trained(tmp_path, [cell("fitnet", diagnostics=True)])
    epochs = [stage["epochs"] for stage in record.stages]
    assert epochs == [1, 3]
    assert all(-1 <= cosine <= 1 for cosine in record.curves["gradient_cosine"])
    # cnn3 on 8x8: 3 x 8 x 8, 6 x 4 x 4 and 12 x 2 x 2.
    assert record.final["knowledge_scalars"] == 192 + 96 + 48
    assert 1 < record.final["knowledge_directions"] <= 336
    assert {name for name in record.final if name.startswith("attention")} == {
        "attention_variation_stage1",
        "attention_variation_stage2",
    }


def test_epochs_without_a_teacher_have_no_point(tmp_path):
    one = cell("fitnet", hyperparameters={"stage2": "ce"}, diagnostics=True)
    (record,), _ = trained(tmp_path, [one])
    assert [value is None for value in record.curves["gradient_cosine"]] == [False, *[True] * 3]


def test_nothing_is_measured_of_a_baseline_or_without_diagnostics(tmp_path):
    records, _ = trained(tmp_path, [plain_cell("cnn2", diagnostics=True), cell("fitnet")])
    for record in records:
        assert not set(CURVES) & set(record.curves)
        assert not any(name.startswith(("knowledge", "attention")) for name in record.final)


@pytest.mark.parametrize("trains", [{"connector"}, {"trunk", "head", "connector"}], ids=sorted)
def test_a_stage_of_the_teacher_alone_is_no_obstacle(trains, tmp_path):
    # As a plugin may train an autoencoder of the teacher's embedding before the student starts.
    def rebuilt(pair, connector):
        shown = pair.teacher["embedding"]
        return (connector(shown) - shown).square().mean(1)

    def hint(pair, connector):
        return (connector(pair.student["embedding"]) - pair.teacher["embedding"]).square().mean(1)

    part = {"share": 0.5, "taps": ("embedding",)}
    alone = Stage(name="alone", transfer=rebuilt, task_weight=0.0, trains=frozenset(trains), **part)
    method = method_of(
        alone,
        Stage(name="hint", transfer=hint, **part),
        connect=lambda student, teacher: nn.Linear(*student["embedding"], *teacher["embedding"]),
    )
    lesson = Lesson(cell("fitnet", "cnn3", diagnostics=True), method=method)
    lesson.epochs(4)
    assert lesson.student.curves["gradient_cosine"][:2] == [None, None]
    assert None not in lesson.student.curves["gradient_cosine"][2:]
    facts = facts_of({"embedding": rand(20, 12)}, method, 10)
    assert facts["knowledge_scalars"] == 12
    assert ("knowledge_directions" in facts) == (trains == {"connector"})


def test_own_knowledge_is_that_of_the_first_teaching_stage():
    stages = [own_stage(build_method(name)) for name in ("fitnet", "selective", "student")]
    assert [stage and stage.name for stage in stages] == ["hint", "finetune", None]


def test_the_first_step_is_measured_with_the_weights_it_starts_from():
    cosines = []
    for sign in (1.0, -1.0):

        def toward(pair: Pair, connector: nn.Module, sign: float = sign) -> torch.Tensor:
            return sign * nn.functional.cross_entropy(pair.student.logits, pair.labels)

        stage = Stage(name="a", share=1.0, transfer=toward, taps=("logits",), task_weight=0.0)
        lesson = Lesson(cell("soft_logits", diagnostics=True), method=method_of(stage))
        lesson.epoch()
        cosines.append(lesson.student.curves["gradient_cosine"])
    assert cosines == [[pytest.approx(1.0)], [pytest.approx(-1.0)]]


def test_a_cosine_is_over_the_parameters_that_both_reach():
    shared = torch.tensor([1.0, 2.0], requires_grad=True)
    one, other, frozen = (torch.ones(1, requires_grad=r) for r in (True, True, False))
    first = shared[0] * 3 + one.sum() * 100 + frozen.sum()
    second = (shared * torch.tensor([4.0, 4.0])).sum() + other.sum() * 100
    found = gradient_cosine(first, second, [shared, one, other, frozen])
    assert found == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("scale", [0.0, math.inf])
def test_a_cosine_without_a_direction_is_none(scale):
    x = torch.ones(2, requires_grad=True)
    assert gradient_cosine(x.sum(), scale * x.sum(), [x]) is None
    assert gradient_cosine(x.sum(), x.sum(), [x.detach()]) is None
    assert gradient_cosine(x.sum(), torch.zeros(()), [x]) is None


def directions(loss, student: torch.Tensor, teacher: torch.Tensor) -> float | None:
    pair = Pair(
        View({"tap": student}), View({"tap": teacher}),
        torch.zeros(len(student), dtype=torch.long), torch.arange(len(student)),
    )  # fmt: skip
    return constrained_directions(
        lambda p, c: loss(p.student["tap"], p.teacher["tap"]), pair, NoConnector()
    )


def test_a_regression_binds_every_element_equally():
    loss = lambda s, t: (s - t).square().sum((1, 2, 3))  # noqa: E731
    assert directions(loss, rand(5, 3, 4, 4).sign(), rand(5, 3, 4, 4, seed=1)) == pytest.approx(48)


def test_a_weight_does_not_count_and_free_elements_do_not_either():
    loss = lambda s, t: 1e-4 * (s[:, :7] - t[:, :7]).square().sum(1)  # noqa: E731
    assert directions(loss, rand(5, 12).sign(), rand(5, 12, seed=1)) == pytest.approx(7)


def test_unequal_curvature_has_the_participation_ratio():
    # Rotated, so that random signs no longer hit it exactly: eigenvalues 2 and 1, 16 of each.
    rotation = torch.linalg.qr(rand(32, 32).double()).Q
    weights = torch.tensor([2.0, 1.0]).repeat_interleave(16).double()
    loss = lambda s, t: 0.5 * ((s - t) @ rotation).square().mul(weights).sum(1)  # noqa: E731
    student = rand(64, 32).sign()  # one root mean square everywhere
    exact = (16 * 4 + 16 * 1) ** 2 / (16 * 16 + 16 * 1)
    assert directions(loss, student, rand(64, 32, seed=1)) == pytest.approx(exact, rel=0.05)


def test_a_relation_within_the_batch_binds_less_than_its_samples():
    # Only the batch's mean is held: D directions for all B samples together.
    loss = lambda s, t: (s.mean(0) - t.mean(0)).square().sum()  # noqa: E731
    bound = directions(loss, rand(64, 8), rand(64, 8, seed=1))
    assert bound == pytest.approx(8 / 64, rel=0.5)


def test_the_length_of_a_sample_does_not_count_where_a_loss_ignores_it():
    student, teacher = rand(8, 6, 4, 4), rand(8, 6, 4, 4, seed=1)
    lengths = torch.logspace(-2, 2, 8).view(8, 1, 1, 1)
    bound = directions(attention_transfer_loss, student, teacher)
    assert directions(attention_transfer_loss, lengths * student, teacher) == pytest.approx(bound)


def test_a_loss_without_curvature_binds_nothing():
    assert directions(lambda s, t: (s * t).sum(1), rand(4, 3), rand(4, 3)) is None
    assert directions(lambda s, t: (s - t).sum(1) / 0.0, rand(4, 3), rand(4, 3)) is None


@pytest.mark.parametrize("name", ["ft", "ofd", "reviewkd", "srrl", "vid"])
def test_a_fourth_stage_of_the_teacher_alone_is_not_examined(name):
    # Its channels differ from those of the third, so that a connector of it would not fit.
    shapes = dict(tap_shapes(zoo.build("cnn4", 4, (1, 8, 8)), (1, 8, 8)))
    shapes |= {"stage4": (9, 2, 2), "stage4.pre": (9, 2, 2)}
    labels = torch.arange(20) % 4
    norms = {tap: (rand(*x[:1]), rand(*x[:1])) for tap, x in shapes.items()}
    facts = Facts(20, labels, 4, (rand(4, *shapes["embedding"]), rand(4)), norms)
    view = lambda wanted: View({tap: rand(20, *shapes[tap]) for tap in wanted})  # noqa: E731
    found = knowledge_facts(view, facts, build_method(name), (), shapes, 5)
    assert found["knowledge_directions"] > 0


def test_images_of_one_class_leave_a_method_that_contrasts_classes_without_directions():
    facts = facts_of({"embedding": rand(20, 8)}, build_method("crd"), 5)
    assert facts == {"knowledge_scalars": 8}


def facts_of(taps: dict[str, torch.Tensor], method: Method, batch: int) -> dict[str, float]:
    shapes = {tap: tuple(x.shape[1:]) for tap, x in taps.items()}
    facts = Facts(20, torch.zeros(20, dtype=torch.long), 4)
    view = lambda wanted: View({tap: taps[tap] for tap in wanted})  # noqa: E731
    return knowledge_facts(view, facts, method, (), shapes, batch)


@pytest.mark.parametrize("name", ["attention_transfer", "fitnet"])
def test_what_methods_hold_fast_of_three_maps(name):
    taps = {f"stage{i}": rand(20, 8, 4, 4, seed=i).relu() for i in (1, 2, 3)}
    facts = facts_of(taps, build_method(name), 20)
    # A hint holds every element. A normalised attention map holds one direction a position but
    # for its length, whatever the channels.
    exact = {"attention_transfer": 3 * 15, "fitnet": 3 * 8 * 16}[name]
    assert facts["knowledge_scalars"] == 3 * 8 * 16
    assert facts["knowledge_directions"] == pytest.approx(exact, rel=0.15)


def test_total_variation_by_hand():
    # |(3, 0), (4, 0)| = 5: down .2 and 0, across .6 and .8.
    assert total_variation(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]])).item() == pytest.approx(1.6)
    assert total_variation(torch.zeros(1, 4, 4)).isnan().all()


def test_attention_of_independent_channels_is_smoother_than_they_are():
    feature = rand(4, 64, 8, 8).relu()
    feature[:, 0] = 0  # a dead channel counts as neither rough nor smooth
    assert attention_variation(feature) < 0.5
    one = attention_variation(feature[:, 1:2])
    assert one == pytest.approx(1.0)  # of one channel that is not negative: itself
