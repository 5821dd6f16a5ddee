"""A grid's experiment in an MLflow store: opening it, searching it, and how a store fails."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.faults import UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

KIND = "kd_bench.kind"
PREFIX = "kd-bench/"  # of experiments' names; the grid's follows
NOTE = "mlflow.note.content"  # a tag that the UI shows


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The default of seven retries stalls each call to a dead server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Otherwise each run prints two lines into the progress display, at a request each.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What mlflow reads when it is imported or called; the user's own values win."""


class TrackingError(UserError):
    """The tracking store cannot be used; the records are safe and can be sent later."""


def tracking_uri(work_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file of the work directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir.resolve()}/mlflow.db"


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turns every way in which a tracking store can fail into one error."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        MlflowException, SQLAlchemyError, CommandError, OSError, ImportError, ValueError
    ) as error:  # fmt: skip
        raise TrackingError(" ".join(str(error).split())[:300]) from error


def make_database(path: Path) -> None:
    """Makes an sqlite database for MLflow, unless there is one.

    MLflow takes seconds for its tables, and cannot go on with tables that are half made. They are
    made in a file of another name, so that a process that is killed meanwhile does no harm.
    """
    from mlflow.tracking import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder).resolve() / path.name
        MlflowClient(tracking_uri=f"sqlite:///{new}")
        with contextlib.suppress(FileExistsError):  # another command was first
            os.link(new, path)


def open_store(work_dir: Path) -> MlflowClient:
    """A client of the tracking store; makes the database if there is none."""
    os.environ.update(QUIET | os.environ)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = tracking_uri(work_dir)
    with failures():
        from mlflow.tracking import MlflowClient

        if uri.startswith("sqlite:///"):
            make_database(Path(uri.removeprefix("sqlite:///")))
        return MlflowClient(tracking_uri=uri)


def open_experiment(client: MlflowClient, work_dir: Path, grid: str) -> str:
    """The id of a grid's experiment; makes it if there is none."""
    name = f"{PREFIX}{grid}"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A server has its own place for artifacts; a bare database would use the current folder.
    local = not tracking_uri(work_dir).startswith(("http:", "https:", "databricks"))
    location = (work_dir.resolve() / "mlartifacts").as_uri() if local else None
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        # Made meanwhile: by another sender, or by this one in a call that lost its answer.
        found = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return found.experiment_id
