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

PLAN = Plan(name="grid", description="", config={}, rows=[])


class Away:
    """A store that fails some times, then keeps what it is sent."""

    def __init__(self, failures: int) -> None:
        self.failures, self.opened = failures, 0
        self.sent: list[str] = []
        self.everything: list[str] = []
        self.asked, self.back = threading.Event(), threading.Event()

    def __call__(self, *where: object) -> Away:
        self.opened += 1
        self.asked.set()
        if self.opened <= self.failures:
            raise TrackingError("it is away")
        self.back.set()
        return self

    def send(self, record, row, folder) -> bool:
        self.sent.append(record.cell_id)
        return True


@pytest.fixture
def work(tmp_path) -> WorkDir:
    return WorkDir(tmp_path)


def mirrored(work, monkeypatch, away: Away, cells, retry: float, until: str = "asked") -> str:
    """Sends the cells' records one by one; the training lasts `until` then; what was said."""

    def send_all(mirror: Away, plan, store) -> int:
        mirror.everything.append("all")
        return 0

    monkeypatch.setattr(mirroring, "Mirror", away)
    monkeypatch.setattr(mirroring, "mirror_all", send_all)
    monkeypatch.setattr(mirroring, "RETRY_SECONDS", retry)
    console = Console(file=io.StringIO(), width=200)
    with Leases(work.leases) as leases, Mirroring(work, PLAN, leases, console) as sending:
        sending.rows = {cell.id: None for cell in cells}
        for cell in cells:
            work.store.write(record_without_result(cell, "failed", "as an example", {}))
            sending.send([cell])
        assert getattr(away, until).wait(60)
    return console.file.getvalue()


CELLS = [plain_cell("cnn2", seed) for seed in range(3)]


def test_records_are_sent_as_they_come_and_once_more_at_the_end(work, monkeypatch):
    away = Away(failures=0)
    assert mirrored(work, monkeypatch, away, CELLS, retry=1000) == ""
    assert away.sent == [cell.id for cell in CELLS]
    assert away.everything == ["all", "all"]
    assert away.opened == 1


def test_a_store_that_comes_back_is_sent_everything(work, monkeypatch):
    away = Away(failures=3)
    said = mirrored(work, monkeypatch, away, CELLS, retry=0.0, until="back")
    assert said.count("it is away") == 1
    assert "run_all.py sync" in said
    assert "all" in away.everything


def test_a_store_that_stays_away_is_named_once_and_ends_nothing(work, monkeypatch):
    away = Away(failures=1000)
    said = mirrored(work, monkeypatch, away, CELLS, retry=1000)
    assert said.count("it is away") == 1
    assert away.opened == 2  # at the start and at the end, not for each record
    assert away.sent == []


def test_an_error_in_training_ends_the_thread_without_waiting_for_the_store(work, monkeypatch):
    away = Away(failures=1)
    monkeypatch.setattr(mirroring, "Mirror", away)
    console = Console(file=io.StringIO())
    with Leases(work.leases) as leases:
        sending = Mirroring(work, PLAN, leases, console)
        with pytest.raises(KeyboardInterrupt), sending:
            raise KeyboardInterrupt
    assert "mirroring" not in [thread.name for thread in threading.enumerate()]
    assert away.opened == 1


def test_one_command_at_a_time_sends_a_grid(work, monkeypatch):
    monkeypatch.setattr(mirroring, "Mirror", Away(failures=0))
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
