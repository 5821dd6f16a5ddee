"""The directions of imports: which package may import which, and what stays out of a process."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINING = {"bench", "bench.data", "bench.models", "bench.train"}
LAUNCH = {*TRAINING, "bench.cost", "bench.decide", "bench.tracking"}

# Package -> the packages that it may import. "bench" are the modules right in that folder.
ALLOWED = {
    "run_all": {"bench.cli"},
    "methods": {"bench", "bench.models"},
    "bench": {"methods", "bench.data", "bench.models", "bench.train"},
    "bench.grids": set(),
    "bench.data": {"bench"},
    "bench.models": {"bench"},
    "bench.train": TRAINING,
    "bench.cost": {*TRAINING, "methods"},
    "bench.tracking": {"bench"},
    "bench.decide": {"bench", "bench.cost"},
    "bench.report": {"bench", "bench.cost", "bench.decide"},
    "bench.launch": LAUNCH,
    "bench.cli": {*LAUNCH, "bench.report", "bench.launch"},
}
ONLY_HERE = {"mlflow": "bench.tracking", "ray": "bench.launch"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for folder in ("bench", "methods")
    for path in (ROOT / folder).rglob("*.py")
} | {"run_all": ROOT / "run_all.py"}


def package_of(module: str) -> str:
    return max((p for p in ALLOWED if f"{module}.".startswith(f"{p}.")), key=len)


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for annotations alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


@functools.cache
def imports(module: str, with_types: bool = True) -> set[str]:
    """What a module imports anywhere in it: modules of this project by name, others by package."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree if with_types else WithoutTypes().visit(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in whole}
    return {name if name in MODULES else name.split(".")[0] for name in found}


def test_imports_follow_the_table_of_packages():
    for module, names in ((module, imports(module)) for module in MODULES):
        package = package_of(module)
        for name in names & MODULES.keys():
            assert package_of(name) in {package, *ALLOWED[package]}, f"{module} imports {name}"


def test_no_module_imports_itself_through_others():
    graph = networkx.DiGraph(
        (module, name)
        for module in MODULES
        for name in imports(module, with_types=False) & MODULES.keys()
    )
    assert list(networkx.simple_cycles(graph)) == []


def test_a_method_imports_no_other_method():
    for module, names in ((module, imports(module)) for module in MODULES):
        if package_of(module) == "methods":
            assert all(name.startswith("methods._") for name in names if "methods." in name), module


def test_one_package_alone_speaks_to_each_of_these_libraries():
    for module, names in ((module, imports(module)) for module in MODULES):
        for library in names & ONLY_HERE.keys():
            assert package_of(module) == ONLY_HERE[library], f"{module} imports {library}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bench.report.build, bench.record, bench.tracking, bench.cli", ["torch"]),
        ("import bench.train.cohort, bench.launch.job, bench.launch.workers", ["mlflow"]),
        ("import bench.grid", ["torchvision", "bench.models.resnet", "bench.report"]),
    ],
)
def test_what_stays_out_of_a_process(statement, absent):
    code = f"{statement}\nimport sys\nassert not set({absent}) & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
