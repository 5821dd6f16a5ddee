"""The run `summary` of a grid's experiment: the plan, tables and figures."""

import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from bench.record import Plan
from bench.tracking.description import VIEW_TAG, describe, view
from bench.tracking.experiment import KIND, NOTE, Experiment, TrackingError, failures

PLAN = "plan.json"
FILES = PurePosixPath("summary")  # where the run keeps tables and figures


class TablesRun:
    """What belongs to a grid as a whole; the latest version of each file is kept."""

    def __init__(self, experiment: Experiment) -> None:
        """The run is looked for, or made, when it is needed."""
        self.experiment, self.client = experiment, experiment.client

    def send_plan(self, plan: Plan) -> None:
        """Describes the experiment and keeps the plan with it.

        Raises:
            TrackingError: the store failed.
        """
        with failures():
            for tag, value in {
                NOTE: describe(plan),
                VIEW_TAG: view(),
                "mlflow.experimentKind": "custom_model_development",
            }.items():
                self.client.set_experiment_tag(self.experiment.id, tag, value)
            self.client.log_text(self._run(), plan.to_json(), PLAN)

    def send(self, folder: Path, files: Iterable[Path]) -> None:
        """Puts tables and figures on the run.

        Args:
            folder: the grid's; files keep their places below it.
            files: inside `folder`.

        Raises:
            TrackingError: the store failed.
        """
        with failures():
            run = self._run()
            for path in files:
                place = path.relative_to(folder).parent
                self.client.log_artifact(run, str(path), (FILES / place).as_posix())
            self.client.set_terminated(run)

    def read(self, name: str, below: PurePosixPath = FILES) -> str | None:
        """The text of a file, as `send` put it there.

        Args:
            name: its place below the grid's folder, such as "cost.json".
            below: the folder of the run that takes the grid's place.

        Returns:
            None if the experiment has no such file.

        Raises:
            TrackingError: the store cannot be read.
        """
        path = below / name
        parent = None if path.parent == PurePosixPath() else path.parent.as_posix()
        with failures(), tempfile.TemporaryDirectory() as folder:
            run = self._find_run()
            there = self.client.list_artifacts(run, parent) if run else ()
            if path.as_posix() not in {file.path for file in there if not file.is_dir}:
                return None
            local = self.client.download_artifacts(str(run), path.as_posix(), folder)
            return Path(local).read_text(encoding="utf-8")

    def fetch_plan(self) -> Plan:
        """The plan that was sent last.

        Raises:
            TrackingError: the experiment holds no plan, or the store cannot be read.
        """
        text = self.read(PLAN, PurePosixPath())
        if text is None:
            grid = self.experiment.grid
            raise TrackingError(
                f"no results of grid {grid!r} in MLflow; run: run_all.py --grid {grid}, or send "
                f"what is recorded: run_all.py sync --grid {grid}"
            )
        with failures():
            return Plan.from_json(text)

    def _run(self) -> str:
        found = self._find_run()
        if found is not None:
            return found
        made = self.client.create_run(
            self.experiment.id, run_name="summary", tags={KIND: "summary"}
        ).info.run_id
        return self._find_run() or made

    def _find_run(self) -> str | None:
        """The run; of several that senders made at the same time the smallest id stays."""
        ids = sorted(
            run.info.run_id for run in self.experiment.search(f"tags.`{KIND}` = 'summary'")
        )
        for spare in ids[1:]:
            self.client.delete_run(spare)
        return ids[0] if ids else None
