"""Sending records while a grid trains: an MLflow store that is away delays nothing."""

from __future__ import annotations

import io
import threading

import pytest
from lessons import plain_cell
from rich.console import Console

from bench.launch import mirroring
from bench.launch.leases import BusyError, Leases
from bench.launch.mirroring import Mirroring, sole_mirror
from bench.record import Plan
from bench.tracking import TrackingError
from bench.train.failure import record_without_result
from bench.workdir import WorkDir

CELLS = [plain_cell("cnn2", seed) for seed in range(3)]


class Store:
    """An MLflow store that cannot be opened some times, then keeps what it is sent."""

    def __init__(self, failures: int) -> None:
        self.failures, self.opened, self.synced = failures, 0, 0
        self.sent: list[str] = []
        self.asked, self.back, self.complete = (threading.Event() for _ in range(3))

    def __call__(self, *where: object) -> Store:
        self.opened += 1
        self.asked.set()
        if self.opened <= self.failures:
            raise TrackingError("it is away")
        self.back.set()
        return self

    def send(self, record, row, folder) -> bool:
        self.sent.append(record.cell_id)
        if len(self.sent) == len(CELLS):
            self.complete.set()
        return True

    def send_all(self, *what: object) -> int:
        self.synced += 1
        return 0


@pytest.fixture
def work(tmp_path) -> WorkDir:
    return WorkDir(tmp_path)


def mirror(work, monkeypatch, store: Store, retry: float, until: str = "asked") -> str:
    """Sends records one by one while a training lasts until an event; returns what is said."""
    monkeypatch.setattr(mirroring, "Mirror", store)
    monkeypatch.setattr(mirroring, "mirror_all", store.send_all)
    monkeypatch.setattr(mirroring, "RETRY_SECONDS", retry)
    console = Console(file=io.StringIO(), width=200)
    plan = Plan(name="grid", description="", config={}, rows=[])
    with Leases(work.leases) as leases, Mirroring(work, plan, leases, console) as sending:
        sending.rows = {cell.id: None for cell in CELLS}
        for cell in CELLS:
            work.store.write(record_without_result(cell, "failed", "as an example", {}))
            sending.send([cell])
        if until == "interrupted":
            raise KeyboardInterrupt
        assert getattr(store, until).wait(60)
    return console.file.getvalue()


def test_records_are_sent_as_they_come_and_all_once_more_at_the_end(work, monkeypatch):
    store = Store(failures=0)
    assert mirror(work, monkeypatch, store, retry=1000, until="complete") == ""
    assert store.sent == [cell.id for cell in CELLS]
    assert (store.opened, store.synced) == (1, 2)


@pytest.mark.parametrize(("failures", "until", "synced"), [(3, "back", 2), (1000, "asked", 0)])
def test_a_store_that_is_away_is_named_once_and_tried_again(
    work, monkeypatch, failures, until, synced
):
    store = Store(failures)
    said = mirror(work, monkeypatch, store, retry=0.0, until=until)
    assert said.count("it is away") == 1
    assert "run_all.py sync" in said
    assert store.synced == synced


def test_an_error_in_training_ends_the_thread_without_waiting_for_the_store(work, monkeypatch):
    store = Store(failures=1)
    with pytest.raises(KeyboardInterrupt):
        mirror(work, monkeypatch, store, retry=1000, until="interrupted")
    assert "mirroring" not in [thread.name for thread in threading.enumerate()]
    assert store.opened == 1


def test_one_command_at_a_time_sends_a_grid(work, monkeypatch):
    monkeypatch.setattr(mirroring, "Mirror", Store(failures=0))
    with Leases(work.leases) as mine, Leases(work.leases) as theirs:
        with sole_mirror(work, "grid", mine):
            with (
                pytest.raises(BusyError, match=r"process \d+ on .* is sending records"),
                sole_mirror(work, "grid", theirs, patience=0),
            ):
                pass
            with sole_mirror(work, "another", theirs, patience=0):
                pass
        with sole_mirror(work, "grid", theirs, patience=0):
            pass
