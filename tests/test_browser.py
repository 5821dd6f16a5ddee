"""The page and the MLflow UI as a browser shows them. Needs Chromium; see CONTRIBUTING.md."""

import json
import os
import shutil
import signal
import socket
import subprocess

import psutil
import pytest
from browser import Browser
from processes import ROOT, start
from summary_grid import cost, plan, records

from bench.cost.costs import Costs, read_costs
from bench.decide.records import numbers_of_cells
from bench.record import Store, read_archive
from bench.report.build import build
from bench.report.results import findings
from bench.tracking import Mirror

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"  # npm install axe-core
WIDTHS = (390, 1440)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
VISIBLE = """(element => {
  const box = element && element.getBoundingClientRect();
  return Boolean(box) && box.width > 100 && box.height > 50 && element.innerText.trim() !== "";
})(document.getElementById(%s))"""
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach(part => { part.open = true; })"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(str(CHROMIUM), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module", params=["digits", "by_hand"])
def page(request, tmp_path_factory) -> str:
    """The address of a rendered page: of the committed grid, and of a grid with every status."""
    folder = tmp_path_factory.mktemp("page")
    grid, found = plan(), records()
    costs = Costs((cost("soft_logits", 1.4), cost("rkd", 2.2)))
    if request.param == "digits":
        committed = ROOT / "results" / "digits"
        grid, found = read_archive(committed / "records.jsonl.gz")
        costs = read_costs(committed / "cost.json")
    build(findings(grid, found, costs), folder / "store", folder)
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_shows_the_answer_and_its_figures_within_the_screen(browser, page, width):
    browser.open(page, width)
    for part in ("answer", "forest", "cost"):
        assert browser.value(VISIBLE % json.dumps(part)), part
    assert browser.value("document.getElementById('answer').getBoundingClientRect().top") < 300
    assert browser.value(TOO_WIDE) == 0
    browser.value(OPEN_ALL)
    assert browser.value(TOO_WIDE) == 0
    assert browser.messages == []


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: npm install axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_has_no_fault_of_access(browser, page, dark):
    browser.open(page, max(WIDTHS), dark)
    browser.value(OPEN_ALL)
    browser.value(AXE.read_text(encoding="utf-8") + "; true")
    found = browser.value("axe.run().then(({passes, violations}) => ({passes, violations}))")
    assert [(f["id"], f["nodes"][0]["html"]) for f in found["violations"]] == []
    assert len(found["passes"]) > 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_mlflow_lists_runs_by_gain_and_its_server_ends_with_the_command(browser, tmp_path, number):
    store = Store(tmp_path / "cells")
    for record in records().values():
        store.write(record)
    numbers = numbers_of_cells(plan(), records(), Costs((cost("rkd", 2.2),)))
    Mirror(tmp_path, "by_hand").send(plan(), store, numbers)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with start(subprocess.PIPE, "ui", "--work-dir", str(tmp_path), "--port", port) as server:
        assert server.stdout is not None
        said = iter(server.stdout.readline, "")
        address = next(line for line in said if line.startswith("by_hand: ")).split()[1]
        assert any("startup complete" in line for line in said)
        browser.open(address, max(WIDTHS))
        for column in ("method", "final/last_accuracy", "final/gain", "final/cost"):
            browser.wait_for(f"document.body.innerText.includes('{column}')")
        browser.wait_for("document.body.innerText.includes('Sort: final/gain')")
        names = "[...document.querySelectorAll('[role=row] a')].map(link => link.innerText)"
        browser.wait_for(f"{names}.length > 5")
        assert browser.value(names)[0] == "wide>narrow/soft_logits/1"  # +4.5 points
        processes = psutil.Process(server.pid).children(recursive=True)
        os.kill(server.pid, number)
        assert server.wait(60) == 128 + number
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert processes
    assert not alive
