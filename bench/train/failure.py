"""Records of cells that give no result."""

import traceback
from collections.abc import Mapping

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
        return record_without_result(cell, NOT_APPLICABLE, reason(error), provenance)
    text = "".join(traceback.format_exception(error))
    return record_without_result(cell, FAILED, name_and_reason(error), provenance, text)


def record_without_result(
    cell: Cell, status: str, error: str, provenance: Mapping[str, object], text: str = ""
) -> Record:
    """The record of a cell without a result; `error` is a line, `text` the traceback."""
    method = build_method(cell.method, **cell.hyperparameters)
    return Record(
        cell_id=cell.id,
        cell=cell.resolved(),
        category=method.category,
        source=method.source,
        status=status,
        error=error,
        traceback=text,
        conditions=dict(provenance),
    )
