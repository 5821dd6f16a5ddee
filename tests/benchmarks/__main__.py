"""Runs the benchmarks of the losses and writes their tables to results/cost."""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression

import pytest

from bench.report.tables import Column, Table, to_csv, to_markdown

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "cost"

FORM_COLUMNS = (
    Column(key="method", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="mflop", name="counted", unit="MFLOP", digits=1),
    Column(key="least_ms", name="least time", unit="ms", digits=3),
    Column(key="shipped_ms", name="as shipped", unit="ms", digits=3),
    Column(key="shipped_over_least", name="over least", digits=1),
    Column(key="textbook_ms", name="textbook", unit="ms", digits=3),
    Column(key="speedup", name="textbook over shipped", digits=2),
    Column(key="shipped_mib", name="peak memory as shipped", unit="MiB", digits=2),
    Column(key="textbook_mib", name="peak memory textbook", unit="MiB", digits=2),
)
GROWTH_COLUMNS = (
    Column(key="method", name="method", align="left"),
    Column(key="category", name="category", align="left"),
    Column(key="axis", name="grows", align="left"),
    Column(key="sizes", name="sizes", align="left"),
    Column(key="ms", name="medians", unit="ms", align="left"),
    Column(key="exponent", name="fitted exponent", digits=2),
)


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of value = c size^p that fits best in log-log, by least squares."""
    return linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def form_table(found: Sequence[dict], notes: Sequence[str]) -> Table:
    rows = []
    for shipped in (b for b in found if b["extra_info"].get("form") == "shipped"):
        about = shipped["extra_info"]
        textbook = next(
            b for b in found
            if b["extra_info"].get("form") == "textbook"
            and b["extra_info"]["method"] == about["method"]
        )  # fmt: skip
        compute = about["flops"] / about["matmul_gflop_per_s"] / 1e6
        memory = about["moved_bytes"] / about["triad_gb_per_s"] / 1e6
        least = max(compute, memory)
        mine, theirs = (1e3 * b["stats"]["median"] for b in (shipped, textbook))
        rows.append(
            {
                "method": about["method"],
                "category": about["category"],
                "mflop": about["flops"] / 1e6,
                "least_ms": least,
                "shipped_ms": mine,
                "shipped_over_least": mine / least,
                "textbook_ms": theirs,
                "speedup": theirs / mine,
                "shipped_mib": about["peak_bytes"] / 2**20,
                "textbook_mib": textbook["extra_info"]["peak_bytes"] / 2**20,
            }
        )
    title = "Losses as shipped, in their textbook form, and the machine's limit"
    return Table(title, FORM_COLUMNS, rows, notes)


def growth_table(found: Sequence[dict], notes: Sequence[str]) -> Table:
    lines: dict[tuple[str, str, str], dict[int, float]] = {}
    for benchmark in found:
        about = benchmark["extra_info"]
        if "axis" in about:
            key = about["method"], about["category"], about["axis"]
            lines.setdefault(key, {})[about["size"]] = 1e3 * benchmark["stats"]["median"]
    rows = [
        {
            "method": method,
            "category": category,
            "axis": axis,
            "sizes": ", ".join(map(str, medians)),
            "ms": ", ".join(f"{ms:.3g}" for ms in medians.values()),
            "exponent": fitted_exponent(list(medians), list(medians.values())),
        }
        for (method, category, axis), medians in lines.items()
    ]
    return Table("Losses alone while one size grows", GROWTH_COLUMNS, rows, notes)


def conditions(report: dict) -> str:
    first, commit = report["benchmarks"][0], str(report["commit_info"].get("id"))[:10]
    about, cpu = first["extra_info"], report["machine_info"]["cpu"].get("brand_raw", "")
    return (
        f"Measured {report['datetime'][:10]} on {about['device']} ({cpu}), threads "
        f"{about['threads']}, torch {about['torch']}, float32, at commit {commit}. Medians of "
        f"{first['stats']['rounds']} rounds (2 of losses that take a second), forward and backward."
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmarks.json"
        here = str(Path(__file__).with_name("test_losses.py"))
        code = pytest.main([here, "--benchmark-only", f"--benchmark-json={file}", *sys.argv[1:]])
        if code:
            return int(code)
        report = json.loads(file.read_text(encoding="utf-8"))
    found, where = report["benchmarks"], conditions(report)
    about = found[0]["extra_info"]
    form_notes = (
        where,
        "Taps of resnet32x4 -> resnet8x4 on 32 x 32 images, batch 64, 100 classes.",
        "Least time: the larger of FLOP over the speed of a float32 product "
        f"({about['matmul_gflop_per_s']:.1f} GFLOP/s) and the bytes of both networks' taps and of "
        f"the gradients over that of a triad ({about['triad_gb_per_s']:.1f} GB/s). It counts every "
        "tensor once, without caches and the launch of operations.",
        "A loss without a textbook form of its own is timed twice.",
    )
    growth_notes = (
        where,
        "Random taps of one shape in both networks. Sizes that stay: batch 64, 32 channels, 64 "
        "positions.",
        "The exponent p is that of time = c size^p over all sizes. Small sizes cost mostly the "
        "launch of operations and pull it down.",
    )
    forms, growth = form_table(found, form_notes), growth_table(found, growth_notes)
    for name, table in (("loss_forms", forms), ("loss_growth", growth)):
        (FOLDER / f"{name}.md").write_text(to_markdown(table), encoding="utf-8")
        (FOLDER / f"{name}.csv").write_text(to_csv(table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
