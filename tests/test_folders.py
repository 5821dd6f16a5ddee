"""Folders as people have them: other names, odd files, damage, Parquet, large sets."""

import json
import os
import shutil
import struct
import zlib
from functools import partialmethod
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from test_data import assert_same, cache_folder, load_tree, make_tree, save_image, tree

from bench.data import build, folders
from bench.data.dataset import DataError
from bench.data.sources import load

__all__ = ["tree"]


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "val"), ("train", "validation"), ("TRAIN", "valid")],
)
def test_parts_have_other_names(tree, train, test):
    wanted = load_tree(tree)
    (tree / "train").rename(tree / "x")
    (tree / "x").rename(tree / train)
    (tree / "test").rename(tree / "y")
    (tree / "y").rename(tree / test)
    assert_same(load_tree(tree), wanted)


def test_a_folder_that_is_not_split_holds_out_a_part_of_each_class(tree):
    whole = load_tree(tree).train_images
    shutil.rmtree(tree / "test")
    with pytest.raises(DataError, match=r"no test set.*data\.split=0\.2"):
        load_tree(tree)
    held = load_tree(tree, split=0.34)
    assert held.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert held.test_labels.tolist() == [0, 1, 2]
    assert_same(held, load_tree(tree, split=0.34))
    both = torch.cat([held.train_images, held.test_images]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.flatten(1).tolist())
    for name in ("ant", "bee", "cat"):
        (tree / "train" / name).rename(tree / name)
    (tree / "train").rmdir()
    with pytest.raises(DataError, match=r"no train/ folder.*its 3 folders \(ant, bee, cat\) are"):
        load_tree(tree)
    assert_same(load_tree(tree, split=0.34), held)


def test_of_classes_of_one_image_nothing_is_held_out(tree):
    shutil.rmtree(tree / "test")
    for name in ("ant", "bee", "cat"):
        for number in (1, 2):
            (tree / f"train/{name}/{number}.png").unlink()
    with pytest.raises(DataError, match=r"data\.split: no class of .* has two images"):
        load_tree(tree, split=0.2)


@pytest.mark.parametrize("name", ["train", "Test"])
def test_a_class_may_be_called_as_a_part_is(tmp_path, name):
    for folder in ("bus", "car", name):
        for number in range(2):
            save_image(tmp_path / f"tree/{folder}/{number}.png", seed=number)
    found = load_tree(tmp_path / "tree", split=0.5)
    assert found.classes == tuple(sorted(("bus", "car", name)))
    assert len(found.test_labels) == 3


def test_a_class_that_is_not_named_in_utf8_is_refused(tree):
    os.rename(tree / "train/ant", os.fsencode(tree / "train") + b"/caf\xe9")
    with pytest.raises(DataError, match=r"'caf\\udce9' .* is not named in UTF-8"):
        load_tree(tree)


def test_a_split_is_for_folders_without_a_test_set_alone(tree):
    with pytest.raises(DataError, match=r"data\.split: 0\.2 .* has one"):
        load_tree(tree, split=0.2)
    with pytest.raises(DataError, match=r"data\.split: 0\.2 .* not digits"):
        load("digits", data_root=None, cache=tree.parent / "cache", split=0.2)


@pytest.mark.parametrize("suffix", [".JPG", ".jfif", ".jpe", ".webp", ".avif", ".Png", ".tif"])
def test_images_are_found_by_any_common_ending(tree, suffix):
    kinds = {".Png": "PNG", ".tif": "TIFF", ".webp": "WEBP", ".avif": "AVIF"}
    image = Image.open(tree / "train/ant/0.png")
    image.save(tree / f"train/ant/9{suffix}", format=kinds.get(suffix, "JPEG"))
    assert load_tree(tree).train_labels.bincount().tolist() == [4, 3, 3]


def test_what_is_passed_over_is_counted(tree):
    wanted = load_tree(tree)
    (tree / "train/ant/notes.txt").write_text("no image")
    (tree / "test/ant/list.csv").write_text("no image")
    shutil.copy(tree / "train/ant/0.png", tree / "train/ant/._0.png")  # of another system
    save_image(tree / "train/bee/old/7.png", seed=7)
    save_image(tree / "train/loose.png", seed=8)
    save_image(tree / "extra/0.png", seed=9)
    (tree / "train/.hidden").touch()
    (tree / "metadata.parquet").write_bytes(b"of a tree that is read as one")
    found = load_tree(tree)
    assert_same(found, wanted)
    (note,) = found.notes
    for count in (
        "files of other types: 2,", "hidden files: 2,", "folders within a class folder: 1,",
        "files outside of class folders: 2,", "other folders: 1,",
    ):  # fmt: skip
        assert count in note
    assert load_tree(tree).notes == found.notes  # of the cache


def test_every_damaged_image_is_named_at_once(tree):
    for number in range(12):
        save_image(tree / f"train/ant/x{number:02}.png", seed=number)
        os.truncate(tree / f"train/ant/x{number:02}.png", 60)
    with pytest.raises(DataError, match=r"12 in all.*x00\.png.*x09\.png.*and 2 more") as caught:
        load_tree(tree)
    assert "x10.png" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_numbers_are_not_taken_for_positions(tmp_path):
    make_tree(tmp_path / "tree", classes=("0", "1", "2", "3", "10"))
    with pytest.raises(DataError, match=r'classes: 2 is the name .* "2" in quotes'):
        load_tree(tmp_path / "tree", classes=[2, 3])
    assert load_tree(tmp_path / "tree", classes=["2", "3"]).classes == ("2", "3")
    assert load_tree(tmp_path / "tree", classes=[0, 1]).classes == ("0", "1")  # both ways


def test_photographs_are_turned_and_clear_parts_are_white(tree):
    pixels = np.arange(36 * 3, dtype=np.uint8).reshape(6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(pixels).save(tree / "train/ant/0.png", exif=exif)
    clear = np.dstack([pixels, np.full((6, 6), 255, np.uint8)])
    clear[0, 0, 3], clear[0, 1] = 0, (100, 0, 200, 51)
    Image.fromarray(clear).save(tree / "train/ant/1.png")
    turned, flat = load_tree(tree).train_images[:2]
    assert torch.equal(turned, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))
    wanted = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    wanted[:, 0, 0] = 255
    wanted[:, 0, 1] = torch.tensor([224, 204, 244])  # 0.2 of the colour, 0.8 of white
    assert torch.equal(flat, wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_turned_image_fits_those_that_are_not(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_tree(tmp_path / "tree", classes=("ant", "bee"), train=1, test=1, size=(8, 12))
    turned = Image.new("RGB", (12, 8), "red")
    turned.save(tmp_path / "tree/train/ant/1.png", format=kind, exif=exif)
    assert load_tree(tmp_path / "tree").train_images.shape == (3, 3, 12, 8)


def test_a_square_is_squashed_or_cut_to_the_middle(tmp_path):
    # Four columns of 0, 100, 200 and 40, twice as wide as high.
    image = np.repeat(np.array([[0, 100, 200, 40]], dtype=np.uint8), 4, 1).repeat(8, 0)
    for path in make_tree(tmp_path / "tree", classes=("ant", "bee"), train=1, test=1):
        Image.fromarray(image).save(tmp_path / "tree" / path)
    squashed, cut = (
        load_tree(tmp_path / "tree", size=4, resize=how).test_images[0, 0, 0].tolist()
        for how in ("squash", "crop")
    )
    assert squashed == [0, 100, 200, 40]
    assert cut == [100, 100, 200, 200]
    with pytest.raises(DataError, match="not digits"):
        load("digits", data_root=None, cache=tmp_path / "cache", size=4, resize="crop")
    with pytest.raises(DataError, match=r"needs data\.size"):
        load_tree(tmp_path / "tree", resize="crop")


def png_of_16_bits():
    """A PNG of 6 x 6 colours with 16 bits a channel, which Pillow does not write."""
    size = struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)
    parts = {b"IHDR": size, b"IDAT": zlib.compress(bytes(6 * 37)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )


def make_bomb(path):
    Image.new("1", (20_000, 10_000)).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n"), "none"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no regular file"),
        (make_bomb, "too many|decompression bomb"),
        (lambda path: path.write_bytes(b""), "none of AVIF"),
        (lambda path: path.write_bytes(b"P6 6 6 65535\n" + bytes(216)), "more than 8 bits"),
        (lambda path: path.write_bytes(png_of_16_bits()), "more than 8 bits"),
    ],
)
def test_what_only_looks_like_an_image_is_refused(tree, spoil, said):
    spoil(tree / "train/ant/1.png")
    with pytest.raises(DataError, match=rf"train/ant/1\.png.*({said})") as caught:
        load_tree(tree)
    assert "\n" not in str(caught.value)


# --- Parquet ---------------------------------------------------------------------------------


def write_parquet(path, rows, names=None, label="label", group=2, image="image"):
    """As the library `datasets` does, if there are names: rows are (image file, label)."""
    images = [{"bytes": file.read_bytes(), "path": None} for file, _ in rows]
    table = pyarrow.table({image: images, label: [value for _, value in rows]})
    if names is not None:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def rows_of(tree, part):
    """The files of a part of a tree, and their classes."""
    return [(path, path.parent.name) for path in sorted((tree / part).glob("*/*"))]


@pytest.mark.parametrize("kind", ["names", "texts", "numbers"])
def test_parquet_files_hold_what_the_tree_holds(tree, tmp_path, kind):
    wanted, names = load_tree(tree), ["ant", "bee", "cat"]
    for part, to in (("train", "train"), ("test", "validation")):
        rows = rows_of(tree, part)
        if kind != "texts":
            rows = [(file, names.index(name)) for file, name in rows]
        path = tmp_path / f"other/data/{to}-00000-of-00001.parquet"
        write_parquet(path, rows, names if kind == "names" else None)
    found = load_tree(tmp_path / "other")
    assert torch.equal(found.train_images, wanted.train_images)
    assert torch.equal(found.test_images, wanted.test_images)
    assert found.test_labels.tolist() == wanted.test_labels.tolist()
    assert found.classes == (("0", "1", "2") if kind == "numbers" else tuple(names))
    chosen = load_tree(tmp_path / "other", classes=[0, 2])
    assert torch.equal(chosen.train_images, wanted.only([0, 2]).train_images)


def test_classes_of_parquet_files_are_known_by_name(tree, tmp_path):
    rows = rows_of(tree, "train")
    ants, bees = rows[:2], rows[3:5]
    folder = tmp_path / "other"
    write_parquet(folder / "mine-train.parquet", [(f, 0) for f, _ in ants], ["ant", "bee"])
    write_parquet(folder / "train-1.parquet", [(f, 0) for f, _ in bees], ["bee"])
    write_parquet(folder / "test.parquet", [(bees[0][0], 1), (ants[0][0], 0)], ["ant", "bee"])
    write_parquet(folder / "validation.parquet", bees)
    found = load_tree(folder)
    assert (found.classes, found.train_labels.tolist()) == (("ant", "bee"), [0, 0, 1, 1])
    assert found.test_labels.tolist() == [1, 0]
    assert torch.equal(found.test_images[0], found.train_images[2])
    assert "other Parquet files: 1," in found.notes[0]
    for cifar10 in (tmp_path / "cifar10", tmp_path / "cifar10/data"):
        write_parquet(cifar10 / "train.parquet", [*ants, *bees])
        with pytest.raises(DataError, match="2 classes, cifar10 has 10"):
            load("cifar10", data_root=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("group", [3, 100])
def test_rows_of_large_groups_are_read_some_at_a_time(tree, tmp_path, monkeypatch, group):
    wanted = load_tree(tree)
    monkeypatch.setattr(folders, "ROWS_AT_ONCE", 2)
    for part in ("train", "test"):
        write_parquet(tmp_path / f"other/{part}.parquet", rows_of(tree, part), group=group)
    assert_same(load_tree(tmp_path / "other"), wanted)
    chosen = load_tree(tmp_path / "other", classes=["ant", "cat"])
    assert_same(chosen, load_tree(tree, classes=["ant", "cat"]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"train": [None, 1]}, r"train\.parquet, row group 0, row 0: label None"),
        ({"train": ["ant", None]}, "row 1: label None"),
        ({"train": [[0], [1]]}, r"label \[0\]; wanted the name of a class or its number"),
        ({"train": [0.5, 1.5]}, r"label 0\.5"),
        ({"train": [0, -1]}, "label -1; wanted"),
        ({"train": [0, 10**12]}, "label 1000000000000; wanted .*number, 0 to 99999"),
        ({"test": [0, 2]}, r"test\.parquet: no training image is of its class '2'"),
        ({"test": ["ant", "bee"]}, "no training image is of its class 'ant'"),
    ],
)
def test_labels_that_name_no_class_are_one_line(tree, tmp_path, labels, said):
    files = tree / "train/ant/0.png", tree / "train/bee/0.png"
    for part in ("train", "test"):
        rows = list(zip(files, labels.get(part, [0, 1]), strict=True))
        write_parquet(tmp_path / f"other/{part}.parquet", rows)
    with pytest.raises(DataError, match=said):
        load_tree(tmp_path / "other")


def test_parquet_files_without_parts_are_split(tree, tmp_path):
    write_parquet(tmp_path / "other/0000.parquet", rows_of(tree, "train")[:6])
    with pytest.raises(DataError, match=r"data\.split"):
        load_tree(tmp_path / "other")
    assert load_tree(tmp_path / "other", split=0.34).test_labels.tolist() == [0, 1]


def test_a_parquet_file_that_cannot_be_used_is_one_line(tree, tmp_path):
    rows = [(tree / "train/ant/0.png", 0), (tree / "train/bee/0.png", 1)]
    folder = tmp_path / "other"
    for label, cut, said in (("kind", 0, "called label"), ("label", 40, "unreadable")):
        for part in ("train", "test"):
            write_parquet(folder / f"{part}.parquet", rows, label=label)
            if cut:
                os.truncate(folder / f"{part}.parquet", cut)
        with pytest.raises(DataError, match=said) as caught:
            load_tree(folder)
        assert "\n" not in str(caught.value)
    write_parquet(folder / "train.parquet", rows)
    for how, said in (({"image": "photo"}, "wanted one name"), ({"label": "kind"}, "called label")):
        write_parquet(folder / "test.parquet", rows, **how)
        with pytest.raises(DataError, match=rf"test\.parquet .*{said}"):
            load_tree(folder)
    (tmp_path / "none.png").write_bytes(b"")
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", [*rows, (tmp_path / "none.png", 1)])
    with pytest.raises(DataError, match=r"train\.parquet, row group 1, row 0"):
        load_tree(folder)


# --- many images -----------------------------------------------------------------------------


def test_processes_decode_what_threads_decode(tree, monkeypatch):
    wanted = load_tree(tree)
    shutil.rmtree(cache_folder(tree))
    monkeypatch.setattr(build, "MANY", 1)
    assert_same(load_tree(tree), wanted)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch):
    make_tree(tmp_path / "tree", classes=("ant", "bee"), train=100, test=1)
    root, shown = tmp_path / "tree", []

    def stop(self, what, done, total, moment):
        shown.append(done)
        if (what.split()[:2], done > 64) in moment:
            raise KeyboardInterrupt

    training, testing = (["decoding", "train"], True), (["decoding", "test"], False)
    for moment in ([training], [testing]):
        with monkeypatch.context() as patched:
            stopped = partialmethod(stop, moment=moment)
            patched.setattr(build.ProgressDisplay, "show", stopped)
            with pytest.raises(KeyboardInterrupt):
                load_tree(root, size=6)
    first, second = root / "train/ant/0.png", root / "train/bee/99.png"
    before = {path: torch.from_numpy(np.array(Image.open(path))) for path in (first, second)}
    status = first.stat()
    content = bytearray(first.read_bytes())
    content[-20] ^= 255  # among the pixels: it cannot be decoded any more
    first.write_bytes(content)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    images = load_tree(root, size=6).train_images
    assert torch.equal(images[0], before[first].permute(2, 0, 1))
    assert torch.equal(images[-1], before[second].permute(2, 0, 1))
    assert not list((root.parent / "cache").glob("*.building"))


def test_images_are_mapped_and_not_held(tree):
    images = load_tree(tree).train_images
    held = Path("/proc/self/maps")
    if held.exists():
        assert str(cache_folder(tree) / "train.images") in held.read_text()
    assert images.dtype == torch.uint8
