"""Numbers move only with `NUMERICS`: a short training and every default against golden_run.json."""

import json
import shutil

import pytest
import torch
from golden_run import FILE, defaults, train
from processes import ROOT

from bench.cell import NUMERICS, Cell, DataSpec, Recipe, Spec
from bench.code_version import method_digest, numerics_digest
from bench.data.augment import Augment

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
TOLERANCE = 1e-3
RENEW = "raise NUMERICS in bench/cell.py, then run: python tests/golden_run.py"


def moved(found: dict[str, list[float]]) -> list[str]:
    """The names of the numbers that differ from the golden ones."""
    golden = GOLDEN["training"]
    assert found.keys() == golden.keys(), RENEW
    return [
        name
        for name, values in found.items()
        if values != pytest.approx(golden[name], rel=TOLERANCE, abs=0)
    ]


def test_the_file_is_of_these_numerics():
    assert GOLDEN["numerics"] == NUMERICS, "run: python tests/golden_run.py"


def test_no_default_changes_without_numerics():
    assert defaults() == GOLDEN["defaults"], RENEW


@pytest.mark.parametrize("threads", [1, 2])
def test_no_number_moves_without_numerics(threads):
    assert moved(train(threads=threads)) == [], RENEW


@pytest.mark.parametrize("recipe", [{"momentum": 0.89}, {"weight_decay": 4e-4}], ids=str)
def test_a_small_change_of_the_optimiser_is_noticed(recipe):
    assert moved(train(recipe))


def test_a_crop_that_is_shifted_by_a_pixel_is_noticed(monkeypatch):
    draw = Augment.draw

    def shifted(self: Augment, count: int, seed: int) -> torch.Tensor:
        top, left, flip = draw(self, count, seed)
        return torch.stack([top, (left + 1).clamp(max=2 * self.pad), flip])

    monkeypatch.setattr(Augment, "draw", shifted)
    assert moved(train())


def cell(kind: type[Cell] = Cell, **changes: object) -> Cell:
    values = {
        "model": "cnn4", "data": DataSpec(source="digits"), "fingerprint": "f", "method": "rkd",
        "code": "c", "hyperparameters": {"tap": "embedding"}, "seed": 0,
        "recipe": Recipe(epochs=3, batch_size=16, learning_rate=0.1),
    }  # fmt: skip
    return kind(**{**values, **changes})


def test_a_new_field_at_its_default_changes_no_id():
    class LaterRecipe(Recipe):
        label_smoothing: float = 0.0

    class LaterData(DataSpec):
        colour_jitter: float = 0.0

    class LaterCell(Cell):
        data: LaterData  # pyright: ignore[reportIncompatibleVariableOverride]
        recipe: LaterRecipe  # pyright: ignore[reportIncompatibleVariableOverride]
        compiled: bool = False

    def later(recipe: Spec, data: Spec, **changes: object) -> str:
        return cell(LaterCell, recipe=recipe, data=data, **changes).id

    recipe = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1}
    plain = LaterRecipe(**recipe), LaterData(source="digits")
    assert later(*plain) == cell().id
    changed = {
        later(LaterRecipe(**recipe, label_smoothing=0.1), plain[1]),
        later(plain[0], LaterData(source="digits", colour_jitter=0.1)),
        later(*plain, compiled=True),
    }
    assert len(changed | {cell().id}) == 4


def test_a_record_names_every_field():
    assert cell().resolved()["recipe"]["momentum"] == 0.9
    assert cell().resolved(defaults=False)["recipe"].keys() == {
        "epochs", "batch_size", "learning_rate"}  # fmt: skip


def test_the_digest_follows_code_and_ignores_words_and_layout():
    plain = method_digest("f", "def f(x):\n    return x + 1\n")
    reworded = 'def f(x):\n    """Adds."""\n    # one\n    return (x +\n            1)\n'
    assert method_digest("f", reworded) == plain
    assert method_digest("f", "def f(x):\n    return x - 1\n") != plain
    imports = ("from methods import rkd\n", "import methods.rkd\n", "from methods import fsp\n")
    assert len({plain, *(method_digest("f", text) for text in imports)}) == 4


def test_every_package_that_decides_numbers_is_in_the_digest(tmp_path):
    found = {numerics_digest()}
    edits = (
        "bench/train/optim.py", "bench/cell.py", "bench/data/augment.py", "bench/models/resnet.py",
        "methods/_pool.py", "bench/report/tables.py", "methods/rkd.py",
    )  # fmt: skip
    for number, name in enumerate(edits):
        root = tmp_path / str(number)
        for package in ("bench", "methods"):
            shutil.copytree(ROOT / package, root / package)
        path = root / name
        path.write_text(path.read_text() + "\nEDITED = True\n")
        found.add(numerics_digest(root=root))
    assert len(found) == 1 + 5  # reports decide no number, and methods have digests of their own
