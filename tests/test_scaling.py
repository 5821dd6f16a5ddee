"""A grid on many workers: the simulated curve keeps to its bounds, and table and figure say so."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import pytest
from lessons import cell, plain_cell

from bench.launch.scaling import scale, write_scaling
from bench.report.scaling import ScalePoint, draw_scaling, to_csv, to_markdown

WORKERS = (1, 2, 3, 4, 6, 8, 12, 100, 1000)
NAMES = ("soft_logits", "fitnet", "rkd", "fsp", "attention_transfer", "kd_svd")


def length(cells) -> float:
    """Students take 20, teachers 30; who is taught pays the teacher's forward pass, 4, once."""
    taught = any(c.teacher is not None for c in cells)
    return sum(30.0 if c.model == "cnn3" else 20.0 for c in cells) + 4 * taught


def grid(seeds: int = 3):
    taught = [cell(name, seed=seed) for seed in range(seeds) for name in NAMES]
    return [*(plain_cell("cnn3", seed) for seed in range(seeds)), *taught]


@pytest.fixture(scope="module")
def points() -> list[ScalePoint]:
    return scale(grid(), SimpleNamespace(seconds=length), WORKERS, startup=1.0)


def test_one_worker_takes_the_sum_and_many_the_longest_chain(points):
    assert points[0].seconds == points[0].ideal_seconds == 1 + 3 * 30 + 3 * (6 * 20 + 4)
    assert points[-1].seconds == points[-1].bound_seconds == 1 + 30 + 24
    assert points[0].jobs == 6
    assert points[-1].jobs == 3 + 18


def test_no_curve_beats_its_bounds_nor_rises(points):
    times = [p.seconds for p in points]
    assert times == sorted(times, reverse=True)
    for p in points:
        assert p.seconds >= max(p.ideal_seconds, p.bound_seconds) - 1e-9
        assert 0 < p.efficiency <= 1
        assert p.busy_seconds == pytest.approx(462 + p.repeated_seconds)


def test_cutting_pays_the_teacher_again(points):
    for p in points:
        assert p.repeated_seconds == pytest.approx(4 * (p.jobs - 6))


def test_cell_by_cell_pays_the_teacher_for_every_cell():
    alone = scale(grid(), SimpleNamespace(seconds=length), (1,), 0.0, lambda c: len(c) <= 1)
    assert alone[0].repeated_seconds == pytest.approx(4 * 15)
    assert alone[0].largest_job == 1


def test_the_table_has_what_the_points_have(points):
    rows = list(csv.DictReader(io.StringIO(to_csv(points))))
    assert [int(row["workers"]) for row in rows] == list(WORKERS)
    assert float(rows[-1]["speedup"]) == pytest.approx(points[0].seconds / 55, abs=0.01)
    text = to_markdown(points, "mine", ["Assumed."])
    assert "- Assumed." in text
    assert "| 1,000 | 55 |" in text
    assert "No number of workers beats 55 seconds" in text


def test_long_times_are_told_in_long_units(points):
    days = [
        p._replace(seconds=p.seconds * 1e5, bound_seconds=p.bound_seconds * 1e5) for p in points
    ]
    assert "| workers | days |" in to_markdown(days, "mine", ["x"])


def test_table_and_figure_are_written_and_equal_each_time(points, tmp_path):
    files = write_scaling(points, "mine", ["Assumed."], tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "scaling.csv", "scaling.md", "figures/scaling.svg",
    ]  # fmt: skip
    before = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in write_scaling(points, "mine", ["Assumed."], tmp_path)] == before


def test_the_figure_shows_curve_ideal_and_bound(points):
    above, below = draw_scaling(points, "mine", "Assumed.").axes
    simulated, ideal = above.lines[2], above.lines[0]
    assert list(simulated.get_ydata()) == [p.seconds for p in points]
    assert list(ideal.get_ydata()) == [p.ideal_seconds for p in points]
    assert set(above.lines[1].get_ydata()) == {55.0}
    assert list(below.lines[0].get_ydata()) == [p.efficiency for p in points]
