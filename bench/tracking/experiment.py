"""A grid's experiment in an MLflow store: how it is opened and searched, and how a store fails."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

KIND = "kd_bench.kind"
NOTE, PARENT = "mlflow.note.content", "mlflow.parentRunId"  # tags that the UI reads
PAGE = 200  # runs of a search; a busy server needs seconds for a thousand, and calls have a limit


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the records are safe and can be sent later."""


def quiet() -> None:
    """Settings that mlflow reads when it is imported or called: brief in retries and words."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Seven retries with backoff would stall a grid for four minutes a call on a dead server.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Two lines for each run in the midst of the progress display, and a request for each.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(work_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file of the work directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir.resolve()}/mlflow.db"


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Every way in which a tracking store can fail, as one error."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        MlflowException, SQLAlchemyError, CommandError, OSError, ImportError, ValueError
    ) as error:  # fmt: skip
        raise TrackingError(" ".join(str(error).split())[:300]) from error


class Experiment:
    """One grid's experiment.

    Attributes:
        client: of the store.
        uri: of the store.
        grid: its name.
        id: MLflow's, of the experiment.
    """

    def __init__(self, work_dir: Path, grid: str) -> None:
        """Opens the store; the database is made here, by one process, if there is none.

        Raises:
            TrackingError: the store cannot be opened.
        """
        quiet()
        uri = tracking_uri(work_dir)
        with failures():
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient(tracking_uri=uri)
            self.id = self._find_or_create(f"kd-bench/{grid}", uri, work_dir)
        self.uri, self.grid = uri, grid

    def _find_or_create(self, name: str, uri: str, work_dir: Path) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # A server has its own place for artifacts; a bare database would use the current folder.
        local = not uri.startswith(("http:", "https:", "databricks"))
        location = (work_dir.resolve() / "mlartifacts").as_uri() if local else None
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            # Another sender made it meanwhile, or this one did: a call without an answer is
            # made again.
            found = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id

    def search(self, text: str) -> list[Run]:
        """All runs that MLflow's filter finds, however many pages they fill."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.id], text, max_results=PAGE, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def files_of(self, run: Run) -> ArtifactRepository:
        """Where a run keeps its files. The client's own calls ask the store for the run again."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        assert run.info.artifact_uri is not None
        return get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)
