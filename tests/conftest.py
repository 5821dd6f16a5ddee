"""Settings of the test suite."""

import os
from pathlib import Path

import pytest

# One thread per process, here and in the processes that tests start: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where long tests write what they found."""
    parser.addoption("--faults-table", metavar="FILE", help="rows of the table of faults")
    parser.addoption("--server-table", metavar="FILE", help="figures of the MLflow server")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Benchmarks run only when asked for: pytest tests/benchmarks --benchmark-only."""
    if config.getoption("benchmark_only", default=False):
        return
    benchmarks = [item for item in items if item.path.is_relative_to(BENCHMARKS)]
    if benchmarks:
        config.hook.pytest_deselected(items=benchmarks)
        items[:] = [item for item in items if item not in benchmarks]
