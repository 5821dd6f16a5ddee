"""The profiler: what it counts, how costs add up, what it measures, and its tables and figures."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import hyperparameters
from bench.cell import Recipe
from bench.cli import main
from bench.cost import machine, scaling
from bench.cost.counting import AllocationMode, CountingMode
from bench.cost.loss import LossAlone
from bench.cost.profiler import MethodRow, count, count_parts, profile
from bench.cost.record import (
    REFERENCE,
    CostRecord,
    Costs,
    Count,
    LossCost,
    Machine,
    Quartiles,
    Scaling,
    StageCost,
    StageShare,
    Traffic,
    read_costs,
    training_cost_ratio,
)
from bench.cost.steps import Bench, Scene, Setting
from bench.hyperparameters import build_method
from bench.method import Pair, View
from bench.record import NOT_APPLICABLE
from bench.report.cost import method_table, stage_table, write_costs
from bench.report.cost_figures import fitted_exponent
from bench.report.cost_order import category_table, findings, in_form
from bench.report.palette import CATEGORIES, METHODS
from bench.report.roofline import roofline_table
from bench.report.tables import Entry, to_csv, to_markdown
from bench.tracking import Mirror


def tiny(**changes) -> Setting:
    recipe = Recipe(epochs=10, batch_size=6, learning_rate=0.1)
    fields = {"data": "toy", "classes": 3, "image_shape": (1, 8, 8), "recipe": recipe,
              "device": torch.device("cpu"), "rounds": 2, "warm_up": 1}  # fmt: skip
    return Setting(**{**fields, **changes})


# --- counting ----------------------------------------------------------------------------------


def counted(action) -> Count:
    return count(action)


def test_a_product_counts_two_flop_a_multiply_add():
    a, b = torch.ones(5, 7), torch.ones(7, 3)
    assert counted(lambda: a @ b) == Count(
        matmul=2 * 5 * 7 * 3, moved_bytes=4 * (5 * 7 + 7 * 3 + 5 * 3)
    )


def test_a_convolution_and_its_gradients_count_three_times_its_forward():
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.ones(2, 4, 8, 8, requires_grad=True)
    forward = 2 * 2 * 6 * 4 * 9 * 64
    assert counted(lambda: layer(x)).matmul == forward
    assert counted(lambda: layer(x).sum().backward()).matmul == 3 * forward


def test_elementwise_operations_count_one_an_element_and_softmax_five():
    x = torch.ones(4, 10)
    assert counted(lambda: x * 2).elementwise == 40
    assert counted(lambda: x.exp()).elementwise == 40
    assert counted(lambda: x.sum(1)).elementwise == 40
    assert counted(lambda: x.softmax(1)).elementwise == 5 * 40


def test_views_move_nothing_and_copies_compute_nothing():
    x = torch.ones(4, 10)
    assert counted(lambda: x.view(10, 4).t()[1:]) == Count()
    assert counted(lambda: x.clone()) == Count(moved_bytes=2 * 160)


def test_decompositions_count_by_formula():
    square = torch.eye(6).expand(5, 6, 6).contiguous()
    assert counted(lambda: torch.linalg.eigh(square)).decomposition == 5 * 9 * 6**3
    tall = torch.ones(2, 8, 4)
    done = counted(lambda: torch.linalg.svd(tall, full_matrices=False))
    assert done.decomposition == 2 * (14 * 8 * 4**2 + 8 * 4**3)
    done = counted(lambda: torch.linalg.solve_ex(square, square[..., 0]))
    assert done.decomposition == 5 * (2 * 6**3 // 3 + 2 * 6**2)
    done = counted(lambda: torch.linalg.qr(tall))
    assert done.decomposition == 2 * round(4 * 8 * 4**2 - 4 / 3 * 4**3)


def test_matmul_count_is_that_of_torch():
    scene = Scene("cnn3", tiny())
    network = scene.build("resnet8")

    def step() -> None:
        network(scene.batch.images).sum().backward()

    with FlopCounterMode(display=False) as reference:
        step()
    assert counted(step).matmul == reference.get_total_flops()


def test_every_operator_of_every_method_is_counted_knowingly():
    """An operator that is no move and tagged neither way counts 1: none may be a copy."""
    seen: set[str] = set()

    class Names(CountingMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            before = self.count.flops
            out = super().__torch_dispatch__(func, types, args, kwargs)
            if self.count.flops > before:
                seen.add(func.overloadpacket.__name__)
            return out

    scene = Scene("cnn3", tiny())
    for name in hyperparameters.METHODS.names():
        method = build_method(name)
        for stage in method.plan:
            bench = Bench(scene, "cnn2", name, method, stage)
            with Names():
                bench.step()
    copies = ("copy", "clone", "fill", "empty", "zeros", "ones", "cat", "stack", "index", "gather")
    adds = {"scatter_add"}
    assert not [name for name in seen - adds if any(word in name for word in copies)]


def test_memory_follows_tensors_until_they_are_freed():
    with AllocationMode() as memory:
        first = torch.zeros(100)
        view = first.view(10, 10)
        first += 1
        assert memory.live_bytes == 400
        second = torch.zeros(50)
        del first
        assert memory.live_bytes == 600  # the view keeps the storage
        del view, second
    assert (memory.live_bytes, memory.peak_bytes) == (0, 600)


# --- the parts of a step -----------------------------------------------------------------------


def bench_of(name: str, position: int = 0, **hparams) -> Bench:
    method = build_method(name, **hparams)
    return Bench(Scene("cnn3", tiny()), "cnn2", name, method, method.plan[position])


@pytest.mark.parametrize(
    ("name", "hparams"),
    [("fitnet", {}), ("kd_svd", {}), ("rkd", {}), ("attention_transfer", {"mode": "joint"}),
     ("kd_svd", {"with_soft_logits": True})],
)  # fmt: skip
def test_parts_add_up_to_the_step(name, hparams):
    bench = bench_of(name, **hparams)
    bench.step()  # momentum buffers exist from the second step on
    assert Count.total(count_parts(bench).values()) == counted(bench.step)


def test_the_loss_part_holds_the_loss_and_its_connectors():
    bench = bench_of("fitnet")
    parts = count_parts(bench)
    # Three regressors from cnn2's widths to cnn3's: forward, and twice that backward.
    maps = [(2, 3, 64), (4, 6, 16), (8, 12, 4)]
    products = sum(2 * 6 * here * there * places for here, there, places in maps)
    assert parts["loss_forward"].matmul == products
    assert parts["loss_backward"].matmul == 2 * products
    assert parts["teacher"].matmul > 0
    assert "second_backward" not in parts


def test_a_merge_has_a_second_backward_pass_through_the_trunk():
    parts = count_parts(bench_of("kd_svd"))
    assert parts["loss_forward"].decomposition > 0
    assert parts["student_backward"].decomposition == parts["second_backward"].decomposition == 0
    # The head is not below the deepest map: it has no part in the second pass.
    head = 3 * 2 * 6 * 8 * 3  # a product and its two gradients, 6 images, 8 wide, 3 classes
    plain = count_parts(bench_of("student"))
    assert plain["student_backward"].matmul - parts["second_backward"].matmul == head * 2 // 3


def test_plain_training_has_no_teacher_and_no_loss():
    assert set(count_parts(bench_of("student"))) == {
        "student_forward", "student_backward", "optimiser",
    }  # fmt: skip


# --- how costs add up --------------------------------------------------------------------------


def test_ratio_of_the_plain_student_is_one():
    assert training_cost_ratio([StageShare(30, 1.0, 4.2)], 30, 4.2) == 1.0


def test_stages_count_by_epochs_kept_images_and_work_done_once():
    plan = [StageShare(18, 1.0, 10.0), StageShare(12, 0.9, 15.0, once=6.0)]
    assert math.isclose(
        training_cost_ratio(plan, 30, 10.0), (18 * 10 + 12 * 0.9 * 15 + 6) / (30 * 10)
    )


def test_epochs_added_on_top_cost_more():
    assert training_cost_ratio([StageShare(9, 1, 5.0), StageShare(30, 1, 5.0)], 30, 5.0) == 1.3


def test_impossible_costs_are_refused():
    with pytest.raises(ValueError, match="plain_step 0"):
        training_cost_ratio([], 10, 0.0)
    with pytest.raises(ValueError, match="no values"):
        Quartiles.of([])


def test_exponent_of_a_power_law_is_found():
    assert math.isclose(fitted_exponent([16, 32, 64], [x**1.5 for x in (16, 32, 64)]), 1.5)


# --- constructed records -----------------------------------------------------------------------


def around(value: float) -> Quartiles:
    return Quartiles(value, 0.9 * value, 1.2 * value, 5)


def loss_cost(median: float, **changes) -> LossCost:
    fields = {"ms": around(median), "count": Count(5 * 10**5, 10**5, 0, 10**6),
              "traffic": Traffic(3000, 1000, 2000), "peak_bytes": 2**20}  # fmt: skip
    return LossCost(**{**fields, **changes})


def stage(name: str, step: float, loss: float | None, **changes) -> StageCost:
    parts = {"student_forward": around(1.0), "student_backward": around(2.0)}
    counts = {"student_forward": Count(10**6), "student_backward": Count(2 * 10**6)}
    if loss is not None:
        parts |= {"loss_forward": around(loss), "loss_backward": around(2 * loss)}
        counts |= {"loss_forward": Count(5 * 10**5, 10**5, 0, 10**6)}
    fields = {
        "epochs": 10, "kept": 1.0, "taps": [], "ratio": around(step / 3), "once_ms": None,
        "once_count": Count(), "peak_bytes": 3 * 2**20,
        "loss": None if loss is None else loss_cost(12 * loss),
    }  # fmt: skip
    return StageCost(
        name=name, step_ms=around(step), parts_ms=parts, count=counts, **{**fields, **changes}
    )


SHARED = {
    "data": "toy", "teacher": "big", "student": "small", "epochs": 10, "plain_ms": around(3.0),
    "plain_count": Count(3 * 10**6), "plain_peak_bytes": 2**20, "teacher_ms": around(4.0),
    "teacher_count": Count(7), "teacher_bytes": 2**19,
    "conditions": {"device": "a machine", "device_type": "cpu", "threads": 1, "precision": "fp32",
                   "batch": 50, "image_shape": [1, 8, 8], "rounds": 5},
}  # fmt: skip

COSTS = Costs(
    [
        CostRecord(**SHARED, label="student", method="student", category="baseline",
                   stages=[stage("train", 3.0, None, peak_bytes=2**20)],
                   training_cost_ratio=Quartiles(1.0, 1.0, 1.0, 5), training_flop_ratio=1.0),
        CostRecord(**SHARED, label="hints", method="fitnet", category="multi-connection",
                   stages=[stage("hint", 12.0, 2.0, epochs=3, held_bytes=2**20),
                           stage("finetune", 6.0, 0.1, epochs=7)],
                   training_cost_ratio=around(2.0), training_flop_ratio=2.5, extra_parameters=1234),
        CostRecord(**SHARED, label="fsp", method="fsp", category="shared-representation",
                   status=NOT_APPLICABLE, error="widths differ"),
    ],
    scaling=[
        Scaling(method="fsp", category="shared-representation", stage="init", axis="channels",
                sizes=[16, 32], milliseconds=[around(1.0), around(4.0)],
                count=[Count(100), Count(400)],
                conditions={"device": "a machine", "precision": "fp32", "batch": 64,
                            "positions": 64}),
    ],
    references=[
        CostRecord(**SHARED, label="hints", method="fitnet", category="multi-connection",
                   form=REFERENCE,
                   stages=[replace(stage("hint", 30.0, 2.0, epochs=3),
                                   loss=loss_cost(96.0, over_fast=around(4.0))),
                           stage("finetune", 6.0, 0.1, epochs=7)],
                   training_cost_ratio=around(3.8), training_flop_ratio=2.5),
    ],
    machines=[
        Machine(matmul_gflops=60.0, matmul_size=512, matmul_repeats=around(50.0), triad_gbs=6.0,
                triad_bytes=2**28, triad_repeats=around(5.0),
                conditions={"device": "a machine", "threads": 1}),
    ],
)  # fmt: skip


def test_costs_survive_their_file(tmp_path):
    (tmp_path / "cost.json").write_text(COSTS.to_json())
    assert read_costs(tmp_path / "cost.json") == COSTS
    assert read_costs(tmp_path / "none.json") == Costs()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0}', '{"schema": 2, "records": [{}]}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged .*remove it and profile again"):
        read_costs(tmp_path / "cost.json")


def test_newer_measurements_replace_older_ones_in_their_place():
    newer = replace(COSTS.records[1], extra_parameters=7)
    elsewhere = replace(newer, conditions={**newer.conditions, "batch": 64})
    merged = COSTS.with_newer(Costs([newer, elsewhere]))
    assert [r.extra_parameters for r in merged.records] == [0, 7, 0, 7]
    assert merged.scaling == COSTS.scaling


def test_extra_memory_is_that_of_the_costliest_stage():
    assert [record.extra_peak_bytes for record in COSTS.records] == [0, 3 * 2**20, 0]


def test_table_of_methods_reads_as_expected():
    lines = to_markdown(method_table(COSTS.records, COSTS)).splitlines()
    assert lines[0] == (
        "## Cost of training, toy: big -> small, batch 50, a machine, threads 1, fp32"
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[2:] == [
        ["student", "baseline", "1.00 ± 0.00", "1.00", "3.00", "-", "-", "0.00", "0", "measured"],
        ["hints", "multi-connection", r"2.00 \[1.80, 2.40]", "2.50", "12.00; 6.00", "24.00; 1.20",
         "96.00; 1.20", "3.00", "1234", "measured"],
        ["fsp", "shared-representation", "-", "-", "-", "-", "-", "-", "-",
         "not applicable: widths differ"],
    ]  # fmt: skip
    assert any("image shape 1x8x8" in line for line in lines)


def test_table_of_stages_counts_the_loss_apart():
    rows = list(csv.DictReader(to_csv(stage_table(COSTS.records)).splitlines()))
    assert [(row["label"], row["stage"]) for row in rows] == [
        ("student", "train"), ("hints", "hint"), ("hints", "finetune"),
    ]  # fmt: skip
    assert rows[0]["loss_matmul_mflop"] == rows[0]["teacher_ms"] == ""
    hint = rows[1]
    assert (hint["loss_matmul_mflop"], hint["loss_elementwise_mflop"]) == ("0.5", "0.1")
    assert (hint["step_ms"], hint["step_ms_low"], hint["step_ms_n"]) == ("12.0", "10.8", "5")


def test_roofline_says_the_least_time_what_sets_it_and_how_far_both_forms_are():
    rows = list(csv.DictReader(to_csv(roofline_table(COSTS.records, COSTS)).splitlines()))
    assert [row["label"] + ": " + row["stage"] for row in rows] == [
        "hints: hint",
        "hints: finetune",
    ]
    hint = rows[0]
    # 600,000 FLOP at 60 GFLOP/s are 0.01 ms; 6,000 bytes at 6 GB/s a tenth of that.
    assert (float(hint["bound_ms"]), hint["bound_by"]) == (0.01, "compute")
    assert (hint["inputs_mb"], hint["outputs_mb"], hint["saved_mb"]) == ("0.003", "0.001", "0.002")
    assert float(hint["fast_over_bound"]) == pytest.approx(2400)
    assert float(hint["reference_over_bound"]) == pytest.approx(9600)
    assert (hint["speedup"], hint["speedup_low"]) == ("4.0", "3.6")
    assert rows[1]["reference_ms"] == ""  # one form only
    slow = replace(COSTS.machines[0], triad_gbs=0.06)
    memory = roofline_table(COSTS.records, replace(COSTS, machines=[slow]))
    assert Entry("memory") in memory.rows[0]
    unknown = roofline_table(COSTS.records, replace(COSTS, machines=[]))
    assert "not measured" in unknown.notes[0]


def ordered(**medians: tuple[str, float]) -> Costs:
    return Costs([
        CostRecord(**SHARED, label=label, method=label, category=category,
                   stages=[replace(stage("distil", 5.0, 1.0), loss=loss_cost(median))],
                   training_cost_ratio=around(1.5))
        for label, (category, median) in medians.items()
    ])  # fmt: skip


def verdicts(costs: Costs) -> dict[str, tuple[str, int, int, tuple[tuple[str, str], ...]]]:
    return {
        f.claim: (f.verdict, f.in_order, f.undecided, f.violations)
        for f in findings(costs.records, costs)
        if (f.form, f.measure) == ("fast", "transfer loss (ms)")
    }


WHOLE = "response < multi-connection < shared-representation"


def test_the_claimed_order_is_supported_if_every_comparison_is_as_claimed():
    found = verdicts(ordered(soft=("response", 1.0), hint=("multi-connection", 5.0),
                             flow=("shared-representation", 50.0)))  # fmt: skip
    assert {verdict for verdict, *_ in found.values()} == {"supported"}
    assert found[WHOLE][1:] == (3, 0, ())


def test_what_goes_against_the_claimed_order_is_named_and_overlaps_decide_nothing():
    found = verdicts(ordered(soft=("response", 1.0), hint=("multi-connection", 5.0),
                             bound=("multi-connection", 20.0),
                             points=("shared-representation", 5.2),
                             flow=("shared-representation", 50.0)))  # fmt: skip
    part = found["multi-connection < shared-representation"]
    assert part == ("partly supported", 2, 1, (("bound", "points"),))
    assert found["response < shared-representation"][0] == "supported"
    assert found[WHOLE][0] == "partly supported"


def test_an_order_the_other_way_round_is_not_supported():
    found = verdicts(ordered(soft=("response", 50.0), hint=("multi-connection", 5.0),
                             flow=("shared-representation", 1.0)))  # fmt: skip
    assert {verdict for verdict, *_ in found.values()} == {"not supported"}
    costs = ordered(soft=("response", 50.0), hint=("multi-connection", 5.0))
    assert set(verdicts(costs)) == {"response < multi-connection"}


def test_textbook_forms_take_the_place_of_those_shipped():
    shipped, textbook = (in_form(COSTS.records, COSTS, form) for form in ("fast", REFERENCE))
    assert [r.label for r in shipped] == [r.label for r in textbook]
    assert [r.form for r in textbook] == ["fast", REFERENCE, "fast"]
    rows = list(csv.DictReader(to_csv(category_table(COSTS.records, COSTS)).splitlines()))
    loss = {row["form"]: row["median"] for row in rows if row["measure"] == "transfer loss (ms)"}
    assert loss == {"as shipped": "24.0", "textbook": "96.0"}


def test_files_are_the_same_bytes_every_time(tmp_path):
    for folder in ("one", "two"):
        write_costs(COSTS, tmp_path / folder)
    written = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert {path.name for path in written} == {
        "cost.md", "cost.tex", "cost.csv", "cost_stages.csv", "cost_scaling.csv",
        *(f"cost_{kind}.{end}" for end in ("svg", "png")
          for kind in ("step_big-small", "loss_big-small", "memory_big-small", "scaling")),
    }  # fmt: skip
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_every_method_and_category_has_a_look_of_its_own():
    assert set(METHODS) >= set(hyperparameters.METHODS.names())
    categories = {build_method(name).category for name in hyperparameters.METHODS.names()}
    assert set(CATEGORIES) >= categories
    for looks in (METHODS.values(), CATEGORIES.values()):
        assert (
            len({look.colour for look in looks})
            == len({look.marker for look in looks})
            == len(looks)
        )


def test_tables_of_costs_need_no_torch():
    code = "import bench.report.cost, bench.cost.command, sys\nassert 'torch' not in sys.modules"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- measured ----------------------------------------------------------------------------------

ROWS = [
    MethodRow("soft_logits", "soft_logits"),
    MethodRow("selective", "selective"),
    MethodRow("fsp", "fsp"),
    MethodRow("fsp (connectors=False)", "fsp", {"connectors": False}),
    MethodRow("kd_svd", "kd_svd"),
]


@pytest.fixture(scope="module")
def profiled() -> Costs:
    messages: list[str] = []
    setting = tiny(train_images=1000)
    costs = profile([("cnn3", "cnn2")], ROWS, setting, lambda what, *_: messages.append(what))
    assert any("preparing fsp" in what for what in messages)
    return costs


@pytest.fixture(scope="module")
def measured(profiled: Costs) -> dict[str, CostRecord]:
    return {record.label: record for record in profiled.records}


def test_the_plain_student_comes_first_and_costs_one(measured):
    assert list(measured) == ["student", *(row.label for row in ROWS)]
    plain = measured["student"]
    assert plain.training_cost_ratio == Quartiles(1.0, 1.0, 1.0, 2)
    assert plain.training_flop_ratio == 1.0
    assert plain.extra_peak_bytes == plain.extra_parameters == 0
    assert plain.stages[0].step_ms == plain.plain_ms


def test_every_stage_is_measured_by_parts(measured):
    assert [stage.name for stage in measured["fsp"].stages] == ["init", "main"]
    init, main = measured["fsp"].stages
    assert {"teacher", "loss_forward", "loss_backward"} <= set(init.parts_ms)
    assert init.loss is not None
    assert set(main.parts_ms) == {"student_forward", "student_backward", "optimiser"}
    assert main.loss is None
    assert (init.epochs, main.epochs) == (3, 7)
    assert "second_backward" in measured["kd_svd"].stages[0].parts_ms
    for record in measured.values():
        for part in (part for stage in record.stages for part in stage.parts_ms.values()):
            assert 0 <= part.q1 <= part.median <= part.q3
            assert part.n >= 2


def test_a_textbook_form_is_measured_though_its_gradient_is_not_finite():
    method = build_method("soft_logits")

    def rootless(pair: Pair, connector: nn.Module) -> torch.Tensor:
        return (pair.student.logits * 0).sqrt().sum(1)  # 0, with a slope of infinity times 0

    stage = replace(method.plan[0], transfer=rootless)
    bench = Bench(Scene("cnn3", tiny()), "cnn2", "soft_logits", method, stage)
    bench.drop_faulty_gradients()
    bench.step()
    assert all(x.isfinite().all() for x in bench.student.network.parameters())


def test_what_is_held_from_step_to_step_counts(measured):
    record = measured["selective"]
    held = record.stages[1].held_bytes
    # The regressor, its momentum and two statistics; the teacher's embedding of every image.
    assert held == 4 * (2 * record.extra_parameters + 2 * 12 + 1000 * 12)
    assert measured["soft_logits"].stages[0].held_bytes == 0
    above = record.stages[1].peak_bytes + held - record.plain_peak_bytes
    assert record.extra_peak_bytes == above
    assert measured["soft_logits"].teacher_bytes > 0


def test_traffic_is_inputs_and_gradients_once_and_intermediates_twice():
    labels, one = torch.zeros(6, dtype=torch.long), 4 * 6 * 5
    student, teacher = torch.ones(6, 5, requires_grad=True), torch.ones(6, 5)
    pair = Pair(View({"x": student}), View({"x": teacher}), labels, labels)

    def squares(pair: Pair, connector: nn.Module) -> torch.Tensor:
        gap = pair.student["x"] - pair.teacher["x"]
        return (gap * gap).sum(1)  # keeps the gap, which is no input

    def products(pair: Pair, connector: nn.Module) -> torch.Tensor:
        return (pair.student["x"] * pair.teacher["x"]).sum(1)  # keeps the teacher's tap

    def through(pair: Pair, connector: nn.Module) -> torch.Tensor:
        return connector(pair.student["x"]).sum(1)  # keeps the tap and the weight

    assert LossAlone([squares], pair, nn.Identity()).traffic() == (2 * one, one, 2 * one)
    assert LossAlone([products], pair, nn.Identity()).traffic() == (2 * one, one, one)
    weight = 4 * 5 * 5
    moved = LossAlone([through], pair, nn.Linear(5, 5, bias=False)).traffic()
    assert moved == (2 * one + weight, one + weight, one + weight)


def test_machine_reports_its_fastest_repeat_at_its_best_size(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", {"cpu": (8, 128)})
    monkeypatch.setattr(machine, "TRIAD_BYTES", {"cpu": 1 << 16})
    found = machine.measure_machine(tiny())
    assert found.matmul_size == 128  # launching weighs less
    assert found.matmul_gflops >= found.matmul_repeats.q3 > 0
    assert found.triad_gbs >= found.triad_repeats.q3 > 0
    assert found.triad_bytes == 1 << 16


def test_flop_ratio_follows_from_the_counts(measured):
    record = measured["soft_logits"]
    stage = record.stages[0]
    assert record.training_flop_ratio == stage.step_count.flops / record.plain_count.flops
    assert stage.step_count.matmul == record.plain_count.matmul + record.teacher_count.matmul


def test_selection_costs_kept_steps_and_one_teacher_pass(measured):
    record = measured["selective"]
    first, second = record.stages
    assert (first.kept, first.once_ms) == (1.0, None)
    assert 0.85 < second.kept < 1
    assert second.once_ms is not None
    assert second.once_count.matmul > 0
    wanted = training_cost_ratio(
        [StageShare(6, 1.0, first.step_count.flops),
         StageShare(4, second.kept, second.step_count.flops, second.once_count.flops)],
        10, record.plain_count.flops,
    )  # fmt: skip
    assert record.training_flop_ratio == wanted


def test_a_method_that_cannot_serve_the_pair_says_why(measured):
    record = measured["fsp (connectors=False)"]
    assert record.status == NOT_APPLICABLE
    assert "widths differ" in record.error
    assert record.training_cost_ratio is None


def test_conditions_are_stored(measured):
    for record in measured.values():
        wanted = {"device", "threads", "torch", "precision", "batch", "rounds", "memory"}
        assert wanted <= set(record.conditions)
        assert record.conditions["rounds"] == 2
    assert read_back(measured) == list(measured.values())


def read_back(measured: dict[str, CostRecord]) -> list[CostRecord]:
    return Costs.from_json(Costs(list(measured.values())).to_json()).records


def test_counts_and_memory_do_not_depend_on_the_run(measured):
    again = profile([("cnn3", "cnn2")], ROWS[-1:], tiny(rounds=1)).records[-1]
    before = measured["kd_svd"]
    assert [s.count for s in again.stages] == [s.count for s in before.stages]
    assert [s.peak_bytes for s in again.stages] == [s.peak_bytes for s in before.stages]


def test_two_rows_of_one_label_are_refused():
    with pytest.raises(ValueError, match="two methods are called 'fsp'"):
        profile([("cnn3", "cnn2")], [ROWS[2], ROWS[2]], tiny())


def test_a_time_limit_leaves_three_rounds():
    costs = profile([("cnn3", "cnn2")], [], tiny(rounds=50, seconds=0.0))
    assert costs.records[0].conditions["rounds"] == 3


def test_losses_alone_grow_along_every_axis(monkeypatch):
    small = {"batch": (4, 8), "channels": (8, 16), "positions": (16, 64)}
    monkeypatch.setattr(scaling, "SIZES", small)
    monkeypatch.setattr(scaling, "BASE", {"batch": 4, "channels": 8, "positions": 16})
    found = scaling.measure_scaling(["student", "fsp", "rkd", "soft_logits"], tiny())
    assert [(line.method, line.axis) for line in found] == [
        (name, axis) for name in ("fsp", "rkd", "soft_logits") for axis in small
    ]
    flops = {(line.method, line.axis): [c.flops for c in line.count] for line in found}
    assert flops["fsp", "batch"][1] == 2 * flops["fsp", "batch"][0]
    assert flops["fsp", "channels"][1] > 3 * flops["fsp", "channels"][0]
    assert flops["soft_logits", "channels"][1] == flops["soft_logits", "channels"][0]
    assert flops["rkd", "batch"][1] > 4 * flops["rkd", "batch"][0]
    assert all(time.n == 2 for line in found for time in line.milliseconds)


# --- the command -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlflow's own
def test_the_command_writes_tables_and_figures(tmp_path, capsys, monkeypatch):
    words = ["--pairs", "cnn3:cnn2", "--methods", "soft_logits", "--image-shape", "1x8x8",
             "--classes", "3", "--train-images", "10", "--batch", "4", "--rounds", "1",
             "--no-scaling", "--name", "small"]  # fmt: skip
    monkeypatch.setattr(machine, "SIZES", {"cpu": (8, 16)})
    monkeypatch.setattr(machine, "TRIAD_BYTES", {"cpu": 4096})
    assert main(["profile", *words, "--work-dir", str(tmp_path)]) == 0
    assert "soft_logits" in capsys.readouterr().out
    folder = tmp_path / "small"
    saved = json.loads((folder / "cost.json").read_text())
    assert [record["label"] for record in saved["records"]] == ["student", "soft_logits"]
    assert saved["records"][0]["conditions"]["batch"] == 4
    assert (folder / "cost.md").is_file()
    assert (folder / "figures" / "cost_step_cnn3-cnn2.svg").is_file()
    assert "textbook" in (folder / "roofline.md").read_text()
    # Rendered again from the file alone: the same bytes, though nothing was ever trained here.
    before = (folder / "cost.md").read_bytes()
    (folder / "cost.md").unlink()
    assert main(["tables", "--grid", "small", "--work-dir", str(tmp_path)]) == 0
    assert (folder / "cost.md").read_bytes() == before
    again = Mirror(tmp_path, "small")
    assert again.tables.read("cost.json") == (folder / "cost.json").read_text()
    (run,) = again.client.search_runs(
        [again.client.get_experiment_by_name("kd-bench/small").experiment_id]
    )
    assert run.data.metrics["cost/cnn3-cnn2/student/training_cost_ratio"] == 1.0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--grid", "digit"], "did you mean digits"),
        (["--classes", "3"], "come together"),
        (["--rounds", "0"], "--rounds: got 0"),
        (["--batch", "1"], "--batch: got 1"),
        (["--methods", "fitnett"], "fitnet"),
        (["--name", "a/b"], "--name: got 'a/b'"),
        (["--name", "store"], "--name: got 'store'"),
    ],
)
def test_a_wrong_command_ends_in_one_line(words, complaint, tmp_path, capsys):
    assert main(["profile", *words, "--work-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert complaint in said
    assert said.count("\n") == 1
