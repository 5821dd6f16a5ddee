"""The stage engine and the cohort: bookkeeping that no method may rely on doing itself."""

import gc
import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from lessons import CPU, Lesson, cell, dataset, method_of, plain_cell, recipe, run, squared_gap
from safetensors.torch import load_file

from bench.cell import DataSpec, Recipe
from bench.data.augment import degrade
from bench.data.dataset import DataSet
from bench.hyperparameters import build_method
from bench.method import (
    MaskedLoss,
    Merged,
    NotApplicable,
    Pair,
    Selection,
    Stage,
    View,
    split_epochs,
)
from bench.models import zoo
from bench.record import Store
from bench.train.device import note_nondeterministic, set_numerics
from bench.train.engine import make_student
from bench.train.epoch import NonFiniteError, Sums, check_finite
from bench.train.objective import Objective
from bench.train.optim import learning_rate
from bench.train.preflight import check_cells
from bench.train.result import stage_entries
from bench.train.stream import StudentBatch, accuracy, open_stream, predictions
from bench.train.teacher import Teacher, load_teacher
from bench.train.weights import build_network, head_keys, start_from_source, weights_content


def teaching(transfer=squared_gap, **changes: object) -> Stage:
    """A stage with a transfer loss on the logits."""
    return Stage(name="a", share=1.0, transfer=transfer, taps=("logits",), **changes)


def lesson_of(*stages: Stage, **changes: object) -> Lesson:
    return Lesson(cell("soft_logits", **changes), method=method_of(*stages))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0, "task_weight": 0.0}, "nothing would train"),
        ({"share": 1.0, "taps": ("logits",)}, "no transfer loss"),
        ({"share": 1.0, "transfer": squared_gap}, "names no taps"),
        ({"share": 1.0, "merge": lambda a, b, e: list(a)}, "merge needs"),
        ({"share": 1.0, "keep": lambda v, y: None}, "clean"),
        ({"share": 1.0, "trains": frozenset({"body"})}, "trains"),
        ({"share": 1.0, "lr_factor": 0.0}, "lr_factor"),
        ({"share": 1.0, "reduction": "avg"}, "reduction 'avg', not mean or sum"),
        ({"share": 1.0, "transfer": squared_gap, "taps": "logits"}, r"write \('logits',\)"),
    ],
)
def test_an_impossible_stage_cannot_be_built(wrong, words):
    with pytest.raises(ValueError, match=words):
        Stage(name="x", **wrong)


@pytest.mark.parametrize(
    ("stages", "changes", "words"),
    [
        ((("a", 0.5),), {}, r"sum to 0\.5"),
        ((("a", 0.5), ("a", 0.5)), {}, "repeat"),
        ((("a", 1.0),), {"category": "magic"}, "category"),
    ],
)
def test_an_impossible_plan_cannot_be_built(stages, changes, words):
    with pytest.raises(ValueError, match=words):
        method_of(*(Stage(name=name, share=share) for name, share in stages), **changes)


@pytest.mark.parametrize("epochs", range(3, 40))
def test_stages_share_the_epochs_exactly(epochs):
    stages = [Stage(name=n, share=s) for n, s in (("a", 0.01), ("b", 0.3), ("c", 0.69))]
    parts = split_epochs(stages, epochs)
    assert sum(parts) == epochs
    assert min(parts) >= 1
    assert split_epochs(stages, epochs, "addon")[-1] == epochs


def test_the_published_schedule():
    # RepDistiller: 240 epochs, 0.05, times 0.1 after epochs 150, 180 and 210.
    published = Recipe(epochs=240, batch_size=64, learning_rate=0.05)
    rates = {e: learning_rate(published, e, 240) for e in (0, 149, 150, 179, 180, 209, 210, 239)}
    wanted = [0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5]
    assert list(rates.values()) == pytest.approx(wanted)


def test_cosine_falls_from_the_rate_towards_zero():
    cosine = recipe(schedule="cosine", learning_rate=1.0)
    rates = [learning_rate(cosine, e, 10) for e in range(10)]
    assert rates[0] == 1.0
    assert rates[5] == pytest.approx(0.5)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


@pytest.mark.parametrize(
    ("schedule", "later"),
    [("constant", [1.0] * 8), ("multistep", [1.0] * 3 + [0.1] * 5), ("cosine", None)],
)
def test_a_warm_up_rises_from_a_hundredth_to_the_rate(schedule, later):
    warm = recipe(schedule=schedule, learning_rate=1.0, warmup=2, milestones=(0.5,))
    rates = [learning_rate(warm, e, 10) for e in range(10)]
    if later is None:
        plain = recipe(schedule=schedule, learning_rate=1.0)
        later = [learning_rate(plain, e, 8) for e in range(8)]
    assert rates == pytest.approx([0.01, 0.505, *later])


@pytest.mark.parametrize(
    ("optimiser", "moved"),
    [
        ({"momentum": 0.0, "weight_decay": 0.0}, lambda x, slope: x - 0.05 * slope),
        (
            {"optimiser": "adamw", "betas": (0.5, 0.9), "weight_decay": 0.1, "learning_rate": 0.01},
            # Both moments are unbiased after one step: the gradient over its size.
            lambda x, slope: x * (1 - 0.001) - 0.01 * slope / (slope.abs() + 1e-8),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_a_baseline_step_is_the_definition_of_its_optimiser(optimiser, moved):
    lesson = Lesson(plain_cell("cnn2", recipe=recipe(**optimiser)))
    student, twin = lesson.student, Lesson(plain_cell("cnn2")).student.network.train()
    student.begin_epoch(lesson.clean_view, lesson.stream.train.labels)
    batch = next(iter(lesson.stream.train.epoch(0)))
    torch.nn.functional.cross_entropy(twin(batch.images), batch.labels).backward()
    student.step(StudentBatch(*batch, None, False))
    for mine, theirs in zip(student.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, moved(theirs, theirs.grad))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimiser": "adamw", "nesterov": True}, "nesterov is not of adamw"),
        ({"optimiser": "adamw", "momentum": 0.5}, "momentum is not of adamw"),
        ({"betas": (0.5, 0.9)}, "betas is not of sgd"),
    ],
)
def test_what_another_optimiser_has_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        recipe(**changes)


def test_every_stage_starts_with_a_fresh_optimiser_and_its_own_schedule():
    stages = (Stage(name="a", share=0.5), Stage(name="b", share=0.5, lr_factor=0.1))
    lesson = lesson_of(*stages, recipe=recipe(milestones=(0.5,)))
    student, optimisers = lesson.student, []
    for _ in range(4):
        lesson.epoch()
        optimisers.append(student.optimiser)
    assert optimisers[0] is optimisers[1] is not optimisers[2] is optimisers[3]
    assert student.curves["learning_rate"] == pytest.approx([0.05, 0.005, 0.005, 0.0005])
    fresh = lesson_of(*stages)
    fresh.epochs(2)
    fresh.student.begin_epoch(fresh.clean_view, fresh.stream.train.labels)
    assert not fresh.student.optimiser.state


def test_the_transfer_weight_follows_the_stage():
    seen = []
    weight = lambda progress: seen.append(progress) or torch.tensor(4 - 3 * progress)  # noqa: E731
    lesson = lesson_of(teaching(transfer_weight=weight))
    lesson.epochs(4)
    assert sorted(set(seen)) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert {type(x) for x in lesson.student.curves["train_loss"]} == {float}


def test_frozen_parts_keep_their_batch_statistics_too():
    lesson = lesson_of(Stage(name="head", share=1.0, trains=frozenset({"head"})))
    assert lesson.moved() == {"network.head.weight", "network.head.bias"}


def test_merge_takes_the_place_of_the_sum():
    def only_task(task, transfer, epoch):
        assert len(task) == len(transfer)
        return list(task)

    merged = lesson_of(teaching(merge=only_task))
    plain = lesson_of(Stage(name="a", share=1.0))
    empty = lesson_of(teaching(lambda pair, connector: torch.zeros(())))  # no term in any batch
    merged.epoch(), plain.epoch(), empty.epoch()
    for key, tensor in plain.state().items():
        assert torch.equal(tensor, merged.state()[key]), key
        assert torch.equal(tensor, empty.state()[key]), key


def test_what_a_merge_watches_is_the_mean_over_an_epochs_steps():
    steps = iter(range(100))

    def merge(task, transfer, epoch):
        return Merged(list(task), {"even_share": torch.tensor(float(next(steps) % 2 == 0))})

    lesson = lesson_of(teaching(squared_gap, merge=merge), recipe=recipe(batch_size=13))
    lesson.epochs(4)
    # 40 images are three steps of 13: even, odd, even; odd, even, odd; and so on.
    assert lesson.student.curves["even_share"] == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3])
    (entry,) = stage_entries(lesson.student)
    assert entry["even_share"] == pytest.approx(1 / 2)


def test_a_sum_over_the_batch_is_the_mean_times_its_size():
    found = {}
    for reduction in ("mean", "sum"):
        lesson = lesson_of(teaching(squared_gap, reduction=reduction, lr_factor=1e-9))
        lesson.epoch()
        found[reduction] = lesson.student.curves["transfer_loss"][0]
    assert found["sum"] == pytest.approx(10 * found["mean"])


def keep_first_half(view: View, labels: torch.Tensor) -> Selection:
    kept = torch.arange(len(labels)) < len(labels) // 2
    return Selection(kept, {"kept": int(kept.sum())})


@pytest.mark.parametrize("task_on_all", [False, True])
def test_a_selection_limits_the_stage_to_what_it_kept_or_its_transfer_loss(task_on_all):
    seen = []

    def transfer(pair, connector):
        seen.append(pair.index)
        return squared_gap(pair, connector)

    stage = teaching(transfer, clean=True, keep=keep_first_half, task_on_all=task_on_all)
    lesson = lesson_of(stage)
    lesson.epoch()
    assert sorted(torch.cat(seen).tolist()) == list(range(40 if task_on_all else 20))
    assert lesson.student.selections["a"].details == {"kept": 20}


def test_the_clean_view_is_of_the_image_without_augmentation():
    shown = {}

    def transfer(pair, connector):
        shown.update(zip(pair.index.tolist(), pair.teacher.logits, strict=True))
        return squared_gap(pair, connector)

    lesson = lesson_of(teaching(transfer, clean=True))
    lesson.epoch()
    images, *_ = next(iter(lesson.stream.train.clean(40)))
    wanted = lesson.teacher.view(images, ("logits",)).logits
    torch.testing.assert_close(torch.stack([shown[i] for i in range(40)]), wanted)


def test_the_student_alone_sees_low_resolution():
    data = DataSpec(source="synthetic", pad=0, flip=False, resolution=2)
    stream = open_stream(plain_cell("cnn2", data=data), dataset(), CPU)
    batch = next(iter(stream.train.epoch(0)))
    low = stream.student_images(batch.images)
    assert low.shape == batch.images.shape
    assert not torch.equal(low, batch.images)
    torch.testing.assert_close(low, degrade(batch.images, 2), rtol=0, atol=0)


def test_the_last_epoch_is_measured_and_the_best_is_the_first_of_equals(tmp_path):
    one = cell("soft_logits", recipe=recipe(epochs=5, evaluate_every=2))
    record = run([one], tmp_path)[one.id]
    measured = [a is not None for a in record.curves["test_accuracy"]]
    assert measured == [False, True, False, True, True]
    found = [(a, e) for e, a in enumerate(record.curves["test_accuracy"], 1) if a is not None]
    assert record.final["last_accuracy"] == found[-1][0]
    assert record.final["best_accuracy"] == max(a for a, _ in found)
    assert record.final["best_epoch"] == min(e for a, e in found if a == max(found)[0])
    assert {len(curve) for curve in record.curves.values()} == {5}


def test_agreement_counts_equal_predictions(tmp_path):
    one = cell("soft_logits")
    record = run([one], tmp_path)[one.id]
    stream = open_stream(one, dataset(), CPU)
    lesson = Lesson(one)
    weights = tmp_path / one.id / "weights.safetensors"
    lesson.student.network.load_state_dict(load_file(weights))
    mine = predictions(lesson.student.network, stream.test)
    theirs = predictions(lesson.teacher.network, stream.test)
    assert record.final["agreement"] == accuracy(mine, theirs)
    assert record.final["last_accuracy"] == accuracy(mine, stream.test.labels)


def test_the_test_set_is_the_held_out_part_where_asked():
    data = DataSpec(source="synthetic", validation=0.2)
    stream = open_stream(plain_cell("cnn2", data=data), dataset(), CPU)
    assert (len(stream.train.labels), len(stream.test.labels)) == (32, 8)


def test_a_nondeterministic_operation_leaves_its_name_and_no_warning_for_each_step(recwarn):
    set_numerics(plain_cell("cnn2"), CPU)
    found: set[str] = set()
    with note_nondeterministic(found):
        for _ in range(100):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        warnings.warn("something else", stacklevel=1)
    assert found == {"put_"}
    assert [str(w.message) for w in recwarn] == ["something else"]
    kept = [x for x in gc.get_objects() if type(x) in (UserWarning, warnings.WarningMessage)]
    assert not [x for x in kept if "determin" in str(x)]


def test_a_record_names_the_nondeterministic_operations_of_its_cohort(tmp_path):
    def report(*event: object) -> None:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    one = plain_cell("cnn2")
    assert run([one], tmp_path, report=report)[one.id].conditions["nondeterministic"] == ["put_"]


def test_a_loss_that_is_not_finite_fails_the_cell_alone(tmp_path):
    bad = cell("soft_logits", recipe=recipe(learning_rate=1e30))
    good = cell("soft_logits")
    records = run([bad, good], tmp_path)
    assert records[good.id].status == "finished"
    assert records[bad.id].status == "failed"
    assert "not finite" in records[bad.id].error or "is nan" in records[bad.id].error
    assert "epoch 1" in records[bad.id].error
    assert "Traceback" in records[bad.id].traceback
    assert not (tmp_path / bad.id / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("task", "skipped", "weight", "words"),
    [
        (math.nan, 0, 1.0, r"is nan in epoch 2 \(stage 'x'\): .* rate, or mend the transfer loss"),
        (1.0, 10, 1.0, "the transfer loss of every sample is not finite"),
        (1.0, 9, math.inf, "a weight is not finite .* rate, or mend the transfer loss"),
        (1.0, 9, 1.0, None),
    ],
)
def test_an_epoch_that_training_cannot_recover_from_is_refused_by_its_cause(
    task, skipped, weight, words
):
    stage = Stage(name="x", share=1.0, transfer=squared_gap, taps=("logits",))
    sums = Sums(CPU)
    sums.steps, sums.samples = 1, 10
    sums.add("task", torch.tensor(task))
    sums.add("skipped", torch.tensor(skipped))
    refused = nullcontext() if words is None else pytest.raises(NonFiniteError, match=words)
    with refused:
        check_finite(sums, stage, [torch.full((2,), weight)], epoch=2)


def test_a_stage_counts_the_samples_that_its_loss_reached_skipped_and_masked():
    def transfer(pair, connector):
        # Image 3 has an infinite loss, and 3, 4 and 30 an undefined term; 30 is not selected.
        masked = (pair.index == 3) | (pair.index == 4) | (pair.index == 30)
        return MaskedLoss(squared_gap(pair, connector) / (pair.index != 3), masked)

    part = {"share": 0.5, "taps": ("logits",)}
    chosen = {"clean": True, "keep": keep_first_half, "task_on_all": True}
    lesson = lesson_of(
        Stage(name="masked", transfer=transfer, **part, **chosen),
        Stage(name="plain", transfer=squared_gap, **part),
    )
    lesson.epochs(4)
    masked, plain = stage_entries(lesson.student)
    counts = ("reached_samples", "skipped_samples", "masked_samples")
    assert [masked[name] for name in counts] == [2 * 18, 2 * 1, 2 * 1]
    assert [plain[name] for name in counts] == [2 * 40, 0, 0]
    assert masked["kept_images"] == 20
    assert "kept_images" not in plain


def test_a_pair_that_a_method_cannot_serve_is_not_applicable(tmp_path):
    for name in ("fsp", "kd_svd"):
        one = cell(name, hyperparameters={"connectors": False})
        record = run([one], tmp_path)[one.id]
        assert record.status == "not_applicable"
        assert "width" in record.error or "channel" in record.error
        assert record.traceback == ""
    with pytest.raises(NotApplicable, match="stage9"):
        lesson_of(Stage(name="a", share=1.0, transfer=squared_gap, taps=("stage9",)))


def test_teacher_and_student_must_have_the_same_classes():
    lesson = Lesson(cell("soft_logits"))
    student, stream = lesson.student, lesson.stream
    lesson.teacher.shapes = {**lesson.teacher.shapes, "logits": (7,)}
    made = student.cell, student.method, student.network, stream.image_shape
    with pytest.raises(ValueError, match="has 7 classes, the student 4"):
        make_student(*made, lesson.teacher, CPU, stream.known_labels)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"transfer": lambda p, c: p.student.logits}, r"shape \(10, 4\), wanted \(10,\) or \(\)"),
        (
            {"transfer": lambda p, c: MaskedLoss(squared_gap(p, c), p.labels)},
            r"mask \(10,\) of torch",
        ),
        ({"transfer": lambda p, c: squared_gap(p, c).detach()}, "does not depend on what trains"),
        ({"transfer_weight": lambda p: math.nan}, "transfer_weight is nan"),
        ({"clean": True, "keep": lambda v, y: Selection(y >= 0, {"y": y})}, r"Selection\.details"),
        ({"watch": lambda p, c: {"test_accuracy": 1.0}}, "'test_accuracy' .*; rename it"),
        ({"watch": lambda p, c: {"a//b": 1.0}}, "'a//b' .*; rename it"),
        ({"merge": lambda a, b, e: Merged(a, {"task_loss": a[0].sum()})}, "'task_loss' .*; rename"),
    ],
)
def test_what_a_stage_gives_that_cannot_be_used_is_named_in_its_first_epoch(wrong, words):
    with pytest.raises((TypeError, ValueError), match=words):
        lesson_of(teaching(**wrong)).epoch()


def test_a_tap_that_was_not_asked_for_is_named():
    with pytest.raises(KeyError, match=r"stage1.*Stage\.taps"):
        View({"logits": torch.zeros(1)})["stage1"]


def test_a_teacher_is_loaded_from_what_its_cell_saved(tmp_path):
    one = plain_cell("cnn3")
    run([one], tmp_path)
    stream = open_stream(one, dataset(), CPU)
    teacher = load_teacher(one, Store(tmp_path), stream, CPU)
    found = accuracy(predictions(teacher.network, stream.test), stream.test.labels)
    assert found == Store(tmp_path).read(one.id).final["last_accuracy"]
    path = tmp_path / one.id / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged: .*checksum"):
        load_teacher(one, Store(tmp_path), stream, CPU)


HALF = DataSpec(source="synthetic", pad=1, labels=0.5)


def test_a_transfer_loss_never_sees_a_hidden_label():
    seen = {}

    def transfer(pair, connector):
        seen.update(zip(pair.index.tolist(), pair.labels.tolist(), strict=True))
        return squared_gap(pair, connector)

    lesson = lesson_of(teaching(transfer), data=HALF)
    lesson.epoch()
    known = lesson.stream.labelled
    assert len(seen) == 40
    assert known.sum() == 20
    for index, label in seen.items():
        assert label == (lesson.stream.train.labels[index] if known[index] else -1)


def test_hidden_labels_do_not_move_the_student():
    plain, shuffled = (lesson_of(teaching(), data=HALF) for _ in range(2))
    labels = shuffled.stream.train.labels
    labels.copy_(torch.where(shuffled.stream.labelled, labels, 3 - labels))
    plain.epoch(), shuffled.epoch()
    mine, theirs = plain.state(), shuffled.state()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_stage_of_labels_alone_takes_as_many_steps_on_the_labelled_images():
    lesson = lesson_of(Stage(name="a", share=1.0), data=HALF)
    lesson.epoch()
    assert lesson.student.sums.steps == 4
    known = lesson.stream.labelled.nonzero().flatten()
    assert set(lesson.student.subset.tolist()) == set(known.tolist())


def test_a_selection_by_labels_is_not_applicable_where_some_are_hidden(tmp_path):
    one = cell("selective", data=HALF)
    assert run([one], tmp_path)[one.id].status == "not_applicable"


MIXED = {"mixup": 0.4, "cutmix": 1.0}


def test_the_task_loss_of_mixed_images_is_that_of_both_labels():
    logits, first, second = torch.randn(6, 4), torch.arange(6) % 4, torch.arange(1, 7) % 4
    pair = Pair(View({"logits": logits}), View({}), first, torch.arange(6))
    eye = torch.eye(4)
    for smoothing in (0.0, 0.1):
        objective = Objective(Stage(name="a", share=1.0), "m", None, None, None, smoothing, True)
        one, other = (
            torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            for labels in (first, second)
        )
        found = objective.task(pair, 0.3 * eye[first] + 0.7 * eye[second])
        torch.testing.assert_close(found, 0.3 * one + 0.7 * other)


def test_the_teacher_and_all_students_see_the_mixed_images(tmp_path, monkeypatch):
    cells = [cell(name, recipe=recipe(**MIXED)) for name in ("soft_logits", "fitnet", "selective")]
    assert len({cells[0].stream, cells[1].stream, cell("rkd").stream}) == 2
    seen, view = [], Teacher.view
    monkeypatch.setattr(Teacher, "view", lambda s, x, taps: seen.append(x) or view(s, x, taps))
    records = run(cells, tmp_path / "together")
    stream = open_stream(cells[0], dataset(), CPU)
    for epoch in range(2):
        for step, batch in enumerate(stream.train.epoch(epoch), start=1):
            images, targets = stream.mixed(batch, epoch, step)
            assert any(torch.equal(images, x) for x in seen)
            assert not torch.equal(images, batch.images)
            torch.testing.assert_close(targets.sum(1), torch.ones(10))
    alone = run(cells[:1], tmp_path / "alone")[cells[0].id]
    assert alone.curves == records[cells[0].id].curves
    assert records[cells[1].id].status == "finished"
    assert records[cells[2].id].status == "not_applicable"
    assert "without augmentation" in records[cells[2].id].error


def test_hidden_labels_have_no_weight_in_mixed_images():
    stream = open_stream(plain_cell("cnn2", recipe=recipe(**MIXED), data=HALF), dataset(), CPU)
    batches = [stream.mixed(batch, 0, n)[1] for n, batch in enumerate(stream.train.epoch(0))]
    assert torch.cat(batches).sum() == pytest.approx(20)


@pytest.mark.parametrize("field", ["labels", "index"])
def test_a_loss_that_reads_what_mixed_images_lack_is_not_applicable(field):
    lesson = lesson_of(
        teaching(lambda pair, c: squared_gap(pair, c) * getattr(pair, field)),
        recipe=recipe(mixup=0.2),
    )
    with pytest.raises(NotApplicable, match="mixup"):
        lesson.epoch()


def test_soft_logits_joined_to_a_method_are_the_sum_written_out():
    lesson = Lesson(cell("rkd", hyperparameters={"with_soft_logits": True}))
    student = lesson.student
    stage = student.method.plan[0]
    assert stage.task_weight == pytest.approx(0.1)
    student.begin_epoch(lesson.clean_view, lesson.stream.train.labels)
    batch = next(iter(lesson.stream.train.epoch(0)))
    view = lesson.teacher.view(batch.images, student.taps)
    twin = Lesson(cell("rkd")).student
    shown = View(twin.network.train().view(batch.images, ("embedding", "logits")))
    pair = Pair(shown, view, batch.labels, batch.index)
    soft = build_method("soft_logits").plan[0].transfer(pair, twin.connector).loss.mean()
    relation = build_method("rkd").plan[0].transfer(pair, twin.connector).loss
    task = torch.nn.functional.cross_entropy(shown.logits, batch.labels)
    (0.1 * task + 0.9 * soft + relation).backward()
    student.optimiser.param_groups[0] |= {"momentum": 0.0, "weight_decay": 0.0}
    student.step(StudentBatch(*batch, view, False))
    for mine, theirs in zip(student.network.parameters(), twin.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.05 * theirs.grad)


def test_transfer_starts_from_the_trunk_of_its_source(tmp_path):
    one = cell("transfer")
    run([one.source], tmp_path)
    weights = load_file(tmp_path / one.source.id / "weights.safetensors")
    stream = open_stream(one, dataset(), CPU)
    network = build_network(one, stream.classes, stream.image_shape)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_from_source(one, network, Store(tmp_path))
    for name, tensor in network.state_dict().items():
        wanted = fresh[name] if name.startswith("head.") else weights[name]
        assert torch.equal(tensor, wanted), name
    assert run([one], tmp_path)[one.id].status == "finished"


def test_transfer_from_an_untrained_source_is_training_from_scratch(tmp_path):
    one = cell("transfer", hyperparameters={"trunk_lr_factor": 1.0})
    untrained = build_network(one.source, 4, (1, 8, 8))
    scratch = plain_cell("cnn2", data=one.data)
    run([one.source], tmp_path)
    store = Store(tmp_path)
    store.write(store.read(one.source.id), {"weights": weights_content(untrained)})
    records = run([one, scratch], tmp_path)
    assert records[one.id].curves == records[scratch.id].curves


def test_transfer_refuses_another_architecture_and_does_without_a_source(tmp_path):
    crossed = cell("transfer", source=plain_cell("cnn3"))
    record = run([crossed], tmp_path)[crossed.id]
    assert record.status == "failed"
    assert "got cnn3 for cnn2" in record.error
    alone = cell("transfer", source=None)
    assert run([alone], tmp_path)[alone.id].status == "not_applicable"


def test_the_copied_layers_learn_more_slowly_than_the_new_classifier():
    lesson = Lesson(cell("transfer"))
    lesson.epoch()
    rates = {group["factor"]: group["lr"] for group in lesson.student.optimiser.param_groups}
    assert rates == pytest.approx({0.1: 0.005, 1.0: 0.05})


def test_the_head_stays_behind_wherever_it_sits_in_the_network():
    assert head_keys(zoo.build("cnn2", 4, (1, 8, 8))) == {"head.weight", "head.bias"}
    network = zoo.build("torchvision/resnet18", 4, (3, 32, 32))
    assert head_keys(network) == {"model.fc.weight", "model.fc.bias"}


def test_a_stage_sees_no_tap_that_others_of_the_cohort_asked_for():
    def transfer(pair, connector):
        assert set(pair.teacher.taps) == {"logits"}
        return squared_gap(pair, connector)

    lesson = lesson_of(teaching(transfer))
    student, train = lesson.student, lesson.stream.train
    student.begin_epoch(lesson.clean_view, train.labels)
    batch = next(iter(train.epoch(0)))
    union = lesson.teacher.view(batch.images, ("stage1", "logits"))
    student.step(StudentBatch(*batch, union, False))


def test_random_losses_do_not_depend_on_earlier_draws():
    def transfer(pair, connector):
        return squared_gap(pair, connector) * torch.rand(())

    curves = []
    for disturbed in (False, True):
        lesson = lesson_of(teaching(transfer))
        if disturbed:
            torch.rand(7)
        lesson.epoch()
        curves.append(lesson.student.curves)
    assert curves[0] == curves[1]


REFLECT = {"pad": 8, "padding": "reflect"}


def read(spec: DataSpec) -> DataSet:
    """The synthetic set; as a source, with its test images among the training images."""
    whole = dataset()
    if spec.classes is None:
        return whole
    part = (whole.test_images, whole.test_labels)
    return DataSet.of("source", part, part, whole.classes)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (plain_cell("cnn2", recipe=recipe(batch_size=64)), "batch 64 .* the 40 training"),
        (plain_cell("cnn2", data=DataSpec(source="synthetic", resolution=3)), "factor 3"),
        (plain_cell("cnn2", data=HALF.model_copy(update=REFLECT)), "pad 8"),
        (plain_cell("torchvision/resnet18"), "cell"),
        (cell("fitnet", recipe=recipe(epochs=1)), "epochs: got 1, wanted .* each of 2 stages"),
        (cell("fitnet", recipe=recipe(warmup=2)), "warmup 2 takes the whole of a stage of [12] ep"),
        (cell("transfer"), "20 test images are among the training images"),
    ],
    ids=["batch", "resolution", "padding", "network", "epochs", "warmup", "source"],
)
def test_a_cell_that_cannot_train_is_refused_before_anything_trains(wrong, words):
    with pytest.raises(ValueError, match=words):
        check_cells([plain_cell("cnn2"), wrong], read)
    check_cells([plain_cell("cnn2")], read)


def test_a_longer_trained_student_goes_the_same_way_and_then_on(tmp_path):
    constant = recipe(schedule="constant", epochs=2)
    plain = plain_cell("cnn2", recipe=constant)
    longer = plain_cell("cnn2", recipe=constant.model_copy(update={"epochs": 4}))
    records = run([cell("soft_logits"), plain, longer], tmp_path)
    short, long = records[plain.id].curves, records[longer.id].curves
    # Same initial student, same images in the same order: bit-equal as far as both go.
    assert long["train_loss"][:2] == short["train_loss"]
    assert long["test_accuracy"][:2] == short["test_accuracy"]
    assert len(long["train_loss"]) == records[longer.id].final["epochs"] == 4
