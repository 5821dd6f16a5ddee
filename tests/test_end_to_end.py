"""The command line on the smoke grid, in real processes: table, records, MLflow, faults."""

import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import ROOT, kd_bench, plan_of, results

from bench.cli import COMMANDS, main, parse
from bench.faults import UserError
from bench.record import WorkDir
from bench.tracking import Mirror

SMOKE = ["--grid", "smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A work directory in which two processes ran the smoke grid."""
    work = tmp_path_factory.mktemp("finished")
    done = kd_bench(*SMOKE, "--work-dir", str(work), "--workers", "2")
    assert done.returncode == 0, done.stderr
    return work, done


@pytest.fixture
def work(finished, tmp_path) -> Path:
    """A copy of that directory, free to be damaged. Its MLflow artifacts stay where they are."""
    copy = tmp_path / "work"
    shutil.copytree(finished[0], copy)
    return copy


def test_the_grid_ends_in_a_table_and_its_files(finished):
    work, done = finished
    for word in ("teacher", "student", "soft_logits", "fitnet", "attention_transfer"):
        assert word in done.stdout
    assert "24 cells trained" in done.stdout
    written = {path.name for path in (work / "smoke").iterdir()}
    assert written >= {"plan.json", "summary.md", "summary.csv", "summary.tex", "cells.csv"}


def test_a_second_start_imports_neither_networks_nor_reports_before_the_tables(finished):
    absent = ["torchvision", "bench.report", "bench.train.cohort", "bench.models.small",
              "bench.models.resnet", "bench.models.adapter"]  # fmt: skip
    code = (
        "import sys; from bench.cli import main, training\n"
        "def rendering(*results):\n"
        f"    assert not set({absent}) & sys.modules.keys(), sys.modules.keys()\n"
        "    sys.exit(3)\n"
        "training.render = rendering; main(sys.argv[1:])"
    )
    words = [*SMOKE, "--work-dir", str(finished[0])]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True)
    assert done.returncode == 3, done.stderr


def test_the_same_grid_again_gives_the_same_bits_however_many_processes(
    finished, tmp_path, no_figures, no_store
):
    assert main([*SMOKE, "--work-dir", str(tmp_path), "--workers", "1"]) == 0
    assert results(tmp_path) == results(finished[0])


def test_what_is_unfinished_lost_its_weights_or_is_damaged_is_trained_again(
    work, capsys, no_figures
):
    before, store, rows = results(work), WorkDir(work).store, plan_of(work).rows
    unfinished, damaged = (
        next(r.cell_id for r in rows if r.method == name) for name in ("fitnet", "soft_logits")
    )
    store.discard(unfinished)
    (store.folder(damaged) / "record.json").write_text("{")
    teacher = next(row.cell_id for row in rows if row.role == "teacher")
    (store.folder(teacher) / "weights.safetensors").unlink()
    assert main([*SMOKE, "--work-dir", str(work), "--workers", "1"]) == 0
    assert "3 cells trained" in capsys.readouterr().out
    assert results(work) == before
    assert main([*SMOKE, "--work-dir", str(work)]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert results(work) == before


def test_tables_come_out_byte_equal_from_records_and_from_mlflow_without_torch(work):
    folder = work / "smoke"
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("plan", "finalists"))
    }  # fmt: skip
    code = (
        "import sys; from bench.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    for origin in ("records", "mlflow"):
        for name in files:
            (folder / name).unlink()
        if origin == "mlflow":  # from MLflow alone
            shutil.rmtree(work / "store")
        words = ["tables", *SMOKE, "--work-dir", str(work), "--from", origin]
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {name: (folder / name).read_bytes() for name in files} == files, origin


def test_mlflow_holds_every_cell_once_and_whole(finished):
    work, _ = finished
    mirror = Mirror(work, "smoke")
    plan, records = mirror.fetch()
    assert plan == plan_of(work)
    assert records == WorkDir(work).store.read_all(plan.cell_ids())
    runs = mirror.search("tags.`kd_bench.kind` = 'cell'")
    assert sorted(run.data.tags["cell_id"] for run in runs) == sorted(plan.cell_ids())
    run = next(r for r in runs if r.info.run_name == "cnn8>cnn4/fitnet/0")
    record = records[run.data.tags["cell_id"]]
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "fitnet"
    assert run.data.params["recipe.epochs"] == "4"
    assert run.data.tags["torch"] == record.conditions["torch"]
    assert run.data.metrics["final/last_accuracy"] == record.final["last_accuracy"]
    curve = mirror.client.get_metric_history(run.info.run_id, "accuracy/test_accuracy")
    measured = [a for a in record.curves["test_accuracy"] if a is not None]
    assert [point.value for point in curve] == measured
    files = {f.path for f in mirror.client.list_artifacts(run.info.run_id)}
    assert files == {"record.json", "weights.safetensors"}


def test_a_store_that_is_away_does_not_stop_the_grid(tmp_path, capsys, no_figures, no_store):
    words = ["--methods", "soft_logits", "--seeds", "0", "--workers", "1", "recipe.epochs=1"]
    assert main([*SMOKE, "--work-dir", str(tmp_path), *words]) == 0
    said = capsys.readouterr().out
    assert "run_all.py sync" in " ".join(said.split())
    assert "Connection refused" in said
    assert "(MLFLOW_TRACKING_URI is http://127.0.0.1:9)" in said
    assert "3 cells trained" in said


def test_a_failed_cell_leaves_the_others_and_shows_in_table_and_exit_code(
    tmp_path, capsys, no_figures, no_store
):
    grid = yaml.safe_load((ROOT / "bench/grids/smoke.yaml").read_text())
    grid |= {"seeds": 1, "pairs": ["cnn8:cnn4", "cnn8:cnn3"], "methods": ["soft_logits"]}
    grid["recipe_for"] = {"cnn4": {"learning_rate": 1e30}}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(grid))
    words = ["--grid", str(path), "--work-dir", str(tmp_path / "work"), "--workers", "1"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert all(word in said for word in ("NonFiniteError", "2 failed", "3 finished"))
    assert main([*words, "--retry-failed"]) == 1
    assert "2 cells trained" in capsys.readouterr().out


def test_tuning_says_why_a_row_has_no_trial_and_its_dry_run_has_both_rounds(
    tmp_path, capsys, no_store
):
    fields = ["methods=[{soft_logits: {learning_rate: 1.0e+30}}]", "seeds=1", "recipe.epochs=1"]
    words = ["tune", *SMOKE, *fields, "--pairs", "cnn8:cnn3", "--workers", "1", "--trials", "1"]
    words += ["--tuning-seeds", "2", "--work-dir", str(tmp_path)]
    assert main([*words, "--dry-run"]) == 0
    assert "cells: 6, done already: 0" in capsys.readouterr().out
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "no trial of soft_logits (learning_rate=1e+30) finished: NonFiniteError" in said
    assert "failed: 1" in said


def test_a_dry_run_without_the_data_takes_random_images_of_its_shape(tmp_path, capsys, monkeypatch):
    def absent(**named: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("torchvision.datasets.CIFAR100", absent)
    words = ["--grid", "cifar100-mini", "--dry-run"]
    assert main([*words, "--work-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert re.search("^  row .* MiB$", printed, re.MULTILINE)  # whole in a narrow terminal
    assert said.startswith("without the data, time: ")
    assert "random images take the place of the data" in said
    assert "cells: 54, done already: 0" in said
    assert main([*words[:2], "--work-dir", str(tmp_path)]) == 2  # nobody trains on them
    assert "data set 'cifar100' is not here" in capsys.readouterr().err
    assert main([*SMOKE, "--dry-run", "--work-dir", str(tmp_path), "data.classes=[0,99]"]) == 2
    assert "no class 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "smok"], ["'smok'", "smoke"]),
        (["--gird", "smoke"], ["--gird", "--grid"]),
        (["trian"], ["'trian'", "tables"]),
        ([*SMOKE, "--methods", "fitnett"], ["fitnett", "fitnet"]),
        ([*SMOKE, "--pairs", "cnn8"], ["--pairs", "teacher:student"]),
        ([*SMOKE, "--seeds", "a"], ["'a'", "0-4"]),
        ([*SMOKE, "--device", "cuda:99"], ["cuda:99", "CUDA devices"]),
        ([*SMOKE, "--workers", "0"], ["--workers", "at least 1"]),
        ([*SMOKE, "recipe.batch_size=4096"], ["4096", "training images"]),
        ([*SMOKE, "recipe.epochs=none"], ["recipe.epochs", "none"]),
        (["tables", "--grid", "smoke"], ["no results", "run_all.py --grid smoke"]),
        (["sync", "--grid", "smoke"], ["no results"]),
        (
            ["tables", "--grid", "smoke", "--from", "mlflow"],
            ["no results of grid 'smoke' in MLflow; run: run_all.py --grid smoke"],
        ),
        ([*SMOKE, "data.source=folder"], ["--data-root"]),
        (["profile", "--grid", "digit"], ["digits"]),
        (["profile", "--rounds", "0"], ["--rounds"]),
        (["profile", "--methods", "fitnett"], ["fitnet"]),
        (["tune", "--seeds", "1"], ["'--seeds'"]),
        (["list", ""], ["unknown option ''", "--model"]),
        ([*SMOKE, "max_cost=1.2"], ["run first: run_all.py profile --grid smoke", "max_cost=1.2"]),
        (["recommend", "--max-cost", "0.5"], ["of at least 1"]),
        (["recommend", "--max-cost", "cheap"], ["cheap"]),
    ],
)
def test_bad_input_gives_one_line_and_code_2(tmp_path, refused, words, said):
    error = refused(
        *words, *(["--work-dir", str(tmp_path)] if words[0] not in ("trian", "list") else [])
    )
    for word in said:
        assert word in error


NO_VALUES = {
    ("-1", "1 s", "nan", "inf", ""): "run --checkpoint-seconds",
    ("nan", "inf", ""): "run --gpus-per-job, tune --validation, recommend --max-cost",
    ("", " , "): "run --methods, profile --pairs, run --seeds",
    ("",): "run --data-root, ui --work-dir, list --plugin, export --output",
}


@pytest.mark.parametrize(
    ("words", "text"),
    [(words, text) for texts, all in NO_VALUES.items() for words in all.split(", ")
     for text in texts],
)  # fmt: skip
def test_text_that_is_no_value_of_an_option_is_refused_before_anything_is_read(words, text):
    command, option = words.split()
    with pytest.raises(UserError) as told:
        parse([command, option, text])
    error = str(told.value)
    assert error.startswith(f"argument {option}: got {text!r}, w"), error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (UserError("wrong grid"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (PermissionError(errno.EACCES, "Permission denied", "/results"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "internal"), False),
        (ValueError("a fault of the program"), False),
    ],
    ids=str,
)
def test_only_what_the_user_can_mend_is_one_line(monkeypatch, capsys, error, ends):
    def broken(options):
        raise error

    monkeypatch.setattr("bench.cli.results.list_all", broken)
    if not ends:
        with pytest.raises(type(error)):
            main(["list"])
        return
    assert main(["list"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["list", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_list_names_what_a_grid_can_name_and_help_the_commands(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for word in ("temperature=4.0", "resnet32x4", "wrn_40_2", "cifar100", "digits", "smoke"):
        assert word in said
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said for command in COMMANDS)
