"""Records of cells: what all of them hold, and those of cells that give no result."""

import traceback
from collections.abc import Mapping
from typing import Any

from bench.cell import Cell
from bench.faults import name_and_reason, reason
from bench.hyperparameters import build_method
from bench.method import NotApplicable
from bench.record import FAILED, NOT_APPLICABLE, Record


class KilledError(RuntimeError):
    """A training was ended from outside: by a signal, or with its node. No fault of the cell."""


def fail(cell: Cell, error: BaseException, provenance: Mapping[str, object]) -> Record:
    """The record of a cell that raised `error`: failed, or not applicable to its pair."""
    if isinstance(error, NotApplicable):
        return record_of(cell, NOT_APPLICABLE, provenance, error=reason(error))
    text = "".join(traceback.format_exception(error))
    return record_of(cell, FAILED, provenance, error=name_and_reason(error), traceback=text)


def record_of(cell: Cell, status: str, conditions: Mapping[str, object], **fields: Any) -> Record:
    """The record of a cell; `fields` are those that follow neither from it nor from its method."""
    method = build_method(cell.method, **cell.hyperparameters)
    return Record(
        cell_id=cell.id,
        cell=cell.resolved(),
        category=method.category,
        source=method.source,
        status=status,
        conditions=dict(conditions),
        **fields,
    )
