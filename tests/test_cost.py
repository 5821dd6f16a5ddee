"""The profiler: what it counts, how costs add up, what it measures, and its tables and figures."""

import json
from dataclasses import replace

import pytest
import summary_grid as grid
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cell import Recipe
from bench.cli import main
from bench.cost.costs import (
    CostRecord,
    Costs,
    Quartiles,
    StageCost,
    StageShare,
    read_costs,
    training_cost_ratio,
)
from bench.cost.counting import CountingMode, count, peak_bytes
from bench.cost.profiler import MethodRow, Profile, profile
from bench.cost.steps import StudentStage, TeacherBatch, Workload
from bench.hyperparameters import build_method
from bench.record import NOT_APPLICABLE
from bench.report.cost import method_table, write_costs
from bench.report.tables import to_markdown
from bench.tracking import Mirror


def tiny(**changes) -> Workload:
    recipe = Recipe(epochs=10, batch_size=6, learning_rate=0.1)
    fields = {"classes": 3, "image_shape": (1, 8, 8), "recipe": recipe}
    return Workload(**{**fields, "device": torch.device("cpu"), **changes})


def stage_of(name: str, position: int = 0, **hparams) -> StudentStage:
    method = build_method(name, **hparams)
    return StudentStage(TeacherBatch("cnn3", tiny()), "cnn2", name, method, method.plan[position])


ROWS_OF_TEN, SYMMETRIC, TALL = torch.ones(4, 10), torch.eye(6).repeat(5, 1, 1), torch.ones(2, 8, 4)


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        (lambda: torch.ones(5, 7) @ torch.ones(7, 3), 2 * 5 * 7 * 3),
        (lambda: ROWS_OF_TEN.exp().sum(1).clone(), 0),
        (lambda: torch.linalg.eigh(SYMMETRIC), 5 * 9 * 6**3),
        (lambda: torch.linalg.svd(TALL, full_matrices=False), 2 * (14 * 8 * 4**2 + 8 * 4**3)),
        (lambda: torch.linalg.solve_ex(SYMMETRIC, SYMMETRIC[..., 0]), 5 * (2 * 72 + 2 * 6**2)),
        (lambda: torch.linalg.qr(TALL), 2 * round(4 * 8 * 4**2 - 4 / 3 * 4**3)),
    ],
)
def test_operators_count_by_formula(action, wanted):
    assert count(action) == wanted


def test_products_and_convolutions_count_as_torch_counts_them():
    lesson = TeacherBatch("cnn3", tiny())
    network = lesson.workload.build("resnet8")

    def step() -> None:
        network(lesson.batch.images).sum().backward()

    with FlopCounterMode(display=False) as reference:
        step()
    assert count(step) == reference.get_total_flops()


def test_memory_follows_tensors_until_they_are_freed():
    with CountingMode() as memory:
        first = torch.zeros(100)
        view = first.view(10, 10)
        first += 1
        assert memory.live_bytes == 400
        second = torch.zeros(50)
        del first
        assert memory.live_bytes == 600  # the view keeps the storage
        del view, second
    assert (memory.live_bytes, memory.peak_bytes) == (0, 600)


def test_a_step_is_the_students_the_teachers_pass_and_the_loss():
    fitnet, plain = stage_of("fitnet"), stage_of("student")
    loss = fitnet.loss_alone()
    # Three regressors from cnn2's widths to cnn3's: forward, and twice that backward.
    maps = [(2, 3, 64), (4, 6, 16), (8, 12, 4)]
    products = sum(2 * 6 * here * there * places for here, there, places in maps)
    assert count(loss) == 3 * products
    teacher = count(fitnet.teacher_view)
    # The hint stage runs the student without its head: a product and two gradients less.
    head = 3 * 2 * 6 * 8 * 3
    wanted = 3 * products + teacher + count(plain.step) - head
    assert count(fitnet.step) == wanted
    assert plain.loss_alone() is None
    assert plain.teacher_view() is None


def test_watching_for_the_loss_keeps_no_graph_of_later_steps():
    stage = stage_of("rkd")
    stage.step()
    before = peak_bytes(stage.step, torch.device("cpu"))
    assert stage.loss_alone() is not None
    assert peak_bytes(stage.step, torch.device("cpu")) == before


def test_stages_count_by_epochs_kept_images_and_work_done_once():
    assert training_cost_ratio([StageShare(30, 1.0, 4.2)], 30, 4.2) == 1.0
    assert training_cost_ratio([StageShare(9, 1, 5.0), StageShare(30, 1, 5.0)], 30, 5.0) == 1.3
    plan = [StageShare(18, 1.0, 10.0), StageShare(12, 0.9, 15.0, once=6.0)]
    wanted = (18 * 10 + 12 * 0.9 * 15 + 6) / (30 * 10)
    assert training_cost_ratio(plan, 30, 10.0) == pytest.approx(wanted, rel=1e-9)


def around(value: float) -> Quartiles:
    return Quartiles(value, 0.9 * value, 1.2 * value, 5)


def stage(name: str, step: float, loss: float | None, **changes) -> StageCost:
    fields = {
        "epochs": 10, "kept": 1.0, "peak_bytes": 3 * 2**20,
        "step_flops": 10**6, "loss_ms": None if loss is None else around(loss),
    }  # fmt: skip
    return StageCost(name=name, step_ms=around(step), **{**fields, **changes})


SHARED = {
    "data": "toy", "teacher": "big", "student": "small", "epochs": 10, "plain_ms": around(3.0),
    "plain_flops": 3 * 10**6, "plain_peak_bytes": 2**20, "teacher_bytes": 2**19,
    "conditions": {"device": "a machine", "device_type": "cpu", "threads": 1, "precision": "fp32",
                   "batch": 50, "image_shape": [1, 8, 8], "rounds": 5},
}  # fmt: skip


def record(label: str, category: str, *stages: StageCost, **changes) -> CostRecord:
    fields = {"method": label, "category": category, "stages": list(stages)}
    return CostRecord(**{**SHARED, "label": label, **fields, **changes})


COSTS = Costs([
    record("student", "baseline", stage("train", 3.0, None, peak_bytes=2**20),
           training_cost_ratio=Quartiles(1.0, 1.0, 1.0, 5), training_flop_ratio=1.0),
    record("hints", "multi-connection",
           stage("hint", 12.0, 3.0, epochs=3, held_bytes=2**20),
           stage("finetune", 6.0, 0.12, epochs=7), method="fitnet",
           training_cost_ratio=around(2.0), training_flop_ratio=2.5, extra_parameters=1234),
    record("fsp", "shared-representation", status=NOT_APPLICABLE, error="widths differ"),
])  # fmt: skip


def test_costs_survive_their_file(tmp_path):
    (tmp_path / "cost.json").write_text(COSTS.to_json())
    assert read_costs(tmp_path / "cost.json") == COSTS
    assert read_costs(tmp_path / "none.json") == Costs()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0}', '{"schema": 5, "records": [{}]}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged: .*remove it and profile again") as told:
        read_costs(tmp_path / "cost.json")
    assert "\n" not in str(told.value)


def test_newer_measurements_replace_older_ones_in_their_place():
    newer = replace(COSTS.records[1], extra_parameters=7)
    elsewhere = replace(newer, conditions={**newer.conditions, "batch": 64})
    merged = COSTS.with_newer(Costs([newer, elsewhere]))
    assert [r.extra_parameters for r in merged.records] == [0, 7, 0, 7]


def test_costs_of_a_plan_are_those_of_its_rows():
    known = grid.cost("rkd", 1.5)
    gone = [replace(known, student="gone"), replace(known, teacher="gone"), grid.cost("dkd", 1.5)]
    assert Costs([known, *gone]).of_plan(grid.plan(), grid.records()) == Costs([known])


def test_extra_memory_is_that_of_the_costliest_stage():
    assert [record.extra_peak_bytes for record in COSTS.records] == [0, 3 * 2**20, 0]


def test_table_of_methods_reads_as_expected():
    lines = to_markdown(method_table(COSTS.records)).splitlines()
    title = "## Cost of training, toy: big → small, batch 50, a machine, threads 1, fp32"
    assert lines[0] == title
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[2:] == [
        ["no teacher", "1.0 ± 0.0", "1.0", "-", "3.00", "0.0", "0"],
        ["hints", r"2.0 \[1.8, 2.4]", "2.5", "3.00; 0.12", "12.00; 6.00", "3.0", "1234"],
        ["fsp", *"------"],
    ]  # fmt: skip
    assert any("image shape" in line for line in lines)


def test_files_are_the_same_bytes_every_time(tmp_path):
    one, two = (write_costs(COSTS, tmp_path / folder) for folder in ("one", "two"))
    assert [path.name for path in one] == ["cost.csv", "cost.md"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


ROWS = [
    MethodRow("soft_logits", "soft_logits"),
    MethodRow("selective", "selective"),
    MethodRow("fsp", "fsp"),
    MethodRow("fsp (connectors=False)", "fsp", {"connectors": False}),
    MethodRow("kd_svd", "kd_svd"),
]
HOW = Profile(data="toy", train_images=1000, rounds=2)


@pytest.fixture(scope="module")
def measured() -> dict[str, CostRecord]:
    messages: list[str] = []
    costs = profile("cnn3", "cnn2", ROWS, tiny(), HOW, lambda what, *_: messages.append(what))
    assert any("preparing fsp" in what for what in messages)
    return {record.label: record for record in costs.records}


def test_the_plain_student_comes_first_and_costs_one(measured):
    assert list(measured) == ["student", *(row.label for row in ROWS)]
    plain = measured["student"]
    assert plain.training_cost_ratio == Quartiles(1.0, 1.0, 1.0, 2)
    assert plain.training_flop_ratio == 1.0
    assert plain.extra_peak_bytes == plain.extra_parameters == 0
    assert plain.stages[0].step_ms == plain.plain_ms


def test_every_stage_is_measured_with_its_loss(measured):
    init, main_stage = measured["fsp"].stages
    assert [init.name, main_stage.name] == ["init", "main"]
    assert (init.epochs, main_stage.epochs) == (3, 7)
    assert init.loss_ms is not None
    assert main_stage.loss_ms is None
    wanted = {"device", "threads", "torch", "precision", "batch", "rounds", "memory"}
    for record in measured.values():
        assert wanted <= set(record.conditions)
        for part in (s for s in record.stages if s.loss_ms is not None):
            for ms in (part.step_ms, part.loss_ms):
                assert 0 < ms.q1 <= ms.median <= ms.q3
                assert ms.n == 2


def test_what_is_held_from_step_to_step_counts(measured):
    record = measured["selective"]
    held = record.stages[1].held_bytes
    # The regressor, its momentum and two statistics; the teacher's embedding of every image.
    assert held == 4 * (2 * record.extra_parameters + 2 * 12 + 1000 * 12)
    assert measured["soft_logits"].stages[0].held_bytes == 0
    above = record.stages[1].peak_bytes + held - record.plain_peak_bytes
    assert record.extra_peak_bytes == above
    assert measured["soft_logits"].teacher_bytes > 0


def test_selection_costs_kept_steps_and_one_teacher_pass(measured):
    record = measured["selective"]
    first, second = record.stages
    assert (first.kept, first.once_ms) == (1.0, None)
    assert 0.85 < second.kept < 1
    assert second.once_ms is not None
    assert second.once_flops > 0
    wanted = training_cost_ratio(
        [StageShare(6, 1.0, first.step_flops),
         StageShare(4, second.kept, second.step_flops, second.once_flops)],
        10, record.plain_flops,
    )  # fmt: skip
    assert record.training_flop_ratio == wanted


def test_a_method_that_cannot_serve_the_pair_says_why(measured):
    record = measured["fsp (connectors=False)"]
    assert record.status == NOT_APPLICABLE
    assert "widths differ" in record.error
    assert record.training_cost_ratio is None


def test_counts_and_memory_do_not_depend_on_the_run(measured):
    again = profile("cnn3", "cnn2", ROWS[-1:], tiny(), replace(HOW, rounds=1)).records[-1]
    before = measured["kd_svd"]
    assert [s.step_flops for s in again.stages] == [s.step_flops for s in before.stages]
    assert [s.peak_bytes for s in again.stages] == [s.peak_bytes for s in before.stages]


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    words = ["--pairs", "cnn3:cnn2", "--methods", "soft_logits", "--rounds", "1"]
    words.append("recipe.batch_size=4")
    assert main(["profile", *words, "--work-dir", str(tmp_path)]) == 0
    assert "soft_logits" in capsys.readouterr().out
    (folder,) = tmp_path.glob("digits-*")
    saved = json.loads((folder / "cost.json").read_text())
    assert [record["label"] for record in saved["records"]] == ["student", "soft_logits"]
    assert saved["records"][0]["conditions"]["batch"] == 4
    assert saved["records"][1]["hyperparameters"]["temperature"] == 8.0
    assert "soft_logits" in (folder / "cost.md").read_text(encoding="utf-8")
    again = Mirror(tmp_path, folder.name)
    assert again.read_file("cost.json") == (folder / "cost.json").read_text()
