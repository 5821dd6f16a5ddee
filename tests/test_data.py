"""Sources, folder trees, the cache, splits, resolution, augmentation and batches."""

import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.cell import Crop, RandAugment
from bench.data import cache as cache_module
from bench.data.augment import Augment, crop_flip, degrade, mix
from bench.data.batches import Batches
from bench.data.dataset import DataError, DataSet, channel_statistics
from bench.data.sources import find_decoded, load
from bench.data.splits import hold_out, labelled_mask, stratified_order, take_fraction
from bench.seeds import derive

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


def random_images(count, height=8, width=6, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def save_image(path, seed, size=(6, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels if mode == "RGB" else pixels[..., None]).permute(2, 0, 1)


def make_tree(root, classes=("ant", "bee", "cat"), train=3, test=2, **image):
    """A tree of random PNGs; returns {relative path: (C, H, W) pixels}."""
    pixels = {}
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            for number in range(count):
                relative = f"{part}/{name}/{number}.png"
                pixels[relative] = save_image(root / relative, len(pixels), **image)
    return pixels


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    make_tree(root)
    return root


def load_tree(root, **arguments):
    return load("folder", data_root=root, cache=root.parent / "cache", **arguments)


def assert_same(first: DataSet, second: DataSet):
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert (first.classes, first.mean, first.std) == (second.classes, second.mean, second.std)


def cache_folder(root):
    (folder,) = (path for path in (root.parent / "cache").iterdir() if path.is_dir())
    return folder


def test_digits_and_their_split_never_change(tmp_path):
    data = load("digits", data_root=None, cache=tmp_path)
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_labels.bincount().tolist() == [50] * 10
    assert data.train_images.max() == 255
    # Written down from the first run: old and new results compare only while this holds.
    assert data.fingerprint == "9d010fd03cff7891"


def test_fingerprint_is_of_the_content_alone(tree):
    data = load_tree(tree)
    assert replace(data, name="other").fingerprint == data.fingerprint
    for name in FIELDS:
        changed = getattr(data, name).clone()
        changed.view(-1)[-1] += 1
        assert replace(data, **{name: changed}).fingerprint != data.fingerprint
    assert replace(data, classes=("a", "b", "c")).fingerprint != data.fingerprint


def test_statistics_are_those_of_the_training_images_in_float64(tree):
    data = load_tree(tree)
    scaled = data.train_images.double() / 255
    for values, wanted in (
        (data.mean, scaled.mean((0, 2, 3))),
        (data.std, scaled.std((0, 2, 3), correction=0)),
    ):
        assert values == pytest.approx(wanted.tolist(), rel=1e-12)
    # A constant channel normalises to zero.
    mean, std = channel_statistics(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))
    assert (mean, std) == (pytest.approx((7 / 255,), rel=1e-12), (1.0,))


@pytest.mark.parametrize(
    "error", [RuntimeError("not found\nor corrupted"), URLError("refused"), IncompleteRead(b"")]
)
def test_no_network_says_what_was_wanted_and_how_to_supply_it(monkeypatch, tmp_path, error):
    def refuse(**arguments):
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(DataError, match=r"'cifar10' is not here.*--data-root") as caught:
        load("cifar10", data_root=None, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "downloads") in str(caught.value)


@pytest.mark.parametrize(("kind", "channels"), [("CIFAR10", 3), ("MNIST", 1)])
def test_torchvision_images_become_channels_first(monkeypatch, tmp_path, kind, channels):
    images, asked = random_images(4, channels=channels), []

    def construct(root, train, download):
        asked.append((root, train, download))
        copy = images.clone()
        pixels = copy[:, 0] if channels == 1 else copy.permute(0, 2, 3, 1).numpy()
        return SimpleNamespace(data=pixels, targets=[0, 1, 1, 0], classes=["ant", "bee"])

    monkeypatch.setattr(f"torchvision.datasets.{kind}", construct)
    data = load(kind.lower(), data_root=tmp_path, cache=tmp_path / "cache")
    assert asked == [(tmp_path, True, True), (tmp_path, False, True)]
    assert torch.equal(data.train_images, images)
    assert data.test_labels.tolist() == [0, 1, 1, 0]


def test_class_selections_that_mean_the_same_give_the_same(tmp_path):
    whole = load("digits", data_root=None, cache=tmp_path)
    first = load("digits", data_root=None, cache=tmp_path, classes=3)
    named = load("digits", data_root=None, cache=tmp_path, classes=("2", "0", "1"))
    placed = load("digits", data_root=None, cache=tmp_path, classes=(1, 2, 0))
    for other in (named, placed, whole.only(3)):
        assert_same(first, other)
    assert torch.equal(first.train_images, whole.train_images[whole.train_labels < 3])


def test_labels_follow_the_kept_classes(tree):
    whole, kept = load_tree(tree), load_tree(tree, classes=["cat", "ant"])
    assert kept.classes == ("ant", "cat")
    assert kept.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert_same(kept, whole.only(["cat", "ant"]))


def test_tree_is_read_pixel_by_pixel_in_class_and_name_order(tmp_path):
    pixels = make_tree(tmp_path / "tree", classes=("cat", "ant"))
    data = load_tree(tmp_path / "tree")
    order = [f"train/{name}/{number}.png" for name in ("ant", "cat") for number in range(3)]
    assert data.classes == ("ant", "cat")
    assert torch.equal(data.train_images, torch.stack([pixels[name] for name in order]))
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]


def test_one_colour_image_makes_the_grey_ones_colour(tmp_path):
    pixels = make_tree(tmp_path / "tree", mode="L")
    assert load_tree(tmp_path / "tree").train_images.shape == (9, 1, 6, 6)
    save_image(tmp_path / "tree/test/ant/0.png", seed=99)
    data = load_tree(tmp_path / "tree")
    assert torch.equal(data.train_images[0], pixels["train/ant/0.png"].expand(3, -1, -1))
    assert data.test_images.shape[1] == 3


def test_other_files_and_hidden_folders_are_passed_over_and_links_followed(tree, tmp_path):
    (tree / "train/ant/notes.txt").write_text("no image")
    (tree / "train/.thumbnails").mkdir()
    assert load_tree(tree).train_images.shape[0] == 9
    outside = save_image(tmp_path / "elsewhere/dog.png", seed=50)
    for part in ("train", "test"):
        (tree / part / "dog").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(tree / "test/bee")  # a class may be absent from the test
    data = load_tree(tree)
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert torch.equal(data.test_images[-1], outside)
    assert data.test_labels.tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("data_root", [".", "cifar10"])
def test_a_tree_stands_in_for_a_download(monkeypatch, tmp_path, data_root):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda **_: pytest.fail("downloaded"))
    make_tree(tmp_path / "cifar10", classes=tuple("abcdefghij"), train=1, test=1)
    data = load("cifar10", data_root=tmp_path / data_root, cache=tmp_path / "cache")
    assert data.name == "cifar10"
    assert data.classes == tuple("abcdefghij")


def test_another_sets_tree_in_the_data_root_is_not_taken_for_a_known_set(monkeypatch, tree):
    def refuse(**arguments):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", refuse)
    with pytest.raises(DataError, match="cannot be downloaded"):
        load("cifar100", data_root=tree, cache=tree.parent / "cache")


@pytest.mark.parametrize("data_root", [".", "insects"])
def test_a_folder_of_ones_own_goes_by_its_name(tmp_path, data_root):
    make_tree(tmp_path / "insects")
    data = load("insects", data_root=tmp_path / data_root, cache=tmp_path / "cache")
    assert data.name == "insects"
    with pytest.raises(DataError, match="unknown data source 'beetles'"):
        load("beetles", data_root=tmp_path / data_root, cache=tmp_path / "cache")
    make_tree(tmp_path / "cifar100")
    with pytest.raises(DataError, match="3 classes, cifar100 has 100"):
        load("cifar100", data_root=tmp_path, cache=tmp_path / "cache")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def mix_sizes(tree):
    save_image(tree / "train/bee/1.png", seed=1, size=(7, 5))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda tree: (tree / "train").rename(tree / "x"), r"has no train/ folder; wanted .*class"),
        (lambda tree: (tree / "test").rename(tree / "x"), r"has no test set.*data\.split"),
        (lambda tree: empty(tree / "train/bee"), r"class folder .*train/bee holds no image"),
        (lambda tree: [shutil.rmtree(tree / "train" / c) for c in ("bee", "cat")], "at least 2"),
        (lambda tree: save_image(tree / "test/dog/0.png", 1), r"test/dog is a class that .*lacks"),
        (lambda tree: empty(tree / "test"), "no folder for any of the classes"),
        (lambda tree: os.truncate(tree / "test/bee/1.png", 60), r"unreadable image .*bee/1\.png"),
        (lambda at: Image.new("I;16", (6, 6)).save(at / "test/ant/0.png"), "ant/0.png: mode I;16"),
        (lambda tree: (tree / "train/bee/9.png").symlink_to("no.png"), r"unreadable .*bee/9\.png"),
        (mix_sizes, r"train/bee/1\.png is 7x5 but .*train/ant/0\.png is 6x6 pixels; data\.size"),
        ({"classes": 1}, "wanted 2 to 3"),
        ({"classes": 4}, "wanted 2 to 3"),
        ({"classes": "ant"}, "is one name"),
        ({"classes": ["ant", "ant"]}, "two different"),
        ({"classes": ["ant"]}, "two different"),
        ({"classes": ["ant", "dog"]}, r"no class 'dog' .*\(ant, bee, cat\)"),
        ({"classes": [0, 3]}, "no class 3"),
        ({"source": "cifar_100"}, "did you mean cifar100"),
        ({"source": "digits", "data_root": Path("nowhere")}, "is not a folder"),
        ({"data_root": None}, "needs --data-root"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(tree, fault, message):
    arguments = {"source": "folder", "data_root": tree, "cache": tree.parent / "cache"}
    if isinstance(fault, dict):
        arguments |= fault
    else:
        fault(tree)
    with pytest.raises(DataError, match=message) as caught:
        load(**arguments)
    assert "\n" not in str(caught.value)


def test_shrinking_averages_areas_and_growing_is_bilinear(tmp_path):
    make_tree(tmp_path, size=(8, 8))
    arguments = {"data_root": tmp_path, "cache": tmp_path / "cache"}
    for source in ("folder", "digits"):
        whole, half, twice = (load(source, **arguments, size=size) for size in (None, 4, 16))
        images = whole.test_images.double()
        areas = torch.nn.functional.avg_pool2d(images, 2)
        assert (half.test_images - areas).abs().max() <= 0.5  # rounded to whole levels
        wanted = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear")
        assert (twice.test_images - wanted).abs().max() <= 0.5 + 1e-4  # Pillow works in float32


def spoil_unnoticed(path):
    """Makes an image unreadable, but leaves its size and time of change as they were."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_cache_whose_writing_was_cut_off_is_written_anew(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "blocks", lambda images: [images[:9], None])
        with pytest.raises(AttributeError):
            load("digits", data_root=None, cache=tmp_path)
    assert len(load("digits", data_root=None, cache=tmp_path).train_images) == 1297


def test_a_second_load_reads_the_cache_unless_it_is_of_another_version(monkeypatch, tree):
    first = load_tree(tree)
    spoil_unnoticed(tree / "train/ant/1.png")
    assert_same(first, load_tree(tree))
    monkeypatch.setattr(cache_module, "VERSION", cache_module.VERSION + 1)
    with pytest.raises(DataError, match="unreadable image"):
        load_tree(tree)


def test_sizes_and_classes_have_their_own_caches(tree):
    load_tree(tree)
    mix_sizes(tree)
    assert load_tree(tree, size=3).train_images.shape == (9, 3, 3, 3)
    (tree / "train/bee/1.png").unlink()
    save_image(tree / "train/bee/1.png", seed=1)
    assert load_tree(tree, classes=2).train_images.shape == (6, 3, 6, 6)
    assert load_tree(tree).train_images.shape == (9, 3, 6, 6)


def flip_a_bit(content, position):
    damaged = bytearray(content)
    damaged[position] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("test.images", lambda content: flip_a_bit(content, -1)),
        ("train.images", lambda content: content[:-1]),
        ("train.images", lambda content: b""),
        ("index.safetensors", lambda content: flip_a_bit(content, -1)),
        ("index.safetensors", lambda content: flip_a_bit(content, content.index(b"bee"))),
        ("index.safetensors", lambda content: flip_a_bit(content, 0)),
        ("index.safetensors", lambda content: content[:-10]),
        ("index.safetensors", lambda content: content[:4]),
        ("index.safetensors", lambda content: b""),
    ],
)
def test_a_damaged_cache_is_named_and_rebuilt(tree, caplog, file, damage):
    first = load_tree(tree)
    folder = cache_folder(tree)
    whole = (folder / file).read_bytes()
    (folder / file).unlink()  # what is mapped of it remains
    (folder / file).write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert_same(first, load_tree(tree))
    assert f"data cache {folder} is damaged" in caplog.text
    caplog.clear()
    assert_same(first, load_tree(tree))
    assert not caplog.records


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_a_changed_tree_is_decoded_anew_next_to_the_old(tree, change):
    before, path, other = load_tree(tree), tree / "train/ant/1.png", tree / "train/ant/9.png"
    if change == "renamed":
        path.rename(other)
        assert torch.equal(load_tree(tree).train_images[2], before.train_images[1])
    elif change == "removed":
        path.unlink()
        assert load_tree(tree).train_labels.bincount().tolist() == [2, 3, 3]
    else:
        os.utime(path, ns=(0, 0))
        place, path = (1, path) if change == "content" else (3, other)
        wanted = save_image(path, seed=77)
        assert torch.equal(load_tree(tree).train_images[place], wanted)
    # Cells that were trained before the change are still tested and exported with their images.
    kept = find_decoded(before.name, before.fingerprint, tree.parent / "cache")
    assert_same(kept, before)


def images_and_mean(root):
    data = load_tree(root)
    return data.train_images.tolist(), data.mean


def test_two_processes_at_once_get_the_same(tree):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, max_tasks_per_child=1) as pool:
        found = list(pool.map(images_and_mean, [tree, tree], timeout=120))
    assert found[0] == found[1] == images_and_mean(tree)
    cache_folder(tree)  # there is just one


def test_a_file_system_without_locks_still_works(monkeypatch, tree, caplog):
    def refuse(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr(cache_module.fcntl, "flock", refuse)
    assert load_tree(tree).train_images.shape[0] == 9
    assert "no file lock" in caplog.text


def test_a_cache_that_cannot_be_written(tree):
    (tree.parent / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write the data cache .*--work-dir"):
        load_tree(tree)


labels_of_classes = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)
shares = st.floats(0.01, 1.0) | st.just(1.0)
seeds = st.integers(0, 2**40)


@given(labels_of_classes, seeds)
def test_stratified_order_holds_every_position_once(labels, seed):
    orders = stratified_order(labels, seed)
    assert torch.equal(torch.cat(orders).sort().values, torch.arange(len(labels)))
    for label, order in enumerate(orders):
        assert (labels[order] == label).all()


@given(labels_of_classes, shares, shares, seeds)
def test_fractions_and_labelled_shares_are_nested_and_stratified(labels, one, other, seed):
    small, large = sorted((one, other))
    taken = [take_fraction(labels, share, seed) for share in (small, large)]
    marked = [labelled_mask(labels, share, seed).nonzero().flatten() for share in (small, large)]
    for inner, outer in (taken, marked):
        assert set(inner.tolist()) <= set(outer.tolist())
        assert torch.equal(outer, outer.unique())
        for label, total in enumerate(labels.bincount().tolist()):
            count = int((labels[inner] == label).sum())
            assert abs(count - small * total) <= 0.5 or count == 1
            assert count >= min(total, 1)


@given(labels_of_classes, st.floats(0.01, 0.99), seeds)
def test_hold_out_parts_the_set_and_leaves_each_class_an_image(labels, fraction, seed):
    train, validation = hold_out(labels, fraction, seed)
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(len(labels)))
    assert set(labels[train].tolist()) == set(labels.tolist())
    for label, total in enumerate(labels.bincount().tolist()):
        count = int((labels[validation] == label).sum())
        assert abs(count - fraction * total) <= 0.5 or count in (1, total - 1)


def test_splits_depend_on_the_seed_and_differ_from_each_other():
    labels = torch.arange(10).repeat_interleave(40)
    taken = take_fraction(labels, 0.5, seed=0)
    assert torch.equal(taken, take_fraction(labels, 0.5, seed=0))
    assert not torch.equal(taken, take_fraction(labels, 0.5, seed=1))
    assert not torch.equal(taken, labelled_mask(labels, 0.5, seed=0).nonzero().flatten())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_degrade_keeps_means_and_constant_images(factor):
    images = torch.rand(3, 2, 16, 8, dtype=torch.float64)
    lower = degrade(images, factor)
    torch.testing.assert_close(lower.mean((2, 3)), images.mean((2, 3)), rtol=1e-12, atol=0)
    constant = torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)
    torch.testing.assert_close(degrade(constant, factor), constant, rtol=1e-12, atol=0)
    assert degrade(images, 1) is images


def test_degrade_by_two_by_hand():
    # 1 x 4 pixels a row: areas average to 1 and 5; half-pixel centres give 1, 2, 4, 5.
    rows = torch.tensor([0.0, 2.0, 4.0, 6.0]).expand(1, 1, 4, 4)
    assert degrade(rows, 2)[0, 0, 0].tolist() == [1.0, 2.0, 4.0, 5.0]


def slow_crop_flip(padded, index, draws, size):
    """The definition, one image at a time."""
    height, width = size
    out = []
    for i, (top, left, flip) in zip(index.tolist(), draws[:, index].T.tolist(), strict=True):
        crop = padded[i, :, top : top + height, left : left + width]
        out.append(crop.flip(2) if flip else crop)
    return torch.stack(out)


@settings(deadline=None, max_examples=40)
@given(
    pad=st.integers(0, 3),
    padding=st.sampled_from(["zeros", "reflect"]),
    flip=st.booleans(),
    channels=st.integers(1, 3),
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    seed=seeds,
)
def test_crop_flip_is_its_definition(pad, padding, flip, channels, height, width, seed):
    augment = Augment(pad, padding, flip)
    padded = augment.pad_images(random_images(9, height, width, channels))
    draws = augment.draw(9, seed)
    index = torch.tensor([3, 0, 8, 8, 5])
    got = crop_flip(padded[index], draws[:, index], (height, width))
    assert got.dtype == torch.uint8
    assert torch.equal(got, slow_crop_flip(padded, index, draws, (height, width)))


def test_padding_is_black_or_mirrored():
    images = random_images(2, 5, 4)
    black = Augment(3).pad_images(images)
    mirrored = Augment(3, "reflect").pad_images(images)
    assert torch.equal(black, torch.nn.functional.pad(images, (3, 3, 3, 3)))
    wanted = torch.nn.functional.pad(images.double(), (3, 3, 3, 3), mode="reflect")
    assert torch.equal(mirrored.double(), wanted)


def test_draws_reach_every_offset_and_both_flips():
    *draws, flip = Augment(2).draw(2000, seed=0)
    for offsets in draws:
        # 400 expected of each; 5 standard deviations are 90.
        assert len(offsets.bincount()) == 5
        assert (offsets.bincount() - 400).abs().max() < 90
    assert abs(int(flip.sum()) - 1000) < 112
    assert not Augment(2, flip=False).draw(2000, seed=0)[2].any()
    assert abs(float(torch.corrcoef(torch.stack(draws).double())[0, 1])) < 0.11


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def make_batches(count=20, *, images=None, augment=None, **arguments):
    settings = {"batch_size": 8, "drop_last": False, "seed": 0, **arguments}
    images, labels = random_images(count) if images is None else images, torch.arange(count) % 5
    return Batches(images, labels, MEAN, STD, augment=augment or Augment(2), **settings)


def normalised(images):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
    return ((images.double() / 255 - mean) / std).float()


def as_one(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_an_epoch_serves_each_image_once_with_its_label():
    batches = make_batches()
    served = list(batches.epoch(0))
    assert [len(batch.index) for batch in served] == [8, 8, 4]
    assert served[0].images.is_contiguous(memory_format=torch.channels_last)
    assert len(served) == len(batches)
    _, labels, index = as_one(served)
    assert torch.equal(index.sort().values, torch.arange(20))
    assert torch.equal(labels, index % 5)
    assert not torch.equal(index, torch.arange(20))


def test_epoch_images_are_the_drawn_crops_normalised():
    augment = Augment(2)
    images, _, index = as_one(make_batches(augment=augment, seed=4).epoch(3))
    draws = augment.draw(20, derive(4, "augment", 3))
    padded = augment.pad_images(random_images(20))
    wanted = normalised(slow_crop_flip(padded, index, draws, (8, 6)))
    torch.testing.assert_close(images, wanted, rtol=1e-5, atol=1e-6)


def test_the_strides_of_a_source_do_not_matter():
    turned = random_images(20).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    mine, theirs = (as_one(make_batches(images=x).epoch(0)) for x in (turned, random_images(20)))
    assert torch.equal(mine[0], theirs[0])


def test_same_seed_and_epoch_same_bits_and_any_other_not():
    first = as_one(make_batches().epoch(1))
    batches = make_batches()
    list(batches.epoch(0))
    for one, other in zip(first, as_one(batches.epoch(1)), strict=True):
        assert torch.equal(one, other)
    for other in (as_one(batches.epoch(2)), as_one(make_batches(seed=1).epoch(1))):
        assert not torch.equal(first[2], other[2])
        back = other[2].argsort(), first[2].argsort()
        assert not torch.equal(other[0][back[0]], first[0][back[1]])


def test_a_subset_serves_its_images_with_the_crops_of_the_whole_epoch():
    batches = make_batches()
    subset = torch.tensor([1, 4, 7, 9, 12, 13, 14, 15, 16, 17, 19])
    images, _, index = as_one(batches.epoch(5, subset))
    assert torch.equal(index.sort().values, subset)
    whole, _, order = as_one(batches.epoch(5))
    assert torch.equal(images, whole[order.argsort()][index])


DISTORTED = Augment(0, crop=Crop(scale=(0.2, 0.9)), randaugment=RandAugment())


def test_an_image_is_distorted_alike_in_any_batch_and_subset():
    before = torch.get_rng_state()
    images, _, index = as_one(make_batches(augment=DISTORTED).epoch(5))
    whole = images[index.argsort()]
    subset = torch.tensor([1, 4, 7, 9, 12, 13, 14])
    for batches in (make_batches(augment=DISTORTED, batch_size=3).epoch(5, subset),
                    make_batches(augment=DISTORTED, batch_size=5).epoch(5)):  # fmt: skip
        some, _, where = as_one(batches)
        assert torch.equal(some, whole[where])
    for other in (make_batches(augment=DISTORTED).epoch(6),
                  make_batches(augment=DISTORTED, seed=1).epoch(5)):  # fmt: skip
        some, _, where = as_one(other)
        assert not torch.equal(some[where.argsort()], whole)
    assert torch.equal(torch.get_rng_state(), before)
    clean, _, _ = as_one(make_batches(augment=DISTORTED).clean(7))
    assert torch.equal(clean, as_one(make_batches().clean(8))[0])


def test_a_crop_of_the_whole_image_leaves_it_and_a_quarter_shows_half_of_a_ramp():
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(9, 1, 64, 64)
    whole, quarter = ((1.0, 1.0), (0.25, 0.25))
    for scale, spread in ((whole, 252), (quarter, 124)):
        augment = Augment(0, flip=False, crop=Crop(scale=scale, ratio=(1.0, 1.0)))
        found = augment.distort(ramp, torch.arange(9), seed=0)
        assert (found.dtype, found.shape) == (ramp.dtype, ramp.shape)
        widths = (found.amax((1, 2, 3)) - found.amin((1, 2, 3))).tolist()
        assert widths == pytest.approx([spread] * 9, abs=5)
        assert torch.equal(found, ramp) == (scale == whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_takes_grey_and_coloured_images(channels):
    images = random_images(200, channels=channels)
    many = Augment(0, randaugment=RandAugment(operations=3, magnitude=30))
    found = many.distort(images, torch.arange(200), seed=0)
    assert (found.dtype, found.shape) == (images.dtype, images.shape)
    assert (found != images).any((1, 2, 3)).float().mean() > 0.9


def test_mixed_images_and_targets_have_one_share():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    targets, kinds = torch.eye(4, dtype=torch.float64), set()
    before = torch.get_rng_state()
    for seed in range(20):
        found, weights = mix(images, targets, 0.8, 0.8, seed)
        again, _ = mix(images, targets, 0.8, 0.8, seed)
        assert torch.equal(found, again)
        share = weights[0, 0].item()
        torch.testing.assert_close(weights, share * targets + (1 - share) * targets.roll(1, 0))
        wanted = share * torch.arange(4.0) + (1 - share) * torch.arange(4.0).roll(1)
        torch.testing.assert_close(found.mean((1, 2, 3)), wanted)
        kinds.add(found[1].unique().numel() == 1 or share in (0, 1))
    assert kinds == {True, False}  # in whole, by a rectangle
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [
        (16, False, [8, 8]),
        (20, True, [8, 8]),
        (17, False, [8, 8]),  # one image alone is never a batch
        (18, False, [8, 8, 2]),
        (5, False, [5]),
    ],
)
def test_the_last_batch(count, drop_last, sizes):
    batches = make_batches(count, drop_last=drop_last)
    assert [len(batch.labels) for batch in batches.epoch(0)] == sizes
    assert len(batches) == batches.steps(count) == len(sizes)


def test_batches_that_cannot_be():
    with pytest.raises(ValueError, match="batch 256 is larger than the 200 training images; "):
        next(make_batches(200, batch_size=256, drop_last=True).epoch(0))
    with pytest.raises(ValueError, match="batch 8 is larger than the 3 training images"):
        next(make_batches(drop_last=True).epoch(0, torch.tensor([1, 2, 3])))
    with pytest.raises(ValueError, match="1 training images make no batch"):
        next(make_batches().epoch(0, torch.tensor([1])))


@pytest.mark.parametrize("pad", [0, 2])
def test_clean_serves_all_in_order_without_augmentation(pad):
    batches = make_batches(17, augment=Augment(pad), drop_last=True)
    served = list(batches.clean(8))
    assert [len(batch.labels) for batch in served] == [8, 8, 1]
    images, labels, index = as_one(served)
    assert torch.equal(index, torch.arange(17))
    assert torch.equal(labels, index % 5)
    torch.testing.assert_close(images, normalised(random_images(17)), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_gpu_are_those_of_the_cpu():
    here, there = (as_one(make_batches(device=device).epoch(2)) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other.cpu())
