"""A real MLflow server on this machine, started as bench/launch/README.md says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from processes import environment

START_SECONDS = 300


class MlflowServer:
    """A context manager: the server runs inside, and is killed at its end. It can run again."""

    def __init__(self, folder: Path) -> None:
        """Starts nothing; `folder` is for its files."""
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> MlflowServer:
        log = self.folder / "server.log"
        words = ["--host", "127.0.0.1", "--port", self.address.rpartition(":")[2],
                 "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", str(self.folder / "artifacts")]  # fmt: skip
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words], stdout=file, stderr=file,
                start_new_session=True, cwd=self.folder,
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)  # looks again
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        """Ends all its processes at once, as a machine that dies does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
