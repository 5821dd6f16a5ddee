"""Every method on data at its edges: tiny sets, equal images, a teacher that rules classes out."""

from dataclasses import replace

import pytest
import torch
from lessons import CPU, cell, dataset, recipe, run

from bench.data.dataset import DataSet
from bench.hyperparameters import METHODS, build_method
from bench.record import Store
from bench.train.cohort import Cohort
from bench.train.stream import open_stream
from bench.train.teacher import Teacher
from bench.train.weights import build_network


def tiny(data: DataSet) -> DataSet:
    """A class of one training image, none of it in the test set, 18 training images in all."""
    kept = torch.cat([torch.tensor([0]), (data.train_labels > 0).nonzero().flatten()[:17]])
    test = data.test_labels > 0
    return replace(
        data, train_images=data.train_images[kept], train_labels=data.train_labels[kept],
        test_images=data.test_images[test], test_labels=data.test_labels[test],
    )  # fmt: skip


def all_equal(data: DataSet) -> DataSet:
    """Images that are all the same, one of them to test on."""
    images = data.train_images[:1].expand_as(data.train_images)
    return replace(
        data, train_images=images, test_images=images[:1], test_labels=data.test_labels[:1]
    )


@pytest.mark.parametrize("change", [tiny, all_equal])
def test_every_method_trains_at_the_edges_of_data(tmp_path, change):
    """Batches of 8 of 18 images: two in the last. What a loss leaves out of them is counted."""
    names = [name for name in METHODS.names() if build_method(name).starts_from == "fresh"]
    cells = [cell(name, recipe=recipe(epochs=2, batch_size=8, drop_last=False)) for name in names]
    data = change(dataset())
    for record in run(cells, tmp_path, data).values():
        assert record.status == "finished", record.error
        assert record.final["test_images"] == len(data.test_labels)
        assert all(value is not None for value in record.final.values())
        for stage in record.stages:
            skipped, reached = stage.get("skipped_samples", 0), stage.get("reached_samples", 1)
            assert skipped == 0 < reached + stage.get("masked_samples", 0)


def test_a_teacher_that_rules_every_class_out_is_named(tmp_path):
    one = cell("soft_logits")
    stream = open_stream(one, dataset(), CPU)
    network = build_network(one.teacher, stream.classes, stream.image_shape)
    for classes in ([0], [0, 1, 2], [0, 1, 2, 3]):
        with torch.no_grad():
            network.head.bias[classes] = -torch.inf
        teacher, store = Teacher(network, one.teacher, CPU, stream.image_shape), Store(tmp_path)
        Cohort(stream, teacher, store, CPU, lambda *event: None).run([one])
        found = store.load(one.id)
        if len(classes) < 4:
            assert found.stages[0]["reached_samples"] == 4 * 40
    assert found.status == "failed"
    assert "every sample is not finite" in found.error
