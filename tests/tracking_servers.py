"""Real servers on this machine: MLflow as `bench/launch/mlflow-server.sh` starts it, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import ROOT, environment

SCRIPT = ROOT / "bench" / "launch" / "mlflow-server.sh"
START_SECONDS = 300
MIB = 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status(address: str, host: str | None = None) -> int:
    """The answer's status code, 0 without an answer; `host` replaces the Host header."""
    request = urllib.request.Request(address, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class MlflowServer:
    """A server that can be killed and started again at the same place."""

    def __init__(self, folder: Path, store: str | None = None, **settings: str) -> None:
        """Nothing runs yet.

        Args:
            folder: for its files.
            store: database URI; None for a sqlite file in the folder.
            settings: variables of the script.
        """
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self.settings = {
            "PORT": str(self.port),
            "STORE": store or f"sqlite:///{folder}/server.db",
            "ARTIFACTS": str(self.artifacts),
            **settings,
        }
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(SCRIPT)], stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env=environment(PATH=path, **self.settings),
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while status(f"{self.address}/health") != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
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

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]


class Watch:
    """What a server takes while it is inside; a context manager.

    Attributes:
        processes: how many it has.
        idle_mib: memory before, proportional set size: shared pages count once.
        peak_mib: the most of one look a second.
        seconds: wall clock.
        cpu_seconds: of the server, and of PostgreSQL where that is the store.
        load: mean of the system's load over a minute, one look a second.
    """

    def __init__(self, server: MlflowServer) -> None:
        self.server, self.over = server, threading.Event()
        self.loads: list[float] = []
        self.watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self.processes = len(self.server.processes())
        self.idle_mib = self.peak_mib = self._memory()
        self.began, self.cpu = time.monotonic(), self._cpu()
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self.began
        self.cpu_seconds = self._cpu() - self.cpu
        self.over.set()
        self.watcher.join()
        self.load = sum(self.loads) / max(1, len(self.loads))

    def _watch(self) -> None:
        while not self.over.wait(1.0):
            self.peak_mib = max(self.peak_mib, self._memory())
            self.loads.append(os.getloadavg()[0])

    def _memory(self) -> float:
        total = 0
        for process in self.server.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / MIB

    def _cpu(self) -> float:
        base = [p for p in psutil.process_iter() if self._is_of_store(p)]
        times = [p.cpu_times() for p in (*self.server.processes(), *base)]
        return sum(t.user + t.system for t in times)

    def _is_of_store(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            # PostgreSQL's processes all work in its data folder.
            host = self.server.settings["STORE"].partition("?host=")[2]
            return bool(host) and process.cwd() == f"{host}/data"
        return False


def postgres_binary(name: str) -> str | None:
    """Where PostgreSQL's program is; Debian keeps most of them off the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ["PATH"]]))


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own, reached through a socket in its folder; yields its URI."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = [postgres_binary(name) for name in ("initdb", "postgres", "createdb")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed")
    initdb, server, createdb = map(str, programs)
    as_user: dict[str, object] = {}
    # Not tmp_path: others cannot enter it, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        if os.geteuid() == 0:  # it refuses to run as root
            user = next((u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
            if user is None:
                pytest.skip("PostgreSQL needs a user other than root")
            os.chown(name, user.pw_uid, user.pw_gid)
            as_user = {"user": user.pw_uid, "group": user.pw_gid}
        data = f"{name}/data"
        run = {"check": True, "capture_output": True, **as_user}
        subprocess.run([initdb, "-D", data, "-U", "kd", "-A", "trust", "--no-sync"], **run)
        with (
            (Path(name) / "log").open("w") as log,
            subprocess.Popen(
                [server, "-D", data, "-k", name, "-c", "listen_addresses="],
                stdout=log, stderr=log, **as_user,
            ) as process,
        ):  # fmt: skip
            try:
                until = time.monotonic() + START_SECONDS
                make = [createdb, "-h", name, "-U", "kd", "mlflow"]
                while subprocess.run(make, capture_output=True, check=False).returncode:
                    assert process.poll() is None, (Path(name) / "log").read_text()
                    assert time.monotonic() < until, (Path(name) / "log").read_text()
                    time.sleep(0.2)  # looks again
                yield f"postgresql+psycopg://kd@/mlflow?host={name}"
            finally:
                process.send_signal(signal.SIGINT)  # a fast shutdown
