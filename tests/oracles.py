"""Every loss once more, as the plain sum that defines it: loops, NumPy, float64, nothing clever.

Written from the formulas, not from `methods/`, and sharing no code with it: a mistake would have to
be made twice to pass unseen. Inputs are anything `numpy.asarray` takes; results are NumPy arrays,
one value per sample, or one float where a loss couples the batch.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Edges = Mapping[tuple[int, int], float]


def _float64(*arrays: ArrayLike) -> list[Array]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def log_softmax(row: Array) -> Array:
    top = max(row)
    return row - top - math.log(sum(math.exp(z - top) for z in row))


def soft_logits_loss(
    student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: float
) -> Array:
    """T^2 sum_k q_k (log q_k - log p_k), with q and p the softened teacher and student."""
    losses = []
    for student, teacher in zip(*_float64(student_logits, teacher_logits), strict=True):
        log_p = log_softmax(student / temperature)
        log_q = log_softmax(teacher / temperature)
        divergence = sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True))
        losses.append(temperature**2 * divergence)
    return np.array(losses)


def hint_loss(student_feature: ArrayLike, teacher_feature: ArrayLike) -> Array:
    """Half the mean over channels and positions of (student - teacher)^2."""
    difference = np.subtract(*_float64(student_feature, teacher_feature))
    return np.array([0.5 * sum(d**2 for d in each.ravel()) / each.size for each in difference])


def attention_map(feature: ArrayLike, kind: str) -> Array:
    """(B, H, W): sum over channels of squares ("sumsq"), or its root ("l2")."""
    (feature,) = _float64(feature)
    batch, channels, height, width = feature.shape
    result = np.zeros((batch, height, width))
    for b, h, w in np.ndindex(result.shape):
        energy = sum(feature[b, c, h, w] ** 2 for c in range(channels))
        result[b, h, w] = math.sqrt(energy) if kind == "l2" else energy
    return result


def adaptive_pool(image: Array, height: int, width: int) -> Array:
    """Means of an (H, W) image; windows reach from floor to ceil of their shares."""
    rows, columns = image.shape
    result = np.zeros((height, width))
    for h, w in np.ndindex(result.shape):
        top, bottom = h * rows // height, -(-(h + 1) * rows // height)
        left, right = w * columns // width, -(-(w + 1) * columns // width)
        result[h, w] = np.mean(image[top:bottom, left:right])
    return result


def attention_transfer_loss(student: ArrayLike, teacher: ArrayLike, kind: str) -> Array:
    """Mean over positions of the squared difference of unit maps; the larger map is pooled."""
    losses, maps = [], (attention_map(feature, kind) for feature in (student, teacher))
    for ours, theirs in zip(*maps, strict=True):
        height, width = np.minimum(ours.shape, theirs.shape)
        units = []
        for image in (ours, theirs):
            pooled = adaptive_pool(image, height, width).ravel()
            units.append(pooled / max(math.sqrt(sum(m * m for m in pooled)), 1e-12))
        losses.append(sum((a - b) ** 2 for a, b in zip(*units, strict=True)) / (height * width))
    return np.array(losses)


def activation_boundary_loss(
    student_pre: ArrayLike, teacher_pre: ArrayLike, margin: float
) -> Array:
    """Sum over neurons of max(0, margin - y s)^2, y = +1 where the teacher fires, -1 elsewhere."""
    student, teacher = _float64(student_pre, teacher_pre)
    losses = np.zeros(len(student))
    for at in np.ndindex(student.shape):
        sign = 1.0 if teacher[at] > 0 else -1.0
        losses[at[0]] += max(0.0, margin - sign * student[at]) ** 2
    return losses


def fsp_matrix(first: ArrayLike, second: ArrayLike) -> Array:
    """(B, C, D): mean over positions of first_c second_d."""
    first, second = _float64(first, second)
    batch, channels, height, width = first.shape
    result = np.zeros((batch, channels, second.shape[1]))
    for b, c, d in np.ndindex(result.shape):
        positions = np.ndindex(height, width)
        total = sum(first[b, c, h, w] * second[b, d, h, w] for h, w in positions)
        result[b, c, d] = total / (height * width)
    return result


def fsp_loss(
    student_first: ArrayLike,
    student_second: ArrayLike,
    teacher_first: ArrayLike,
    teacher_second: ArrayLike,
) -> Array:
    """Squared Frobenius distance of the two FSP matrices."""
    ours = fsp_matrix(student_first, student_second)
    theirs = fsp_matrix(teacher_first, teacher_second)
    return np.array([sum(d**2 for d in each.ravel()) for each in ours - theirs])


def right_singular_vectors(sample: Array, count: int) -> tuple[Array, list[Array]]:
    """Singular values and the first right singular vectors of one (C, H, W) map as (HW, C)."""
    _, values, rows = np.linalg.svd(sample.reshape(len(sample), -1).T, full_matrices=False)
    return values, list(rows[:count])


def canonical_sign(vector: Array) -> Array:
    """+vector or -vector: its sum is at least 0 or, if that cancels, its largest entry is."""
    total = sum(vector)
    decisive = vector[np.argmax(abs(vector))] if abs(total) < 1e-9 else total
    return -vector if decisive < 0 else vector


def aligned_vectors(
    student: Array, teacher: Array, rank: int, extra: int
) -> tuple[list[Array], list[Array]]:
    """Weighted vectors of one sample at one layer: the student's matched to the teacher's."""
    values, wanted = right_singular_vectors(teacher, rank)
    _, candidates = right_singular_vectors(student, rank + extra)
    scale = math.sqrt(sum(value**2 for value in values[:rank]))
    ours, theirs = [], []
    for value, vector in zip(values[:rank], map(canonical_sign, wanted), strict=True):
        best = max(candidates, key=lambda candidate: abs(candidate @ vector))
        sign = 1.0 if best @ vector >= 0 else -1.0
        ours.append(value / scale * sign * best)
        theirs.append(value / scale * vector)
    return ours, theirs


def relation(front: Sequence[Array], back: Sequence[Array]) -> Array:
    """(C, D, rank): exp(-(a_i - b_j)^2 / 8) for every pair of channels of two layers."""
    result = np.zeros((len(front[0]), len(back[0]), len(front)))
    for i, j, r in np.ndindex(result.shape):
        result[i, j, r] = math.exp(-((front[r][i] - back[r][j]) ** 2) / 8)
    return result


def kd_svd_loss(
    student_features: Sequence[ArrayLike],
    teacher_features: Sequence[ArrayLike],
    rank: int,
    extra: int,
) -> Array:
    """Sum over consecutive layers and entries of the squared difference of the relations."""
    student, teacher = _float64(*student_features), _float64(*teacher_features)
    losses = []
    for b in range(len(student[0])):
        layers = [
            aligned_vectors(ours[b], theirs[b], rank, extra)
            for ours, theirs in zip(student, teacher, strict=True)
        ]
        total = 0.0
        for front, back in pairwise(layers):
            difference = relation(front[0], back[0]) - relation(front[1], back[1])
            total += sum(entry**2 for entry in difference.ravel())
        losses.append(total)
    return np.array(losses)


def huber(difference: float) -> float:
    """d^2 / 2 up to |d| = 1, |d| - 1/2 from there."""
    size = abs(difference)
    return size**2 / 2 if size <= 1 else size - 0.5


def distances(points: Array) -> Array:
    result = np.zeros((len(points), len(points)))
    for i, j in np.ndindex(result.shape):
        result[i, j] = math.sqrt(sum((points[i] - points[j]) ** 2))
    return result


def rkd_distance_loss(student: ArrayLike, teacher: ArrayLike, reduction: str = "peers") -> float:
    """Mean Huber difference of distances, each over its own batch's mean distance.

    "peers" divides the sum by N^2; "distinct" by the N(N-1) pairs of different samples.
    """
    student, teacher = _float64(student, teacher)
    n = len(student)
    if n < 2:
        return 0.0
    scaled = []
    for points in (student, teacher):
        apart = distances(points)
        scaled.append(apart / (apart.sum() / (n * (n - 1))))
    total = sum(huber(scaled[0][at] - scaled[1][at]) for at in np.ndindex(n, n))
    return total / (n * n if reduction == "peers" else n * (n - 1))


def angle_cosine(points: Array, i: int, j: int, k: int, tiny: float) -> float:
    """Cosine at vertex j between i and k; 0 where a side is no longer than `tiny`."""
    one, other = points[i] - points[j], points[k] - points[j]
    lengths = math.sqrt(sum(one**2)), math.sqrt(sum(other**2))
    if min(lengths) <= tiny:
        return 0.0
    return sum(one * other) / (lengths[0] * lengths[1])


def rkd_angle_loss(student: ArrayLike, teacher: ArrayLike, reduction: str = "peers") -> float:
    """Mean Huber difference of the cosines of all triples.

    "peers" divides the sum by N^3; "distinct" by the N(N-1)(N-2) triples of different samples.
    """
    student, teacher = _float64(student, teacher)
    n = len(student)
    if n < 3:
        return 0.0
    # A side counts as zero when its square is at most 1e-12 of the longest one's.
    tiny = [1e-6 * distances(points).max() for points in (student, teacher)]
    total = sum(
        huber(angle_cosine(student, i, j, k, tiny[0]) - angle_cosine(teacher, i, j, k, tiny[1]))
        for i, j, k in np.ndindex(n, n, n)
    )
    return total / (n**3 if reduction == "peers" else n * (n - 1) * (n - 2))


def row_lengths(rows: Array) -> Array:
    return np.array([math.sqrt(sum(x * x for x in row)) for row in rows])


def inner_products(points: Array) -> Array:
    result = np.zeros((len(points), len(points)))
    for i, j in np.ndindex(result.shape):
        result[i, j] = sum(points[i] * points[j])
    return result


def sp_loss(student: ArrayLike, teacher: ArrayLike, reduction: str = "peers") -> float:
    """Squared difference of Gram matrices with rows of length 1, over B^2, or over B ("rows")."""
    similarities = []
    for maps in _float64(student, teacher):
        gram = inner_products(maps.reshape(len(maps), -1))
        similarities.append(gram / np.maximum(row_lengths(gram), 1e-12)[:, None])
    total = sum(d**2 for d in np.subtract(*similarities).ravel())
    n = len(similarities[0])
    return total / (n * n if reduction == "peers" else n)


def pkt_loss(student: ArrayLike, teacher: ArrayLike, reduction: str = "peers") -> float:
    """Sum of q_ij (log(q_ij + eps) - log(p_ij + eps)), over B^2, or over B ("rows")."""
    eps, probabilities = 1e-7, []
    for points in _float64(student, teacher):
        units = points / (row_lengths(points) + eps)[:, None]
        kernel = (inner_products(units) + 1) / 2
        probabilities.append([row / sum(row) for row in kernel])
    n, total = len(probabilities[0]), 0.0
    for i, j in np.ndindex(n, n):
        p, q = probabilities[0][i][j], probabilities[1][i][j]
        total += q * (math.log(q + eps) - math.log(p + eps))
    return total / (n * n if reduction == "peers" else n)


def cc_loss(
    student: ArrayLike, teacher: ArrayLike, form: str, gamma: float = 0.4, order: int = 2
) -> float:
    """Of a Gaussian kernel's series, or of the absolute differences' inner products."""
    student, teacher = _float64(student, teacher)
    n = len(student)
    if n < 2:
        return 0.0
    if form == "kernel":
        cosines = [
            inner_products(points / np.maximum(row_lengths(points), 1e-12)[:, None])
            for points in (student, teacher)
        ]
        total = 0.0
        for i, j in np.ndindex(n, n):
            kernels = [
                sum(
                    math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * c[i, j] ** p
                    for p in range(order + 1)
                )
                for c in cosines
            ]
            total += (kernels[0] - kernels[1]) ** 2
        return total / n**2
    gaps = abs(student - teacher)
    compared = [(i, j) for i, j in np.ndindex(n, n) if (i != j if form == "pairs" else j == i + 1)]
    return sum(sum(gaps[i] * gaps[j]) for i, j in compared) / len(compared)


def crd_loss(
    student: ArrayLike,
    teacher: ArrayLike,
    student_bank: ArrayLike,
    teacher_bank: ArrayLike,
    drawn: ArrayLike,
    normalisers: tuple[float, float] | None,
    temperature: float,
) -> Array:
    """-log(x_0 / (x_0 + c + eps)) - sum over j >= 1 of log(c / (x_j + c + eps)) of both sides."""
    sides = [_float64(student, teacher_bank), _float64(teacher, student_bank)]
    losses = []
    for i, entries in enumerate(np.asarray(drawn)):
        entries, total = [j for j in entries if j >= 0], 0.0
        for side, (points, bank) in enumerate(sides):
            x = [math.exp(sum(bank[j] * points[i]) / temperature) for j in entries]
            z = normalisers[side] if normalisers else len(bank) * sum(x) / len(x)
            first, *others = (value / z for value in x)
            c = len(others) / len(bank)
            total -= math.log(first / (first + c + 1e-7))
            total -= sum(math.log(c / (value + c + 1e-7)) for value in others)
        losses.append(total)
    return np.array(losses)


def keeping_costs(embeddings: ArrayLike, labels: Sequence[int]) -> Array:
    """U1: distance to the own class's centre over that to the nearest other class's centre."""
    (embeddings,) = _float64(embeddings)
    centres = {k: np.mean(embeddings[np.equal(labels, k)], axis=0) for k in set(labels)}
    costs = []
    for point, label in zip(embeddings, labels, strict=True):
        apart = {k: math.sqrt(sum((point - centre) ** 2)) for k, centre in centres.items()}
        nearest = min(distance for k, distance in apart.items() if k != label)
        costs.append(apart[label] / (nearest + 1e-12))
    return np.array(costs)


def classmate_edges(
    embeddings: ArrayLike, labels: Sequence[int], neighbours: int = 10, sigma: float | None = None
) -> dict[tuple[int, int], float]:
    """{(i, j): exp(-|e_i - e_j|^2 / (2 sigma^2))}, i < j, where j is one of i's nearest
    classmates or i one of j's; sigma^2 is the mean squared edge length unless given."""
    (embeddings,) = _float64(embeddings)
    squared = distances(embeddings) ** 2
    pairs: set[tuple[int, int]] = set()
    for i, label in enumerate(labels):
        classmates = [j for j, other in enumerate(labels) if other == label and j != i]
        for j in sorted(classmates, key=lambda j: squared[i, j])[:neighbours]:
            pairs.add((min(i, j), max(i, j)))
    lengths = {pair: squared[pair] for pair in sorted(pairs)}
    variance = sigma**2 if sigma is not None else sum(lengths.values()) / len(lengths)
    return {pair: math.exp(-length / (2 * variance)) for pair, length in lengths.items()}


def selection_energy(
    kept: Sequence[int],
    keeping: Sequence[float] | Array,
    dropping: float,
    edges: Edges,
    smoothness: float,
) -> float:
    """E(a) = sum_i [a_i U1_i + (1 - a_i) tau] + lambda sum_(i,j) w_ij [a_i != a_j]."""
    unary = sum(cost if a else dropping for a, cost in zip(kept, keeping, strict=True))
    cut = sum(weight for (i, j), weight in edges.items() if kept[i] != kept[j])
    return unary + smoothness * cut


def cheapest_selection(
    keeping: Sequence[float] | Array, dropping: float, edges: Edges, smoothness: float
) -> tuple[float, tuple[int, ...]]:
    """Lowest energy and its selection, by trying all 2^n; the larger selection wins a tie."""
    energies = {
        kept: selection_energy(kept, keeping, dropping, edges, smoothness)
        for kept in product((0, 1), repeat=len(keeping))
    }
    lowest = min(energies.values())
    ties = [kept for kept, energy in energies.items() if energy <= lowest + 1e-9]
    return lowest, max(ties, key=sum)


def minimum_cut_by_networkx(graph: nx.Graph, dropping: float) -> set[int]:
    """The nodes that stay with the source, by networkx's own flow and all components at once."""

    def units(cost: float) -> int:
        return round(cost * 1_000_000)

    network = nx.DiGraph()
    network.add_nodes_from(["source", "sink"])
    for item, cost in graph.nodes.data("keep_cost"):
        network.add_edge("source", item, capacity=units(dropping))
        network.add_edge(item, "sink", capacity=units(cost))
    for first, second, cost in graph.edges.data("cost"):
        network.add_edge(first, second, capacity=units(cost))
        network.add_edge(second, first, capacity=units(cost))
    _, (kept, _) = nx.minimum_cut(network, "source", "sink")
    return kept - {"source"}
