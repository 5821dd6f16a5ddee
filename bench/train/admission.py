"""A student before its first epoch: whether its method can serve the pair."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.cell import Cell
from bench.method import Method, NotApplicable, Shapes
from bench.models.network import Network
from bench.seeds import derive
from bench.train.device import to_device
from bench.train.engine import Student


def make_student(
    cell: Cell,
    method: Method,
    network: Network,
    shapes: Shapes,
    teacher_shapes: Shapes | None,
    device: torch.device,
    labelled: Tensor | None = None,
) -> Student:
    """A student ready for its first epoch.

    Args:
        cell: what is trained.
        method: built from the cell's hyper-parameters.
        network: freshly initialised.
        shapes: its taps' shapes.
        teacher_shapes: the teacher's; None if the cell has none.
        device: where the training runs.
        labelled: see `Student`.

    Raises:
        NotApplicable: the method cannot serve this pair.
        ValueError: teacher and student tell different numbers of classes apart.
    """
    if method.needs_teacher and teacher_shapes is None:
        raise ValueError(f"method {cell.method!r} needs a teacher, and the cell names none")
    if labelled is not None and any(stage.keep is not None for stage in method.plan):
        raise NotApplicable("the selection reads every label, and this grid shows only a part")
    theirs: Shapes = teacher_shapes if teacher_shapes is not None else {}
    if teacher_shapes is not None and theirs["logits"] != shapes["logits"]:
        raise ValueError(
            f"the teacher tells {theirs['logits'][0]} classes apart, the student "
            f"{shapes['logits'][0]}: train both on the same classes"
        )
    for name, tap in _taps_of(method):
        for whose, available in (("student", shapes), ("teacher", theirs)):
            if tap not in available:
                raise NotApplicable(f"stage {name!r} reads tap {tap!r}, which the {whose} lacks "
                                    f"(it has {', '.join(available)})")  # fmt: skip
    optional = {
        stage.name: tuple(t for t in stage.optional_taps if t in shapes and t in theirs)
        for stage in method.plan
    }
    torch.manual_seed(derive(cell.seed, "connector", cell.method))
    connector = to_device(method.connect(shapes, theirs), device)
    network = to_device(network, device)
    return Student(cell, method, network, connector, device, optional, labelled)


def _taps_of(method: Method) -> Iterator[tuple[str, str]]:
    return ((stage.name, tap) for stage in method.plan for tap in stage.all_taps)
