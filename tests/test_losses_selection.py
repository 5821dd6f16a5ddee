"""Selective KD's graph cut: exact, against every selection tried; and what may not move it."""

import math

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor

from methods.selective import GraphCut, select_by_graph_cut


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(sizes: tuple[int, ...], *, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping classes of the given sizes, shuffled: embeddings (N, 3) and labels (N,)."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = 2 * gaussian(len(sizes), 3, seed=seed)
    embeddings = centres[labels] + spread * gaussian(len(labels), 3, seed=seed + 1000)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return embeddings[order], labels[order]


def cut_alone(found: GraphCut) -> list[bool]:
    """What the cut kept, before a class was given back items to reach its floor."""
    kept = found.kept.clone()
    kept[list(found.added_back)] = False
    return kept.tolist()


# The oracle itself, on paper ----------------------------------------------------------------------


def test_oracle_finds_the_energies_of_three_items_in_a_row():
    keeping, edges = [0.2, 0.6, 0.9], {(0, 1): 0.2, (1, 2): 0.05}
    energies = {
        "111": 1.7,
        "110": 1.35,  # 0.2 + 0.6 + 0.5 for dropping the last + 0.05 for the edge between
        "101": 1.85,
        "100": 1.4,
        "011": 2.2,
        "010": 1.85,
        "001": 1.95,
        "000": 1.5,
    }
    for kept, expected in energies.items():
        found = oracles.selection_energy([int(a) for a in kept], keeping, 0.5, edges, 1.0)
        assert found == pytest.approx(expected)
    assert oracles.cheapest_selection(keeping, 0.5, edges, 1.0)[1] == (1, 1, 0)
    # Without edges everyone decides alone: 0.2 < 0.5 < 0.6 < 0.9.
    assert oracles.cheapest_selection(keeping, 0.5, {}, 1.0) == (pytest.approx(1.2), (1, 0, 0))


# Five points on a line ----------------------------------------------------------------------------

LINE = torch.tensor([[0], [0.2], [1.1], [2], [2.2]], dtype=torch.float64)
LINE_LABELS = torch.tensor([0, 0, 0, 1, 1])


def test_five_points_on_a_line_lose_the_one_between_the_classes():
    # Centres 1.3 / 3 and 2.1; U1 of item 0 is .43333 / 2.1. Dropping item 2 costs
    # .2063 + .1228 + .5 + .0638 + .0566 and cuts its two edges, .1 (.0889 + .1979).
    found = select_by_graph_cut(
        LINE, LINE_LABELS, tau=0.5, neighbours=None, pairwise=0.1, normalise=False, sigma=0.5
    )
    assert found.indices == [0, 1, 3, 4]
    assert found.energy == pytest.approx(0.97827, abs=5e-6)
    assert found.keep_cost.tolist() == pytest.approx(
        [0.2063, 0.1228, 0.6667, 0.0638, 0.0566], abs=5e-5
    )
    edges = oracles.classmate_edges(LINE, LINE_LABELS.tolist(), sigma=0.5)
    assert edges == pytest.approx(
        {(0, 1): 0.9231, (0, 2): 0.0889, (1, 2): 0.1979, (3, 4): 0.9231}, abs=5e-5
    )


def test_inter_cost_looks_at_the_nearest_other_centre_alone():
    found = select_by_graph_cut(
        LINE, LINE_LABELS, tau=0.5, unary="inter", neighbours=None, normalise=False
    )
    own = 1.3 / 3
    others = np.array([2.1, 1.9, 1.0, 2 - own, 2.2 - own])
    assert found.keep_cost.tolist() == pytest.approx(np.exp(-others / others.mean()).tolist())


# Against every selection --------------------------------------------------------------------------


@pytest.mark.parametrize("pairwise", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("neighbours", [1, 2, None])
@pytest.mark.parametrize("seed", range(6))
def test_no_selection_has_a_lower_energy(pairwise: float, neighbours: int | None, seed: int):
    embeddings, labels = clusters((5, 3), seed=seed)
    costs = oracles.keeping_costs(embeddings, labels.tolist())
    edges = oracles.classmate_edges(embeddings, labels.tolist(), neighbours or len(labels))
    tau = float(np.sort(costs)[4] * 0.97)
    found = select_by_graph_cut(
        embeddings, labels, tau=tau, neighbours=neighbours, pairwise=pairwise, normalise=False
    )
    lowest, selection = oracles.cheapest_selection(costs, tau, edges, pairwise)
    np.testing.assert_allclose(found.keep_cost, costs, rtol=1e-12)
    assert found.energy == pytest.approx(lowest, abs=1e-5)  # capacities are multiples of 1e-6
    assert cut_alone(found) == [bool(a) for a in selection]


@pytest.mark.parametrize("seed", range(4))
def test_normalising_is_scaling_every_embedding_to_length_one(seed: int):
    embeddings, labels = clusters((5, 3), seed=seed)
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    found = select_by_graph_cut(embeddings, labels, tau=0.6)
    np.testing.assert_allclose(
        found.keep_cost, oracles.keeping_costs(units, labels.tolist()), rtol=1e-12
    )
    stretched = embeddings * torch.linspace(0.1, 9, len(labels)).double()[:, None]
    assert torch.equal(select_by_graph_cut(stretched, labels, tau=0.6).kept, found.kept)


# What the cut must and must not notice ------------------------------------------------------------


def test_without_edges_every_item_decides_alone():
    embeddings, labels = clusters((12, 9, 10), seed=0)
    for tau in (0.4, 0.8, 1.2):
        found = select_by_graph_cut(embeddings, labels, tau=tau, pairwise=0.0)
        assert cut_alone(found) == (found.keep_cost <= tau).tolist()


def test_strong_edges_keep_or_drop_a_class_as_one():
    embeddings, labels = clusters((8, 7, 6, 9), seed=1)
    everywhere = {"neighbours": None, "pairwise": 1e3, "normalise": False, "sigma": 5.0}
    costs = oracles.keeping_costs(embeddings, labels.tolist())
    means = [costs[labels == k].mean() for k in range(4)]
    for tau in (sum(sorted(means)[i : i + 2]) / 2 for i in range(3)):
        found = select_by_graph_cut(embeddings, labels, tau=tau, **everywhere)
        assert cut_alone(found) == [means[label] <= tau for label in labels.tolist()]


def test_kept_sets_are_nested_in_the_cost_of_dropping():
    embeddings, labels = clusters((12, 9, 10), seed=2)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    sizes = set()
    for tau in np.linspace(0.05, 1.5, 30):
        more = torch.tensor(cut_alone(select_by_graph_cut(embeddings, labels, tau=float(tau))))
        assert (more | ~kept).all()
        kept = more
        sizes.add(int(kept.sum()))
    assert len(sizes) >= 5  # the cut moved along, it did not jump from nothing to everything


def test_a_huge_cost_of_dropping_keeps_everything():
    embeddings, labels = clusters((12, 9, 10), seed=2)
    assert select_by_graph_cut(embeddings, labels, tau=100.0).kept.all()
    assert select_by_graph_cut(embeddings, labels, keep=1.0).kept.all()


@pytest.mark.parametrize("keep", [0.7, 0.8, 0.9])
def test_the_threshold_is_the_smallest_that_keeps_the_wanted_share(keep: float):
    embeddings, labels = clusters((14, 12, 14), seed=3)
    found = select_by_graph_cut(embeddings, labels, keep)
    again = select_by_graph_cut(embeddings, labels, tau=found.tau)
    below = select_by_graph_cut(embeddings, labels, tau=found.tau - 2e-6)
    assert torch.equal(again.kept, found.kept)
    assert int(below.kept.sum()) < keep * 40 <= int(found.kept.sum())


@pytest.mark.parametrize("tau", [0.01, 0.3, 0.6])
def test_every_class_keeps_half_of_itself_and_two_by_lowest_cost(tau: float):
    embeddings, labels = clusters((9, 3, 1, 8), seed=4, spread=2.0)
    found = select_by_graph_cut(embeddings, labels, tau=tau)
    cut = torch.tensor(cut_alone(found))
    for label, size in enumerate((9, 3, 1, 8)):
        members = labels == label
        floor = min(max(math.ceil(size / 2), 2), size)
        by_cut = int(cut[members].sum())
        assert found.kept_per_class[label] == (max(by_cut, floor), size)
        given_back = found.keep_cost[members & found.kept & ~cut]
        assert len(given_back) == max(floor - by_cut, 0)
        still_out = found.keep_cost[members & ~found.kept]
        if len(given_back) and len(still_out):
            assert given_back.max() <= still_out.min()


def test_ignores_a_rotation_translation_and_scale_of_all_embeddings():
    embeddings, labels = clusters((12, 9, 10), seed=5)
    moved = 7 * embeddings @ torch.linalg.qr(gaussian(3, 3, seed=6))[0] + gaussian(3, seed=7)
    found = select_by_graph_cut(embeddings, labels, 0.8, normalise=False)
    after = select_by_graph_cut(moved, labels, 0.8, normalise=False)
    torch.testing.assert_close(after.keep_cost, found.keep_cost, rtol=1e-10, atol=0)
    assert torch.equal(after.kept, found.kept)


def test_reordering_items_or_renaming_classes_reorders_the_selection():
    embeddings, labels = clusters((12, 9, 10), seed=8)
    found = select_by_graph_cut(embeddings, labels, 0.8)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(9))
    shuffled = select_by_graph_cut(embeddings[order], labels[order], 0.8)
    assert torch.equal(shuffled.kept, found.kept[order])
    renamed = select_by_graph_cut(embeddings, torch.tensor([70, 3, 5])[labels], 0.8)
    assert torch.equal(renamed.kept, found.kept)
    assert renamed.kept_per_class[70] == found.kept_per_class[0]


def test_a_borderline_item_is_dropped_alone_and_kept_in_company():
    # Item 4 costs a little more to keep than to drop, until it is tied to four good classmates.
    crowd = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.1, 0.0], [0.1, 0.1], [0.3, 0.05]])
    embeddings = torch.cat([crowd, torch.tensor([[1.0, 0.05], [1.0, 0.0], [1.0, 0.1]])])
    labels = torch.tensor([0] * 5 + [1] * 3)
    alone = select_by_graph_cut(
        embeddings, labels, tau=0.25, pairwise=0.0, normalise=False, sigma=0.3
    )
    together = select_by_graph_cut(
        embeddings, labels, tau=0.25, pairwise=0.1, normalise=False, sigma=0.3
    )
    assert not alone.kept[4]
    assert together.kept[4]


# Degenerate and wrong input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "embeddings",
    [torch.zeros(8, 3), torch.ones(8, 3), torch.eye(2).repeat(4, 1), gaussian(8, 3, seed=0) * 1e20],
    ids=["zeros", "ones", "both classes at one centre", "huge"],
)
@pytest.mark.parametrize("normalise", [True, False])
def test_degenerate_embeddings_still_give_a_selection(embeddings: Tensor, normalise: bool):
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = select_by_graph_cut(embeddings, labels, 0.75, normalise=normalise)
    assert int(found.kept.sum()) >= 6
    assert found.keep_cost.isfinite().all()
    assert math.isfinite(found.energy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, "keep"),
        ({"keep": 1.5}, "keep"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "class"),
        ({"labels": LINE_LABELS[:3]}, "label"),
        ({"embeddings": LINE * math.nan}, "finite"),
        ({"embeddings": LINE[:, 0]}, "embeddings"),
        ({"unary": "ratios"}, "ratio"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_cut_in_one_line(changes: dict, message: str):
    arguments = {"embeddings": LINE, "labels": LINE_LABELS, "keep": 0.8} | changes
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        select_by_graph_cut(**arguments)
