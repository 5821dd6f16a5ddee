"""What a selection of training images leaves behind to be looked at: costs, counts and a map."""

from __future__ import annotations

import numpy as np

from methods._graph_cut import Bools, Floats, Integers

SHOWN = 5
MAPPED = 5000
BORDERS = np.linspace(0, 2, 41)


def evidence_of(
    kept: Bools, keep_cost: Floats, points: Floats, labels: Integers
) -> dict[str, object]:
    """JSON-able: which images were kept, at which costs, and where they lie.

    Args:
        kept: (N,).
        keep_cost: (N,), what keeping each costs.
        points: (N, D), the embeddings as the selection compared them.
        labels: (N,).

    Returns:
        "images", "kept", "kept_fraction": counts and their share; "kept_per_class": label ->
        [kept, all]; "indices": the kept; "keep_costs": of all N; "keep_cost_histogram"; then
        "shown_classes" and their "map". Real numbers have four digits.

    Example:
        >>> found = evidence_of(np.array([True, True, False, True]), np.array([0.1, 0.2, 0.9, 3]),
        ...                     np.eye(4), np.array([7, 7, 7, 4]))
        >>> found["indices"], found["kept_per_class"], found["shown_classes"]
        ([0, 1, 3], {'4': [1, 1], '7': [2, 3]}, [7, 4])
    """
    shown = shown_classes(kept, labels)
    return {
        "images": len(kept),
        "kept": int(kept.sum()),
        "kept_fraction": float(kept.mean()),
        "kept_per_class": {
            str(label): [int(kept[labels == label].sum()), int((labels == label).sum())]
            for label in np.unique(labels).tolist()
        },
        "indices": np.flatnonzero(kept).tolist(),
        "keep_costs": _short(keep_cost),
        "keep_cost_histogram": cost_histogram(kept, keep_cost),
        "shown_classes": shown,
        "map": plane(kept, keep_cost, points, labels, shown),
    }


def shown_classes(kept: Bools, labels: Integers, most: int = SHOWN) -> list[int]:
    """The classes that lost most images, most first; of equals the smaller label first."""
    names, place = np.unique(labels, return_inverse=True)
    dropped = np.bincount(place, weights=~kept)
    return names[np.argsort(-dropped, kind="stable")[:most]].tolist()


def cost_histogram(kept: Bools, keep_cost: Floats) -> dict[str, list]:
    """Counts of kept, of dropped and of all images over `BORDERS`; the last bin is open above."""
    values = np.minimum(keep_cost, BORDERS[-1])
    counts = {
        name: np.histogram(values[chosen], BORDERS)[0].tolist()
        for name, chosen in (("kept", kept), ("dropped", ~kept), ("counts", kept | True))
    }
    return {**counts, "borders": BORDERS.round(3).tolist()}


def plane(
    kept: Bools,
    keep_cost: Floats,
    points: Floats,
    labels: Integers,
    shown: list[int],
    most: int = MAPPED,
) -> dict[str, object]:
    """Images of the `shown` classes on the two principal axes of their embeddings.

    The axes are fitted to these classes alone: those of a hundred classes would pile five of
    them up in one heap. Above `most` images a sample stands for all: of the kept and of the
    dropped of each class the same share, spread evenly over their costs.

    Returns:
        "images": indices, ascending; "labels", "x", "y" of each, in the embeddings' unit;
        "variance": the two axes' shares of the variance; "of": how many images the shown classes
        have, more than "images" holds if they were sampled.

    Example:
        >>> line = np.array([[0.0, 0], [3, 4], [6, 8]])
        >>> kept, labels = np.array([True, True, False]), np.array([0, 0, 1])
        >>> found = plane(kept, np.zeros(3), line, labels, [0, 1])
        >>> found["x"], found["y"], found["variance"]
        ([-5.0, 0.0, 5.0], [0.0, 0.0, 0.0], [1.0, 0.0])
    """
    members = np.flatnonzero(np.isin(labels, shown))
    share = min(1.0, most / len(members))
    strata = [
        members[(labels[members] == label) & (kept[members] == side)]
        for label in shown
        for side in (True, False)
    ]
    chosen = np.sort(np.concatenate([_spread(stratum, keep_cost, share) for stratum in strata]))
    x, y, variance = principal_axes(points[chosen])
    return {
        "images": chosen.tolist(),
        "labels": labels[chosen].tolist(),
        "x": _short(x),
        "y": _short(y),
        "variance": _short(variance),
        "of": len(members),
    }


def _spread(stratum: Integers, keep_cost: Floats, share: float) -> Integers:
    """A `share` of the stratum, at least one if it has any, evenly over its order by cost."""
    count = int(np.ceil(share * len(stratum) - 1e-9))
    order = stratum[np.argsort(keep_cost[stratum], kind="stable")]
    return order[np.linspace(0, len(order) - 1, count).round().astype(np.int64)]


def principal_axes(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Coordinates (N,) and (N,) on the first two principal axes, and their shares of variance.

    An axis points where its largest component is positive; one that is not there has zeros.
    """
    centred = points - points.mean(0)
    left, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    places, shares = np.zeros((2, len(points))), np.zeros(2)
    total = np.square(lengths).sum()
    # What is left of an axis without variance is rounding: no direction to be drawn.
    for axis in range(int((lengths[:2] > 1e-9 * lengths[:1]).sum())):
        sign = 1 if axes[axis, np.abs(axes[axis]).argmax()] > 0 else -1
        places[axis] = sign * left[:, axis] * lengths[axis]
        shares[axis] = lengths[axis] ** 2 / total
    return places[0], places[1], shares


def _short(values: Floats) -> list[float]:
    # + 0.0: no -0.0 in a file.
    return [float(f"{value:.4g}") + 0.0 for value in values.tolist()]
