"""Students stacked into one network: the same bits in any company, rounded in another way."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.cost.record import Quartiles
from bench.cost.stacks import Comparison, compare_forms
from bench.launch import forms
from bench.launch.forms import candidates, settle
from bench.models import zoo
from bench.models.stacked import NotStackable, Stack
from bench.train import stacking
from bench.train.checkpoint import Checkpoints
from bench.train.stacking import TornStackError, form_of
from methods import registry
from tests.lessons import CPU, cell, dataset, plain_cell, run

METHODS = registry.names()
SHAPES = [
    ("cnn4", (1, 8, 8)),
    ("resnet8", (3, 16, 16)),
    ("wrn_16_1", (3, 16, 16)),
    ("vgg8", (3, 16, 16)),
]


def networks(model: str, shape: tuple[int, int, int], count: int) -> list:
    torch.manual_seed(0)
    made = [zoo.build(model, 5, shape) for _ in range(count)]
    return [network.to(memory_format=torch.channels_last).train() for network in made]


def batch(shape: tuple[int, int, int], size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, *shape, generator=generator)
    labels = torch.randint(5, (size,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def one_step(made: list, shape, chosen: list[int]) -> list[dict[str, torch.Tensor]]:
    """State after a step of those chosen, side by side."""
    images, labels = batch(shape)
    company = [copy.deepcopy(made[i]) for i in chosen]
    stack = Stack(company)
    found = stack.views(images, ("stage1", "logits"))
    each = dict(zip(chosen, found, strict=True))
    total = sum(
        cross_entropy(view["logits"], labels) + (i % 2) * view["stage1"].square().mean()
        for i, view in each.items()
    )
    total.backward()
    stack.hand_out_gradients()
    for network in company:
        torch.optim.SGD(network.parameters(), lr=0.1).step()
    return [{k: v.clone() for k, v in n.state_dict().items()} for n in company]


@pytest.mark.parametrize(("model", "shape"), SHAPES)
def test_neighbours_decide_no_bit(model, shape):
    made = networks(model, shape, 5)
    whole = one_step(made, shape, [0, 1, 2, 3, 4])
    for chosen in ([0], [3], [4, 1], [2, 0, 3]):
        for i, state in zip(chosen, one_step(made, shape, chosen), strict=True):
            for name, tensor in state.items():
                assert torch.equal(tensor, whole[i][name]), (chosen, i, name)


@pytest.mark.parametrize(("model", "shape"), SHAPES)
def test_a_stack_computes_what_its_networks_compute(model, shape):
    made = [network.double() for network in networks(model, shape, 3)]
    images, labels = batch(shape)
    taps = made[0].tap_names
    twins = copy.deepcopy(made)
    stack = Stack(made)
    for twin, view in zip(twins, stack.views(images.double(), taps), strict=True):
        own = twin.view(images.double(), taps)
        for tap in taps:
            torch.testing.assert_close(view[tap], own[tap], msg=tap)
        cross_entropy(own["logits"], labels).backward()
    views = stack.views(images.double(), ("logits",))
    sum(cross_entropy(view["logits"], labels) for view in views).backward()
    stack.hand_out_gradients()
    for network, twin in zip(made, twins, strict=True):
        twin.train()(images.double())  # as many batches seen as in the stack
        for (name, mine), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
        for (name, mine), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, msg=name)


def test_what_no_loss_reaches_has_no_gradient():
    made = networks("cnn4", (1, 8, 8), 2)
    stack = Stack(made)
    stack.views(batch((1, 8, 8))[0], ("stage1",))[0]["stage1"].sum().backward()
    stack.hand_out_gradients()
    assert made[0].head.weight.grad is None
    assert made[0].stages[2][0][0].weight.grad is None
    assert made[0].stem[0].weight.grad.abs().sum() > 0
    assert made[1].stem[0].weight.grad.abs().sum() == 0


def test_a_network_that_is_not_finite_leaves_its_neighbours_alone():
    made = networks("cnn4", (1, 8, 8), 3)
    with torch.no_grad():
        made[1].stem[0].weight.fill_(torch.nan)
    images, labels = batch((1, 8, 8))
    stack = Stack(made)
    views = stack.views(images, ("logits",))
    sum(cross_entropy(view["logits"], labels) for view in views).backward()
    stack.hand_out_gradients()
    finite = [all(p.grad.isfinite().all() for p in network.parameters()) for network in made]
    assert finite == [True, False, True]


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(NotStackable, match="ShuffleNetV2 is not computed channel by channel"):
        Stack([zoo.build("ShuffleV2", 5, (3, 32, 32)) for _ in range(2)])
    with pytest.raises(NotStackable, match="shapes or frozen parts differ"):
        Stack([zoo.build(name, 5, (1, 8, 8)) for name in ("cnn4", "cnn8")])
    frozen = networks("cnn4", (1, 8, 8), 2)
    frozen[0].head.requires_grad_(False)
    with pytest.raises(NotStackable, match="shapes or frozen parts differ"):
        Stack(frozen)
    odd = networks("cnn4", (1, 8, 8), 2)
    for network in odd:
        network.neck = nn.Dropout(0.5)
    with pytest.raises(NotStackable, match=r"network\.neck is a Dropout"):
        Stack(odd)


# --- in training ---------------------------------------------------------------------------------


def weights(folder, one) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((folder / one.id / "weights.safetensors").read_bytes())


def test_stacked_side_by_side_equals_stacked_alone_for_every_method(tmp_path):
    cells = [cell(name) for name in METHODS] + [cell("soft_logits", student="cnn4")]
    together = run(cells, tmp_path / "together", stacked=True)
    taught = [one for one in cells if one.teacher is not None and one.method != "kd_svd"]
    assert {one.id for one in taught} == {
        cell_id for cell_id, record in together.items() if record.conditions["stacked"]
    }
    for one in cells:
        alone = run([one], tmp_path / one.id, stacked=True)[one.id]
        assert together[one.id].status == "finished", together[one.id].error
        assert together[one.id].curves == alone.curves, one
        mine, theirs = weights(tmp_path / "together", one), weights(tmp_path / one.id, one)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), one


def test_diagnosing_a_stack_is_diagnosing_its_students(tmp_path):
    plain = [cell(name) for name in ("soft_logits", "fitnet", "rkd", "attention_transfer")]
    cells = [one.model_copy(update={"diagnostics": True}) for one in plain]
    together = run(cells, tmp_path / "together", stacked=True)
    without = run(plain, tmp_path / "without", stacked=True)
    for one, bare in zip(cells, plain, strict=True):
        found = together[one.id]
        assert found.curves == run([one], tmp_path / one.id, stacked=True)[one.id].curves
        own = run([one], tmp_path / "own")[one.id].curves["gradient_cosine"]
        assert found.curves["gradient_cosine"] == pytest.approx(own, abs=1e-3)
        rest = {k: v for k, v in found.curves.items() if k != "gradient_cosine"}
        assert rest == without[bare.id].curves


@pytest.mark.parametrize("name", METHODS)
def test_the_form_changes_numbers_by_rounding_alone(name, tmp_path):
    one = cell(name, recipe=cell(name).recipe.model_copy(update={"learning_rate": 0.01}))
    own = run([one], tmp_path / "own")[one.id]
    stacked = run([one], tmp_path / "stacked", stacked=True)[one.id]
    assert own.conditions["stacked"] is False
    for curve, points in own.curves.items():
        if curve.endswith("_loss"):
            here, there = (
                [x for x in record.curves[curve] if x is not None] for record in (own, stacked)
            )
            assert there == pytest.approx(here, rel=1e-3, abs=1e-4), curve
            assert len(there) == len(here) <= len(points)
    mine, theirs = weights(tmp_path / "own", one), weights(tmp_path / "stacked", one)
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-2, atol=1e-3, msg=key)


def test_cells_without_a_teacher_or_with_two_gradients_keep_their_own_form(tmp_path):
    found = {name: run([cell(name)], tmp_path / name, stacked=True) for name in METHODS}
    stacked = {n: next(iter(r.values())).conditions["stacked"] for n, r in found.items()}
    own = {name for name in METHODS if not registry.build(name).needs_teacher} | {"kd_svd"}
    assert {name for name, form in stacked.items() if not form} == own


def test_a_student_that_fails_leaves_the_stack_and_nobody_else(tmp_path, monkeypatch):
    good = [cell("attention_transfer"), cell("soft_logits")]
    bad = cell("rkd")
    original = stacking.Student.losses_of

    def losses_of(self, shown, seen):
        if self.cell.method == "rkd" and self.epochs_done == 1:
            raise ValueError("no more")
        return original(self, shown, seen)

    alone = run(good, tmp_path / "alone", stacked=True)
    monkeypatch.setattr(stacking.Student, "losses_of", losses_of)
    beside = run([good[0], bad, good[1]], tmp_path / "beside", stacked=True)
    assert beside[bad.id].status == "failed"
    assert "no more" in beside[bad.id].error
    for one in good:
        assert beside[one.id].curves == alone[one.id].curves


def test_a_joint_pass_that_fails_blames_nobody(tmp_path, monkeypatch):
    class Torn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("torn")

    original = stacking.Student.total

    def total(self, found):
        loss = original(self, found)
        return Torn.apply(loss) if self.cell.method == "rkd" else loss

    monkeypatch.setattr(stacking.Student, "total", total)
    cells = [cell("soft_logits"), cell("rkd")]
    with pytest.raises(TornStackError, match="RuntimeError: torn"):
        run(cells, tmp_path / "both", stacked=True)
    # One by one, as the launcher then tries them, the culprit is found.
    assert run([cells[0]], tmp_path / "a", stacked=True)[cells[0].id].status == "finished"
    found = run([cells[1]], tmp_path / "b", stacked=True)[cells[1].id]
    assert (found.status, found.error) == ("failed", "RuntimeError: torn")


def test_a_stacked_training_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path):
    cells = [cell("soft_logits"), cell("fitnet")]
    whole = run(cells, tmp_path / "whole", stacked=True)

    class Enough(Exception):
        pass

    def stop(cell_id, done, total, accuracy):
        if cell_id == cells[1].id and done == 3:
            raise Enough

    kept = Checkpoints(tmp_path / "checkpoints", 0)
    with pytest.raises(Enough):
        run(cells, tmp_path / "torn", checkpoints=kept, report=stop, stacked=True)
    # The other company changes nothing either.
    again = run(cells[1:], tmp_path / "torn", checkpoints=kept, stacked=True)
    again |= run(cells[:1], tmp_path / "torn", checkpoints=kept, stacked=True)
    for one in cells:
        conditions = again[one.id].conditions
        assert (conditions["resumed"], conditions["stacked"]) == (1, True)
        assert [earlier["stacked"] for earlier in conditions["earlier"]] == [True]
        assert again[one.id].curves == whole[one.id].curves
        mine, theirs = weights(tmp_path / "whole", one), weights(tmp_path / "torn", one)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- the choice ----------------------------------------------------------------------------------


def grid_cells() -> list:
    return [cell("student"), cell("soft_logits"), cell("kd_svd"), plain_cell("cnn3", seed=9)]


def test_candidates_are_cells_under_a_teacher_alone_or_not():
    found = candidates(grid_cells(), lambda spec: dataset())
    assert list(found) == ["cnn2 1x8x8 batch 10 fp32"]
    assert list(candidates([cell("soft_logits")], lambda spec: dataset())) == list(found)
    assert not candidates([cell("student"), cell("kd_svd")], lambda spec: dataset())
    assert form_of(cell("student"), (1, 8, 8)) == "cnn2 1x8x8 batch 10 fp32"


def test_a_network_with_a_module_that_has_no_stacked_form_is_no_candidate(monkeypatch):
    build = forms.build_network

    def odd(*values):
        network = build(*values)
        network.neck = nn.Dropout(0.5)
        return network

    monkeypatch.setattr(forms, "build_network", odd)
    assert candidates([cell("soft_logits")], lambda spec: dataset()) == {}


def test_a_large_network_is_not_measured_further(monkeypatch):
    (candidate,) = candidates([cell("soft_logits")], lambda spec: dataset()).values()
    measured = forms.measure(candidate, CPU)
    assert measured is not None
    assert measured.count == forms.COUNT
    monkeypatch.setattr(forms, "LONG_MS", 0.0)
    monkeypatch.setattr(forms, "compare_forms", None)
    assert forms.measure(candidate, CPU) is None
    assert "not stacked" in forms.describe("cnn2", None)


def test_memory_that_runs_out_while_measuring_means_apart(monkeypatch):
    def full(*values):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    (candidate,) = candidates([cell("soft_logits")], lambda spec: dataset()).values()
    monkeypatch.setattr(forms, "compare_forms", full)
    assert forms.measure(candidate, CPU) is None


def test_of_two_commands_that_measure_at_once_the_first_word_counts(tmp_path, monkeypatch):
    path, said = tmp_path / "stacking.json", []
    slow = Comparison(2, Quartiles.of([1.0]), Quartiles.of([1.0]), True)

    def measure(candidate, device):
        monkeypatch.setattr(forms, "measure", lambda *values: slow)
        settle(grid_cells(), lambda spec: dataset(), CPU, "auto", path, said.append)
        return Comparison(2, Quartiles.of([2.0]), Quartiles.of([1.0]), True)

    monkeypatch.setattr(forms, "measure", measure)
    assert not settle(grid_cells(), lambda spec: dataset(), CPU, "auto", path, said.append)


def test_measuring_leaves_a_verdict_with_its_conditions():
    made = networks("cnn4", (1, 8, 8), 4)
    images, labels = batch((1, 8, 8))
    measured = compare_forms(made, images, labels, cell("student"))
    assert measured is not None
    assert measured.count == 4
    assert measured.exact
    for found in (measured.apart_ms, measured.stacked_ms):
        assert 0 < found.q1 <= found.median <= found.q3
        assert found.n >= 3
    kept = json.loads(json.dumps(dataclasses.asdict(measured)))
    assert Comparison.of(kept) == measured
    mixed = [zoo.build("ShuffleV2", 5, (3, 32, 32)) for _ in range(2)]
    assert compare_forms(mixed, *batch((3, 32, 32)), cell("student")) is None


@pytest.mark.parametrize(
    ("apart", "stacked", "exact", "verdict"),
    [(10.0, 5.0, True, True), (10.0, 9.5, True, False), (10.0, 5.0, False, False)],
)
def test_a_stack_must_be_faster_and_exact(apart, stacked, exact, verdict):
    found = Comparison(2, Quartiles.of([apart]), Quartiles.of([stacked]), exact)
    assert found.stack is verdict


def test_a_verdict_is_kept_for_the_next_run(tmp_path, monkeypatch):
    path, said, made = tmp_path / "stacking.json", [], []

    def measure(candidate, device):
        made.append(form_of(candidate.cell, candidate.image_shape))
        return Comparison(2, Quartiles(10.0, 9.0, 11.0, 7), Quartiles(5.0, 4.0, 6.0, 7), True)

    monkeypatch.setattr(forms, "measure", measure)
    chosen = [
        settle(grid_cells(), lambda spec: dataset(), CPU, "auto", path, said.append)
        for _ in range(2)
    ]
    assert chosen == [{"cnn2 1x8x8 batch 10 fp32"}] * 2
    assert made == ["cnn2 1x8x8 batch 10 fp32"]
    assert said == ["2 x cnn2 1x8x8 batch 10 fp32: 5.0 ms a step stacked, 10.0 ms apart: stacked"]
    (key,) = json.loads(path.read_text())
    assert "threads" in key
    assert torch.__version__ in key
    alone = settle([cell("rkd")], lambda spec: dataset(), CPU, "auto", path, said.append)
    assert (alone, len(made)) == (chosen[0], 1)
    for number, damaged in enumerate(("{", "[]", "[1]", '{"a": 1}'), start=2):
        path.write_text(damaged)
        assert settle(grid_cells(), lambda spec: dataset(), CPU, "auto", path, said.append)
        assert len(made) == number


def test_on_and_off_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "measure", None)
    both = [
        settle(grid_cells(), lambda spec: dataset(), CPU, mode, tmp_path / "none", print)
        for mode in ("on", "off")
    ]
    assert both == [{"cnn2 1x8x8 batch 10 fp32"}, frozenset()]
    assert not (tmp_path / "none").exists()
