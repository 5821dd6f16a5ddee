"""A grid's records in MLflow: one run for each, sent once and read back, and a run `summary`.

Commands on several work directories may send to one server at the same time: each sends what it
does not find, and then removes results that were sent twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bench.record import FAILED, FINISHED, Plan, Record, Row, Store
from bench.tracking import description, experiment
from bench.tracking.description import IN_GRID
from bench.tracking.experiment import KIND

if TYPE_CHECKING:
    from mlflow.entities import Run

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}
PLAN, RECORD = "plan.json", "record.json"
PAGE = 200  # runs of one search call; a busy server needs seconds for a thousand
FILES = "summary"  # where the run of that name keeps tables and figures


class Mirror:
    """One grid in an MLflow store; every method raises TrackingError if the store fails."""

    def __init__(self, work_dir: Path, grid: str) -> None:
        """Opens the store; makes the database if there is none."""
        self.client, self.grid = experiment.open_store(work_dir), grid
        with experiment.failures():
            _, _, home = experiment.find_place(work_dir)
            self.id, self._local = experiment.open_experiment(self.client, home, grid), bool(home)

    def send(
        self,
        plan: Plan,
        store: Store,
        numbers: Mapping[str, Mapping[str, float]] = {},
        records: Mapping[str, Record] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> int:
        """Sends the plan and its records that MLflow lacks; returns how many were sent.

        Runs that a killed process left unfinished are sent anew, or closed if there is no record.
        Of several runs of one result one is kept. `numbers` are those that depend on other cells
        too, cell id -> name -> number; they are sent where they are new. Without `records` those of
        the store are read. Once `stopped`, the next record waits for the next call.
        """
        # Of the rows that a cell answers for, the first names its run.
        rows = {row.cell_id: row for row in reversed(plan.rows)}
        records, sent = store.read_all(rows) if records is None else records, 0
        with experiment.failures():
            self._send_plan(plan)
            runs = self._runs()
            for cell_id, record in records.items():
                run = runs.get(cell_id)
                if run is not None and self._is_whole(run) and _is_of(run, record):
                    continue
                if stopped():
                    break
                if run is not None:  # of an earlier training, or cut off
                    self.client.delete_run(run.info.run_id)
                self._copy(record, rows[cell_id], store.folder(cell_id))
                sent += 1
            if sent:  # another command may have sent the same meanwhile
                runs = self._runs()
            for cell_id, run in runs.items():
                self._finish(run, str(cell_id in rows).lower())
            for cell_id in numbers.keys() & records.keys() & runs.keys():
                run, of_cell = runs[cell_id], numbers[cell_id]
                if new := description.final_metrics(records[cell_id], of_cell, run.data.metrics):
                    self.client.log_batch(run.info.run_id, metrics=new)
        return sent

    def fetch(self) -> tuple[Plan, dict[str, Record]]:
        """The plan that was sent last and its records; TrackingError if there is no plan."""
        text = self.read_file(PLAN, "")
        if text is None:
            raise experiment.TrackingError(
                f"no results of grid {self.grid!r} in MLflow; run: run_all.py --grid {self.grid}, "
                f"or send what is recorded: run_all.py sync --grid {self.grid}"
            )
        with experiment.failures(), tempfile.TemporaryDirectory() as folder:
            plan = Plan.from_json(text)
            wanted = set(plan.cell_ids())
            records = {}
            for run in self.search(f"tags.`{KIND}` = 'cell'"):
                if self._is_whole(run) and run.data.tags["cell_id"] in wanted:
                    path = self.client.download_artifacts(run.info.run_id, RECORD, folder)
                    record = Record.from_json(Path(path).read_text(encoding="utf-8"))
                    records[record.cell_id] = record
        return plan, {i: records[i] for i in plan.cell_ids() if i in records}

    def send_files(self, folder: Path, files: Iterable[Path]) -> None:
        """Puts files on the run `summary`, at their places below the grid's folder."""
        with experiment.failures():
            run = self._summary()
            for path in files:
                place = PurePosixPath(FILES) / path.relative_to(folder).parent
                self.client.log_artifact(run, str(path), place.as_posix())

    def search(self, text: str) -> list[Run]:
        """All runs that MLflow's filter finds, on all pages."""
        runs, token = [], ""
        while token is not None:
            page = self.client.search_runs([self.id], text, max_results=PAGE, page_token=token)
            runs, token = [*runs, *page], page.token or None
        return runs

    def read_file(self, name: str, below: str = f"{FILES}/") -> str | None:
        """The text of a file that `send_files` sent, by its place below the grid's folder."""
        with experiment.failures(), tempfile.TemporaryDirectory() as folder:
            run, path = self._find_summary(), f"{below}{name}"
            parent = path.rpartition("/")[0]
            there = self.client.list_artifacts(run, parent or None) if run else ()
            if path not in {file.path for file in there if not file.is_dir}:
                return None
            local = self.client.download_artifacts(str(run), path, folder)
            return Path(local).read_text(encoding="utf-8")

    def _send_plan(self, plan: Plan) -> None:
        for tag, value in description.experiment_tags(plan).items():
            self.client.set_experiment_tag(self.id, tag, value)
        summary = self._summary()
        self.client.log_text(summary, plan.to_json(), PLAN)
        self.client.set_terminated(summary)

    def _summary(self) -> str:
        """The run `summary`; makes it if there is none."""
        if (found := self._find_summary()) is not None:
            return found
        made = self.client.create_run(self.id, run_name="summary", tags={KIND: "summary"})
        return self._find_summary() or made.info.run_id

    def _find_summary(self) -> str | None:
        """The run; of several that senders made at the same time the smallest id stays."""
        ids = sorted(run.info.run_id for run in self.search(f"tags.`{KIND}` = 'summary'"))
        for spare in ids[1:]:
            self.client.delete_run(spare)
        return ids[0] if ids else None

    def _runs(self) -> dict[str, Run]:
        """Cell id -> its run; of several the whole one with the smallest id stays."""
        runs: dict[str, Run] = {}
        found = self.search(f"tags.`{KIND}` = 'cell'")
        for run in sorted(found, key=lambda run: (not self._is_whole(run), run.info.run_id)):
            if runs.setdefault(run.data.tags["cell_id"], run) is not run:
                self.client.delete_run(run.info.run_id)
        return runs

    def _finish(self, run: Run, in_grid: str) -> None:
        """Closes a run that was left open, and tells whether the plan still has its cell."""
        if run.info.status not in STATUS.values():
            self.client.set_terminated(run.info.run_id, status="KILLED")
        if run.data.tags.get(IN_GRID) != in_grid:
            self.client.set_tag(run.info.run_id, IN_GRID, in_grid)

    def _copy(self, record: Record, row: Row, folder: Path) -> None:
        started, tags = description.started_at(record), description.tags_of(record, row)
        made = self.client.create_run(self.id, start_time=started, run_name=row.name, tags=tags)
        run, state, ended = made.info.run_id, "KILLED", None
        try:
            metrics, params = description.metrics_of(record), description.params_of(record, row)
            self.client.log_batch(run, metrics=metrics, params=params)
            if folder.is_dir():
                self.client.log_artifacts(run, str(folder))
            else:  # of an archive
                self.client.log_text(run, record.to_json(), RECORD)
            took = sum(record.final.get(f"{part}_seconds", 0) for part in ("train", "evaluation"))
            state = STATUS.get(record.status, "FINISHED")
            ended = started and int(started + 1000 * took)
        finally:  # a run that is cut off is not left running
            self.client.set_terminated(run, state, ended)

    def _is_whole(self, run: Run) -> bool:
        """Whether everything was sent, and is still there; a run cut off is RUNNING or KILLED."""
        files = experiment.local_path(run.info.artifact_uri or "") if self._local else None
        there = files is None or (files / RECORD).is_file()
        return there and run.info.status in STATUS.values()


def _is_of(run: Run, record: Record) -> bool:
    """Whether a run is of the training that this record is of, not of an earlier one."""
    started = description.started_at(record)
    return run.data.tags["status"] == record.status and started in (None, run.info.start_time)
