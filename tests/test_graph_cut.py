"""The minimum cut against every choice there is, and what selective KD does with the result."""

from itertools import product

import networkx as nx
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.method import Pair, View
from methods import selective
from methods._minimum_cut import (
    FLOW_LIMIT,
    CutProblem,
    Edges,
    cut_problems,
    in_units,
    keep_set,
    largest_keep_set,
    least_kept,
    smallest_threshold,
    with_least_kept,
)
from methods.selective import (
    EmbeddingRegressor,
    regression_loss,
    select_at_random,
    select_by_graph_cut,
)


def edges_of(units: dict[tuple[int, int], int]) -> Edges:
    ends = np.array(list(units), dtype=np.int64).reshape(-1, 2)
    return Edges(ends[:, 0], ends[:, 1], np.array(list(units.values()), dtype=np.int64))


@st.composite
def problems(draw: st.DrawFn, most: int = 12) -> tuple[np.ndarray, Edges]:
    """Costs of keeping and edges of up to 7 items; small numbers, so that ties are common."""
    size = draw(st.integers(1, 7))
    costs = draw(st.lists(st.integers(0, most), min_size=size, max_size=size))
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return np.array(costs), edges_of({pair: draw(st.integers(0, most)) for pair in chosen})


def cost(kept: np.ndarray, gain: np.ndarray, edges: Edges) -> int:
    """E less the constant cost of dropping all."""
    severed = kept[edges.first] != kept[edges.second]
    return int(-gain[kept].sum() + edges.units[severed].sum())


def best_by_trying(gain: np.ndarray, edges: Edges) -> np.ndarray:
    """The largest of the cheapest choices."""
    choices = [np.array(a, dtype=bool) for a in product((False, True), repeat=len(gain))]
    return min(choices, key=lambda kept: (cost(kept, gain, edges), -kept.sum()))


def one_problem(costs: np.ndarray, edges: Edges) -> list[CutProblem]:
    return [CutProblem(np.arange(len(costs)), costs, edges)]


@settings(max_examples=300, deadline=None)
@given(problem=problems(), drop=st.integers(0, 14))
def test_no_choice_is_cheaper_and_none_as_cheap_is_larger(problem, drop):
    costs, edges = problem
    found = largest_keep_set(drop - costs, edges)
    assert found.tolist() == best_by_trying(drop - costs, edges).tolist()


@settings(max_examples=100, deadline=None)
@given(problem=problems(), size=st.sampled_from([10**5, 10**7, 10**9]))
def test_capacities_beyond_32_bits_are_cut_as_exactly(problem, size):
    # An edge so strong that no cheap cut severs it may be as strong as it likes.
    costs, edges = problem
    strong = edges._replace(units=edges.units * size)
    found = largest_keep_set(6 - costs, strong)
    assert found.tolist() == best_by_trying(6 - costs, strong).tolist()


@settings(max_examples=100, deadline=None)
@given(problem=problems(), drops=st.tuples(*[st.integers(0, 14)] * 3))
def test_kept_sets_are_nested_and_known_ones_shorten_the_way(problem, drops):
    whole = one_problem(*problem)
    everything = np.ones(len(problem[0]), bool)
    low, middle, high = (keep_set(whole, drop, everything) for drop in sorted(drops))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert keep_set(whole, sorted(drops)[1], high, low).tolist() == middle.tolist()


@settings(max_examples=100, deadline=None)
@given(problem=problems(), data=st.data())
def test_bisection_finds_the_smallest_cost_of_dropping(problem, data):
    whole = one_problem(*problem)
    size = len(problem[0])
    classes = np.zeros(size, np.int64)
    wanted = data.draw(st.integers(1, size))
    everything = np.ones(size, bool)
    threshold, kept = smallest_threshold(whole, classes, wanted)
    assert keep_set(whole, threshold, everything).tolist() == kept.tolist()
    assert with_least_kept(kept, problem[0], classes).sum() >= wanted
    if threshold > 0:
        below = keep_set(whole, threshold - 1, everything)
        assert with_least_kept(below, problem[0], classes).sum() < wanted


def test_refuses_flows_that_do_not_fit_32_bits():
    none = edges_of({})
    gain = np.array([FLOW_LIMIT // 2, FLOW_LIMIT // 2, -FLOW_LIMIT])
    with pytest.raises(
        ValueError, match=f"flow of up to {FLOW_LIMIT} units exceeds {FLOW_LIMIT - 1}"
    ):
        largest_keep_set(gain, none)
    gain[0] -= 1
    assert largest_keep_set(gain, none).tolist() == [True, True, False]


def test_the_largest_flow_that_fits_is_cut_exactly():
    half = FLOW_LIMIT // 2
    chain = edges_of({(0, 1): FLOW_LIMIT, (1, 2): half - 2})
    assert largest_keep_set(np.array([half, half - 1, -FLOW_LIMIT]), chain).tolist() == [
        True,
        True,
        False,
    ]
    chain = edges_of({(0, 1): FLOW_LIMIT, (1, 2): FLOW_LIMIT})
    assert not largest_keep_set(np.array([half, half - 1, -FLOW_LIMIT]), chain).any()


def test_costs_become_whole_millionths():
    assert in_units(np.array([0.1234564, 0.1234566, 1e30])).tolist() == [123456, 123457, 10**13]


@pytest.mark.parametrize("size", [32, 700])
def test_components_cut_one_by_one_are_the_whole_graph_cut_at_once(size):
    generator = np.random.default_rng(size)
    graph = nx.random_regular_graph(3, size // 2, seed=0)  # one component
    graph.add_edges_from((i, i + 1) for i in range(size // 2, size - 1, 2))  # and pairs
    graph.add_nodes_from(range(size))
    for item in graph:
        graph.nodes[item]["keep_cost"] = generator.uniform()
    for edge in graph.edges.values():
        edge["cost"] = generator.uniform(0, 0.1)
    apart = keep_set(cut_problems(graph), 500_000, np.ones(size, bool))
    assert set(np.flatnonzero(apart)) == oracles.minimum_cut_by_networkx(graph, 0.5)
    assert 0 < apart.sum() < size


def test_half_of_a_class_and_two_stay():
    assert least_kept(np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3])).tolist() == [1, 2, 2, 3]


def clouds(size: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 3
    centres = torch.randn(3, 4, generator=generator)
    return centres[labels] + torch.randn(size, 4, generator=generator), labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unary", ["ratio", "inter"])
def test_networkx_cuts_the_selection_graph_at_the_same_items(seed, unary):
    embeddings, labels = clouds(45, seed=seed)
    found = select_by_graph_cut(embeddings, labels, 0.8, unary=unary, neighbours=3)
    by_cut = set(found.indices) - set(found.added_back)
    assert oracles.minimum_cut_by_networkx(found.graph, found.tau) == by_cut
    assert 0 < len(by_cut) < 45
    nodes = found.graph.nodes
    assert all(nodes[i]["label"] == nodes[j]["label"] for i, j in found.graph.edges)


def test_random_control_drops_as_many_of_each_class_but_others():
    embeddings, labels = clouds(90, seed=0)
    found = select_by_graph_cut(embeddings, labels, 0.8)
    control = select_at_random(found, labels, seed=3)
    for label, (count, _) in found.kept_per_class.items():
        assert control[labels == label].sum() == count
    assert not torch.equal(control, found.kept)
    assert torch.equal(control, select_at_random(found, labels, seed=3))
    assert not torch.equal(control, select_at_random(found, labels, seed=4))


def test_stage_keeps_what_was_selected_and_says_why():
    embeddings, labels = clouds(60, seed=1)
    view = View({"embedding": embeddings})
    for choice in ("graph_cut", "random"):
        keep = selective.method(keep=0.75, selection=choice).plan[1].keep
        assert keep is not None
        kept, details = keep(view, labels)
        assert 45 <= kept.sum() < 60
        assert details["indices"] == kept.nonzero().flatten().tolist()
        assert details["selection"] == choice


def test_regression_target_is_standardised_over_the_whole_training_set():
    embeddings = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    embeddings[:, 2] = 0.1  # a dimension that says nothing
    plan = selective.method(normalise=False).plan[1]
    connector = EmbeddingRegressor(4, 5, normalise=False)
    assert plan.prepare is not None
    plan.prepare(connector, View({"embedding": embeddings}))
    target = connector.target(embeddings)
    spread, middle = torch.std_mean(target, 0, correction=0)
    torch.testing.assert_close(middle, torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(spread, torch.tensor([1.0, 1, 0, 1, 1]), rtol=1e-5, atol=1e-5)

    student, rows = torch.randn(3, 4), torch.tensor([4, 0, 9])
    shown = View({"embedding": student}), View({"embedding": embeddings[rows]})
    assert plan.transfer is not None
    loss = plan.transfer(Pair(*shown, labels=rows, index=rows), connector)
    torch.testing.assert_close(loss, (connector.linear(student) - target[rows]).square().mean(1))


def test_regression_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="need one shape"):
        regression_loss(torch.ones(4, 3), torch.ones(3))
