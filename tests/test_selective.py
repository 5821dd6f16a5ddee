"""Selective KD: the graph cut against every possible selection, and the stage that uses it."""

import math

import networkx as nx
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_table import drawn
from torch import Tensor

from bench.method import Pair, View
from methods import selective
from methods._minimum_cut import (
    FLOW_LIMIT,
    CutProblem,
    Edges,
    cut_problems,
    keep_set,
    largest_keep_set,
    smallest_threshold,
    with_least_kept,
)
from methods.selective import (
    EmbeddingRegressor,
    GraphCut,
    regression_loss,
    select_at_random,
    select_by_graph_cut,
)


def clusters(sizes: tuple[int, ...], *, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping classes of the given sizes, shuffled: embeddings (N, 3) and labels (N,)."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = 2 * drawn(len(sizes), 3, seed=seed)
    embeddings = centres[labels] + spread * drawn(len(labels), 3, seed=seed + 1000)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return embeddings[order], labels[order]


def cut_alone(found: GraphCut) -> list[bool]:
    """What the cut kept, before items went back to a class that had too few."""
    kept = found.kept.clone()
    kept[list(found.added_back)] = False
    return kept.tolist()


# --- the minimum cut, in whole units ---------------------------------------------------------


def edges_of(units: dict[tuple[int, int], int]) -> Edges:
    ends = np.array(list(units), dtype=np.int64).reshape(-1, 2)
    return Edges(ends[:, 0], ends[:, 1], np.array(list(units.values()), dtype=np.int64))


@st.composite
def problems(draw: st.DrawFn, most: int = 12) -> CutProblem:
    """Up to 7 items; small numbers, so that ties are common."""
    size = draw(st.integers(1, 7))
    costs = draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    edges = edges_of({pair: draw(st.integers(0, most)) for pair in chosen})
    return CutProblem(np.arange(size), np.array(costs), edges)


@settings(max_examples=300, deadline=None)
@given(problem=problems(), drop=st.integers(0, 14), strength=st.sampled_from([1, 10**5, 10**9]))
def test_no_choice_is_cheaper_and_none_as_cheap_is_larger(problem, drop, strength):
    # An edge beyond 32 bits, which no cheapest cut severs, must not overflow.
    edges = problem.edges._replace(units=problem.edges.units * strength)
    units = {(i, j): cost for i, j, cost in zip(*map(np.ndarray.tolist, edges), strict=True)}
    _, kept = oracles.cheapest_selection(problem.keep_units.tolist(), drop, units, 1)
    assert tuple(largest_keep_set(drop - problem.keep_units, edges)) == kept


@settings(max_examples=100, deadline=None)
@given(problem=problems(), drops=st.tuples(st.integers(0, 14), st.integers(0, 14)))
def test_kept_sets_are_nested(problem, drops):
    lower, higher = (keep_set([problem], drop) for drop in sorted(drops))
    assert (lower <= higher).all()


@settings(max_examples=100, deadline=None)
@given(problem=problems(), data=st.data())
def test_bisection_finds_the_smallest_cost_of_dropping(problem, data):
    classes = np.zeros(len(problem.members), np.int64)
    wanted = data.draw(st.integers(1, len(classes)))
    threshold = smallest_threshold([problem], classes, wanted)
    kept = keep_set([problem], threshold)
    assert with_least_kept(kept, problem.keep_units, classes).sum() >= wanted
    if threshold > 0:
        below = keep_set([problem], threshold - 1)
        assert with_least_kept(below, problem.keep_units, classes).sum() < wanted


def test_the_largest_flow_that_fits_32_bits_is_cut_and_a_larger_one_refused():
    half = FLOW_LIMIT // 2
    gain = np.array([half, half - 1, -FLOW_LIMIT])
    chain = edges_of({(0, 1): FLOW_LIMIT, (1, 2): half - 2})
    assert largest_keep_set(gain, chain).tolist() == [True, True, False]
    chain = edges_of({(0, 1): FLOW_LIMIT, (1, 2): FLOW_LIMIT})
    assert not largest_keep_set(gain, chain).any()
    with pytest.raises(ValueError, match=f"{FLOW_LIMIT} units exceeds {FLOW_LIMIT - 1}"):
        largest_keep_set(np.array([half, half, -FLOW_LIMIT]), edges_of({}))


@pytest.mark.parametrize("size", [32, 700])
def test_components_cut_in_batches_are_the_whole_graph_cut_at_once(size):
    generator = np.random.default_rng(size)
    graph = nx.random_regular_graph(3, size // 2, seed=0)  # one component
    graph.add_edges_from((i, i + 1) for i in range(size // 2, size - 1, 2))  # and pairs
    for item in graph:
        graph.nodes[item]["keep_cost"] = generator.uniform()
    for edge in graph.edges.values():
        edge["cost"] = generator.uniform(0, 0.1)
    kept = keep_set(cut_problems(graph), 500_000)
    assert set(np.flatnonzero(kept)) == oracles.minimum_cut_by_networkx(graph, 0.5)
    assert 0 < kept.sum() < size


# --- the oracle itself, on paper -------------------------------------------------------------


def test_oracle_finds_the_energies_of_three_items_in_a_row():
    keeping, edges = [0.2, 0.6, 0.9], {(0, 1): 0.2, (1, 2): 0.05}
    by_kept = "111 1.7, 110 1.35, 101 1.85, 100 1.4, 011 2.2, 010 1.85, 001 1.95, 000 1.5"
    for kept, expected in (case.split() for case in by_kept.split(", ")):
        found = oracles.selection_energy([a == "1" for a in kept], keeping, 0.5, edges, 1.0)
        assert found == pytest.approx(float(expected))
    assert oracles.cheapest_selection(keeping, 0.5, edges, 1.0)[1] == (1, 1, 0)
    # Without edges every item is decided alone: 0.2 < 0.5 < 0.6 < 0.9.
    assert oracles.cheapest_selection(keeping, 0.5, {}, 1.0) == (pytest.approx(1.2), (1, 0, 0))


# --- five points on a line -------------------------------------------------------------------

LINE = torch.tensor([[0], [0.2], [1.1], [2], [2.2]], dtype=torch.float64)
LINE_LABELS = torch.tensor([0, 0, 0, 1, 1])
WHOLE = {"neighbours": None, "normalise": False}


def test_five_points_on_a_line_lose_the_one_between_the_classes():
    # Centres 1.3 / 3 and 2.1; U1 of item 0 is .43333 / 2.1. Dropping item 2 costs
    # .2063 + .1228 + .5 + .0638 + .0566 and cuts its two edges, .1 (.0889 + .1979).
    found = select_by_graph_cut(LINE, LINE_LABELS, tau=0.5, lam=0.1, sigma=0.5, **WHOLE)
    assert found.indices == [0, 1, 3, 4]
    assert found.energy == pytest.approx(0.97827, abs=5e-6)
    costs = [0.2063, 0.1228, 0.6667, 0.0638, 0.0566]
    assert found.keep_cost.tolist() == pytest.approx(costs, abs=5e-5)
    edges = oracles.classmate_edges(LINE, LINE_LABELS.tolist(), sigma=0.5)
    weights = {(0, 1): 0.9231, (0, 2): 0.0889, (1, 2): 0.1979, (3, 4): 0.9231}
    assert edges == pytest.approx(weights, abs=5e-5)


def test_lambda_weighs_a_typical_items_edges_like_its_costs_differ_from_its_classs():
    # U1 as above: .2063, .1228, .6667 about their median .2063, and .0638, .0566 about .0602; the
    # median of 0, .0835, .4603, .0036 twice is .0036. Edges weigh 1.0120, 1.1210 and .2868 at the
    # items of class 0, .9231 at both of class 1: median .9231.
    how = {"tau": 0.5, "sigma": 0.5, **WHOLE}
    unit = select_by_graph_cut(LINE, LINE_LABELS, **how).graph.graph["lambda"]
    assert unit == pytest.approx(0.0036130 / 0.9231163, rel=1e-4)
    tripled = select_by_graph_cut(LINE, LINE_LABELS, pairwise=3.0, **how)
    assert tripled.graph.graph["lambda"] == pytest.approx(3 * unit)


@pytest.mark.parametrize("size", [6, 20, 130])
def test_the_default_cut_drops_from_every_class_at_every_size(size: int):
    # No class is worse embedded than another, so none may lose most of what is dropped.
    embeddings, labels = clusters(4 * (size,), seed=0)
    centres = 4 * torch.eye(4, dtype=torch.float64)
    embeddings = centres[labels] + drawn(4 * size, 4, seed=size)
    found = select_by_graph_cut(embeddings, labels, 0.8, normalise=False)
    assert not found.added_back
    lost = [of - kept for kept, of in found.kept_per_class.values()]
    assert max(lost) <= max(2, 0.6 * sum(lost))
    at_once = select_by_graph_cut(embeddings, labels, 0.8, normalise=False, pairwise=100.0)
    assert at_once.added_back  # whole classes went


def test_says_when_a_floor_or_a_tie_decided():
    embeddings, labels = clusters((20, 20, 20), seed=3)
    assert select_by_graph_cut(embeddings, labels, 0.9, pairwise=0.0).note == ""
    floor = select_by_graph_cut(embeddings, labels, 0.2)
    assert int(floor.kept.sum()) == 30
    assert "floor" in floor.note
    assert "30 images are kept where 12" in floor.note
    tie = select_by_graph_cut(torch.ones(8, 3), torch.tensor(4 * [0, 1]), 0.75)
    assert "8 images are kept where 6" in tie.note
    assert "equal costs" in tie.note


def test_inter_cost_reads_only_the_nearest_other_centre():
    found = select_by_graph_cut(LINE, LINE_LABELS, tau=0.5, unary="inter", **WHOLE)
    own = 1.3 / 3
    others = np.array([2.1, 1.9, 1.0, 2 - own, 2.2 - own])
    assert found.keep_cost.tolist() == pytest.approx(np.exp(-others / others.mean()).tolist())


# --- against every selection -----------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("neighbours", [1, 2, None])
@pytest.mark.parametrize("seed", range(6))
def test_no_selection_has_a_lower_energy(lam: float, neighbours: int | None, seed: int):
    embeddings, labels = clusters((5, 3), seed=seed)
    costs = oracles.keeping_costs(embeddings, labels.tolist())
    edges = oracles.classmate_edges(embeddings, labels.tolist(), neighbours or len(labels))
    tau = float(np.sort(costs)[4] * 0.97)
    how = {"neighbours": neighbours, "lam": lam, "normalise": False}
    found = select_by_graph_cut(embeddings, labels, tau=tau, **how)
    lowest, selection = oracles.cheapest_selection(costs, tau, edges, lam)
    np.testing.assert_allclose(found.keep_cost, costs, rtol=1e-12)
    assert found.energy == pytest.approx(lowest, abs=1e-5)  # capacities are multiples of 1e-6
    assert tuple(cut_alone(found)) == selection


def test_normalising_is_scaling_every_embedding_to_length_one():
    embeddings, labels = clusters((5, 3), seed=0)
    units = embeddings / embeddings.norm(dim=1, keepdim=True)
    found = select_by_graph_cut(embeddings, labels, tau=0.6)
    costs = oracles.keeping_costs(units, labels.tolist())
    np.testing.assert_allclose(found.keep_cost, costs, rtol=1e-12)


# --- what moves the cut, and what does not ---------------------------------------------------


def test_a_huge_cost_of_dropping_keeps_everything():
    embeddings, labels = clusters((12, 9, 10), seed=2)
    assert select_by_graph_cut(embeddings, labels, tau=100.0).kept.all()
    assert select_by_graph_cut(embeddings, labels, keep=1.0).kept.all()


@pytest.mark.parametrize("keep", [0.7, 0.8, 0.9])
def test_the_threshold_is_the_smallest_that_keeps_the_wanted_share(keep: float):
    embeddings, labels = clusters((14, 12, 14), seed=3)
    found = select_by_graph_cut(embeddings, labels, keep)
    below = select_by_graph_cut(embeddings, labels, tau=found.tau - 2e-6)
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
    moved = 7 * embeddings @ torch.linalg.qr(drawn(3, 3, seed=6))[0] + drawn(3, seed=7)
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


@pytest.mark.parametrize(
    "embeddings",
    [torch.zeros(8, 3), torch.ones(8, 3), torch.eye(2).repeat(4, 1), drawn(8, 3, seed=0) * 1e20],
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
        ({"pairwise": -0.1}, "pairwise"),
        ({"lam": -0.1}, "lam"),
        ({"sigma": 0.0}, "sigma"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_cut_in_one_line(changes: dict, message: str):
    arguments = {"embeddings": LINE, "labels": LINE_LABELS, "keep": 0.8} | changes
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        select_by_graph_cut(**arguments)


# --- the stage -------------------------------------------------------------------------------


def test_random_control_drops_as_many_from_all_classes_in_proportion():
    labels = clusters((30, 60, 9, 1), seed=0)[1]
    for count in (80, 50, 99):
        control = select_at_random(count, labels, seed=3)
        assert int(control.sum()) == count
        for label, size in enumerate((30, 60, 9, 1)):
            assert abs(int(control[labels == label].sum()) - size * count / 100) <= 1
    assert torch.equal(control, select_at_random(count, labels, seed=3))
    assert not torch.equal(control, select_at_random(count, labels, seed=4))
    cut = selective.method(selection="random", keep=0.2).plan[1].keep
    embeddings, labels = clusters((30, 30, 30), seed=0)
    chosen = cut(View({"embedding": embeddings}), labels)
    assert [int(chosen.kept[labels == k].sum()) for k in range(3)] == [15, 15, 15]


def test_regression_target_is_standardised_over_the_whole_training_set():
    embeddings = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    embeddings[:, 2] = 0.1  # a dimension that does not vary
    plan = selective.method(normalise=False).plan[1]
    connector = EmbeddingRegressor(4, 5, normalise=False)
    plan.prepare(connector, View({"embedding": embeddings}))
    target = connector.target(embeddings)
    spread, middle = torch.std_mean(target, 0, correction=0)
    torch.testing.assert_close(middle, torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1, 0, 1, 1]), rtol=1e-5, atol=1e-5)

    student, rows = torch.randn(3, 4), torch.tensor([4, 0, 9])
    shown = View({"embedding": student}), View({"embedding": embeddings[rows]})
    loss = plan.transfer(Pair(*shown, labels=rows, index=rows), connector)
    torch.testing.assert_close(loss, (connector.linear(student) - target[rows]).square().mean(1))


def test_regression_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="need one shape"):
        regression_loss(torch.ones(4, 3), torch.ones(3))
