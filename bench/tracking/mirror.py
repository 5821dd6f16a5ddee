"""A grid's records in MLflow: one run for each, sent once and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.record import FAILED, FINISHED, Plan, Record, Row, Store
from bench.tracking.description import (
    Group,
    began_at,
    dataset_of,
    group_of,
    metrics_of,
    params_of,
    tags_of,
)
from bench.tracking.experiment import KIND, NOTE, PARENT, Experiment, failures
from bench.tracking.summary import Summary

if TYPE_CHECKING:
    from mlflow.entities import Run

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}


class Mirror:
    """One grid in an MLflow store.

    Attributes:
        experiment: that holds it.
        summary: the run that holds its plan, tables and figures.
    """

    def __init__(self, work_dir: Path, grid: str) -> None:
        """Opens the store; the database is made here, by one process, if there is none.

        Raises:
            TrackingError: the store cannot be opened.
        """
        self.experiment = Experiment(work_dir, grid)
        self.client = self.experiment.client
        self.summary = Summary(self.experiment)
        self._cells: dict[str, tuple[str, str]] | None = None
        self._groups: dict[str, str] | None = None

    def send(self, record: Record, row: Row, folder: Path) -> bool:
        """Copies one record, once.

        Args:
            record: finished, failed or not applicable.
            row: a row of the plan that the record answers for: names and tags.
            folder: the cell's files.

        Returns:
            False if the store holds this result already.

        Raises:
            TrackingError: the store failed; nothing is half there that counts as sent.
        """
        with failures():
            run, status = self._known().get(record.cell_id, ("", ""))
            if status == record.status:
                return False
            if run:  # of an earlier status, or cut off before it was whole
                self.client.delete_run(run)
            run = self._copy(record, row, folder)
            kept = self._keep_one(run, record)
        self._known()[record.cell_id] = (kept, record.status)
        return kept == run

    def _known(self) -> dict[str, tuple[str, str]]:
        """Cell id -> (run, status) of what the store holds; status "" if it is not whole."""
        if self._cells is None:
            self._cells = {}
            for run in self.experiment.search(f"tags.`{KIND}` = 'cell'"):
                cell_id = run.data.tags["cell_id"]
                found = (run.info.run_id, run.data.tags["status"] if _is_whole(run) else "")
                other = self._cells.setdefault(cell_id, found)
                if other != found:  # a sender was cut off before it looked for others
                    kept, spare = (other, found) if other[1] else (found, other)
                    self._cells[cell_id] = kept
                    self.client.delete_run(spare[0])
        return self._cells

    def _keep_one(self, run: str, record: Record) -> str:
        """Of this run and those that others sent of the same result meanwhile, keeps one.

        Commands on one work directory take turns; this is for those on several, with one server.
        Each looks after it has sent, so the last to look sees all; whoever sees several keeps the
        smallest id.
        """
        same = {
            other.info.run_id
            for other in self.experiment.search(f"tags.cell_id = '{record.cell_id}'")
            if _is_whole(other) and other.data.tags["status"] == record.status
        }
        kept, *spare = sorted({run, *same})
        for other in spare:
            self.client.delete_run(other)
        return kept

    def close_left(self) -> int:
        """Ends runs of cells that a killed process left running; returns how many there were.

        One beside a whole run of its cell is deleted: it was made by a call whose answer was lost,
        and that was made again.
        """
        with failures():
            left = self.experiment.search(
                f"tags.`{KIND}` = 'cell' AND attributes.status = 'RUNNING'"
            )
            for run in left:
                cell_id, run_id = run.data.tags["cell_id"], run.info.run_id
                kept, status = self._known().get(cell_id, ("", ""))
                if status and kept != run_id:
                    self.client.delete_run(run_id)
                else:
                    self.client.set_terminated(run_id, status="KILLED")
                    self._known()[cell_id] = (run_id, "")
            return len(left)

    def _copy(self, record: Record, row: Row, folder: Path) -> str:
        started = began_at(record)
        tags = tags_of(record, row) | {PARENT: self._group(group_of(row))}
        made = self.client.create_run(
            self.experiment.id, start_time=started, run_name=row.name, tags=tags
        )
        run = made.info.run_id
        self.client.log_batch(
            run, metrics=metrics_of(record, started or 0), params=params_of(record)
        )
        self.client.log_inputs(run, [dataset_of(record, row)])
        self.experiment.files_of(made).log_artifacts(str(folder))
        took = sum(record.final.get(f"{part}_seconds", 0) for part in ("train", "evaluation"))
        ended = started and int(started + 1000 * took)
        status = STATUS.get(record.status, "FINISHED")
        self.client.set_terminated(run, status=status, end_time=ended)
        return run

    def _group(self, group: Group) -> str:
        """The run under which the UI lists the runs of a group; made when first asked for."""
        if self._groups is None:
            found = self.experiment.search(f"tags.`{KIND}` = 'group'")
            self._groups = {run.info.run_name or "": run.info.run_id for run in found}
        if group.name not in self._groups:
            tags = {KIND: "group", NOTE: group.note, "pair": group.pair}
            made = self.client.create_run(self.experiment.id, run_name=group.name, tags=tags)
            self.client.set_terminated(made.info.run_id)
            self._groups[group.name] = made.info.run_id
        return self._groups[group.name]

    def join_groups(self) -> None:
        """Makes one of groups of the same name, which several senders made at the same time.

        Raises:
            TrackingError: the store failed.
        """
        with failures():
            there: dict[str, list[str]] = {}
            for run in self.experiment.search(f"tags.`{KIND}` = 'group'"):
                there.setdefault(run.info.run_name or "", []).append(run.info.run_id)
            for name, alive in there.items():
                used = (self._groups or {}).get(name, min(alive))
                # Another sender may have deleted the one that this sender used.
                for spare in {*alive, used} - {min(alive)}:
                    for run in self.experiment.search(f"tags.`{PARENT}` = '{spare}'"):
                        self.client.set_tag(run.info.run_id, PARENT, min(alive))
                    if spare in alive:
                        self.client.delete_run(spare)
            self._groups = {name: min(alive) for name, alive in there.items()}

    def fetch(self) -> tuple[Plan, dict[str, Record]]:
        """The plan and all its records, from MLflow alone.

        Raises:
            TrackingError: the experiment holds no plan, or the store cannot be read.
        """
        with failures(), tempfile.TemporaryDirectory() as folder:
            plan = self.summary.fetch_plan()
            wanted = set(plan.cell_ids())
            records = {}
            for run in self.experiment.search(f"tags.`{KIND}` = 'cell'"):
                if _is_whole(run) and run.data.tags["cell_id"] in wanted:
                    path = self.experiment.files_of(run).download_artifacts("record.json", folder)
                    record = Record.from_json(Path(path).read_text(encoding="utf-8"))
                    records[record.cell_id] = record
        return plan, {i: records[i] for i in plan.cell_ids() if i in records}


def _is_whole(run: Run) -> bool:
    """Whether everything of a run was sent; one that was cut off is RUNNING, or KILLED by now."""
    return run.info.status in STATUS.values()


def mirror_all(mirror: Mirror, plan: Plan, store: Store) -> int:
    """Sends every record of the plan that the store lacks; returns how many were sent.

    Runs that a killed process left unfinished are sent anew, or closed if there is no record.
    """
    mirror.summary.send_plan(plan)
    rows = first_rows(plan)
    records = store.read_all(rows)
    sent = sum(mirror.send(record, rows[i], store.folder(i)) for i, record in records.items())
    mirror.close_left()
    mirror.join_groups()
    return sent


def first_rows(plan: Plan) -> dict[str, Row]:
    """Cell id -> the first row that it answers for."""
    rows: dict[str, Row] = {}
    for row in plan.rows:
        rows.setdefault(row.cell_id, row)
    return rows
