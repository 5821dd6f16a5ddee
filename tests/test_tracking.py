"""What MLflow is sent, and what comes back: names, tags, inputs, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tracking import Mirror

# mlflow and sqlalchemy deprecate each other's options; nothing here can mend that.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A work directory with an empty MLflow store, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("tracking")
    Mirror(folder, "made")
    return folder


def test_a_file_of_the_summary_run_is_read_back_and_the_latest_wins(work):
    folder = work / "summarised"
    mirror = Mirror(work, folder.name)
    assert mirror.read_summary_file("cost.json") is None  # no summary run
    for text in ('{"schema": 1}\n', '{"schema": "ü"}\n'):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text(text, encoding="utf-8")
        (folder / "figures" / "cost.svg").write_text("<svg/>")
        mirror.send_summary(folder, [folder / "cost.json", folder / "figures" / "cost.svg"])
        assert Mirror(work, folder.name).read_summary_file("cost.json") == text
    assert mirror.read_summary_file("figures/cost.svg") == "<svg/>"
    assert mirror.read_summary_file("cost") is None
    assert mirror.read_summary_file("figures") is None
