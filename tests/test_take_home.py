"""A student of 224 px, taken home: what the README shows runs without this package."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lessons import plain_cell, recipe, run
from PIL import Image
from students import row_of
from test_readme import MODELS, blocks

from bench.cell import DataSpec
from bench.cli import main
from bench.data.augment import Augment
from bench.data.batches import Batches
from bench.data.decode import to_array
from bench.data.sources import load
from bench.export import Trained, find_row, load_trained, pack
from bench.record import Plan, WorkDir, write_atomically

PIXELS, WITH_TORCH, WITH_ONNX = blocks(MODELS, "python")[-3:]


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (5, 5, 4), np.uint8))
    noise = generator.integers(0, 128, (height, width, 4), np.uint8)
    return Image.fromarray(np.asarray(smooth.resize((width, height))) // 2 + noise).convert(mode)


def draw_folder(root: Path) -> None:
    """Two classes of images of unequal sizes: plain, turned by a tag, transparent, grey."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for part, count in (("train", 3), ("test", 4)):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (150 + 40 * i, 300 - 20 * i)
                mode = ("RGB", "RGB", "RGBA", "L")[i % 4]
                image = picture(i + 10 * (name == "dog") + 20 * (part == "test"), *size, mode)
                image.save(folder / f"{i}.png", exif=turned if i % 4 == 1 else None)


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> tuple[WorkDir, list[Path]]:
    """A grid of one student of 224 px, trained for an epoch, and its test images."""
    root = tmp_path_factory.mktemp("shots")
    work = WorkDir(root / "work")
    draw_folder(root / "data" / "shots")
    spec = DataSpec(source="shots", size=224, resize="crop", pad=1)
    data = load("shots", data_root=root / "data", cache=work.cache, size=224, resize="crop")
    short = recipe(epochs=1, batch_size=6)
    cell = plain_cell("cnn2", data=spec, fingerprint=data.fingerprint, recipe=short)
    run([cell], work.store.root, data)
    plan = Plan(name="shots", description="", config={}, rows=[row_of(cell, "student")])
    write_atomically(work.plan("shots"), plan.to_json())
    return work, sorted((root / "data" / "shots" / "test").rglob("*.png"))


def trained_in(work: WorkDir) -> Trained:
    plan = Plan.from_json(work.plan("shots").read_text())
    return load_trained(find_row(plan, "cnn2/student/0"), work)


def export(work: WorkDir, form: str, file: Path) -> None:
    words = ["export", "cnn2/student/0", "--grid", "shots", "--work-dir", str(work.root)]
    assert main([*words, "--format", form, "--output", str(file)]) == 0


def logits_at_home(code: str, folder: Path, files: list[Path], absent: str) -> np.ndarray:
    """What the README's program prints in a process that can import neither bench nor `absent`."""
    block = f"import sys\nsys.modules.update(dict.fromkeys(['bench', 'methods', {absent!r}]))\n"
    command = [sys.executable, "-I", "-c", block + PIXELS + code, *map(str, files)]
    shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    lines = [line.split(" ", 2) for line in shown.splitlines()]
    assert [path for path, _, _ in lines] == [str(path) for path in files]
    logits = np.array([ast.literal_eval(values) for _, _, values in lines])
    assert [name for _, name, _ in lines] == [("cat", "dog")[i] for i in logits.argmax(1)]
    return logits


def check_like_evaluation(logits: np.ndarray, work: WorkDir, files: list[Path]) -> None:
    trained = trained_in(work)
    card, data = trained.card, trained.data
    test = Batches(
        data.test_images, data.test_labels, card.mean, card.std,
        augment=Augment(pad=0, flip=False), batch_size=4, drop_last=False, seed=0,
    )  # fmt: skip
    with torch.no_grad():
        wanted = torch.cat([trained.network(batch.images) for batch in test.clean(4)]).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    assert accuracy_of(logits, files) == card.last_accuracy


def accuracy_of(logits: np.ndarray, files: list[Path]) -> float:
    return np.mean(logits.argmax(1) == [path.parent.name == "dog" for path in files]).item()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(90, 41), (33, 70), (32, 32), (7, 40), (5, 9)])
def test_the_pixels_of_the_readme_are_those_of_training(tmp_path, mode, resize, shape):
    space: dict = {}
    exec(PIXELS, space)
    image, file = picture(0, *shape, mode), tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    tag = Image.Exif()
    tag[0x0112] = 1 + sum(shape) % 8
    image.save(file, exif=tag)
    with Image.open(file) as opened:
        wanted = to_array(opened, 32, resize)
    card = {"image_shape": [len(wanted), 32, 32], "resize": resize}
    np.testing.assert_array_equal(space["pixels"](file, card)[0], wanted)


def test_a_student_of_224_px_says_at_home_what_it_said_in_the_evaluation(shots, tmp_path):
    work, files = shots
    export(work, "torch.export", tmp_path / "student.pt2")
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "student.pt2").read_bytes()
    check_like_evaluation(logits_at_home(WITH_TORCH, tmp_path, files, "onnxruntime"), work, files)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_so_does_an_onnx_file(shots, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    work, files = shots
    export(work, "onnx", tmp_path / "student.onnx")
    check_like_evaluation(logits_at_home(WITH_ONNX, tmp_path, files, "torch"), work, files)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantised_file_is_as_accurate_as_it_says(shots, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    work, files = shots
    export(work, "onnx-int8", tmp_path / "student.onnx")
    said, trained = capsys.readouterr().out, trained_in(work)
    found = accuracy_of(logits_at_home(WITH_ONNX, tmp_path, files, "torch"), files)
    assert "calibrated on 6 training images" in said
    assert f"float {trained.card.last_accuracy:.1%}, int8 {found:.1%}" in said
    model = onnx.load_model(tmp_path / "student.onnx")
    (card,) = (json.loads(x.value) for x in model.metadata_props if x.key == "student.json")
    assert card["int8_accuracy"] == found
    # Test images have no part in it.
    other = replace(trained.data, test_images=255 - trained.data.test_images)
    again = onnx.load_model_from_string(pack(replace(trained, data=other), "onnx-int8")[0])
    assert again.graph == model.graph
