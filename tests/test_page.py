"""The page: the answer first, nothing asked of a server, whatever a label holds escaped."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import summary_grid as grid
from test_figures import costs, evidence

from bench.cost.costs import Costs
from bench.record import FAILED, NOT_APPLICABLE, Plan, Record
from bench.report.build import build
from bench.report.groups import conditions_table, faults_table
from bench.report.page import MOST_BYTES, MOST_WORDS, words
from bench.report.results import findings

HOSTILE = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>{{ 7 * 7 }}"
COST = costs().records
VOID = {"meta", "link", "br", "img", "hr"}


class Reader(HTMLParser):
    """Collects tags, ids and addresses; fails on a tag that closes another one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def hostile() -> tuple[Plan, dict[str, Record]]:
    """Evidence in which a method's label, its error and the grid's description are hostile."""
    plan, records = evidence()
    rows = [replace(r, axes={**r.axes, "labels": 0.15}) for r in plan.rows]
    rows = [replace(r, label=HOSTILE) if r.label == "rkd" else r for r in rows]
    failed = next(row for row in rows if row.label == HOSTILE and row.seed == 1)
    records[failed.cell_id] = grid.record(failed, FAILED, f"{HOSTILE} ran out of memory")
    refused = next(row for row in rows if row.label == "fitnet" and row.seed == 1)
    records[refused.cell_id] = grid.record(refused, NOT_APPLICABLE, "widths differ")
    return replace(plan, rows=rows, description=f"Described as {HOSTILE}"), records


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "grid"
    plan, records = hostile()
    files = build(findings(plan, records, costs()), folder / "store", folder)
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture(scope="module")
def page(built) -> str:
    return (built / "report.html").read_text(encoding="utf-8")


# --- the file --------------------------------------------------------------------------------


def test_it_is_well_formed_with_ids_of_their_own(page):
    found = Reader(page)
    assert found.open == []
    assert [name for name, count in found.ids.items() if count > 1] == []


def test_it_asks_nothing_of_any_server(page, built):
    found = Reader(page)
    files = [a for a in found.addresses if not a.startswith(("#", "data:"))]
    assert all((built / name).is_file() for name in files)
    assert not re.search(r"@import|url\((?!#)", page)
    targets = {address[1:] for address in found.addresses if address.startswith("#")}
    assert targets <= set(found.ids)


def test_what_records_and_grids_say_is_escaped(page):
    found = Reader(page)
    assert found.tags["script"] == 1
    assert found.tags["img"] == 0
    assert found.handlers == []
    assert "Described as" in page
    assert "15 % of the labels" in page[: page.index("</header>")]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page


def test_the_answer_is_first_and_everything_else_is_closed_below_the_figures(page):
    order = [page.index(text) for text in (
        '<section id="answer"', 'class="card', 'class="pairs', '<section id="forest"',
        '<section id="cost"', '<details id="all-answers"', '<details id="all-summary"',
        '<details id="all-curves"', '<details id="all-conditions"', '<details id="all-faults"',
    )]  # fmt: skip
    assert order == sorted(order)
    assert "<details open" not in page
    card = page[page.index('class="card') : page.index("</div>", order[0])]
    assert 1 <= card.count("<p>") <= 3
    assert "ran out of memory" in page
    assert "widths differ" in page


def test_it_is_short(page):
    assert len(page.encode()) <= MOST_BYTES
    assert words(page) <= MOST_WORDS
    assert words(re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)) <= 3000


def test_what_has_no_room_is_linked(tmp_path):
    plan, records = evidence(pairs=70)
    build(findings(plan, records, None), tmp_path, tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert words(report) <= MOST_WORDS
    assert 'href="figures/"' in report
    assert "big69 → small69" in report
    assert Reader(report).open == []


def test_tables_have_row_headers_captions_and_figures_say_what_they_show(page):
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    assert all("<caption>" in table and '<th scope="row"' in table for table in tables)
    images = re.findall(r"<svg[^>]*>", page)
    assert all('aria-hidden="true"' in x or "aria-label=" in x or "overflow" in x for x in images)
    assert any("leads" in image for image in images)


def test_equal_records_give_equal_bytes(built, tmp_path):
    plan, records = hostile()
    stale = [tmp_path / "published.csv", tmp_path / "figures" / "curves_gone.svg"]
    stale[1].parent.mkdir()
    for path in stale:  # of an earlier state
        path.touch()
    build(findings(plan, dict(reversed(records.items())), costs()), tmp_path / "store", tmp_path)
    assert not any(path.exists() for path in stale)
    for path in built.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(built)).read_bytes() == path.read_bytes(), path.name


def test_it_names_the_machine_that_its_costs_are_of(tmp_path):
    old = replace(COST[0], conditions={"device": "old"})
    there = [replace(r, teacher="big1", student="small1", conditions=old.conditions) for r in COST]
    build(findings(*evidence(), Costs([old, *COST, *there])), tmp_path, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    machines = re.findall("training time on (.*?);", text)
    assert machines[-2:] == ["a machine", "old"]  # of each pair
    assert "Dashed" not in text  # no row is trained longer


def test_without_costs_it_says_how_to_measure_them(tmp_path):
    build(findings(*evidence(pairs=1), None), tmp_path, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "run_all.py profile" in text
    assert not list((tmp_path / "figures").glob("gain_cost*"))


def test_without_any_record_it_still_is_a_page(tmp_path):
    build(findings(grid.plan(), {}, None), tmp_path, tmp_path)
    assert Reader((tmp_path / "report.html").read_text(encoding="utf-8")).open == []


# --- conditions and faults -------------------------------------------------------------------


def test_conditions_are_counted_by_cell():
    plan, records = evidence(pairs=1)
    cells = list(records)
    for place, cell in enumerate(cells):
        records[cell] = replace(
            records[cell],
            conditions={"torch": f"2.1{1 if place else 5}", "started": f"2026-01-0{place % 3 + 1}"},
            cell={"recipe": {"epochs": 30, "milestones": [0.5, 0.75]}, "data": {"flip": False}},
        )  # fmt: skip
    (table,) = conditions_table(plan, records)
    shown = [tuple(row) for row in table.shown()]
    assert shown == [
        ("seeds", "0-1", "10"),
        ("first cell started", "2026-01-01", "1"),
        ("last cell started", "2026-01-03", "1"),
        ("torch", "2.15", "1"),
        ("torch", "2.11", "9"),
        ("recipe: epochs", "30", "10"),
        ("recipe: milestones", "0.5, 0.75", "10"),
        ("data: flip", "no", "10"),
    ]
    assert not conditions_table(plan, {})


def test_every_cell_without_a_result_is_listed_with_its_reason():
    (table,) = faults_table(grid.plan(), grid.records())
    shown = [tuple(row[1:]) for row in table.shown()]
    assert shown == [
        ("fsp", "0-1", "not applicable", grid.REFUSAL),
        ("kd_svd", "0-1", "not run", "-"),
        ("fitnet", "1", "failed", grid.FAILURE),
        ("rkd", "1", "not run", "-"),
        ("teacher", "0", "not run", "-"),
        ("no teacher", "0", "not run", "-"),
    ]
    assert not faults_table(*evidence(pairs=1))
