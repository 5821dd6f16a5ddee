"""Sending records while a grid trains: an MLflow store that is away delays nothing."""

import io
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from summary_grid import plan, records

from bench.launch.leases import BusyError, Leases
from bench.launch.mirroring import mirroring, sole_mirror
from bench.record import WorkDir, write_atomically
from bench.tracking import Mirror, TrackingError


class Said(io.StringIO):
    """What is printed; `event` is set as soon as something is."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def write(self, text: str) -> int:
        self.event.set()
        return super().write(text)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An empty MLflow store, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("database")
    Mirror(folder, "made")
    return folder


@pytest.fixture
def store(tmp_path, database, monkeypatch) -> Path:
    """The folder of the MLflow store. A file lies there, so that nobody can open it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/tracking/mlflow.db")
    (tmp_path / "tracking").touch()
    return tmp_path / "tracking"


def come_back(store: Path, database: Path) -> None:
    store.unlink()
    store.symlink_to(database)


def test_records_are_sent_as_they_come_and_all_at_the_end(tmp_path, store, database):
    """The store is away at first: that is said once."""
    work, said, found = WorkDir(tmp_path), Said(), list(records().values())
    console = Console(file=said, width=400)
    with Leases(work.leases) as leases, mirroring(work, plan(), leases, console, every=0.0):
        assert said.event.wait(120)
        come_back(store, database)
        work.store.write(found[0])
        mirror = Mirror(tmp_path, plan().name)
        while not mirror.search("tags.status = 'finished'"):
            time.sleep(0.1)
        for record in found[1:]:
            work.store.write(record)
    assert mirror.fetch() == (plan(), records())
    assert said.getvalue().count("MLflow lacks records") == 1
    assert "run_all.py sync" in said.getvalue()


def test_after_an_error_in_training_nothing_more_is_sent(tmp_path, store, database):
    work, said, grid = WorkDir(tmp_path), Said(), replace(plan(), name="never_sent")

    def train() -> None:
        assert said.event.wait(120)
        come_back(store, database)
        raise KeyboardInterrupt

    with (
        Leases(work.leases) as leases,
        pytest.raises(KeyboardInterrupt),
        mirroring(work, grid, leases, Console(file=said, width=400), every=1000),
    ):
        train()
    assert "mirroring" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(TrackingError, match="no results"):
        Mirror(tmp_path, grid.name).fetch()


def test_one_command_at_a_time_sends_from_a_work_directory(tmp_path, store, database):
    come_back(store, database)
    root = WorkDir(tmp_path)
    with Leases(root.leases) as mine, Leases(root.leases) as theirs:
        with (
            sole_mirror(root, "grid", mine),
            pytest.raises(BusyError, match=r"process \d+ on .* is sending records"),
            sole_mirror(root, "another", theirs, patience=0),
        ):
            pass
        with sole_mirror(root, "grid", theirs, patience=0):
            pass


def test_a_sync_that_cannot_send_fails_in_one_line(tmp_path, store, refused, monkeypatch):
    monkeypatch.setattr("bench.cli.results.write", lambda *results: [])
    work = WorkDir(tmp_path)
    write_atomically(work.plan("by_hand"), plan().to_json())
    assert "tracking" in refused("sync", "--grid", "by_hand", "--work-dir", str(tmp_path))
