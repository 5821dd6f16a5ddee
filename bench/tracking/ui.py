"""The MLflow UI, served from this machine for this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from bench.tracking import experiment
from bench.tracking.description import VIEW, VIEW_TAG


def serve(work_dir: Path, port: int) -> int:
    """Serves the MLflow UI on loopback until it is stopped; returns the server's exit code."""
    with experiment.failures():
        uri, _, artifacts = experiment.find_place(work_dir)
    if artifacts is None:
        address = experiment.without_secrets(uri)
        raise experiment.TrackingError(f"MLFLOW_TRACKING_URI is a server; its UI is at {address}")
    pages = _pages(work_dir, port)
    # The jobs are for generative models; without them the server is two processes, not fifteen.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    # A group of its own: its processes end together, and none outlives this one.
    server = subprocess.Popen(
        server_command(artifacts, port),
        start_new_session=True,
        # Every user of the machine can read the words of a command, and this may hold a password.
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": uri},
    )
    try:
        links = [f"{name}: {page}" for name, page in pages.items()]
        print(*links, "Ctrl-C stops the server", sep="\n", flush=True)
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, number)
                server.wait(timeout=10)


def server_command(artifacts: str, port: int) -> list[str]:
    """The command that serves the store that its environment names, on loopback alone."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *where, "--artifacts-destination", artifacts]


def _pages(work_dir: Path, port: int) -> dict[str, str]:
    """Grid -> the page of its runs; one page for all where nothing was sent yet."""
    with experiment.failures():
        client, ours = experiment.open_store(work_dir), f"name LIKE '{experiment.PREFIX}%'"
        found = client.search_experiments(filter_string=ours, order_by=["name ASC"])
    # Without the first word the UI would open on pages for language models.
    page = f"http://127.0.0.1:{port}/#/experiments{{}}?workflowType=machine_learning"
    pages = {
        one.name.removeprefix(experiment.PREFIX): f"{page.format(f'/{one.experiment_id}/runs')}"
        f"&viewStateShareKey={VIEW}"
        for one in found
        if VIEW_TAG in one.tags  # the UI refuses the name of a view that is not there
    }
    return pages or {"no grid yet": page.format("")}
