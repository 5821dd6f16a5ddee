"""How a command ends where it does not end by itself: signals, streams that are closed or full."""

import os
import signal
import subprocess
import sys

import pytest
from processes import ROOT, environment

from bench.cli import main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_with_one_line_and_its_number(tmp_path, capsys, number):
    plugin = tmp_path / "stopped.py"
    kill = f"import os\ntry: os.kill(os.getpid(), {int(number)})\n"
    plugin.write_text(f"{kill}except KeyboardInterrupt: raise KeyboardInterrupt\n")  # as Ray does
    # A shell ignores Ctrl-C for what it runs in the background, this suite for example.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    outside = signal.signal(number, usual)
    try:
        assert main(["list", "--plugin", str(plugin)]) == 128 + number
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, outside)
    captured = capsys.readouterr()
    assert captured.err.startswith("stopped; ")
    assert "stopped.py" not in captured.err  # it is no fault of the file
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("module", ["run_all.py", "bench.cli"])
def test_a_pipe_that_nobody_reads_ends_it_in_silence(module):
    reader, writer = os.pipe()
    os.close(reader)
    start = [str(ROOT / module)] if module.endswith(".py") else ["-m", module]
    done = subprocess.run(
        [sys.executable, *start, "recommend"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
        env=environment(), timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_under_standard_output_is_one_line():
    # With a buffer the interpreter flushes what is left as it ends, and would fail once more.
    plain = {name: text for name, text in environment().items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "run_all.py"), "recommend"], cwd=ROOT, stdout=full,
            stderr=subprocess.PIPE, text=True, env=plain, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert "make room" in done.stderr
    assert done.stderr.count("\n") == 1
