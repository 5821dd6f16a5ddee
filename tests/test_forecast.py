"""What a grid will cost, from pieces whose sums are worked out by hand."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from lessons import cell, plain_cell, recipe

from bench.cost.extrapolate import extrapolate
from bench.cost.forecast import Forecast, at_throughput, evaluations, spans_of
from bench.cost.parts import (
    EXTRAPOLATED,
    Parts,
    StageParts,
    StreamParts,
    StudentParts,
    TeacherParts,
    kind,
    stream_kind,
    student_from,
    teacher_kind,
)

STREAM = StreamParts(
    train_images=40, test_images=20, steps=4, open_seconds=1.0, batch_seconds=0.01, held_bytes=7
)
TEACHER = TeacherParts(
    view_seconds=0.1, view_flops=100, clean_seconds=2.0, clean_flops=400, look_seconds=3.0,
    test_flops=50, held_bytes=11, view_bytes=13, cell_seconds=0.5,
)  # fmt: skip


def stage(**changes: object) -> StageParts:
    values = {
        "name": "all", "reads_teacher": False, "clean": False, "apart": False, "kept": 1.0,
        "has_head": True, "step_seconds": 1.0, "epoch_seconds": 0.25, "enter_seconds": 0.125,
        "step_flops": 1000,
    }  # fmt: skip
    return StageParts(**{**values, **changes})


def student(*stages: StageParts, **changes: object) -> StudentParts:
    values = {"test_seconds": 10.0, "test_flops": 9, "held_bytes": 100, "step_bytes": 1000}
    return StudentParts(stages=stages, **{**values, **changes})


PLAIN = plain_cell("cnn2")
TAUGHT = cell("soft_logits")
HINTED = cell("fitnet")  # two stages of 4 epochs: 1 and 3
SELECTIVE = cell("selective")  # two stages, the second on clean views


def parts(**changes: StudentParts) -> Parts:
    students = {
        "student": student(stage()),
        "soft_logits": student(stage(reads_teacher=True, step_seconds=2.0)),
        "fitnet": student(
            stage(reads_teacher=True, has_head=False, step_seconds=3.0),
            stage(reads_teacher=True, step_seconds=5.0),
        ),
        "selective": student(stage(), stage(clean=True, apart=True, kept=0.5)),
        **changes,
    }
    cells = [PLAIN, TAUGHT, HINTED, SELECTIVE]
    return Parts(
        {stream_kind(PLAIN): STREAM},
        {teacher_kind(PLAIN): TeacherParts(cell_seconds=0.5), teacher_kind(TAUGHT): TEACHER},
        {kind(c): students[c.method] for c in cells},
    )


def test_a_plain_student_by_hand():
    # Open 1; 4 epochs of 4 steps: 16 batches of .01, 16 steps of 1, 4 x .25, begun .125;
    # 4 evaluations of 10; the record .5.
    wanted = 1 + 0.16 + 16 + 1 + 0.125 + 40 + 0.5
    assert Forecast(parts()).seconds([PLAIN]) == pytest.approx(wanted)
    assert Forecast(parts()).flops([PLAIN]) == 16 * 1000 + 4 * 9


def test_a_cohort_pays_teacher_and_batches_once():
    forecast = Forecast(parts())
    # Shared: open 1, look 3, 16 batches, 16 views. Own: 16 steps of 2, 1, .125, 5 tests
    # (the last with the teacher's answers), record .5; and the plain student's, see above.
    taught = 32 + 1 + 0.125 + 50 + 0.5
    plain = 16 + 1 + 0.125 + 40 + 0.5
    wanted = 1 + 3 + 0.16 + 1.6 + taught + plain
    assert forecast.seconds([TAUGHT, PLAIN]) == pytest.approx(wanted)
    assert forecast.shared_seconds([TAUGHT, PLAIN]) == pytest.approx(1 + 3 + 0.16 + 1.6)
    own = [forecast.own_seconds(c, [TAUGHT, PLAIN]) for c in (TAUGHT, PLAIN)]
    assert own == pytest.approx([taught, plain])
    assert forecast.flops([TAUGHT, PLAIN]) == 16 * 100 + 50 + 2 * 16 * 1000 + 9 * 9


def test_splitting_a_cohort_pays_what_is_shared_twice():
    forecast = Forecast(parts())
    whole = forecast.seconds([TAUGHT, HINTED])
    apart = forecast.seconds([TAUGHT]) + forecast.seconds([HINTED])
    assert apart - whole == pytest.approx(forecast.shared_seconds([TAUGHT]))


def test_stages_have_their_own_epochs_and_are_tested_only_with_a_head():
    spans = spans_of(HINTED, parts().students[kind(HINTED)])
    assert [(s.begin, s.end) for s in spans] == [(0, 1), (1, 4)]
    assert evaluations(HINTED, spans) == 3
    every_3 = HINTED.model_copy(update={"recipe": recipe(evaluate_every=3)})
    assert evaluations(every_3, spans) == 2  # after epoch 3, and the last
    lesson = Forecast(parts()).lesson(HINTED)
    assert lesson.training_seconds == pytest.approx(4 * 3 + 12 * 5 + 4 * 0.25 + 2 * 0.125)
    assert lesson.testing_seconds == pytest.approx(4 * 10)


def test_images_of_its_own_are_batches_of_its_own_and_a_clean_view_is_one_pass():
    forecast = Forecast(parts())
    (first, second) = spans_of(SELECTIVE, parts().students[kind(SELECTIVE)])
    own = 4 * 4 * 1 - 0.5 * 4 * second.epochs * 1  # half the steps in the second stage
    batches = 0.5 * 4 * second.epochs * 0.01
    lesson = forecast.lesson(SELECTIVE)
    assert lesson.training_seconds == pytest.approx(own + batches + 4 * 0.25 + 2 * 0.125)
    # The shared stream serves the first stage; the teacher looks once at all images.
    shared = 1 + 3 + first.epochs * 4 * 0.01 + 2.0
    assert forecast.shared_seconds([SELECTIVE]) == pytest.approx(shared)


def test_diagnostics_test_the_training_images_too():
    examined = PLAIN.model_copy(update={"diagnostics": True})
    known = parts()
    both = replace(known, students={**known.students, kind(examined): known.students[kind(PLAIN)]})
    more = Forecast(both).seconds([examined]) - Forecast(both).seconds([PLAIN])
    assert more == pytest.approx(40 / 20 * 10)


def test_training_together_may_be_faster_than_its_pieces():
    known = parts()
    stacked = replace(TEACHER, together=0.5)
    teachers = {**known.teachers, teacher_kind(TAUGHT): stacked}
    faster = Forecast(replace(known, teachers=teachers))
    gained = Forecast(known).seconds([TAUGHT]) - faster.seconds([TAUGHT])
    assert gained == pytest.approx(Forecast(known).training_seconds([TAUGHT]) / 2)


def test_checkpoints_count_by_the_time_that_goes_by():
    saved = parts(student=student(stage(), checkpoint_seconds=0.25))
    without = Forecast(saved).seconds([PLAIN])
    assert Forecast(saved, 25.0).seconds([PLAIN]) == pytest.approx(without + 2 * 0.25)


@pytest.mark.parametrize("longer", [{"epochs": 5}, {"evaluate_every": 1, "epochs": 8}])
def test_more_epochs_take_longer_and_more_operations(longer):
    forecast = Forecast(parts())
    more = TAUGHT.model_copy(update={"recipe": recipe(**longer)})
    assert forecast.seconds([more]) > forecast.seconds([TAUGHT])
    assert forecast.flops([more]) > forecast.flops([TAUGHT])


def test_memory_adds_up_over_students():
    forecast = Forecast(parts())
    assert forecast.bytes([TAUGHT, PLAIN]) == 7 + 11 + 13 + 2 * 1100
    assert forecast.student_bytes(PLAIN) == 1100


def test_seeds_and_epochs_make_no_other_kind_but_what_costs_does():
    assert kind(PLAIN) == kind(plain_cell("cnn2", seed=3))
    assert kind(PLAIN) == kind(plain_cell("cnn2", recipe=recipe(epochs=9, learning_rate=0.5)))
    others = [
        plain_cell("cnn3"),
        plain_cell("cnn2", recipe=recipe(batch_size=20)),
        plain_cell("cnn2", precision="bf16"),
        plain_cell("cnn2", diagnostics=True),
        plain_cell("cnn2", fingerprint="other"),
        cell("soft_logits", hyperparameters={"temperature": 2.0}),
        cell("soft_logits", teacher="cnn4"),
    ]
    assert len({kind(c) for c in [PLAIN, TAUGHT, *others]}) == len(others) + 2


def test_at_a_throughput_everything_is_operations_over_it():
    forecast = Forecast(at_throughput(parts(), 100.0))
    cells = [TAUGHT, SELECTIVE, PLAIN]
    assert forecast.seconds(cells) == pytest.approx(forecast.flops(cells) / 100)


def test_rows_that_were_only_counted_take_the_rate_of_their_network_and_the_row():
    """fitnet takes 3x as long as its operations say where it was measured: here too."""
    here = cell("fitnet", student="cnn3", teacher="cnn4")
    plain = plain_cell("cnn3")
    counted = student(stage(step_seconds=0, step_flops=4000), stage(step_seconds=0),
                      origin=EXTRAPOLATED, test_seconds=0.0)  # fmt: skip
    known = parts()
    students = {
        **known.students,
        kind(plain): student(stage(step_seconds=2.0), test_seconds=20.0),  # 500 a second
        kind(here): counted,
    }
    cells = {kind(c): c for c in (PLAIN, TAUGHT, HINTED, plain, here)}
    found = extrapolate(replace(known, students=students), cells).students[kind(here)]
    # On cnn2 the plain rate is 1000 a second, and fitnet's stages took 3 and 5 times 1000 / 1000.
    assert [s.step_seconds for s in found.stages] == pytest.approx([8 * 3.0, 2 * 5.0])
    assert found.test_seconds == 20.0
    assert found.origin == EXTRAPOLATED


def test_nothing_measured_leaves_counts_alone():
    counted = student(stage(step_seconds=0.0), origin=EXTRAPOLATED)
    alone = Parts({}, {}, {kind(PLAIN): counted})
    assert extrapolate(alone, {kind(PLAIN): PLAIN}) == alone


def test_parts_survive_json():
    found = parts().students[kind(HINTED)]
    assert student_from(asdict(found)) == found
