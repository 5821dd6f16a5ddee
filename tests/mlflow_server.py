"""A real MLflow server on this machine, started as bench/launch/README.md says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from processes import environment

START_SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class MlflowServer:
    """A server that can be killed, and started again at the same place."""

    def __init__(self, folder: Path) -> None:
        """Starts nothing.

        Args:
            folder: for its files.
        """
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        path = self.folder / "server.log"
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", str(self.artifacts)]  # fmt: skip
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with path.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log,
                start_new_session=True, cwd=self.folder, env=environment(**quiet),
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not answers(f"{self.address}/health"):
            assert self.process.poll() is None, path.read_text()
            assert time.monotonic() < until, path.read_text()
            time.sleep(0.2)  # looks again

    def kill(self) -> None:
        """Ends all its processes at once, as a machine that dies does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
