"""A grid's records in MLflow: one run for each, sent once and read back.

Commands on one work directory take turns. Commands on several work directories may send to one
server at the same time: each sends what it does not find, and then removes results that were
sent twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.record import FAILED, FINISHED, Plan, Record, Row, Store
from bench.tracking.description import final_metrics, metrics_of, params_of, started_at, tags_of
from bench.tracking.experiment import KIND, Experiment, failures
from bench.tracking.tables_run import TablesRun

if TYPE_CHECKING:
    from mlflow.entities import Run

Numbers = Mapping[str, Mapping[str, float]]
NOTHING: Numbers = {}
STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}


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

    def send(
        self,
        plan: Plan,
        store: Store,
        numbers: Numbers = NOTHING,
        records: Mapping[str, Record] | None = None,
    ) -> int:
        """Sends the plan and its records that the store lacks; returns how many were sent.

        Runs that a killed process left unfinished are sent anew, or closed if there is no record.
        Of several runs of one result one is kept.

        Args:
            plan: of the grid.
            store: the records.
            numbers: cell id -> numbers that depend on other cells too, such as the gain over the
                plain student; sent where they are new.
            records: of the plan, by cell id; None to read them from the store.

        Raises:
            TrackingError: the store failed.
        """
        self.tables.send_plan(plan)
        # Of the rows that a cell answers for, the first names its run.
        rows = {row.cell_id: row for row in reversed(plan.rows)}
        records, sent = store.read_all(rows) if records is None else records, 0
        with failures():
            runs = self._runs()
            for cell_id, record in records.items():
                run = runs.get(cell_id)
                if run is not None and _is_whole(run) and run.data.tags["status"] == record.status:
                    continue
                if run is not None:  # of an earlier status, or cut off
                    self.client.delete_run(run.info.run_id)
                self._copy(record, rows[cell_id], store.folder(cell_id))
                sent += 1
            if sent:  # another command may have sent the same meanwhile
                runs = self._runs()
            for run in runs.values():
                if not _is_whole(run):
                    self.client.set_terminated(run.info.run_id, status="KILLED")
            for cell_id in numbers.keys() & records.keys() & runs.keys():
                run = runs[cell_id]
                new = final_metrics(records[cell_id], numbers[cell_id], known=run.data.metrics)
                if new:
                    self.client.log_batch(run.info.run_id, metrics=new)
        return sent

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

    def _runs(self) -> dict[str, Run]:
        """Cell id -> its run; of several the whole one with the smallest id stays."""
        runs: dict[str, Run] = {}
        found = self.experiment.search(f"tags.`{KIND}` = 'cell'")
        for run in sorted(found, key=lambda run: (not _is_whole(run), run.info.run_id)):
            if runs.setdefault(run.data.tags["cell_id"], run) is not run:
                self.client.delete_run(run.info.run_id)
        return runs

    def _copy(self, record: Record, row: Row, folder: Path) -> None:
        started = started_at(record)
        made = self.client.create_run(
            self.experiment.id, start_time=started, run_name=row.name, tags=tags_of(record, row)
        )
        run = made.info.run_id
        self.client.log_batch(run, metrics=metrics_of(record), params=params_of(record, row))
        self.client.log_artifacts(run, str(folder))
        took = sum(record.final.get(f"{part}_seconds", 0) for part in ("train", "evaluation"))
        ended = started and int(started + 1000 * took)
        self.client.set_terminated(run, STATUS.get(record.status, "FINISHED"), ended)


def _is_whole(run: Run) -> bool:
    """Whether everything of a run was sent; one that was cut off is RUNNING or KILLED."""
    return run.info.status in STATUS.values()
