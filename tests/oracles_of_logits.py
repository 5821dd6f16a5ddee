"""Losses of logits as the plain sums that define them; see `oracles`."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from oracles import Array, log_softmax


def softmax(row: Array) -> Array:
    return np.array([math.exp(z) for z in log_softmax(row)])


def labelled_rows(*arrays: ArrayLike) -> Iterator[tuple[Array, Array, int]]:
    """Student logits, teacher logits and label of each sample."""
    student, teacher, labels = map(np.asarray, arrays)
    for ours, theirs, label in zip(student, teacher, labels, strict=True):
        yield ours.astype(np.float64), theirs.astype(np.float64), int(label)


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
