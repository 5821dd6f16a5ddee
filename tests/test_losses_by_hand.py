"""Every loss on inputs small enough to work out on paper; comments show the working."""

import math

import pytest
import torch
from loss_table import float64, gradient_of
from torch import Tensor

from methods._pool import pool_alike
from methods.activation_boundary import activation_boundary_loss
from methods.attention_transfer import Kind, attention_map, attention_transfer_loss
from methods.fitnet import hint_loss
from methods.fsp import fsp_loss, fsp_matrix
from methods.kd_svd import kd_svd_loss, masked_kd_svd_loss
from methods.rkd import rkd_angle_loss, rkd_distance_loss
from methods.soft_logits import soft_logits_loss


def row_map(*values: float) -> Tensor:
    """One sample, one channel, one row of positions: (1, 1, 1, W)."""
    return float64(*values).view(1, 1, 1, -1)


def position_rows(rows) -> Tensor:
    """The map (1, C, 1, P) of a matrix with positions as rows and channels as columns."""
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None, :]


def test_soft_logits_of_a_teacher_three_times_as_sure():
    # q = softmax([ln 3, 0]) = [3/4, 1/4], p = [1/2, 1/2]; T^2 KL = 4 (3/4 ln 3/2 + 1/4 ln 1/2).
    student, teacher = float64([0, 0]), float64([2 * math.log(3), 0])
    (loss,) = soft_logits_loss(student, teacher, 2.0).tolist()
    assert loss == pytest.approx(0.5232481, abs=5e-8)
    assert loss / 4 == pytest.approx(0.1308120, abs=5e-8)
    # T (p - q) = 2 [1/2 - 3/4, 1/2 - 1/4]
    (slope,) = gradient_of(soft_logits_loss, student, teacher, 2.0).tolist()
    assert slope == pytest.approx([-0.5, 0.5])
    # (1 - rho) CE + rho T^2 KL with rho = 0.9 and CE = ln 2
    task = torch.nn.functional.cross_entropy(student, torch.tensor([0])).item()
    assert 0.1 * task + 0.9 * loss == pytest.approx(0.5402380, abs=5e-8)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # q = (1/2, 1/2, 0), p = 1/3 each: T^2 ln(3/2)
        ([0, 0, 0], [0, 0, -math.inf], 16 * math.log(1.5)),
        # only one class left: -T^2 ln p
        ([0, 0, 0], [-math.inf, 0, -math.inf], 16 * math.log(3)),
        # the student rules the same class out: p = (1/3, 2/3, 0) at T = 4
        ([0, 4 * math.log(2), -math.inf], [0, 0, -math.inf], 16 * math.log(9 / 8) / 2),
    ],
)
def test_soft_logits_of_a_class_that_is_ruled_out(student, teacher, expected: float):
    student, teacher = float64(student), float64(teacher)
    assert soft_logits_loss(student, teacher, 4.0).item() == pytest.approx(expected, rel=1e-12)
    q, p = (x.div(4).softmax(1) for x in (teacher, student))
    gradient = gradient_of(soft_logits_loss, student, teacher, 4.0)
    torch.testing.assert_close(gradient, 4 * (p - q), rtol=0, atol=1e-12)


def test_hint_loss_is_half_the_mean_square():
    # differences 1, 0, -2, 0: mean of squares 5/4, half of it 5/8; gradient difference / 4
    student = float64(1, 2, 3, 4).view(1, 1, 2, 2)
    teacher = float64(0, 2, 5, 4).view(1, 1, 2, 2)
    assert hint_loss(student, teacher).tolist() == [0.625]
    assert gradient_of(hint_loss, student, teacher).flatten().tolist() == [0.25, 0, -0.5, 0]
    assert hint_loss(student, teacher, scale="sum").tolist() == [2.5]


def test_attention_map_of_two_channels():
    # at position 0: 1^2 + 2^2 = 5, at position 1: 0^2 + 1^2 = 1
    feature = float64([1, 0], [2, 1]).view(1, 2, 1, 2)
    assert attention_map(feature, "sumsq").flatten().tolist() == pytest.approx([5, 1])
    assert attention_map(feature, "l2").flatten().tolist() == pytest.approx([math.sqrt(5), 1])


@pytest.mark.parametrize(
    ("kind", "unit_map", "loss", "gradient"),
    [
        # (9, 16) / sqrt(337); mean of (q - [1, 0])^2 = (1 - 9 / sqrt(337))
        ("sumsq", [0.4902612, 0.8715755], 0.5097388, [-0.2483, 0.1862]),
        # (3, 4) / 5; mean of [0.16, 0.64]
        ("l2", [0.6, 0.8], 0.4, [-0.128, 0.096]),
    ],
)
def test_attention_transfer_of_3_4_against_1_0(kind: Kind, unit_map, loss: float, gradient):
    student, teacher = row_map(3, 4), row_map(1, 0)
    energy = attention_map(student, kind)
    assert (energy / energy.norm()).flatten().tolist() == pytest.approx(unit_map, abs=5e-8)
    assert attention_transfer_loss(student, teacher, kind).item() == pytest.approx(loss, abs=5e-8)
    found = gradient_of(attention_transfer_loss, student, teacher, kind)
    assert found.flatten().tolist() == pytest.approx(gradient, abs=5e-5)


def test_attention_transfer_pools_the_map_and_not_the_feature():
    # [1, 3, 0, 2] squared and pooled is [5, 2]; pooled and squared it would be [4, 1].
    student, teacher = row_map(1, 3, 0, 2), row_map(math.sqrt(5), math.sqrt(2))
    assert attention_transfer_loss(student, teacher, "sumsq").item() == pytest.approx(0, abs=1e-15)
    assert attention_transfer_loss(teacher, student, "sumsq").item() == pytest.approx(0, abs=1e-15)


def test_activation_boundary_on_both_sides_of_the_margin():
    student = row_map(0.5, -0.5, 2, -2, 0, 0, 1, -1)
    teacher = row_map(1, 1, 1, 1, -1, 0, -3, -3)  # a teacher at 0 does not fire
    # one neuron at a time: (1 - .5)^2, (1 + .5)^2, 0, (1 + 2)^2, 1, 1, (1 + 1)^2, 0
    each = [
        activation_boundary_loss(s.view(1, 1, 1, 1), t.view(1, 1, 1, 1), 1.0).item()
        for s, t in zip(student.flatten(), teacher.flatten(), strict=True)
    ]
    assert each == [0.25, 2.25, 0, 9, 1, 1, 4, 0]
    assert activation_boundary_loss(student, teacher, 1.0).tolist() == [17.5]
    # Equal networks pay inside the margin: (1 - .25)^2
    equal = row_map(0.25, -3)
    assert activation_boundary_loss(equal, equal, 1.0).tolist() == [0.75**2]
    # 2 (s - 1) where the teacher fires and s < 1; 2 (s + 1) where it does not and s > -1
    gradient = gradient_of(activation_boundary_loss, student, teacher, 1.0)
    assert gradient.flatten().tolist() == [-1, -3, 0, -6, 2, 2, 4, 0]


def test_fsp_of_two_channels_at_two_positions():
    first = float64([1, 2], [3, 4]).view(1, 2, 1, 2)
    second = torch.eye(2, dtype=torch.float64).view(1, 2, 1, 2)
    # first second^T / 2 positions
    assert fsp_matrix(first, second)[0].tolist() == [[0.5, 1], [1.5, 2]]
    teacher = math.sqrt(2) * second  # its matrix is the identity
    # (1/2)^2 + 1^2 + (3/2)^2 + 1^2
    assert fsp_loss(first, second, teacher, teacher).item() == pytest.approx(4.5, abs=1e-12)
    mean = fsp_loss(first, second, teacher, teacher, scale="mean").item()
    assert mean == pytest.approx(1.125, abs=1e-12)


def test_fsp_refuses_unequal_sizes_and_pooling_takes_the_maxima_of_the_larger_map():
    larger = row_map(1, -4, 2, 3)
    with pytest.raises(ValueError, match="max-pool"):
        fsp_matrix(larger, row_map(1, 2))
    pooled, kept = pool_alike(larger, row_map(1, 2), "max")
    assert pooled.flatten().tolist() == [1, 3]
    assert kept.flatten().tolist() == [1, 2]


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_kd_svd_of_a_student_with_an_orthogonal_back_vector(dtype: torch.dtype, rel: float):
    # Vectors: front [1, 0] in both, back [0, 1] in the student and [1, 0] in the teacher. The
    # relations swap exp(0) with exp(-1/8) in all 4 entries. Their product is 0: its sign is +.
    front, student, teacher = (
        position_rows(rows).to(dtype)
        for rows in ([[2, 0], [0, 1]], [[0, 0], [0, 3]], [[3, 0], [0, 0]])
    )
    (loss,) = kd_svd_loss([front, student], [front, teacher], 1, 0).tolist()
    assert loss == pytest.approx(4 * math.expm1(-1 / 8) ** 2, rel=rel)
    assert loss == pytest.approx(0.0552279, abs=5e-8)
    # The null vector fits better, once it is a candidate.
    assert kd_svd_loss([front, student], [front, teacher], 1, 1).item() == 0


def test_kd_svd_weights_vectors_by_the_teachers_singular_values():
    # Singular values 4 and 3, so weights .8 and .6. Teacher: both layers' vectors are the axes, so
    # off its diagonals the relation is exp(-.8^2 / 8) and exp(-.6^2 / 8). Student: the back
    # layer's vectors are the axes turned by the angle of a 3-4-5 triangle.
    axes = position_rows([[4, 0], [0, 3]])
    turned = position_rows([[4 * 0.8, 4 * 0.6], [-3 * 0.6, 3 * 0.8]])
    teacher_relations = [[1, 0.9231163], [0.9231163, 1]], [[1, 0.9559975], [0.9559975, 1]]
    fronts = (0.8, 0), (0, 0.6)
    backs = (0.8 * 0.8, 0.8 * 0.6), (-0.6 * 0.6, 0.6 * 0.8)
    expected = sum(
        (math.exp(-((a - b) ** 2) / 8) - relation[i][j]) ** 2
        for relation, front, back in zip(teacher_relations, fronts, backs, strict=True)
        for i, a in enumerate(front)
        for j, b in enumerate(back)
    )
    steeper = position_rows([[9, 0], [0, 1]])  # the student's own values play no part
    for front in (axes, steeper):
        loss = kd_svd_loss([front, turned], [axes, axes], 2, 0).item()
        assert loss == pytest.approx(expected, abs=1e-7)


def test_kd_svd_leaves_out_just_the_samples_with_a_vector_of_no_direction():
    # Sample 0 is alive; 1 has two equal singular values, so any vector is its first; 2 is dead.
    alive, equal, dead = ([[2, 0], [0, 1]], [[1, 0], [0, 1]], [[0, 0], [0, 0]])
    student = torch.cat([position_rows(rows) for rows in (alive, equal, dead)])
    turned = position_rows([[2 * 0.8, 2 * 0.6], [-0.6, 0.8]]).expand(3, 2, 1, 2)
    losses, masked = masked_kd_svd_loss([student, turned], [turned, turned], 1, 1)
    assert losses[0] > 1e-4
    assert losses[1:].tolist() == [0, 0]
    assert masked.tolist() == [False, True, True]


TRIANGLE = float64([0, 0], [3, 0], [0, 4])  # mean distance 4
RIGHT = float64([0, 0], [1, 0], [0, 1])  # mean distance (2 + sqrt 2) / 3 = 1.1380712


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "total", "tuples", "distinct"),
    [
        # 2 sum over pairs of half of (1 / 1.1380712 - 3/4)^2, (1 / 1.1380712 - 1)^2 and
        # (1.2426407 - 5/4)^2
        (rkd_distance_loss, RIGHT, TRIANGLE, 0.0313312, 3**2, 3 * 2),
        # Student: four samples at 0 and one at 1; mean distance 4/10, so 4 pairs at 5/2 and 6 at 0.
        # Teacher: all distances equal, so all at 1. Where differences exceed 1, Huber is linear:
        # 4 (3/2 - 1/2) + 6 (1/2) = 7, both ways 14.
        (rkd_distance_loss, float64([0], [0], [0], [0], [1]), torch.eye(5), 14, 5**2, 5 * 4),
        # cosines 0, 3/5, 4/5 in the teacher; 0, 1 / sqrt 2 twice in the student; each counts twice
        (rkd_angle_loss, RIGHT, TRIANGLE, 0.0201010, 3**3, 3 * 2 * 1),
        # On a line the cosine is -1 at the middle sample and 1 at the ends; the middle is sample 1
        # in the student and 2 in the teacher. Two vertices differ by 2, Huber 3/2; both ways 6.
        (rkd_angle_loss, float64([0], [1], [2]), float64([0], [2], [1]), 6, 3**3, 3 * 2 * 1),
    ],
)
def test_rkd_on_paper(loss, student: Tensor, teacher: Tensor, total: float, tuples, distinct):
    teacher = teacher.double()
    for reduction, count in (("peers", tuples), ("distinct", distinct)):
        found = count * loss(student, teacher, reduction=reduction).item()
        assert found == pytest.approx(total, abs=5e-8)


def test_rkd_angle_gives_nothing_at_a_side_of_length_zero():
    # Samples 0 and 1 coincide in the student: of each triple of vertices only sample 2 sees two
    # sides (cosine 1, teacher 4/5); at 0 and 1 the student counts as 0 (teacher 0 and 3/5). The
    # triples i, j, i count as 0 at the coinciding pair, where the teacher has 1: 2 of them.
    student = float64([0, 0], [0, 0], [0, 1])
    expected = 2 * (0 + 0.6**2 / 2 + 0.2**2 / 2) + 2 * 0.5
    assert 27 * rkd_angle_loss(student, TRIANGLE).item() == pytest.approx(expected, rel=1e-9)
