"""Settings of the test suite."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread per process, here and in the processes that tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for each other on a busy machine would take the time of those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
BENCHMARKS = Path(__file__).parent / "benchmarks"


# Files that `--plugin` names are known while the tests run.
PLUGINS = contextlib.ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where long tests write what they found, and methods that they are about."""
    parser.addoption("--faults-table", metavar="FILE", help="rows of the table of faults")
    parser.addoption("--plugin", metavar="FILE.py", type=Path, action="append", default=[],
                     help="a file of your own, for tests/test_contract.py")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Makes the methods of files that `--plugin` names known, before tests are collected."""
    if files := config.getoption("plugin"):
        from bench.plugin import PluginError, plugged, read_plugins

        try:
            PLUGINS.enter_context(plugged(read_plugins(files)))
        except PluginError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_unconfigure() -> None:
    """Forgets them."""
    PLUGINS.close()


@pytest.fixture(autouse=True, scope="session")
def _no_threads_of_devices() -> None:
    """Torch looks for devices once, before a test shows it one: it could not fork afterwards."""
    import torch

    torch.ones(1, requires_grad=True).backward()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with exit code 2; returns the one line that it says."""

    def refused(*words: str) -> str:
        from bench.cli import main

        assert main([*words]) == 2
        shown = capsys.readouterr().err
        # A dry run says there, too, what it is reading: its first line elsewhere is the total.
        (error,) = [line for line in shown.splitlines() if ": reading " not in line]
        assert error.startswith("error: ")
        return f"{error}\n"

    return refused


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands draw nothing: figures take longer than short trainings."""
    monkeypatch.setattr("bench.cli.recorded.write", lambda *results: [])


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find no tracking store: sending records takes longer than short trainings."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benchmarks run only when asked for: pytest tests/benchmarks --benchmark-only."""
    if config.getoption("benchmark_only", default=False):
        return
    benchmarks = [item for item in items if item.path.is_relative_to(BENCHMARKS)]
    if benchmarks:
        config.hook.pytest_deselected(items=benchmarks)
        items[:] = [item for item in items if item not in benchmarks]
