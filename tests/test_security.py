"""What comes from outside can be wrong, but runs nothing and reaches no other folder."""

import ast
import re
from pathlib import Path

import pytest
from processes import ROOT
from summary_grid import plan

from bench.data.dataset import DataError
from bench.data.sources import load
from bench.grid import GridError, load_grid
from bench.record import FINISHED, Plan, Record
from bench.tracking import ui

SOURCES = sorted([*ROOT.glob("bench/**/*.py"), *ROOT.glob("methods/**/*.py"), ROOT / "run_all.py"])
# Modules whose readers run what they read, and calls that do.
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "runpy"}
# A worker tries whether its own exception survives being sent, as multiprocessing would send it. A
# launcher pickles its own jobs, as Ray would, so that a node without this package can say so. A
# weights file is read by torch's safe loader; only the name of its error is pickle's.
OWN_OBJECTS = {
    ROOT / "bench/models/files.py": {"pickle"},
    ROOT / "bench/launch/workers.py": {"pickle"},
    ROOT / "bench/launch/ray_cluster.py": {"pickle"},
}
HARMLESS = {"from joblib import cpu_count"}
# A plugin is the user's own program, named on the command line.
OWN_PROGRAM = {ROOT / "bench/plugin.py": {"exec"}}
CALLS = {
    "torch.load", "torch.hub.load", "numpy.load", "np.load", "yaml.load", "yaml.full_load",
    "yaml.unsafe_load", "eval", "exec", "os.system",
}  # fmt: skip
OUTSIDE = ["../x", "/x", "a/b", "..", ".hidden", "", "a\\b", "a\0"]


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run_from_data(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named = {alias.name for alias in node.names} - OWN_OBJECTS.get(path, set())
            assert not named & RUNS_WHAT_IT_READS
        elif isinstance(node, ast.ImportFrom) and ast.unparse(node) not in HARMLESS:
            assert str(node.module).split(".")[0] not in RUNS_WHAT_IT_READS
        elif isinstance(node, ast.Call):
            words = {word.arg: word.value for word in node.keywords}
            allowed = OWN_PROGRAM.get(path, set())
            if ast.unparse(words.get("weights_only", node)) == "True":
                allowed = allowed | {"torch.load"}
            assert dotted(node.func) not in CALLS - allowed, f"line {node.lineno}"
            assert ast.unparse(words.get("shell", ast.Constant(False))) != "True"


def test_a_grid_that_asks_for_code_is_refused_before_it_runs(tmp_path):
    bait = tmp_path / "ran"
    path = tmp_path / "bait.yaml"
    path.write_text(f"description: !!python/object/apply:os.mkdir ['{bait}']\n")
    with pytest.raises(GridError, match="not YAML"):
        load_grid(str(path))
    with pytest.raises(GridError, match="not YAML"):
        load_grid("smoke", [f"description=!!python/object/apply:os.mkdir ['{bait}']"])
    assert not bait.exists()


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_plans_and_records_stay_in_their_folders(name):
    text = re.sub(r',\n "sha256": "\w+"', "", plan().to_json())
    assert Plan.from_json(text) == plan()
    with pytest.raises(ValueError, match="no plain file name"):
        Plan(name=name, description="", config={}, rows=[])
    with pytest.raises(ValueError, match="no plain file name"):
        Plan.from_json(text.replace(plan().cell_ids()[0], name.replace("\\", "\\\\")
                                    .replace("\0", "\\u0000")))  # fmt: skip
    fields = {"cell": {}, "category": "baseline", "source": "s", "status": FINISHED}
    for more in ({"cell_id": name}, {"cell_id": "a", "files": {"weights": name}}):
        with pytest.raises(ValueError, match="no plain file name"):
            Record(**fields, **more)


def test_a_grid_file_cannot_name_a_folder_outside(tmp_path, refused):
    path = tmp_path / "...yaml"  # its stem is ".."
    path.write_text((ROOT / "bench/grids/smoke.yaml").read_text())
    with pytest.raises(GridError, match=r"'\.\.' is no plain file name"):
        load_grid(str(path))
    with pytest.raises(GridError, match=r"data.source: '\.\./secrets' is no plain file name"):
        load_grid("smoke", ["data.source=../secrets"])
    for command in ("tables", "sync"):
        words = [command, "--grid", "../elsewhere", "--work-dir", str(tmp_path / "work")]
        assert "'../elsewhere' is no plain file name" in refused(*words)


def test_a_data_source_cannot_leave_the_data_root(tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "secrets" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="no plain file name"):
        load("../secrets", data_root=inside, cache=tmp_path / "cache")


def test_the_ui_is_served_on_loopback_only(monkeypatch):
    monkeypatch.setenv("MLFLOW_HOST", "0.0.0.0")  # of somebody's server, not of this one
    command = ui.server_command("file:///mlartifacts", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "0.0.0.0" not in command
