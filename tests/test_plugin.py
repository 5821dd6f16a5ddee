"""`--plugin FILE`: a user's own method, model or data source, from outside of the package."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import ROOT, kd_bench, plan_of, results, start
from test_readme import EXAMPLE

from bench.cli import main
from bench.data import sources
from bench.expansion import expand
from bench.grid import load_grid
from bench.hyperparameters import METHODS, build_method, method_code, resolve_hyperparameters
from bench.models import zoo
from bench.plugin import Plugin, plugged, read_plugins
from bench.record import Record, WorkDir

# The smallest of each kind. The method's loss has a factor, so that two versions of it differ.
METHOD = '''
"""Logits regress on the teacher's."""
from bench.method import Method, Stage
from methods.soft_logits import SOURCE as BASED_ON

SOURCE = f"For a test, 2026, after: {BASED_ON}"
FACTOR = 1.0

def method(*, weight: float = 1.0) -> Method:
    """L = CE + weight * mean square of the difference."""
    def transfer(pair, connector):
        return FACTOR * (pair.student.logits - pair.teacher.logits).square().mean(dim=1)
    stage = Stage(name="distil", share=1.0, transfer=transfer, taps=("logits",),
                  transfer_weight=weight)
    return Method(category="response", source=SOURCE, plan=(stage,))
'''
MODEL = """
from functools import partial
from bench.models.small import SmallCnn

MODELS = {"tiny": partial(SmallCnn, width=3)}
"""
DATA = """
import torch
from bench.data.dataset import DataSet
from bench.data.sources import Source

def read(name, downloads):
    labels = torch.arange(80) % 2
    images = (100 + 50 * labels[:, None, None, None]).expand(80, 1, 8, 8).to(torch.uint8)
    images = images + torch.arange(64).view(1, 1, 8, 8).to(torch.uint8)
    return DataSet.of(name, (images, labels), (images[:20], labels[:20]), ["dark", "light"])

DATA_SOURCES = {"stripes": Source(read, classes=2, as_tree=False)}
"""
GRID = {
    "description": "Of a test.",
    "data": {"source": "stripes", "pad": 1, "flip": False},
    "pairs": ["cnn4:tiny"],
    "methods": ["soft_logits", {"matching": {"weight": 0.5}}],
    "seeds": 2,
    "recipe": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
}


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """A plugin of each kind."""
    texts = {"matching.py": METHOD, "my_model.py": MODEL, "my_data.py": DATA}
    return [written(tmp_path, name, text) for name, text in texts.items()]


def options(files: list[Path]) -> list[str]:
    return [word for path in files for word in ("--plugin", str(path))]


def grid_file(folder: Path, **changes: object) -> str:
    return str(written(folder, "mine.yaml", yaml.safe_dump({**GRID, **changes})))


def test_what_files_add_is_listed_and_known_by_name_until_left(files, capsys):
    before = (METHODS.names(), zoo.MODELS.names(), sources.names())
    plugins = read_plugins(files)
    with plugged(plugins), plugged(plugins):  # the second one adds nothing
        assert "matching" in METHODS.names()
        assert resolve_hyperparameters("matching", {"weight": 2}) == {"weight": 2.0}
        assert build_method("matching").plan[0].taps == ("logits",)
        network = zoo.build("tiny", 2, (1, 8, 8))
        assert network.head.out_features == 2
        assert "stripes" in sources.names()
    assert (METHODS.names(), zoo.MODELS.names(), sources.names()) == before
    assert main(["list", *options(files)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("matching ", "weight=1.0", " tiny", "stripes"))


def test_workers_run_the_text_as_it_was_when_the_command_began(files):
    """It may be edited while a grid trains; cells that have the old hash get the old code."""
    plugins = read_plugins(files)
    with plugged(plugins):
        code = method_code("matching")
    files[0].write_text("raise SystemExit")
    with plugged(plugins):
        assert method_code("matching") == code


def test_an_error_inside_shows_the_line_that_ran(files):
    files[0].write_text(METHOD.replace("FACTOR * (", "FACTOR * undefined * ("))
    plugins = read_plugins(files)
    files[0].unlink()
    with plugged(plugins):
        transfer = build_method("matching").plan[0].transfer
        with pytest.raises(NameError) as caught:
            transfer(None, None)
    assert "FACTOR * undefined" in str(caught.getrepr())


def test_two_files_of_one_name_share_no_cell_and_comments_do_not_count():
    def ids(text: str) -> dict[tuple[str, int], str]:
        with plugged([Plugin("/anywhere/matching.py", text)]):
            grid = load_grid("smoke", ["pairs=[cnn4:cnn8]", "methods=[soft_logits, matching]"])
            rows = expand(grid, lambda spec: "fingerprint").plan.rows
        return {(row.label, row.seed): row.cell_id for row in rows}

    first, other = ids(METHOD), ids(METHOD.replace("FACTOR = 1.0", "FACTOR = 2.0"))
    assert ids(f"# of another day\n{METHOD}") == first
    for key, cell_id in first.items():
        assert (other[key] == cell_id) == (key[0] != "matching")


def test_models_of_two_files_share_no_cell_and_their_students_have_other_teachers():
    def cells(width: int) -> dict[str, str]:
        with plugged([Plugin("/a/my_model.py", MODEL.replace("width=3", f"width={width}"))]):
            grid = load_grid("smoke", ["pairs=[tiny:cnn4]", "methods=[soft_logits]", "seeds=1"])
            found = expand(grid, lambda spec: "fingerprint")
        return {row.label: row.cell_id for row in found.plan.rows}

    narrow_ids, wide_ids = cells(3), cells(5)
    assert {key for key in narrow_ids if narrow_ids[key] == wide_ids[key]} == {"student"}


def test_a_source_whose_code_changed_is_read_again(tmp_path):
    def brightest(text: str) -> int:
        with plugged([Plugin("/a/my_data.py", text)]):
            data = sources.load("stripes", data_root=None, cache=tmp_path)
        return int(data.train_images.max())

    first = brightest(DATA)
    assert brightest(DATA.replace("100 + 50", "120 + 50")) == first + 20
    assert brightest(DATA) == first


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.py", None, "cannot be read: No such file"),
        ("folder.py", ..., "cannot be read: Is a directory"),
        ("matching.txt", METHOD, "wanted a Python file"),
        ("my-method.py", METHOD, "letters, digits and '_'"),
        ("broken.py", "def method(:\n", "line 1: SyntaxError"),
        ("broken.py", "x = 1\n\0", "source code string cannot contain null bytes"),
        ("broken.py", "x = 1\nx.y\n", "line 2: AttributeError"),
        ("broken.py", "import sys\nsys.exit(0)\n", "line 2: SystemExit"),
        ("broken.py", "class Odd(Exception): ...\nraise Odd('a\\nb')\n", "line 2: Odd: a b\n"),
        ("broken.py", "from methods.gone import a\n", "No module named 'methods.gone'"),
        ("nothing.py", "import bench.method as method\n", "wanted a function method(*, ...)"),
        ("fitnet.py", METHOD, "a method fitnet exists already; choose another name"),
        ("teacher.py", METHOD, "a row teacher is in every table; choose another name"),
        ("mine.py", METHOD.replace("*, weight", "weight"), "weight must be keyword-only"),
        ("mine.py", METHOD.replace("weight:", "with_soft_logits:"), "is a switch of every method"),
        ("mine.py", METHOD.replace("float = 1.0", "set = frozenset()"), "that JSON cannot hold"),
        ("mine.py", METHOD.replace("float = 1.0", "print = 1.0"), "that JSON cannot hold"),
        ("mine.py", METHOD.replace('"response"', '"best"'), "category 'best' is not in"),
        ("mine.py", METHOD.replace("return Method", "return dict"), "wanted a Method"),
        ("mine.py", f"{METHOD}\nSEARCH = {{'wait': [1.0]}}", "SEARCH: unknown hyper-parameter"),
        ("mine.py", "MODELS = ['tiny']\n", "MODELS is ['tiny'], wanted {'name': ...}"),
        ("mine.py", "MODELS = {'resnet8': print}\n", "a model resnet8 exists already"),
        ("mine.py", "MODELS = {'a:b': print}\n", "model 'a:b': wanted letters"),
        ("mine.py", "MODELS = {'tiny': 3}\n", "wanted (classes, image_shape) -> Network"),
        ("mine.py", "DATA_SOURCES = {'digits': print}\n", "a data source digits exists already"),
        ("mine.py", "DATA_SOURCES = {'x': print}\n", "wanted a bench.data.sources.Source"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_and_leaves_nothing(tmp_path, refused, name, text, said):
    path = tmp_path / name
    if text is ...:
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    before = (METHODS.names(), zoo.MODELS.names(), sources.names())
    error = refused("list", "--plugin", str(path))
    assert error.startswith("error: --plugin ")
    assert name in error
    assert said in error
    assert (METHODS.names(), zoo.MODELS.names(), sources.names()) == before


def test_two_files_of_one_name_cannot_come_together(tmp_path, refused):
    one, two = (written(tmp_path / name, "matching.py", METHOD) for name in "ab")
    assert "are both named matching; rename one" in refused("list", *options([one, two]))
    assert main(["list", *options([one, one])]) == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (1, "partial(SmallCnn, width=3)", "lambda k, shape: shape", "its builder gave a tuple"),
        (2, "torch.arange(80)", "torch.arrange(80)", "'stripes': AttributeError: module 'torch'"),
        (2, "% 2", "% 3", "its train labels must be int64 from 0 to 1"),
        (2, "labels), (", "labels[1:]), (", "are (80, 1, 8, 8) torch.uint8 with 79"),
        (2, '"stripes"', '"other"', "unknown data source 'stripes'"),
    ],
)
def test_a_model_that_gives_no_network_and_data_that_fail_are_one_line(
    tmp_path, files, refused, file, old, new, said
):
    files[file].write_text(files[file].read_text().replace(old, new))
    words = ["--grid", grid_file(tmp_path), "--work-dir", str(tmp_path / "work"), "--dry-run"]
    assert said in refused(*words, *options(files))


def find_record(work: Path, method: str) -> Record:
    row = next(row for row in plan_of(work, "mine").rows if row.method == method)
    return WorkDir(work).store.load(row.cell_id)


MATCHING = "cnn4>tiny/matching (weight=0.5)/0"


def test_a_worker_process_trains_them_and_the_results_can_be_used(
    tmp_path, files, capsys, no_figures, no_store
):
    at = ["--grid", grid_file(tmp_path), "--work-dir", str(tmp_path / "work")]

    def says(code: int, *words: str) -> str:
        assert main([*words]) == code
        return "".join(capsys.readouterr())

    training = [*at, *options(files), "--workers", "1"]
    assert "8 cells trained" in says(0, *training)
    assert {status for status, *_ in results(tmp_path / "work", "mine").values()} == {"finished"}
    assert "to train: 0 " in says(0, *training, "--dry-run")

    # The choice needs no plugin, and does not run one; tables neither, see the slow test.
    bait = written(tmp_path, "bait.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "stripes: cnn4 → tiny" in says(0, "recommend", *at, "--plugin", str(bait))
    assert not (tmp_path / "ran").exists()

    assert "compared with the trained" in says(0, "export", MATCHING, *at, *options(files[1:2]))
    assert "its model tiny is not here; name the file" in says(2, "export", MATCHING, *at)
    files[1].write_text(MODEL.replace("width=3", "width=4"))
    changed = says(2, "export", MATCHING, *at, *options(files[1:2]))
    assert "its model tiny has changed since then" in changed
    files[1].write_text(MODEL)

    # An edited method is another one; what it does not touch stays.
    files[0].write_text(METHOD.replace("FACTOR = 1.0", "FACTOR = 8.0"))
    assert "to train: 2 " in says(0, *training, "--dry-run")


def test_a_method_that_writes_to_the_teachers_tensors_fails_and_no_other_row_changes(
    tmp_path, files, monkeypatch, no_figures, no_store
):
    monkeypatch.chdir(tmp_path)
    writes = "__import__('os').chdir('/'), pair.teacher.logits.mul_(0.5)\n        return FACTOR"
    files[0].write_text(METHOD.replace("return FACTOR", writes))
    found = []
    for names in (["soft_logits"], ["matching", "soft_logits"]):
        grid, work = grid_file(tmp_path, methods=names, seeds=1), Path("-".join(names))
        words = ["--grid", grid, "--work-dir", str(work), *options(files), "--workers", "1"]
        assert main(words) == len(names) - 1
        found.append(find_record(work, "soft_logits"))
    assert found[0].curves == found[1].curves
    assert "method matching on tiny changes its pair" in find_record(work, "matching").error


@pytest.mark.slow
def test_a_killed_grid_with_plugins_goes_on_to_the_same_bits(tmp_path, files):
    grid = grid_file(tmp_path, recipe={**GRID["recipe"], "epochs": 60})

    def words(work: Path) -> list[str]:
        return ["--grid", grid, "--work-dir", str(work), *options(files), "--workers", "2",
                "--checkpoint-seconds", "0"]  # fmt: skip

    undisturbed, work = tmp_path / "undisturbed", tmp_path / "work"
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = kd_bench(*words(undisturbed), **env)
    assert done.returncode == 0, done.stderr
    for kill in range(3):
        with (tmp_path / "output").open("w") as output, start(output, *words(work), **env) as run:
            while len(list((work / "store" / "checkpoints").glob("*/*.safetensors"))) < kill + 1:
                assert run.poll() is None, (tmp_path / "output").read_text()
                time.sleep(0.01)  # looks again
            os.killpg(run.pid, signal.SIGKILL)
    done = kd_bench(*words(work), **env)
    assert done.returncode == 0, done.stderr
    assert results(work, "mine") == results(undisturbed, "mine")
    tables = kd_bench("tables", "--grid", grid, "--work-dir", str(work))
    assert "matching (weight=0.5)" in tables.stdout
    records = WorkDir(work).store.read_all(plan_of(work, "mine").cell_ids())
    assert sum(record.conditions.get("resumed", 0) for record in records.values()) > 0


@pytest.mark.slow
def test_the_contract_suite_runs_on_a_plugin(tmp_path):
    def contract(text: str) -> str:
        path = written(tmp_path, "logit_matching.py", text)
        words = ["-m", "pytest", "-q", "tests/test_contract.py", "-k", "logit_matching",
                 "--plugin", str(path), "-p", "no:cacheprovider"]  # fmt: skip
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout

    assert re.search(r"^\d+ passed, \d+ deselected", contract(EXAMPLE), re.MULTILINE)
    wrong = EXAMPLE.replace(".mean(dim=1)", ".mean(dim=1).flip(0)")
    failed = "halves_of_a_batch_have_the_losses_of_the_whole[logit_matching, distil]"
    assert failed in contract(wrong)
