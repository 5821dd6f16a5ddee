"""Choosing items by the minimum cut of a graph: costs, edges, and the cut, exact in integers.

Every item i is kept (a_i = 1) at the cost U1_i or dropped (a_i = 0) at the cost tau, and an edge
(i, j) costs lambda w_ij if just one of its ends is kept:

    E(a) = sum_i [a_i U1_i + (1 - a_i) tau] + lambda sum_(i, j) w_ij [a_i != a_j].

With a source joined to i by a capacity tau, i joined to a sink by U1_i and i joined to j by
lambda w_ij, the value of a cut is E of the items on the source's side, so the minimum cut is the
best choice. Costs are rounded to whole multiples of 1e-6: a flow in floating point can have the
right value and still leave the wrong items on a side.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Unary = Literal["ratio", "inter"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNITS = 1_000_000  # capacity of a cost of 1
TINY = 1e-12
MOST = 1 << 30  # an edge's residual is up to twice its capacity and must fit 31 bits
ROWS = 1024  # rows of a matrix of distances formed at a time


class Edges(NamedTuple):
    """Undirected edges, each once, with first < second.

    Attributes:
        first: (M,) index of one end.
        second: (M,) index of the other.
        weight: (M,) w_ij in (0, 1], or capacities in whole units.
    """

    first: Integers
    second: Integers
    weight: NDArray


def keep_costs(embeddings: Floats, classes: Integers, unary: Unary = "ratio") -> Floats:
    """U1, how badly each item is embedded.

    With c_k the mean of class k, own_i = |e_i - c_(y_i)| and oth_i the distance to the nearest
    centre of another class: "ratio": own_i / oth_i, 0 for perfect, 1 on the border to the nearest
    wrong class; "inter": exp(-oth_i / mean oth), which looks at the other classes alone and so
    keeps an outlier that is far from every centre.

    Args:
        embeddings: (N, D).
        classes: (N,) in 0..K-1, none empty, K at least 2.
        unary: which cost.

    Returns:
        (N,), without unit.

    Example:
        >>> keep_costs(np.array([[0.0], [0.2], [1.1], [2.0], [2.2]]), np.array([0, 0, 0, 1, 1]))
        array([0.20634921, 0.12280702, 0.66666667, 0.06382979, 0.05660377])
    """
    count = classes.max() + 1
    centres = np.stack([embeddings[classes == k].mean(0) for k in range(count)])
    own = np.sqrt(np.square(embeddings - centres[classes]).sum(1))
    other = np.empty(len(embeddings))
    for start in range(0, len(embeddings), ROWS):
        rows = slice(start, start + ROWS)
        squared = _squared_distances(embeddings[rows], centres)
        squared[np.arange(len(squared)), classes[rows]] = np.inf
        other[rows] = np.sqrt(squared.min(1))
    return own / (other + TINY) if unary == "ratio" else np.exp(-other / (other.mean() + TINY))


def neighbour_edges(
    embeddings: Floats, classes: Integers, neighbours: int | None = 10, sigma: float | None = None
) -> Edges:
    """Edges between near classmates, w_ij = exp(-|e_i - e_j|^2 / (2 sigma^2)).

    Args:
        embeddings: (N, D).
        classes: (N,) class indices.
        neighbours: an edge joins i and j if one is among this many nearest classmates of the
            other; None joins all classmates.
        sigma: in the embeddings' unit; None takes sigma^2 as the mean squared length of an edge.

    Returns:
        The edges, ordered by class.

    Example:
        >>> points = np.array([[0.0], [0.2], [1.1], [2.0], [2.2]])
        >>> edges = neighbour_edges(points, np.array([0, 0, 0, 1, 1]), None, sigma=0.5)
        >>> [(int(i), int(j), round(float(w), 4)) for i, j, w in zip(*edges)]
        [(0, 1, 0.9231), (0, 2, 0.0889), (1, 2, 0.1979), (3, 4, 0.9231)]
    """
    first, second, squared = [], [], []
    for k in np.unique(classes):
        members = np.flatnonzero(classes == k)
        pairs = _nearest_pairs(embeddings[members], neighbours)
        ends = members[pairs[:, 0]], members[pairs[:, 1]]
        first.append(ends[0])
        second.append(ends[1])
        squared.append(np.square(embeddings[ends[0]] - embeddings[ends[1]]).sum(1))
    lengths = np.concatenate(squared)
    variance = sigma**2 if sigma is not None else lengths.mean() if len(lengths) else 1.0
    weight = np.exp(-lengths / (2 * max(variance, TINY**2)))
    return Edges(np.concatenate(first), np.concatenate(second), weight)


def _nearest_pairs(points: Floats, neighbours: int | None) -> Integers:
    """(M, 2) index pairs, smaller first: the union of every point's nearest ones."""
    size = len(points)
    wanted = size - 1 if neighbours is None else min(neighbours, size - 1)
    if wanted < 1:
        return np.empty((0, 2), np.int64)
    found = []
    for start in range(0, size, ROWS):
        squared = _squared_distances(points[start : start + ROWS], points)
        rows = np.arange(len(squared))
        squared[rows, rows + start] = np.inf
        near = np.argpartition(squared, wanted - 1, axis=1)[:, :wanted]
        found.append(np.stack([np.repeat(rows + start, wanted), near.ravel()], axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _squared_distances(first: Floats, second: Floats) -> Floats:
    # Around the second's middle, so that no digits go into a common offset.
    middle = second.mean(0)
    first, second = first - middle, second - middle
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    return np.maximum(squares - 2 * first @ second.T, 0)


def energy(
    kept: Bools, keep_cost: Floats, drop_cost: float, edges: Edges, pairwise: float
) -> float:
    """E(a) as the module states it, with lambda = `pairwise`.

    Example:
        >>> edges = Edges(np.array([0, 1]), np.array([1, 2]), np.array([0.2, 0.05]))
        >>> costs = np.array([0.2, 0.6, 0.9])
        >>> round(energy(np.array([True, True, False]), costs, 0.5, edges, 1.0), 6)
        1.35
    """
    severed = kept[edges.first] != kept[edges.second]
    return float(
        np.where(kept, keep_cost, drop_cost).sum() + pairwise * edges.weight[severed].sum()
    )


def in_units(costs: NDArray | float) -> Integers:
    """Costs as whole capacities, rounded to 1e-6; those above 1e7 count as 1e7.

    Example:
        >>> in_units(np.array([0.1234567, 1e12]))
        array([        123457, 10000000000000])
    """
    return np.rint(np.minimum(costs, 1e7) * UNITS).astype(np.int64)


class Group(NamedTuple):
    """Items that share edges with no others: a cut of their own.

    Attributes:
        members: (n,) their indices.
        keep_units: (n,) U1 in whole units.
        edges: among 0..n-1, weights lambda w_ij in whole units.
    """

    members: Integers
    keep_units: Integers
    edges: Edges

    @property
    def floor(self) -> int:
        """How many are kept at least: half of them, and two where there are two."""
        size = len(self.members)
        return min(size, max(2, -(-size // 2)))


def with_floor(cut: Bools, groups: list[Group]) -> Bools:
    """The cut, and in each group those dropped at the lowest U1 until its floor is reached.

    Example:
        >>> alone = Edges(*(np.empty(0, np.int64) for _ in range(3)))
        >>> group = Group(np.arange(4), np.array([90, 60, 20, 70]), alone)
        >>> with_floor(np.array([False, False, True, False]), [group])
        array([False,  True,  True, False])
    """
    kept = cut.copy()
    for group in groups:
        missing = group.floor - int(cut[group.members].sum())
        if missing > 0:
            dropped = np.flatnonzero(~cut[group.members])
            best = dropped[np.argsort(group.keep_units[dropped], kind="stable")[:missing]]
            kept[group.members[best]] = True
    return kept


def split_by_class(
    keep_units: Integers, classes: Integers, edges: Edges, pairwise: float
) -> list[Group]:
    """One group a class: edges join classmates only, so the minimum cut decomposes exactly.

    Args:
        keep_units: (N,) U1 in whole units.
        classes: (N,) class indices.
        edges: w_ij, between classmates.
        pairwise: lambda.

    Returns:
        The groups, by class.
    """
    units, place, groups = in_units(pairwise * edges.weight), np.empty_like(classes), []
    for k in np.unique(classes):
        members = np.flatnonzero(classes == k)
        place[members] = np.arange(len(members))
        own = classes[edges.first] == k
        inside = Edges(place[edges.first[own]], place[edges.second[own]], units[own])
        groups.append(Group(members, keep_units[members], inside))
    return groups


def keep_set(
    groups: list[Group], drop_units: int, within: Bools, without: Bools | None = None
) -> Bools:
    """The best choice at one cost of dropping; of equally good ones, the largest.

    The sets are nested: what is kept at some cost of dropping is kept at any higher one. So a set
    kept at a lower cost, and one kept at a higher cost, leave only the items between them open.

    Args:
        groups: of all items.
        drop_units: tau in whole units.
        within: (N,) bool, kept at a higher cost of dropping; all True if none is known.
        without: (N,) bool, kept at a lower one; None if none is known.

    Returns:
        (N,) bool, kept.
    """
    kept = np.zeros_like(within) if without is None else without.copy()
    for group in groups:
        sure = kept[group.members]
        open_items = within[group.members] & ~sure
        if open_items.any():
            gain, edges = _contracted(group, drop_units, sure, open_items)
            kept[group.members[open_items]] = largest_keep_set(gain, edges)
    return kept


def _contracted(
    group: Group, drop_units: int, sure: Bools, open_items: Bools
) -> tuple[Integers, Edges]:
    """The problem left for the open items: an edge to a decided one becomes a gain or a loss."""
    first, second, units = group.edges
    side = np.where(open_items, 0, np.where(sure, 1, -1))
    gain = drop_units - group.keep_units
    np.add.at(gain, first, units * side[second])
    np.add.at(gain, second, units * side[first])
    place = np.cumsum(open_items) - 1
    inside = open_items[first] & open_items[second]
    edges = Edges(place[first[inside]], place[second[inside]], units[inside])
    return gain[open_items], edges


def smallest_threshold(groups: list[Group], wanted: int) -> tuple[int, Bools]:
    """The smallest cost of dropping at which at least `wanted` items are kept, by bisection.

    What the floors of the groups will add counts as kept: it grows with tau as the cut does.

    Args:
        groups: of all items.
        wanted: 1 to their number.

    Returns:
        tau in whole units, and the (N,) bool set that the cut keeps at it, without floors.

    Example:
        >>> alone = Edges(*(np.empty(0, np.int64) for _ in range(3)))
        >>> group = Group(np.arange(4), np.array([20, 90, 60, 95]), alone)
        >>> smallest_threshold([group], 3)
        (90, array([ True,  True,  True, False]))
    """

    def enough(kept: Bools) -> bool:
        return sum(max(group.floor, kept[group.members].sum()) for group in groups) >= wanted

    keep_units = np.concatenate([group.keep_units for group in groups])
    everything = np.ones(len(keep_units), np.bool_)
    low, low_kept = -1, ~everything
    high = int(np.sort(keep_units)[wanted - 1])  # the answer where no edge pulls
    while not enough(high_kept := keep_set(groups, high, everything, low_kept)):
        low, low_kept = high, high_kept
        high = 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        kept = keep_set(groups, middle, high_kept, low_kept)
        if enough(kept):
            high, high_kept = middle, kept
        else:
            low, low_kept = middle, kept
    return high, high_kept


def largest_keep_set(gain: Integers, edges: Edges) -> Bools:
    """The best choice by the graph's minimum cut; of equally good ones, the largest.

    Args:
        gain: (n,) cost of dropping less cost of keeping, in whole units: only the difference of
            an item's two costs moves the choice.
        edges: among the n items, with the capacities lambda w_ij in whole units as weights.

    Returns:
        (n,) bool, kept.

    Raises:
        ValueError: more items than 32-bit flows can serve.

    Example:
        >>> edges = Edges(np.array([0, 1]), np.array([1, 2]), np.array([20, 5]))
        >>> largest_keep_set(np.array([50, 50, 50]) - np.array([20, 60, 90]), edges)
        array([ True,  True, False])
    """
    most = int(min(gain.clip(min=0).sum(), (-gain).clip(min=0).sum()))
    if most >= MOST:
        raise ValueError(
            f"minimum cut of {len(gain)} items: a flow of up to {most} units exceeds {MOST - 1}; "
            "choose within smaller groups"
        )
    # Keeping all, or none, costs no more than `most`: larger capacities are never cut anyway.
    gain = gain.clip(-most - 1, most + 1)
    return ~_reaches_sink(gain, edges._replace(weight=edges.weight.clip(max=most + 1)))


def _reaches_sink(gain: Integers, edges: Edges) -> Bools:
    """Which items have an unsaturated path to the sink once the flow is as large as can be.

    They are on the sink's side of every minimum cut; all others may stay with the source.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    size = len(gain)
    source, sink = size, size + 1
    gains, losses = np.flatnonzero(gain > 0), np.flatnonzero(gain < 0)
    tails = np.concatenate([np.full(len(gains), source), losses, edges.first, edges.second])
    heads = np.concatenate([gains, np.full(len(losses), sink), edges.second, edges.first])
    units = np.concatenate([gain[gains], -gain[losses], edges.weight, edges.weight])
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
