"""A Ray cluster of real nodes on this machine, each in processes of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from processes import environment

# Nobody else on this machine is let in, and no other cluster of its is found.
ALONE = {
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(), "RAY_ADDRESS": "",
    "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
PATIENCE = 300.0


class Nodes:
    """A head without room for jobs, and nodes that can be added and killed.

    A context manager: everything it started is killed at its end.
    """

    def __enter__(self) -> Nodes:
        # Sockets lie below it, and their paths may not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.started: list[subprocess.Popen[bytes]] = []
        try:
            head = ["--head", "--port=0", "--num-cpus=0", "--include-dashboard=false"]
            self._start(*head, f"--temp-dir={self.folder}")
            self.address = (self.folder / "ray_current_cluster").read_text()
            self.driver = {**ALONE, "RAY_ADDRESS": self.address}  # of a command on this cluster
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.started:
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *words: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        path = self.folder / f"start-{len(self.started)}.log"
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        with path.open("wb") as log:
            node = subprocess.Popen(
                [*prefix, *ray, "--object-store-memory=100000000", *words],
                stdout=log, stderr=log, start_new_session=True, env=environment(**ALONE),
                # As when a script starts it in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
            )  # fmt: skip
        self.started.append(node)
        until = time.monotonic() + PATIENCE
        while "Ray runtime started" not in path.read_text():
            assert node.poll() is None, path.read_text()
            assert time.monotonic() < until, path.read_text()
            time.sleep(0.1)  # looks again
        return node

    def add(self, *prefix: str) -> subprocess.Popen[bytes]:
        """A node with room for one job; `prefix` is a command that runs the rest of the line."""
        return self._start(f"--address={self.address}", "--num-cpus=1", prefix=prefix)

    @staticmethod
    def at_work(node: subprocess.Popen[bytes]) -> bool:
        """Whether a job runs on it."""
        with contextlib.suppress(psutil.Error):
            return any("ray::train_on_node" in " ".join(p.cmdline()) for p in children(node))
        return False

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """All of a node's processes at once, as when its power fails."""
        everything = children(node)
        for process in everything:
            process.suspend()
        for process in {*everything, *children(node)}:
            process.kill()
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def children(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
