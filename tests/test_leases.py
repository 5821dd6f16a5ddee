"""Leases between launchers: one holder at a time, and a dead one's are free."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from processes import ROOT

from bench.launch.leases import LeaseLostError, Leases

HOLDER = """
import sys
from pathlib import Path
from bench.launch.leases import Leases
with Leases(Path(sys.argv[1]), beat=0.05) as leases:
    print(leases.acquire("cell"), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease "cell"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_killed_holder_on_this_machine_is_dead_at_once_and_a_living_one_is_not(tmp_path, holder):
    with Leases(tmp_path) as mine:
        assert not mine.acquire("cell")
        assert mine.holder("cell").startswith(f"process {holder.pid} on ")
        assert mine.commands() == 2
        holder.kill()
        holder.wait()
        assert mine.holder("cell") is None
        assert mine.commands() == 1
        assert mine.acquire("cell")
        (dead,) = (p for p in (tmp_path / "hearts").iterdir() if p.name != mine.owner)
        dead.with_name(".never-named").write_bytes(dead.read_bytes())
        with Leases(tmp_path) as later:  # removes the heartbeat of the dead
            hearts = {path.name for path in (tmp_path / "hearts").iterdir()}
            assert hearts == {mine.owner, later.owner}


def test_a_holder_elsewhere_is_dead_when_its_heart_has_not_beaten_for_long(tmp_path):
    with Leases(tmp_path, beat=1000) as theirs:
        assert theirs.acquire("cell")
        heart = tmp_path / "hearts" / theirs.owner
        with Leases(tmp_path, beat=1000, expiry=60, machine="another") as mine:
            assert not mine.acquire("cell")
            written = (tmp_path / "hearts" / mine.owner).stat().st_mtime
            os.utime(heart, (written - 59, written - 59))
            assert not mine.acquire("cell")
            os.utime(heart, (written - 61, written - 61))
            assert mine.acquire("cell")


def test_only_the_clock_of_the_file_system_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)  # a host whose clock is fifty years late
    with Leases(tmp_path) as theirs:
        assert theirs.acquire("cell")
        with Leases(tmp_path, machine="another") as mine:
            assert not mine.acquire("cell")


def test_a_holder_that_lost_its_lease_is_stopped(tmp_path):
    with Leases(tmp_path, beat=1000) as theirs:
        assert theirs.acquire("cell")
        assert theirs.acquire("other")
        theirs.check()
        os.utime(tmp_path / "hearts" / theirs.owner, (0, 0))
        with Leases(tmp_path, machine="another") as mine:
            assert mine.acquire("cell")
            theirs.beat()
            with pytest.raises(LeaseLostError, match="took over cell: this process was suspended"):
                theirs.check()
            theirs.release("cell")  # does not take it from its new holder
            assert mine.acquire("cell")
            mine.beat()
            mine.check()


@pytest.mark.parametrize("killed", [False, True])
def test_of_many_who_ask_at_once_one_gets_it(tmp_path, request, killed):
    """A lease that nobody had, and that of a holder that was killed."""
    crowd = 8
    if killed:
        holder = request.getfixturevalue("holder")
        holder.kill()
        holder.wait()
    barrier = threading.Barrier(crowd)

    def ask(leases: Leases) -> bool:
        barrier.wait()
        return leases.acquire("cell")

    with ExitStack() as stack, ThreadPoolExecutor(crowd) as pool:
        everyone = [stack.enter_context(Leases(tmp_path)) for _ in range(crowd)]
        assert sum(pool.map(ask, everyone)) == 1


def test_nothing_is_left_behind_but_released_generations(tmp_path):
    with Leases(tmp_path) as leases:
        for name in ("kept", "done"):
            leases.acquire(name)
        leases.release("done", forget=True)
    assert list((tmp_path / "hearts").iterdir()) == []
    assert [path.name for path in (tmp_path / "held").iterdir()] == ["kept"]
    assert (tmp_path / "held" / "kept" / "00000001").read_text() == "released"
