"""Seconds of rows that were only counted, from those that were measured.

    seconds = operations / rate of the network x what this row takes longer than its operations say

The rate is that of the plain student of the same network, or else of all that was measured; the
last factor is the median over the pairs where the same row was measured, else 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from bench.cell import Cell
from bench.cost.parts import EXTRAPOLATED, MEASURED, Parts, StageParts, StudentParts


class _Measured(NamedTuple):
    """One stage that was measured."""

    cell: Cell
    position: int
    stage: StageParts


def extrapolate(parts: Parts, cells: Mapping[str, Cell]) -> Parts:
    """The parts with seconds for students that have operations only.

    Args:
        parts: measured and counted ones.
        cells: one of each kind.
    """
    rates = _Rates(parts, cells)
    students = {
        key: rates.fill(cells[key], found) if found.origin == EXTRAPOLATED else found
        for key, found in parts.students.items()
        if key in cells
    }
    return replace(parts, students={**parts.students, **students})


class _Rates:
    """What was measured, looked at from the side of what was not."""

    def __init__(self, parts: Parts, cells: Mapping[str, Cell]) -> None:
        known = [(cells[k], s) for k, s in parts.students.items()
                 if k in cells and s.origin == MEASURED]  # fmt: skip
        self._stages = list(_stages(known))
        self._plain = {c.model_name: s for c, s in known if row_of(c) == "student"}
        self._rates = {
            name: rate for name, s in self._plain.items() if (rate := _rate(s.stages)) is not None
        }
        self._usual = statistics.median(self._rates.values()) if self._rates else None

    def fill(self, cell: Cell, found: StudentParts) -> StudentParts:
        """The seconds of one student."""
        rate = self._rates.get(cell.model_name, self._usual)
        if rate is None:
            return found
        plain = self._plain.get(cell.model_name)
        stages = tuple(
            replace(
                stage,
                step_seconds=stage.step_flops / rate * self._factor(cell, n),
                epoch_seconds=plain.stages[0].epoch_seconds if plain else 0.0,
            )
            for n, stage in enumerate(found.stages)
        )
        tests = plain.test_seconds if plain else found.test_flops / rate
        return replace(found, stages=stages, test_seconds=tests)

    def _factor(self, cell: Cell, position: int) -> float:
        row = row_of(cell)
        slower = [
            m.stage.step_seconds * self._rates[m.cell.model_name] / m.stage.step_flops
            for m in self._stages
            if m.position == position and row_of(m.cell) == row and m.cell.model_name in self._rates
        ]
        return statistics.median(slower) if slower else 1.0


def row_of(cell: Cell) -> str:
    """The method with its hyper-parameters."""
    return cell.method if not cell.hyperparameters else f"{cell.method} {cell.hyperparameters}"


def _stages(known: list[tuple[Cell, StudentParts]]) -> Iterator[_Measured]:
    for cell, student in known:
        for position, stage in enumerate(student.stages):
            if stage.step_flops and stage.step_seconds:
                yield _Measured(cell, position, stage)


def _rate(stages: tuple[StageParts, ...]) -> float | None:
    seconds = sum(stage.step_seconds for stage in stages)
    return sum(stage.step_flops for stage in stages) / seconds if seconds else None
