"""The MLflow UI, served from this machine for this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.tracking.experiment import quiet, tracking_uri


def serve(work_dir: Path, port: int) -> int:
    """Serves the MLflow UI on loopback until it is stopped; returns its exit code."""
    quiet()
    if tracking_uri(work_dir).startswith(("http:", "https:")):
        print(f"error: MLFLOW_TRACKING_URI is a server; its UI is at {tracking_uri(work_dir)}",
              file=sys.stderr)  # fmt: skip
        return 2
    # The jobs are for generative models; without them the server is two processes, not fifteen.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1", "--backend-store-uri", tracking_uri(work_dir)]  # fmt: skip
    # Without the word it would open on pages for language models.
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow UI on {page} (Ctrl-C stops it)", flush=True)
    return subprocess.run(command, check=False).returncode
