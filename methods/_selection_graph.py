"""The graph that selective KD cuts: images, their costs of keeping, edges to near classmates."""

from typing import Literal

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from methods._minimum_cut import Bools, Integers

Unary = Literal["ratio", "inter"]
Floats = NDArray[np.float64]

TINY = 1e-12
ROWS = 1024  # rows of a distance matrix formed at a time
CLASSES_DRAWN, DRAWN_PER_CLASS = 5, 200


def selection_graph(
    points: Floats,
    labels: Integers,
    *,
    unary: Unary = "ratio",
    neighbours: int | None = 10,
    pairwise: float = 1.0,
    lam: float | None = None,
    sigma: float | None = None,
) -> nx.Graph:
    """One node per item, with its cost of keeping, and an edge between near classmates.

    An edge costs lambda w_ij, w_ij = exp(-|e_i - e_j|^2 / (2 sigma^2)).

    Args:
        points: e, (N, D).
        labels: (N,) class of each item, at least two classes.
        unary: which cost of keeping, see `keep_costs`.
        neighbours: an edge joins i and j if one is among this many nearest classmates of the
            other; None joins all classmates.
        pairwise: lambda in units of `lambda_unit`.
        lam: lambda itself; then `pairwise` is not used.
        sigma: in the unit of the points; None takes sigma^2 as the mean squared edge length.

    Returns:
        Nodes 0..N-1 with "label" and "keep_cost"; edges with "cost"; "lambda" of the graph.

    Example:
        >>> points = np.array([[0.0], [0.2], [1.1], [2.0], [2.2]])
        >>> graph = selection_graph(points, np.array([0, 0, 0, 1, 1]), neighbours=None,
        ...                         lam=1.0, sigma=0.5)
        >>> [(i, j, round(cost, 4)) for i, j, cost in graph.edges.data("cost")]
        [(0, 1, 0.9231), (0, 2, 0.0889), (1, 2, 0.1979), (3, 4, 0.9231)]
        >>> [sorted(component) for component in nx.connected_components(graph)]
        [[0, 1, 2], [3, 4]]
    """
    names, classes = np.unique(labels, return_inverse=True)
    costs = keep_costs(points, classes, unary)
    graph = nx.Graph()
    for item, (label, cost) in enumerate(zip(names[classes].tolist(), costs.tolist(), strict=True)):
        graph.add_node(item, label=label, keep_cost=cost)
    first, second = np.concatenate(
        [
            members[_nearest_pairs(points[members], neighbours)]
            for members in (np.flatnonzero(classes == k) for k in range(len(names)))
        ]
    ).T
    lengths = np.square(points[first] - points[second]).sum(1)
    variance = sigma**2 if sigma is not None else lengths.mean() if len(lengths) else 1.0
    weights = np.exp(-lengths / (2 * max(variance, TINY**2)))
    if lam is None:
        lam = pairwise * lambda_unit(costs, classes, first, second, weights)
    graph.graph["lambda"] = lam
    edges = zip(first.tolist(), second.tolist(), (lam * weights).tolist(), strict=True)
    graph.add_weighted_edges_from(edges, weight="cost")
    return graph


def lambda_unit(
    costs: Floats, classes: Integers, first: Integers, second: Integers, weights: Floats
) -> float:
    """The lambda at which a typical item's edges weigh as much as costs differ in a class.

    Spread of U1 / typical weight: the median of |U1_i - median of its class|, over the median of
    sum_j w_ij. At this lambda it costs a typical item, to be parted from all its neighbours, as
    much as its U1 is from its class's. At many times this lambda whole classes are kept or dropped
    as one, whatever the number of items: it grows with the neighbours of an item and not with N.

    Args:
        costs: U1, (N,).
        classes: (N,) in 0..K-1.
        first: (M,) index of one end of each edge.
        second: (M,) index of the other.
        weights: w, (M,).

    Returns:
        Without unit; 0 where no item has edges or costs do not differ.

    Example:
        >>> costs, classes = np.array([0.1, 0.2, 0.4, 0.5, 0.6]), np.array([0, 0, 0, 1, 1])
        >>> edges = np.array([0, 1, 3]), np.array([1, 2, 4]), np.array([1.0, 0.5, 0.8])
        >>> round(lambda_unit(costs, classes, *edges), 4)      # median difference .05, weight .8
        0.0625
    """
    centres = np.array([np.median(costs[classes == k]) for k in range(classes.max() + 1)])
    spread = np.median(np.abs(costs - centres[classes]))
    ends = np.concatenate([first, second])
    typical = np.median(np.bincount(ends, np.tile(weights, 2), minlength=len(costs)))
    return float(spread / typical) if typical > 0 else 0.0


def keep_costs(points: Floats, classes: Integers, unary: Unary = "ratio") -> Floats:
    """U1, how badly each item is embedded.

    With c_k the mean of class k, own_i = |e_i - c_(y_i)| and oth_i the distance to the nearest
    centre of another class: "ratio": own_i / oth_i, 0 for perfect, 1 on the border to the nearest
    wrong class; "inter": exp(-oth_i / mean oth), which looks at the other classes alone and so
    keeps an outlier that is far from every centre.

    Args:
        points: e, (N, D).
        classes: (N,) in 0..K-1, none empty, K at least 2.
        unary: which cost; (N,), without unit.

    Example:
        >>> keep_costs(np.array([[0.0], [0.2], [1.1], [2.0], [2.2]]), np.array([0, 0, 0, 1, 1]))
        array([0.20634921, 0.12280702, 0.66666667, 0.06382979, 0.05660377])
    """
    centres = np.stack([points[classes == k].mean(0) for k in range(classes.max() + 1)])
    own = np.sqrt(np.square(points - centres[classes]).sum(1))
    other = np.empty(len(points))
    for start in range(0, len(points), ROWS):
        rows = slice(start, start + ROWS)
        squared = _squared_distances(points[rows], centres)
        squared[np.arange(len(squared)), classes[rows]] = np.inf
        other[rows] = np.sqrt(squared.min(1))
    return own / (other + TINY) if unary == "ratio" else np.exp(-other / (other.mean() + TINY))


def _nearest_pairs(points: Floats, neighbours: int | None) -> Integers:
    """(M, 2) index pairs, smaller first: the union of the nearest neighbours of every point."""
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
    # Centred, so that a common offset does not use up the digits.
    middle = second.mean(0)
    first, second = first - middle, second - middle
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    return np.maximum(squares - 2 * first @ second.T, 0)


def drawing_of(graph: nx.Graph, kept: Bools, points: Floats) -> dict[str, object]:
    """JSON-able: the classes that lost most items, on the two principal axes of their points.

    At most 5 classes and 200 items of each, spread evenly over their cost of keeping.

    "items": their indices, ascending; "labels", "kept", "x", "y" of each, in four digits; "edges":
    pairs of indices. The points are those of the graph.
    """
    labels = np.array([label for _, label in graph.nodes.data("label")])
    costs = np.array([cost for _, cost in graph.nodes.data("keep_cost")])
    classes = np.unique(labels, return_inverse=True)[1]
    lost = np.bincount(classes, weights=~kept)
    drawn = []
    for k in np.argsort(-lost, kind="stable")[:CLASSES_DRAWN]:
        members = np.flatnonzero(classes == k)
        members = members[np.argsort(costs[members], kind="stable")]
        count = min(len(members), DRAWN_PER_CLASS)
        drawn.append(members[np.linspace(0, len(members) - 1, count).round().astype(int)])
    items = np.sort(np.concatenate(drawn))
    left, lengths, _ = np.linalg.svd(points[items] - points[items].mean(0), full_matrices=False)
    x, y = np.pad(left * lengths, ((0, 0), (0, 1)))[:, :2].T  # embeddings may have one dimension
    return {
        "items": items.tolist(),
        "labels": labels[items].tolist(),
        "kept": kept[items].tolist(),
        "x": [float(f"{value:.4g}") for value in x],
        "y": [float(f"{value:.4g}") for value in y],
        "edges": [sorted(edge) for edge in graph.subgraph(items.tolist()).edges],
    }
