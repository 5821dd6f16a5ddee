"""Losses of logits as the plain sums that define them; see `oracles`."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from oracles import Array, log_softmax, soft_logits_loss
from torch import Tensor


def softmax(row: Array) -> Array:
    return np.array([math.exp(z) for z in log_softmax(row)])


def labelled_rows(*arrays: ArrayLike) -> Iterator[tuple[Array, Array, int]]:
    """Student logits, teacher logits and label of each sample."""
    student, teacher, labels = map(np.asarray, arrays)
    for ours, theirs, label in zip(student, teacher, labels, strict=True):
        yield ours.astype(np.float64), theirs.astype(np.float64), int(label)


def standardise(logits: ArrayLike) -> Array:
    """(z_k - mean) / (deviation of K - 1 degrees of freedom + 1e-7), for each row z."""
    rows = []
    for z in np.asarray(logits, dtype=np.float64):
        mean = sum(z) / len(z)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in z) / (len(z) - 1))
        rows.append([(x - mean) / (deviation + 1e-7) for x in z])
    return np.array(rows)


def standardised_soft_logits_loss(
    student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: float
) -> Array:
    """`soft_logits_loss` of both networks' standardised logits."""
    ours, theirs = map(standardise, (student_logits, teacher_logits))
    return soft_logits_loss(ours, theirs, temperature)


def dkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    temperature: float,
    alpha: float,
    beta: float,
) -> Array:
    """T^2 (alpha KL of "y or not" + beta KL of the other classes given that it is not y)."""
    losses = []
    for student, teacher, y in labelled_rows(student_logits, teacher_logits, labels):
        p, q = softmax(student / temperature), softmax(teacher / temperature)
        first = q[y] * math.log(q[y] / p[y]) + (1 - q[y]) * math.log((1 - q[y]) / (1 - p[y]))
        second = 0.0
        for k in range(len(q)):
            if k != y:
                given_p, given_q = p[k] / (1 - p[y]), q[k] / (1 - q[y])
                second += given_q * math.log(given_q / given_p)
        losses.append(temperature**2 * (alpha * first + beta * second))
    return np.array(losses)


def dist_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float,
    beta: float,
    gamma: float,
) -> float:
    """T^2 (beta (1 - mean correlation of rows) + gamma (1 - mean correlation of columns))."""
    student, teacher = (
        np.array([softmax(row / temperature) for row in np.asarray(logits, dtype=np.float64)])
        for logits in (student_logits, teacher_logits)
    )
    loss = beta * (1 - np.mean([correlation(u, v) for u, v in zip(student, teacher, strict=True)]))
    if len(student) > 1:
        columns = zip(student.T, teacher.T, strict=True)
        loss += gamma * (1 - np.mean([correlation(u, v) for u, v in columns]))
    return float(temperature**2 * loss)


def correlation(first: Array, second: Array) -> float:
    """Pearson's, with 1e-8 added to the product of both lengths."""
    u, v = first - sum(first) / len(first), second - sum(second) / len(second)
    lengths = math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in v))
    return sum(a * b for a, b in zip(u, v, strict=True)) / (lengths + 1e-8)


def nkd_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    temperature: float,
    gamma: float,
) -> Array:
    """-q_y log p_y - gamma T^2 (cross-entropy of the others, renormalised)."""
    losses = []
    for student, teacher, y in labelled_rows(student_logits, teacher_logits, labels):
        loss = -softmax(teacher)[y] * log_softmax(student)[y]
        p, q = (softmax(np.delete(row, y) / temperature) for row in (student, teacher))
        others = -sum(b * math.log(a) for a, b in zip(p, q, strict=True))
        losses.append(loss + gamma * temperature**2 * others)
    return np.array(losses)


def wttm_loss(
    student_logits: ArrayLike, teacher_logits: ArrayLike, gamma: float, weighted: bool
) -> Array:
    """U KL of the student's probabilities from q_k^gamma / U, U = sum_k q_k^gamma; U = 1 if not."""
    losses = []
    student, teacher = (np.asarray(x, dtype=np.float64) for x in (student_logits, teacher_logits))
    for ours, theirs in zip(student, teacher, strict=True):
        log_p, powers = log_softmax(ours), softmax(theirs) ** gamma
        q = powers / sum(powers)
        divergence = sum(b * (math.log(b) - a) for a, b in zip(log_p, q, strict=True))
        losses.append(sum(powers) * divergence if weighted else divergence)
    return np.array(losses)


def ctkd_loss(student_logits: ArrayLike, teacher_logits: ArrayLike, temperature: Tensor) -> Array:
    """Soft logits' loss at a temperature that is a tensor."""
    return soft_logits_loss(student_logits, teacher_logits, temperature.item())
