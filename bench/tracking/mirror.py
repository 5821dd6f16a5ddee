"""A grid's records in MLflow: one run for each, sent once and read back.

Commands on one work directory take turns. Commands on several work directories may send to one
server at the same time: each sends what it does not find, and `mirror_all` then removes results
that were sent twice.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.record import FAILED, FINISHED, Plan, Record, Row, Store
from bench.tracking.description import (
    ParentRun,
    metrics_of,
    params_of,
    parent_run_of,
    started_at,
    tags_of,
)
from bench.tracking.experiment import KIND, NOTE, PARENT, Experiment, failures
from bench.tracking.tables_run import TablesRun

if TYPE_CHECKING:
    from mlflow.entities import Run

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}


class _Sent(NamedTuple):
    """A run of a cell.

    Attributes:
        run: its id.
        status: of the record; empty if the run was cut off before everything was sent.
    """

    run: str
    status: str


class Mirror:
    """One grid in an MLflow store.

    Attributes:
        experiment: that holds it.
        tables: the run that holds its plan, tables and figures.
    """

    def __init__(self, work_dir: Path, grid: str) -> None:
        """Opens the store; makes the database if there is none.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self.experiment = Experiment(work_dir, grid)
        self.client = self.experiment.client
        self.tables = TablesRun(self.experiment)
        self._sent: dict[str, _Sent] | None = None
        self._parents: dict[str, str] | None = None

    def send(self, record: Record, row: Row, folder: Path) -> bool:
        """Copies one record, once.

        Args:
            record: finished, failed or not applicable.
            row: a row of the plan that the record answers for: names and tags.
            folder: the cell's files.

        Returns:
            False if the store holds this result already.

        Raises:
            TrackingError: the store failed; a run that was cut off does not count as sent.
        """
        with failures():
            if self._sent is None:
                self._sent = self._read_sent()
            sent = self._sent.get(record.cell_id)
            if sent is not None and sent.status == record.status:
                return False
            if sent is not None:  # of an earlier status, or cut off
                self.client.delete_run(sent.run)
            self._sent[record.cell_id] = _Sent(self._copy(record, row, folder), record.status)
        return True

    def tidy(self) -> None:
        """Removes results that were sent twice, and ends runs that a killed sender left.

        Raises:
            TrackingError: the store failed.
        """
        with failures():
            self._sent = self._read_sent()
            for sent in self._sent.values():
                if not sent.status:
                    self.client.set_terminated(sent.run, status="KILLED")

    def fetch(self) -> tuple[Plan, dict[str, Record]]:
        """The plan and all its records, from MLflow alone.

        Raises:
            TrackingError: the experiment holds no plan, or the store cannot be read.
        """
        with failures(), tempfile.TemporaryDirectory() as folder:
            plan = self.tables.fetch_plan()
            wanted = set(plan.cell_ids())
            records = {}
            for run in self.experiment.search(f"tags.`{KIND}` = 'cell'"):
                if _is_whole(run) and run.data.tags["cell_id"] in wanted:
                    path = self.client.download_artifacts(run.info.run_id, "record.json", folder)
                    record = Record.from_json(Path(path).read_text(encoding="utf-8"))
                    records[record.cell_id] = record
        return plan, {i: records[i] for i in plan.cell_ids() if i in records}

    def _read_sent(self) -> dict[str, _Sent]:
        """Cell id -> its run; of several the whole one with the smallest id stays."""
        runs: dict[str, list[_Sent]] = {}
        for run in self.experiment.search(f"tags.`{KIND}` = 'cell'"):
            tags = run.data.tags
            status = tags["status"] if _is_whole(run) else ""
            runs.setdefault(tags["cell_id"], []).append(_Sent(run.info.run_id, status))
        sent = {}
        for cell_id, found in runs.items():
            sent[cell_id], *spare = sorted(found, key=lambda one: (not one.status, one.run))
            for one in spare:
                self.client.delete_run(one.run)
        return sent

    def _copy(self, record: Record, row: Row, folder: Path) -> str:
        started = started_at(record)
        tags = tags_of(record, row) | {PARENT: self._parent(parent_run_of(row))}
        made = self.client.create_run(
            self.experiment.id, start_time=started, run_name=row.name, tags=tags
        )
        run = made.info.run_id
        self.client.log_batch(
            run, metrics=metrics_of(record, started or 0), params=params_of(record)
        )
        self.client.log_artifacts(run, str(folder))
        took = sum(record.final.get(f"{part}_seconds", 0) for part in ("train", "evaluation"))
        ended = started and int(started + 1000 * took)
        status = STATUS.get(record.status, "FINISHED")
        self.client.set_terminated(run, status=status, end_time=ended)
        return run

    def _parent(self, parent: ParentRun) -> str:
        """The id of a parent run, made when it is first asked for."""
        if self._parents is None:
            found = self.experiment.search(f"tags.`{KIND}` = 'group'")
            self._parents = {run.info.run_name or "": run.info.run_id for run in found}
        if parent.name not in self._parents:
            tags = {KIND: "group", NOTE: parent.note, "pair": parent.pair}
            made = self.client.create_run(self.experiment.id, run_name=parent.name, tags=tags)
            self.client.set_terminated(made.info.run_id)
            self._parents[parent.name] = made.info.run_id
        return self._parents[parent.name]


def _is_whole(run: Run) -> bool:
    """Whether everything of a run was sent; one that was cut off is RUNNING or KILLED."""
    return run.info.status in STATUS.values()


def mirror_all(mirror: Mirror, plan: Plan, store: Store) -> int:
    """Sends every record of the plan that the store lacks; returns how many were sent.

    Runs that a killed process left unfinished are sent anew, or closed if there is no record.

    Raises:
        TrackingError: the store failed.
    """
    mirror.tables.send_plan(plan)
    rows = first_rows(plan)
    records = store.read_all(rows)
    sent = sum(mirror.send(record, rows[i], store.folder(i)) for i, record in records.items())
    mirror.tidy()
    return sent


def first_rows(plan: Plan) -> dict[str, Row]:
    """Cell id -> the first row that it answers for."""
    rows: dict[str, Row] = {}
    for row in plan.rows:
        rows.setdefault(row.cell_id, row)
    return rows
