"""The minimum cut of a selection graph: which items to keep, exact in integers.

Every item i is kept (a_i = 1) at the cost U1_i or dropped (a_i = 0) at the cost tau, and an edge
(i, j) costs lambda w_ij if exactly one of its ends is kept:

    E(a) = sum_i [a_i U1_i + (1 - a_i) tau] + lambda sum_(i, j) w_ij [a_i != a_j].

Join a source to i with capacity tau, i to a sink with U1_i, and i to j with lambda w_ij. The value
of a cut is then E of the items on the source's side, so the minimum cut is the best choice. Costs
are rounded to whole multiples of 1e-6: a flow in floating point can have the right value and still
leave the wrong items on a side.

networkx holds the graph and finds its connected components; SciPy finds the maximum flow, because
networkx's is written in Python. One cut of a training set (10 nearest classmates per image, keep
0.9, one CPU core) takes

    N =  1,297,  10 classes,   9,585 edges:  SciPy 0.015 s,  networkx  0.77 s
    N = 50,000, 100 classes, 412,403 edges:  SciPy  0.36 s,  networkx    37 s

and finding tau takes some 20 cuts. The whole selection of N = 50,000 takes about 15 s.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNITS = 1_000_000  # capacity of a cost of 1
LARGEST_COST = 1e7
FLOW_LIMIT = 1 << 30  # the residual of an edge is up to twice its capacity and must fit 31 bits
BATCH = 256  # nodes cut at a time: SciPy's overhead per call would dominate small components


class Edges(NamedTuple):
    """Undirected edges, each once.

    Attributes:
        first: (M,) index of one end.
        second: (M,) index of the other.
        units: (M,) lambda w_ij in whole units.
    """

    first: Integers
    second: Integers
    units: Integers


class CutProblem(NamedTuple):
    """Items that share no edge with any other item, and so are cut on their own.

    Attributes:
        members: (n,) their indices in the graph, ascending.
        keep_units: (n,) U1 in whole units.
        edges: among 0..n-1.
    """

    members: Integers
    keep_units: Integers
    edges: Edges


def in_units(costs: NDArray | float) -> Integers:
    """Costs as whole capacities, rounded to 1e-6; those above 1e7 count as 1e7.

    Example:
        >>> in_units(np.array([0.1234567, 1e12]))
        array([        123457, 10000000000000])
    """
    return np.rint(np.minimum(costs, LARGEST_COST) * UNITS).astype(np.int64)


def cut_problems(graph: nx.Graph) -> list[CutProblem]:
    """The graph in batches of whole connected components: the minimum cut decomposes exactly.

    Args:
        graph: nodes 0..N-1 with "keep_cost", edges with "cost"; see `selection_graph`.

    Example:
        >>> graph = nx.path_graph(3)
        >>> nx.set_node_attributes(graph, {0: 0.2, 1: 0.6, 2: 0.9}, "keep_cost")
        >>> nx.set_edge_attributes(graph, 0.1, "cost")
        >>> cut_problems(graph)[0].keep_units
        array([200000, 600000, 900000])
    """
    problems = []
    for batch in _batches(nx.connected_components(graph)):
        members = sorted(batch)
        keep_units = in_units(np.array([graph.nodes[item]["keep_cost"] for item in members]))
        # First end, second end, cost; float64 holds the indices exactly.
        edges = np.array(list(graph.edges(members, data="cost")), np.float64).reshape(-1, 3)
        first, second = np.searchsorted(members, edges[:, :2]).T
        problems.append(
            CutProblem(np.array(members), keep_units, Edges(first, second, in_units(edges[:, 2])))
        )
    return problems


def _batches(components: Iterable[set[int]]) -> Iterator[set[int]]:
    batch: set[int] = set()
    for component in components:
        batch |= component
        if len(batch) >= BATCH:
            yield batch
            batch = set()
    if batch:
        yield batch


def least_kept(classes: Integers) -> Integers:
    """(K,) how many items of each class stay: at least half, and two where there are two.

    Example:
        >>> least_kept(np.array([0, 1, 1, 2, 2, 2, 2, 2]))
        array([1, 2, 3])
    """
    sizes = np.bincount(classes)
    return np.minimum(sizes, np.maximum(2, -(-sizes // 2)))


def with_least_kept(cut: Bools, keep_units: Integers, classes: Integers) -> Bools:
    """The cut, and per class the dropped items of lowest U1 until `least_kept` is reached.

    Example:
        >>> cut = np.array([False, False, True, False])
        >>> with_least_kept(cut, np.array([90, 60, 20, 70]), np.zeros(4, np.int64))
        array([False,  True,  True, False])
    """
    kept = cut.copy()
    missing = least_kept(classes) - np.bincount(classes[cut], minlength=classes.max() + 1)
    for k in np.flatnonzero(missing > 0):
        dropped = np.flatnonzero(~cut & (classes == k))
        kept[dropped[np.argsort(keep_units[dropped], kind="stable")[: missing[k]]]] = True
    return kept


def keep_set(problems: list[CutProblem], drop_units: int) -> Bools:
    """The best choice at one cost of dropping, (N,) bool; of equally good ones, the largest.

    The sets are nested: what is kept at some cost of dropping is kept at any higher one.
    `drop_units` is tau in whole units.
    """
    kept = np.zeros(sum(len(problem.members) for problem in problems), np.bool_)
    for problem in problems:
        kept[problem.members] = largest_keep_set(drop_units - problem.keep_units, problem.edges)
    return kept


def smallest_threshold(problems: list[CutProblem], classes: Integers, wanted: int) -> int:
    """The smallest cost of dropping, in whole units, at which `wanted` items or more are kept.

    By bisection. Items that `with_least_kept` will add count as kept; their number grows with tau,
    too. `classes` is (N,) in 0..K-1, `wanted` 1 to N.

    Example:
        >>> alone = Edges(*(np.empty(0, np.int64) for _ in range(3)))
        >>> problem = CutProblem(np.arange(4), np.array([20, 90, 60, 95]), alone)
        >>> smallest_threshold([problem], np.zeros(4, np.int64), 3)
        90
    """
    floors = least_kept(classes)

    def enough(drop_units: int) -> bool:
        by_class = np.bincount(classes[keep_set(problems, drop_units)], minlength=len(floors))
        return np.maximum(floors, by_class).sum() >= wanted

    # At the highest cost of keeping, everything is kept.
    highest = max(int(problem.keep_units.max()) for problem in problems)
    return bisect_left(range(highest), True, key=enough)


def largest_keep_set(gain: Integers, edges: Edges) -> Bools:
    """The best choice by the minimum cut; of equally good ones, the largest.

    Args:
        gain: (n,) cost of dropping less cost of keeping, in whole units: only the difference of
            an item's two costs moves the choice.
        edges: among the n items.

    Returns:
        (n,) bool, kept.

    Raises:
        ValueError: the flow may not fit 32 bits.

    Example:
        >>> edges = Edges(np.array([0, 1]), np.array([1, 2]), np.array([20, 5]))
        >>> largest_keep_set(np.array([50, 50, 50]) - np.array([20, 60, 90]), edges)
        array([ True,  True, False])
    """
    most = int(min(gain.clip(min=0).sum(), (-gain).clip(min=0).sum()))
    if most >= FLOW_LIMIT:
        raise ValueError(
            f"minimum cut of {len(gain)} items: a flow of up to {most} units exceeds "
            f"{FLOW_LIMIT - 1}; give fewer neighbours, so that classes fall into smaller components"
        )
    # Keeping all, or nothing, costs no more than `most`, so larger capacities are never cut.
    gain = gain.clip(-most - 1, most + 1)
    return ~_reaches_sink(gain, edges._replace(units=edges.units.clip(max=most + 1)))


def _reaches_sink(gain: Integers, edges: Edges) -> Bools:
    """Which items have an unsaturated path to the sink under a maximum flow.

    They are on the sink's side of every minimum cut; all others may stay with the source.
    """
    size = len(gain)
    source, sink = size, size + 1
    gains, losses = np.flatnonzero(gain > 0), np.flatnonzero(gain < 0)
    tails = np.concatenate([np.full(len(gains), source), losses, edges.first, edges.second])
    heads = np.concatenate([gains, np.full(len(losses), sink), edges.second, edges.first])
    units = np.concatenate([gain[gains], -gain[losses], edges.units, edges.units])
    capacities = csr_matrix((units.astype(np.int32), (tails, heads)), shape=(size + 2, size + 2))
    capacities.eliminate_zeros()
    flow = maximum_flow(capacities, source, sink, method="dinic").flow
    residual = capacities.astype(np.int64) - flow.astype(np.int64)
    residual.eliminate_zeros()
    backwards = residual.T.tocsr()
    reached = breadth_first_order(backwards, sink, return_predecessors=False)
    side = np.zeros(size + 2, np.bool_)
    side[reached] = True
    return side[:size]
