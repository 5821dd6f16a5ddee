"""What the READMEs show is what works."""

import re
import subprocess

import pytest
import torch
import yaml
from lessons import Lesson, cell
from processes import ROOT
from test_grid import SMALL, load

from bench.cell import Recipe
from bench.cli import COMMANDS
from bench.grid import Grid, GridError, check_names, grid_names
from bench.grid_fields import GridData
from bench.hyperparameters import METHODS, build_method, resolve_hyperparameters, search_space
from bench.plugin import Plugin, plugged

README, MODELS, GRIDS, OF_METHODS = (
    (ROOT / folder / "README.md").read_text(encoding="utf-8")
    for folder in ("", "bench/models", "bench/grids", "methods")
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_grid_of_the_readme_is_valid_and_takes_its_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").write_bytes(b"weights are read later")
    grid, models = map(yaml.safe_load, blocks(README, "yaml"))
    check_names(Grid(**grid, name="mine"))
    check_names(Grid(**{**grid, **models}, name="mine"))


def test_the_readme_names_commands_and_grids_that_exist():
    for command in re.findall(r"run_all\.py (\w+)", README):
        assert command in COMMANDS, command
    named = re.findall(r"--grid ([\w-]+)(?!\S*\.yaml)", README)
    assert set(named) - {"mine"} <= set(grid_names())


def test_the_table_of_the_readme_is_the_committed_one():
    # Of git's index: README's first command writes that of this machine into the same file.
    file = "results/digits/summary.md"
    shown = subprocess.run(["git", "show", f":{file}"], cwd=ROOT, capture_output=True, check=False)
    text = shown.stdout or (ROOT / file).read_bytes()
    (pair,) = (p for p in text.decode().split("\n## ") if p.startswith("cnn32 → cnn8"))
    committed = {" ".join(line.split()) for line in pair.splitlines()}
    rows = {line for line in README.splitlines() if line.startswith("| ") and "±" in line}
    assert rows
    assert rows <= committed


# --- bench/grids/README.md ---


def fields_of(section: str) -> set[str]:
    """What the first column of the section's table names."""
    text = GRIDS.split(section, 1)[1].split("\n#", 1)[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("section", "model"), [("## Fields", Grid), ("### `data`", GridData), ("### `recipe`", Recipe)]
)
def test_every_field_is_documented(section, model):
    assert fields_of(section) == set(model.model_fields)


def test_every_grid_is_named():
    assert set(grid_names()) <= set(re.findall(r"`([\w-]+)`", GRIDS))


def test_the_example_is_a_grid():
    text = blocks(GRIDS, "yaml")[0]
    check_names(Grid(**yaml.safe_load(text), name="mine"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {"epoch": 3}}, "recipe.epoch"),
        ({"recipe": {"epochs": 0}}, "recipe.epochs"),
        ({"methods": [{"soft_logits": {"temprature": 3}}]}, "methods.0"),
        ({"pairs": ["cnn8:resnet9"]}, "pairs.0.student"),
    ],
)
def test_the_errors_are_those_that_are_shown(tmp_path, changes, field):
    recipe = SMALL["recipe"] | changes.get("recipe", {})
    with pytest.raises(GridError) as caught:
        load(tmp_path, **{**changes, "recipe": recipe})
    (shown,) = [line for line in GRIDS.splitlines() if f"mine.yaml: {field}:" in line]
    assert shown == f"error: {caught.value}"


# --- methods/README.md ---


def test_each_fault_of_public_code_has_its_test():
    section = OF_METHODS.split("## Where public code", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(test_\w+)`", section))
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    assert len(named) > 10
    assert {name for name in named if not any(f"def {name}(" in text for text in texts)} == set()


(EXAMPLE,) = blocks(OF_METHODS, "python")


def test_the_table_names_every_method_with_its_category_and_stages():
    rows = re.findall(r"^\| `(\w+)` \| ([\w-]+) \| ([\w, ]+) \|", OF_METHODS, flags=re.MULTILINE)
    methods = {name: build_method(name) for name in METHODS.names()}
    assert {name: (category, stages) for name, category, stages in rows} == {
        name: (method.category, ", ".join(stage.name for stage in method.plan))
        for name, method in methods.items()
    }


def test_the_example_has_the_loss_that_it_states_and_trains():
    namespace: dict[str, object] = {}
    exec(compile(EXAMPLE, "logit_matching.py", "exec"), namespace)
    loss = namespace["logit_matching_loss"]
    found = loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.tolist() == [2.5]  # (1 + 4) / 2
    lesson = Lesson(cell("soft_logits"), method=namespace["method"](weight=0.5))
    lesson.epochs(4)
    losses = lesson.student.curves["transfer_loss"]
    assert losses[-1] < losses[0]


def test_the_example_is_a_plugin():
    with plugged([Plugin("/anywhere/logit_matching.py", EXAMPLE)]):
        assert resolve_hyperparameters("logit_matching", {}) == {"weight": 1.0}
        assert search_space("logit_matching") == {"weight": [0.1, 1.0, 10.0]}
        assert build_method("logit_matching").needs_teacher
