"""A real Slurm: the job array of bench/launch/README.md on two nodes, both on this machine.

Needs root, and what `apt-get install slurm-wlm munge` installs. The services need not run.

    .venv/bin/python -m pytest tests/test_slurm.py -m slow --faults-table results/faults.md
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import fault_table as faults
import pytest
from fault_table import tally, undisturbed
from processes import ROOT, environment

__all__ = ["tally", "undisturbed"]
DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]
CONFIGURATION = """\
ClusterName=kd-bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture
def slurm(tmp_path) -> Iterator[dict[str, str]]:
    """A controller and two nodes of one CPU; the environment of commands that use them."""
    host, log = socket.gethostname().partition(".")[0], tmp_path / "daemons.log"
    path, key, munge = tmp_path / "slurm.conf", tmp_path / "key", tmp_path / "munge.socket"
    path.write_text(CONFIGURATION.format(host=host, folder=tmp_path, ports=free_ports(3)))
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    env = environment(SLURM_CONF=str(path))
    started: list[subprocess.Popen[str]] = []

    def launch(*words: str) -> subprocess.Popen[str]:
        with log.open("a") as out:
            daemon = subprocess.Popen(words, stdout=out, stderr=out, text=True, env=env)
        started.append(daemon)
        return daemon

    def idle() -> bool:
        asked = ["sinfo", "--noheader", "--Node", "--format=%T"]
        done = subprocess.run(asked, capture_output=True, text=True, env=env, check=False)
        return done.stdout.split() == ["idle", "idle"]

    try:
        files = [f"--key-file={key}", f"--socket={munge}", f"--seed-file={tmp_path}/seed"]
        files += [f"--pid-file={tmp_path}/munged.pid"]
        daemon = launch("munged", "--foreground", "--force", *files)
        faults.until(munge.exists, daemon, log)
        controller = launch("slurmctld", "-D")
        for node in ("n1", "n2"):
            launch("slurmd", "-D", "-N", node)
        faults.until(idle, controller, log)
        yield env
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait()


def test_a_job_array_trains_each_cell_once(tmp_path, slurm, undisturbed, tally):
    work, checkout = tmp_path / "work", tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "run_all.py").symlink_to(ROOT / "run_all.py")
    (checkout / ".venv").symlink_to(sys.prefix)
    options = ["--wait", "--array=1-2", "--cpus-per-task=1", "--mem=0"]
    script = [str(ROOT / "bench" / "launch" / "slurm.sbatch"), *faults.words(work)]
    command = ["sbatch", *options, f"--output={tmp_path}/task-%a", *script, "--workers", "1"]
    done = subprocess.run(command, cwd=checkout, env=slurm, timeout=faults.TIMEOUT, check=False)
    said = [(tmp_path / f"task-{task}").read_text() for task in (1, 2)]
    assert done.returncode == 0, said
    trained = [int(n) for text in said for n in re.findall(r"(\d+) cells trained", text)]
    assert sum(trained) == len(undisturbed.results), said
    tally.add("job array of two tasks on a real Slurm", 1, undisturbed.results, work)
