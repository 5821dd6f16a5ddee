"""The directions of imports, read off the source: arrows only point downwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package or module -> what it may import of this project. The longest matching entry decides.
ALLOWED = {
    "run_all": {"bench.cli"},
    "bench.cli": {"bench"},
    "bench.cli.parser": set(),
    "bench.cli.options": {"bench.arguments", "bench.cost.command"},
    "bench.cli.recorded": {
        "bench.archive", "bench.cli.parser", "bench.cost.command",
        "bench.cost.record", "bench.record",
        "bench.tracking", "bench.workdir",
    },
    "bench.plugin": {
        "bench.data.sources", "bench.faults", "bench.models.zoo", "bench.record",
        "methods.registry",
    },
    "bench.catalogue": {"bench.data", "bench.models", "bench.grid", "methods"},
    "bench.launch": {"bench", "methods.registry"},
    "bench.grid": {"bench.cell", "bench.record", "bench.models", "methods"},
    "bench.cell": set(),
    "bench.arguments": set(),
    "bench.method": set(),
    "bench.record": set(),
    "bench.archive": {"bench.record"},
    "bench.checked": set(),
    "bench.seeds": set(),
    "bench.faults": set(),
    "bench.workdir": {"bench.record"},
    "bench.tracking": {"bench.tracking", "bench.record"},
    "bench.tracking.experiment": set(),
    "bench.export": {
        "bench.cell", "bench.data", "bench.models", "bench.record", "bench.train.device",
        "bench.workdir",
    },
    "bench.data": {"bench.data", "bench.faults", "bench.seeds", "bench.record", "bench.checked"},
    "bench.models": {"bench.models", "bench.method"},
    "bench.train": {
        "bench.train", "bench.data", "bench.models", "bench.method", "bench.cell",
        "bench.record", "bench.faults", "bench.seeds", "bench.checked", "methods.registry",
    },
    "bench.report": {"bench.report", "bench.record", "bench.cost.record"},
    "bench.cost": {
        "bench.cost", "bench.train", "bench.models", "bench.method", "bench.cell",
        "bench.record", "bench.faults", "bench.seeds", "methods.registry",
    },
    "bench.cost.footprint": {
        "bench.cost", "bench.train", "bench.data", "bench.method", "bench.cell",
        "methods.registry",
    },
    "bench.cost.record": {"bench.record"},
    "bench.cost.command": {
        "bench.arguments", "bench.cost", "bench.data.sources", "bench.grid", "bench.launch.job",
        "bench.record", "bench.train.device", "bench.workdir",
    },
    "methods": {"bench.faults", "bench.method", "methods"},
}  # fmt: skip
ONLY_HERE = {"mlflow": "bench.tracking", "ray": "bench.launch"}


def modules() -> dict[str, Path]:
    paths = [
        ROOT / "run_all.py",
        *(ROOT / "bench").rglob("*.py"),
        *(ROOT / "methods").rglob("*.py"),
    ]
    names = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def rule_for(module: str) -> set[str]:
    matching = [entry for entry in ALLOWED if within(module, entry)]
    return ALLOWED[max(matching, key=len)] if matching else set()


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_downwards(module):
    allowed = rule_for(module)
    for name in imports(modules()[module]):
        if within(name, "bench") or within(name, "methods"):
            assert any(within(name, entry) for entry in allowed), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(m for m in modules() if within(m, "methods")))
def test_public_methods_share_only_private_pieces(module):
    if module.rpartition(".")[2].startswith("_") or module == "methods.registry":
        return
    for name in imports(modules()[module]):
        if within(name, "methods"):
            piece = name.split(".")[1]
            assert piece.startswith("_"), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_one_package_alone_speaks_to_mlflow(module):
    for name in imports(modules()[module]):
        for library, place in ONLY_HERE.items():
            if within(name, library):
                assert within(module, place), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(m for m in modules() if within(m, "bench.report")))
def test_reports_name_no_torch(module):
    assert not any(within(name, "torch") for name in imports(modules()[module]))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bench.report.summary, bench.workdir, bench.tracking, bench.cli", "torch"),
        ("import bench.train.cohort, bench.launch.job, bench.launch.local", "mlflow"),
    ],
)
def test_what_stays_out_of_a_process(statement, absent):
    code = f"{statement}\nimport sys\nassert {absent!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
