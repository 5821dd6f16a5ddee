"""Results of a changed grid: every command finds them by the words that made them."""

import pytest
import yaml

from bench.cli import main
from bench.grid import find_grid
from bench.record import Plan, WorkDir
from bench.strict_yaml import read_yaml
from bench.tracking import Mirror


@pytest.fixture
def words(tmp_path) -> list[str]:
    part = ["--methods", "soft_logits", "--seeds", "0-1", "--pairs", "cnn8:cnn4"]
    return ["--grid", "smoke", "--work-dir", str(tmp_path), *part, "recipe.epochs=1"]


def test_the_same_words_or_the_folders_name_find_the_results(
    words, tmp_path, capsys, no_figures, refused
):
    line = refused("recommend", *words)
    assert "run: run_all.py --grid smoke --methods soft_logits --pairs cnn8:cnn4" in line
    assert line.endswith(f"--seeds 0,1 --work-dir {tmp_path} recipe.epochs=1\n")
    assert main([*words, "--workers", "1"]) == 0
    (folder,) = [path.parent.name for path in tmp_path.glob("smoke-*/plan.json")]
    by_name = ["--grid", folder, "--work-dir", str(tmp_path)]
    capsys.readouterr()
    said = []
    for how in (words, by_name):
        assert main(["recommend", *how]) == 0
        said.append(capsys.readouterr().out)
        assert main(["tables", *how]) == 0
        assert "soft_logits" in capsys.readouterr().out
    assert said[0] == said[1]

    assert main(["run", *by_name, "--workers", "1"]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert main(["profile", *words, "--rounds", "1"]) == 0
    assert (tmp_path / folder / "cost.json").is_file()
    sent = Mirror(tmp_path, folder).search("tags.method = 'soft_logits'")
    assert all("final/cost" in run.data.metrics for run in sent)
    plan = Plan.from_json(WorkDir(tmp_path).plan(folder).read_text())
    cell = plan.rows[-1].name
    for how in ([*words, cell], [cell, *by_name]):
        assert main(["export", *how]) == 0
        assert f"{cell} (" in capsys.readouterr().out
    assert main(["sync", *words]) == 0


def test_a_file_that_is_not_what_was_trained_is_named(tmp_path, capsys, no_figures, refused):
    file, work = tmp_path / "mine.yaml", ["--work-dir", str(tmp_path / "work")]
    changes = {"seeds": [0, 1], "methods": ["soft_logits"], "pairs": ["cnn8:cnn4"]}
    grid = {**read_yaml(find_grid("smoke").read_text()), **changes}
    grid["recipe"]["epochs"] = 1
    file.write_text(yaml.safe_dump(grid))
    assert main(["--grid", str(file), *work, "--workers", "1"]) == 0
    tables = ["tables", *work, "--grid"]
    assert main([*tables, str(file)]) == 0
    assert "these results are not of" not in capsys.readouterr().err
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text(file.read_text().replace("soft_logits", "rkd"))
    assert main([*tables, str(other)]) == 0
    assert f"note: these results are not of {other}" in capsys.readouterr().err
    file.rename(tmp_path / "elsewhere.yaml")
    assert f"no file {file}" in refused(*tables, str(file))
    folder = tmp_path / "work" / "mine"
    assert f"write --grid mine --work-dir {tmp_path}/work" in refused(*tables, str(folder))


def test_what_cannot_be_found_is_said_in_one_line(words, tmp_path, refused):
    work = ["--work-dir", str(tmp_path)]
    assert "it has: none" in refused("tables", "--grid", "smoke-1a2b3c", *work)
    assert "wanted either a CELL" in refused("export", *words, "a/b/0", "c/d/0")
    line = refused("recommend", *words, "--plugin", "none.py")
    assert "no results of grid 'smoke-" in line
    assert line.endswith(f"--plugin none.py --work-dir {tmp_path} recipe.epochs=1\n")
