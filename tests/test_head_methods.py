"""Methods that know more than two networks' taps: a teacher's BatchNorms, its head, the epoch."""

import math

import pytest
import torch
from lessons import Lesson, cell, dataset, run
from loss_table import float64, of
from students import row_of
from torch import nn

from bench.cost.profiler import MethodRow, Profile, profile
from bench.cost.steps import Workload
from bench.data.cache import cached
from bench.export import ExportError, Trained, load_trained, pack
from bench.hyperparameters import build_method
from bench.method import Facts, NotApplicable, Pair, Stage, View
from bench.models import zoo
from bench.models.network import Network, tap_shapes
from bench.record import WorkDir
from bench.train.teacher import Teacher
from methods.ctkd import Temperature, ctkd_loss
from methods.ofd import margin, ofd_loss
from methods.simkd import Projector
from methods.soft_logits import soft_logits_loss
from methods.srrl import srrl_loss

IMAGE, INDEX = (3, 32, 32), torch.arange(2)


def network(name: str, classes: int = 4) -> Network:
    torch.manual_seed(0)
    return zoo.build(name, classes, IMAGE).eval()


def facts_of(teacher: Network) -> Facts:
    own = cell("student", "cnn2")
    return Teacher(teacher, own, torch.device("cpu"), IMAGE).facts(torch.zeros(5).long())


def connected(name: str, student: Network, teacher: Network, **hparams) -> tuple[Stage, nn.Module]:
    method = build_method(name, **hparams)
    shapes = (tap_shapes(one, IMAGE) for one in (student, teacher))
    (stage,) = method.plan
    return stage, method.connector(*shapes, facts_of(teacher))


def pair_of(stage: Stage, student: Network, teacher: Network) -> Pair:
    both = [*stage.taps, *(t for t in stage.optional_taps if t in student.tap_names)]
    both = [tap for tap in both if tap in teacher.tap_names]
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        views = [View(one.view(images, both)) for one in (student, teacher)]
    return Pair(*views, INDEX, INDEX)


# --- overhaul of feature distillation -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        (0, 1, -0.7978845608),  # -sqrt(2 / pi)
        (1, 2, -1.2821555407),
        (-1, 0.5, -1.0276239313),
        (4, 1, -3),  # hardly ever negative
        (-2, 0, -2),
        (2, 0, 0),
    ],
)
def test_margins_by_hand(mean: float, deviation: float, expected: float):
    assert margin(float64(mean), float64(deviation)).item() == pytest.approx(expected, abs=1e-9)


def test_a_margin_jumps_where_one_response_in_a_thousand_is_negative():
    found = margin(float64(3.0901, 3.0903), float64(1, 1)).tolist()
    assert found == pytest.approx([-0.277, -3], abs=1e-3)
    with pytest.raises(ValueError, match="must have one shape"):
        margin(float64(0, 1), float64(1))


def test_ofd_by_hand():
    student = float64(2, -1, 0.5, -0.3, 1, -2).view(1, 1, 1, 6).requires_grad_()
    teacher = float64(1, 1, -0.5, -0.5, -2, -2).view(1, 1, 1, 6)
    loss = ofd_loss(student, teacher, float64(-0.8))
    assert loss.item() == pytest.approx(9.28, abs=1e-9)  # 1 + 4 + 1 + 0.04 + 1.8^2 + 0
    loss.sum().backward()
    assert student.grad.flatten().tolist() == pytest.approx([2, -4, 2, 0.4, 3.6, 0])


def test_ofd_ignores_what_lies_below_the_margin_and_students_below_a_negative_target():
    (loss,) = of(ofd_loss)
    (student,), (teacher,) = loss.inputs(5)
    least = loss.arguments["margin"].double()
    expected = ofd_loss(student, teacher, least)
    assert expected.min() > 0
    floor = least[:, None, None].expand_as(teacher)
    deeper = torch.where(teacher < floor, teacher - 3, teacher)
    assert not torch.equal(deeper, teacher)
    torch.testing.assert_close(ofd_loss(student, deeper, least), expected)
    target = torch.maximum(teacher, floor)
    quiet = (target <= 0) & (student <= target)
    assert quiet.any()
    lower = torch.where(quiet, student - 5, student)
    torch.testing.assert_close(ofd_loss(lower, teacher, least), expected)
    swapped = (x.flip(1) for x in (student, teacher))
    torch.testing.assert_close(ofd_loss(*swapped, least.flip(0)), expected)
    with pytest.raises(ValueError, match="one for each of 2 channels"):
        ofd_loss(student, teacher, least[:1])


def test_ofd_takes_margins_of_the_batchnorms_and_halves_the_weight_of_each_earlier_stage():
    teacher = network("wrn_16_1")
    for tap in ("stage1.pre", "stage2.pre", "stage3.pre"):
        norm = teacher.norm_of(tap)
        nn.init.normal_(norm.weight)  # of either sign
        nn.init.normal_(norm.bias)
    student = network("wrn_16_1")
    stage, connector = connected("ofd", student, teacher)
    for point in connector:
        point.layers = nn.Identity()
    pair, expected = pair_of(stage, student, teacher), torch.zeros(2)
    for tap, factor in (("stage1.pre", 1 / 4), ("stage2.pre", 1 / 2), ("stage3.pre", 1)):
        norm = teacher.norm_of(tap)
        least = margin(norm.bias.detach(), norm.weight.detach().abs())
        expected += factor * ofd_loss(pair.student[tap], pair.teacher[tap], least)
    torch.testing.assert_close(stage.transfer(pair, connector), expected)


def test_margins_of_the_data_are_means_of_the_negative_responses_seen_in_training():
    student, teacher = network("vgg8"), network("ShuffleV2")
    with pytest.raises(NotApplicable, match=r"stage1.pre, and it has 58 for 116 .* margin: data"):
        connected("ofd", student, teacher)
    _, connector = connected("ofd", student, teacher, margin="data")
    point = connector[0]
    point.layers = nn.Identity()
    first, second = (torch.randn(3, 116, 4, 2) for _ in range(2))
    first[:, 5], second[:, 5] = 1.0, 0.0  # never negative
    assert not point.eval()(first, first)[1].any()
    point.train()
    for seen in (first, second):
        _, least = point(seen, seen)
        both = torch.cat([first, second]) if seen is second else first
        negative = both.transpose(0, 1).flatten(1)
        wanted = [row[row < 0].mean() if (row < 0).any() else 0.0 for row in negative]
        torch.testing.assert_close(least.float(), torch.tensor(wanted))
    assert torch.equal(point.eval()(first, first)[1], least)


def test_ofd_asks_for_the_data_where_no_batchnorm_is_known():
    shapes = tap_shapes(network("resnet8"), IMAGE)
    nothing = Facts(5, INDEX, 4)
    with pytest.raises(NotApplicable, match="none is known; margin: data needs none"):
        build_method("ofd").connector(shapes, shapes, nothing)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("ResNet50", "MobileNetV2"), ("resnet8x4", "ShuffleV1"), ("resnet8x4", "ShuffleV2")],
)
@pytest.mark.parametrize("name", ["ofd", "srrl"])
def test_pairs_that_public_code_lacks(name: str, teacher: str, student: str):
    ours, theirs = network(student), network(teacher)
    stage, connector = connected(name, ours, theirs)
    assert stage.transfer(pair_of(stage, ours, theirs), connector).isfinite().all()


# --- reused classifiers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "parameters"), [(2, 214_016), (4, 70_400), (8, 26_240)])
def test_a_projector_is_as_large_as_published(factor: int, parameters: int):
    projector = Projector((256, 8, 8), (256, 8, 8), factor)
    assert sum(p.numel() for p in projector.parameters()) == parameters
    assert projector(torch.zeros(2, 256, 8, 8)).shape == (2, 256, 8, 8)
    assert Projector((2, 8, 6), (1, 4, 9), 2)(torch.zeros(2, 2, 8, 6)).shape == (2, 1, 4, 6)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV1", "ResNet50", "cnn4"])
def test_a_reused_classifier_reads_the_mean_of_the_map_that_is_learnt(name: str):
    teacher = network(name)
    stage, connector = connected("simkd", teacher, teacher)
    connector.projector = nn.Identity()
    pair = pair_of(stage, teacher, teacher)
    learnt = pair.teacher[f"{connector.tap}.pre"].relu()
    shown = View({**pair.student.taps, connector.tap: learnt})
    assert not stage.transfer(pair._replace(student=shown), connector).any()
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding = teacher.view(images, ("embedding",))["embedding"]
    torch.testing.assert_close(learnt.mean(dim=(2, 3)), embedding)


@pytest.mark.parametrize(
    ("student", "teacher", "why"),
    [
        ("vgg8", "MobileNetV2", "reads 1280 features, which are no means of its stage4"),
        ("resnet8", "ShuffleV2", "reads 1024 features, which are no means of its stage3"),
        ("resnet8", "vgg8", "the teacher's last stage is stage4, the student's stage3"),
        ("vgg8", "resnet8", "networks with equally many stages"),
    ],
)
def test_classifiers_that_cannot_be_reused(student: str, teacher: str, why: str):
    with pytest.raises(NotApplicable, match=why):
        connected("simkd", network(student), network(teacher))


def test_the_last_map_before_its_relu_must_be_shown():
    shapes = dict(tap_shapes(network("vgg8"), IMAGE))
    lacking = {tap: shape for tap, shape in shapes.items() if tap != "stage4.pre"}
    facts = facts_of(network("vgg8"))
    for pair in ((shapes, lacking), (lacking, shapes)):
        with pytest.raises(NotApplicable, match=r"reads tap 'stage4.pre'"):
            build_method("simkd").connector(*pair, facts)


@pytest.mark.parametrize("name", ["simkd", "srrl"])
def test_a_classifier_must_be_linear(name: str):
    shapes = tap_shapes(network("resnet8"), IMAGE)
    with pytest.raises(NotApplicable, match="classifier is not linear"):
        build_method(name).connector(shapes, shapes, Facts(5, INDEX, 4))


@pytest.mark.parametrize(
    ("teacher", "student", "more"),
    [
        ("resnet32x4", "resnet8x4", 214_016),
        ("vgg13", "MobileNetV2", None),  # another head, and no neck
        ("resnet8x4", "ShuffleV1", None),  # its maps are smaller
    ],
)
def test_a_deployed_student_is_its_trunk_projector_and_its_teachers_head(teacher, student, more):
    ours, theirs = network(student, 100), network(teacher, 100)
    stage, connector = connected("simkd", ours, theirs)
    connector.eval()
    before = {key: x.clone() for key, x in ours.state_dict().items()}
    whole = build_method("simkd").deploy(ours, connector)
    assert ours.state_dict().keys() == before.keys()
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        projected = connector(ours.view(images, (connector.tap,))[connector.tap])
        wanted = theirs.head(projected.mean(dim=(2, 3)))
        torch.testing.assert_close(whole(images), wanted, rtol=1e-6, atol=1e-6)
    counts = [sum(p.numel() for p in x.parameters()) for x in (whole, ours)]
    if more is not None:
        assert counts[0] == counts[1] + more
    unread = {key for key in whole.state_dict() if "head" in key or "neck" in key}
    assert unread == {"head.weight", "head.bias"}
    assert stage.transfer(pair_of(stage, ours, theirs), connector).isfinite().all()


@pytest.fixture(scope="module")
def reused(tmp_path_factory) -> tuple[Trained, dict]:
    """A student with a reused classifier, trained, and its record's final numbers."""
    work, data = WorkDir(tmp_path_factory.mktemp("simkd")), dataset()
    cached(work.cache / f"synthetic-{'a' * 12}", {"name": "a"}, lambda _: data)
    one = cell("simkd", fingerprint=data.fingerprint)
    run([one.teacher], work.store.root)
    record = run([one], work.store.root)[one.id]
    return load_trained(row_of(one, "simkd"), work), record.final


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["torch.export", "onnx"])
def test_a_student_with_its_teachers_classifier_is_exported_with_it(reused, form: str):
    if form == "onnx":
        pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    trained, final = reused
    _, parity = pack(trained, form)
    assert parity.difference <= parity.allowed
    assert parity.accuracy == final["last_accuracy"]


def test_safetensors_holds_no_projector_and_says_so_in_one_line(reused):
    trained, _ = reused
    with pytest.raises(ExportError, match=r"^[^\n]*% parameters by simkd; --format torch.export"):
        pack(trained, "safetensors")


def test_records_and_costs_say_how_much_more_is_deployed(reused):
    _, final = reused
    # projector 8 to 6, 6 and 12 channels; a head that reads 12 features instead of 8
    more = 8 * 6 + 12 + 9 * 6 * 6 + 12 + 6 * 12 + 24 + 4 * (12 - 8)
    assert final["parameters"] - final["student_parameters"] == more
    recipe = cell("simkd").recipe
    workload = Workload(classes=4, image_shape=(1, 8, 8), device=torch.device("cpu"), recipe=recipe)
    how = Profile(data="random", rounds=1)
    costs = profile("cnn3", "cnn2", [MethodRow("simkd", "simkd")], workload, how)
    (record,) = [x for x in costs.records if x.method == "simkd"]
    assert record.deployed_parameters == final["parameters"] / final["student_parameters"]
    assert record.deployed_flops > 1


@pytest.mark.parametrize("name", ["simkd", "srrl"])
def test_the_teachers_classifier_does_not_move_with_the_connector(name: str):
    lesson = Lesson(cell(name))
    head = lesson.teacher.network.head
    moved, after = lesson.moved(), lesson.state()
    kept = [key for key in after if key in ("connector.weight", "connector.head")]
    assert [torch.equal(after[key], head.weight) for key in kept] == [True]
    assert any(key.startswith("connector.") for key in moved)
    assert (name == "srrl") == ("network.head.weight" in moved)


# --- softmax regression representation ------------------------------------------------------------


def test_srrl_by_hand_and_as_the_distance_of_logits():
    student, teacher = float64(1, 2)[None], float64(0, 4)[None]
    head = torch.tensor([[2.0, 0], [0, 1], [1, 1]]).double()
    # (1 + 4) / 2, and logits that differ by 2, -2 and -1: 9 / 3
    assert srrl_loss(student, teacher, head).item() == pytest.approx(5.5, abs=1e-12)
    assert srrl_loss(student, teacher, head, 0.5).item() == pytest.approx(4.0, abs=1e-12)
    layer = nn.Linear(2, 3).double()
    with torch.no_grad():
        gaps = layer(student) - layer(teacher)
        value = srrl_loss(student, teacher, layer.weight)
    assert value.item() == pytest.approx(2.5 + gaps.square().mean().item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"wanted \(K, 2\)"):
        srrl_loss(student, teacher, head.T)


def test_srrl_compares_the_embedding_and_the_logits_that_the_teachers_head_gives_for_it():
    student, teacher = network("wrn_16_1"), network("resnet8")
    stage, connector = connected("srrl", student, teacher, logit_weight=5.0)
    pair = pair_of(stage, student, teacher)
    ours = connector.eval().layers(pair.student["stage3"]).mean(dim=(2, 3))
    theirs = pair.teacher["embedding"]
    logits = teacher.head(ours) - teacher.head(theirs)
    expected = (ours - theirs).square().mean(1) + 5 * logits.square().mean(1)
    torch.testing.assert_close(stage.transfer(pair, connector), expected)


# --- curriculum temperature -----------------------------------------------------------------------


def test_the_temperature_climbs_the_loss_more_and_more_over_the_first_epochs():
    curriculum, factors = Temperature(images=25, ramp_epochs=10), []
    assert curriculum.value.item() == pytest.approx(15.6211715726, abs=1e-5)
    assert curriculum.factor == 0
    for _ in range(12):
        for batch in (10, 10, 5):
            assert curriculum(batch).item() == curriculum.value.item()
        factors.append(curriculum.factor.item())
    published = [(math.cos(math.pi * min(e, 10) / 10) + 1) / 2 - 1 for e in range(1, 13)]
    assert factors == pytest.approx(published, abs=1e-6)
    assert factors[0] == pytest.approx(-0.0245, abs=5e-5)
    seen = curriculum.seen.item()
    curriculum.eval()(10)
    assert curriculum.seen.item() == seen


def test_the_gradient_of_the_temperature_is_that_of_the_loss_times_the_factor():
    (loss,) = of(ctkd_loss)
    (student,), (teacher,) = loss.inputs(4)
    student[0, 2] = teacher[0, 2] = teacher[1, 1] = -math.inf
    curriculum = Temperature(images=40, ramp_epochs=10).double()
    for step in range(30):
        temperature = curriculum(40)
        value = ctkd_loss(student, teacher, temperature).sum()
        (found,) = torch.autograd.grad(value, curriculum.raw)
        t, share = temperature.item(), torch.sigmoid(curriculum.raw).item()
        ahead, behind = (soft_logits_loss(student, teacher, t + d).sum() for d in (1e-5, -1e-5))
        slope = (ahead - behind).item() / 2e-5 * 20 * share * (1 - share)
        assert found.item() == pytest.approx(curriculum.factor.item() * slope, rel=1e-5, abs=1e-9)
        with torch.no_grad():
            curriculum.raw -= found
        if step >= 10:
            assert ctkd_loss(student, teacher, curriculum.value).sum() >= value


def test_the_temperature_is_trained_and_shown():
    lesson = Lesson(cell("ctkd"))
    lesson.epochs(3)
    shown = lesson.student.curves["temperature"]
    assert len(set(shown)) == 3
    assert shown[0] == pytest.approx(15.62, abs=0.1)
    assert lesson.student.connector.seen == 120
