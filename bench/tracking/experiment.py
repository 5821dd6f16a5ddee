"""A grid's experiment in an MLflow store: opening it, searching it, and how a store fails."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import url2pathname

from bench.faults import UserError, one_line

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from sqlalchemy import Connection

KIND = "kd_bench.kind"
PREFIX = "kd-bench/"  # of experiments' names; the grid's follows
NOTE = "mlflow.note.content"  # a tag that the UI shows


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
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


def sqlite_uri(path: Path) -> str:
    """The address of an sqlite file; TrackingError for a name that no address can have."""
    from sqlalchemy import URL, make_url

    # For "sqlite:///" MLflow makes folders that are named as the address is, "%3F" for "?".
    uri = URL.create("sqlite+pysqlite", database=str(path)).render_as_string()
    if make_url(uri).database != str(path):  # sqlalchemy before 2.1 takes "?" for its end
        raise TrackingError(f"MLflow cannot open {str(path)!r}; rename the folder")
    return uri


def find_place(work_dir: Path) -> tuple[str, Path | None, str | None]:
    """The address of the store, its file if it is an sqlite file, and the place of its artifacts.

    It is that of MLFLOW_TRACKING_URI, or else the sqlite file of the work directory. A server has
    a place of its own for artifacts: None.
    """
    from sqlalchemy import make_url

    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(work_dir.resolve() / "mlflow.db")
    if uri.startswith(("http:", "https:", "databricks")):
        return uri, None, None
    url = make_url(uri) if uri.startswith("sqlite") else None
    path = Path(url.database).absolute() if url and url.database and not url.query else None
    folder = (path.parent if path else work_dir.resolve()) / "mlartifacts"
    if path is not None and path.exists() and not os.access(path, os.W_OK):
        uri = _copy(path)
    str(folder).encode()  # of other bytes than UTF-8 MLflow would make another folder
    return uri, path, folder.as_uri()


@functools.cache
def _copy(path: Path) -> str:
    """The address of a copy of a read-only database; MLflow, even to read, may write to it."""
    folder = tempfile.mkdtemp(prefix="mlflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return sqlite_uri(Path(shutil.copy(path, folder)))


def local_path(uri: str) -> Path | None:
    """The folder that an address names; None if it lies elsewhere."""
    return Path(url2pathname(uri.removeprefix("file://"))) if uri.startswith("file:") else None


def without_secrets(text: str) -> str:
    """Text without the users and passwords in its addresses."""
    return re.sub(r"(?<=://)\S*@|(?<=password=)[^\s&]+", "***", text)


@contextlib.contextmanager
def failures(cure: str = "") -> Iterator[None]:
    """Turns every way in which a tracking store can fail into one error, without secrets."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    faults = (MlflowException, SQLAlchemyError, CommandError, OSError, ImportError, ValueError)
    try:
        yield
    except TrackingError:
        raise
    except UnicodeEncodeError as error:
        wanted = f"MLflow wants names in UTF-8, not {error.object!r}; rename it"
        raise TrackingError(wanted) from None
    except faults as error:
        said = str(error)
        text = without_secrets(re.sub(r"\[SQL: .*|\(Background on .*", "", said, flags=re.DOTALL))
        # Its traceback, which --debug prints, has the secrets too.
        cause = error if without_secrets(said) == said else None
        full = re.search("disk is full|No space left", text)
        text = one_line(text) or type(error).__name__
        if len(text) > 300:  # the cause of what could not be done is at the end
            text = f"{text[:100]} ... {text[-200:]}"
        uri = without_secrets(os.environ.get("MLFLOW_TRACKING_URI", ""))
        where = f" (MLFLOW_TRACKING_URI is {uri})" if uri else ""
        raise TrackingError(text + ("; make room" if full else cure) + where) from cause


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
        MlflowClient(tracking_uri=sqlite_uri(new))
        with contextlib.suppress(FileExistsError):  # another command was first
            os.link(new, path)


def find_artifacts(database: Connection, home: str) -> None:
    """Tells an sqlite database where its artifacts are: next to it, wherever both were moved.

    MLflow keeps absolute addresses, and would write to where the folder was before.
    """
    from sqlalchemy import text

    ours = "SELECT experiment_id, artifact_location FROM experiments WHERE name LIKE :ours"
    for number, was in database.execute(text(ours), {"ours": f"{PREFIX}%"}).all():
        values = {"was": was, "home": home, "number": number}
        for table, address in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            moved = f"UPDATE {table} SET {address} = replace({address}, :was, :home)"
            if was != home:
                database.execute(text(f"{moved} WHERE experiment_id = :number"), values)


def open_store(work_dir: Path) -> MlflowClient:
    """A client of the tracking store; makes the database if there is none."""
    os.environ.update(QUIET | os.environ)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # raised as well
    with failures():
        uri, path, home = find_place(work_dir)
    cure = f"; if {path} is damaged, move it away: run_all.py sync makes it anew" if path else ""
    with failures(cure):
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from mlflow.tracking import MlflowClient
        from sqlalchemy import NullPool, create_engine

        if path is not None:
            make_database(path)
        if re.split("[+:]", uri)[0] in DATABASE_ENGINES:
            # MLflow itself tries for 100 seconds to open what is no database, or away.
            with create_engine(uri, poolclass=NullPool).begin() as database:
                if path is not None:
                    find_artifacts(database, str(home))
        return MlflowClient(tracking_uri=uri)


def open_experiment(client: MlflowClient, home: str | None, grid: str) -> str:
    """The id of a grid's experiment; makes it if there is none, restores it if it was deleted."""
    name = f"{PREFIX}{grid}"
    if (found := client.get_experiment_by_name(name)) is None:
        from mlflow.exceptions import MlflowException

        try:
            return client.create_experiment(name, artifact_location=home)
        except MlflowException as error:
            # Made meanwhile: by another sender, or by this one in a call that lost its answer.
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    place = local_path(found.artifact_location) if home else None
    if place is not None and not place.parent.is_dir():
        raise TrackingError(
            f"MLflow keeps the files of {name} in {place}, which is not here; move it back, or "
            "delete the experiment for good (mlflow gc), then run_all.py sync"
        )
    return found.experiment_id
