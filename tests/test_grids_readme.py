"""bench/grids/README.md names every field of a grid file, and its example is a grid."""

from __future__ import annotations

import re

import pytest
import yaml

from bench.cell import DataSpec, Recipe
from bench.grid import GRIDS, Grid, GridError, check_names, grid_names, load_grid

README = (GRIDS / "README.md").read_text(encoding="utf-8")


def fields_of(section: str) -> set[str]:
    """What the first column of the section's table names."""
    text = README.split(section, 1)[1].split("\n#", 1)[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("section", "model"),
    [("## Fields", Grid), ("### `data`", DataSpec), ("### `recipe`", Recipe)],
)
def test_every_field_is_documented(section, model):
    assert fields_of(section) == set(model.model_fields)


def test_every_grid_is_named():
    assert set(grid_names()) <= set(re.findall(r"`([\w-]+)`", README))


def test_the_example_is_a_grid():
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
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
    recipe = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1, **changes.pop("recipe", {})}
    grid = {"description": "d", "data": {"source": "digits"}, "pairs": ["cnn8:cnn4"],
            "methods": ["rkd"], "seeds": 1, "recipe": recipe, **changes}  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(grid))
    with pytest.raises(GridError) as caught:
        load_grid(str(path))
    (shown,) = [line for line in README.splitlines() if f"mine.yaml: {field}:" in line]
    assert shown == f"error: {caught.value}"
