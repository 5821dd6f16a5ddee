"""What the READMEs show is what works."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml
from students import random_student

from bench.cli import COMMANDS
from bench.export import Student, pack
from bench.grid import Grid, check_names, grid_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "bench/models/README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_student_of_the_readme_runs_without_this_package(tmp_path, monkeypatch, capsys):
    (code,) = blocks(MODELS, "python")
    assert "bench" not in code
    trained = random_student("cnn4", side=8)
    (tmp_path / "student.pt2").write_bytes(pack(trained, "torch.export")[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "take_home.py", "exec"), {})
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with torch.no_grad():
        predicted = Student(trained.network, trained.card)(images).argmax(1)
    assert capsys.readouterr().out == f"{[trained.data.classes[i] for i in predicted]}\n"


def test_the_grid_of_the_readme_is_valid_and_takes_its_model():
    grid, models = map(yaml.safe_load, blocks(README, "yaml"))
    check_names(Grid(**grid, name="mine"))
    check_names(Grid(**{**grid, **models, "pairs": ["densenet:resnet8x4"]}, name="mine"))


def test_the_readme_names_commands_and_grids_that_exist():
    for command in re.findall(r"run_all\.py (\w+)", README):
        assert command in COMMANDS, command
    named = re.findall(r"--grid ([\w-]+)(?!\S*\.yaml)", README)
    assert set(named) - {"mine"} <= set(grid_names())


def test_the_table_of_the_readme_is_the_committed_one():
    lines = []
    for name in ("summary", "candidates", "cost"):
        table = (ROOT / f"results/digits/{name}.md").read_text(encoding="utf-8").replace("\\[", "[")
        parts = [part for part in table.split("\n## ") if "cnn32 -> cnn8" in part.split("\n")[0]]
        lines += parts[0].splitlines()
    for line in README.splitlines():
        if "±" in line and line.startswith("| "):
            name, _, *numbers = (part.strip() for part in line.strip("|").split("|"))
            # A cell of the costs has a number for each stage, with ";" between them.
            row = " ".join(found for found in lines if found.startswith(f"| {name} "))
            row = row.replace(";", " ")
            for number in numbers:
                # Of the losses the README gives the median alone.
                assert f" {number} " in row, (name, number)
