"""Which training images show best what a selection did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bench.method import Selection

EACH = 6


def example_images(
    selection: Selection, labels: Tensor, raw_images: Callable[[Tensor], Tensor], each: int = EACH
) -> dict[str, Tensor]:
    """The clearest cases of each class shown: kept at the lowest cost, dropped at the highest.

    Args:
        selection: its evidence names "keep_costs", one number for each image, and
            "shown_classes"; without both there is nothing to choose by.
        labels: (N,).
        raw_images: positions (M,) -> (M, C, H, W) uint8, as they came.
        each: at most as many kept and as many dropped images of a class.

    Returns:
        "<label>.kept" and "<label>.dropped", (M, C, H, W) uint8, clearest first; and under
        "<name>.index" their positions, (M,) int64. A side without images has no entry.

    Example:
        >>> chosen = Selection(torch.tensor([True, True, False]),
        ...                    {"keep_costs": [0.4, 0.1, 0.9], "shown_classes": [5]})
        >>> found = example_images(chosen, torch.tensor([5, 5, 5]), torch.eye(3).byte().__getitem__)
        >>> {name: x.tolist() for name, x in found.items() if "index" in name}
        {'5.kept.index': [1, 0], '5.dropped.index': [2]}
    """
    found: dict[str, Tensor] = {}
    for name, index in example_positions(selection, labels, each).items():
        images = raw_images(index)
        found |= {name: images.cpu().contiguous(), f"{name}.index": index}
    return found


def example_positions(selection: Selection, labels: Tensor, each: int = EACH) -> dict[str, Tensor]:
    """The positions that `example_images` shows, by "<label>.kept" and "<label>.dropped"."""
    costs, classes = _costs_and_classes(selection.evidence)
    if len(costs) != len(labels):
        return {}
    kept, labels = selection.kept.cpu(), labels.cpu()
    cost = torch.tensor(costs, dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for label in classes:
        for side, chosen, sign in (("kept", kept, 1), ("dropped", ~kept, -1)):
            members = (chosen & (labels == label)).nonzero().flatten()
            order = (sign * cost[members]).argsort(stable=True)
            if len(members):
                found[f"{label}.{side}"] = members[order[:each]]
    return found


def _costs_and_classes(evidence: Mapping[str, object]) -> tuple[Sequence[float], Sequence[int]]:
    costs, classes = evidence.get("keep_costs"), evidence.get("shown_classes")
    if isinstance(costs, Sequence) and isinstance(classes, Sequence):
        return costs, classes
    return (), ()
