"""Selective KD: distil the teacher's embedding of those images that it embeds well.

A low-resolution student first learns alone; then a graph cut drops the images that the teacher
embeds badly; then the student is fine-tuned on the rest, regressing the teacher's embedding of
the clean high-resolution image beside the classification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Selection, Shapes, Stage, View
from methods._checks import above_zero, between, one_of, same_shape
from methods._graph_cut import (
    UNITS,
    Bools,
    Edges,
    Floats,
    Group,
    Integers,
    Unary,
    energy,
    in_units,
    keep_costs,
    keep_set,
    neighbour_edges,
    smallest_threshold,
    split_by_class,
    with_floor,
)
from methods._selection_evidence import evidence_of

if TYPE_CHECKING:
    import networkx as nx

Choice = Literal["graph_cut", "random"]

SOURCE = """\
S. Ge, S. Zhao, C. Li, J. Li: Low-resolution Face Recognition in the Wild via Selective Knowledge \
Distillation, IEEE Transactions on Image Processing 2019.
A reconstruction: the paper's energy was not at hand. What is dropped minimises a cost per image \
(distance to the own class centre over that to the nearest other) plus the weight of edges between \
near classmates that the choice separates. The student learns all the labels first and sees only \
kept images while it regresses the standardised embedding. The regression is a side branch; the \
paper's layers inside the student, which would change its size, are left out. Resolution is an \
axis of the grid, not of the method."""


@dataclass(frozen=True, kw_only=True)
class GraphCut:
    """What a selection kept, and why.

    Attributes:
        kept: (N,) bool.
        tau: cost of dropping an image.
        keep_cost: (N,) float64, U1: 0 for a perfectly embedded image, 1 on the border to the
            nearest wrong class ("ratio").
        energy: E of what the cut kept, the lowest there is.
        added_back: indices that the cut dropped and the floor of their class took back.
        kept_per_class: label -> (kept, all).
        points: (N, D) float64, the embeddings as they were compared.
        labels: (N,) class of each.
        edges: between near classmates.
        pairwise: lambda, on the edges' weight.
    """

    kept: Tensor
    tau: float
    keep_cost: Tensor
    energy: float
    added_back: tuple[int, ...]
    kept_per_class: Mapping[int, tuple[int, int]]
    points: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    edges: Edges = field(repr=False)
    pairwise: float

    @property
    def indices(self) -> list[int]:
        """The kept images, ascending."""
        return self.kept.nonzero().flatten().tolist()

    def energy_of(self, kept: Tensor) -> float:
        """E of any choice, (N,) bool: at least `energy`, save for the rounding of its costs."""
        return energy(kept.numpy(), self.keep_cost.numpy(), self.tau, self.edges, self.pairwise)

    def evidence(self, kept: Tensor | None = None) -> dict[str, object]:
        """JSON-able: threshold, energies, and all that `evidence_of` says of what was kept.

        Args:
            kept: (N,) bool, another choice, to be seen beside the cut's; None for the cut's own,
                with what the floor of a class took back.
        """
        own = kept is None
        kept = self.kept if own else kept
        images = (x.numpy() for x in (kept, self.keep_cost, self.points, self.labels))
        return {
            "tau": self.tau,
            "energy": self.energy,
            "energy_of_kept": self.energy_of(kept),
            "added_back": list(self.added_back) if own else [],
            **evidence_of(*images),
        }


def select_by_graph_cut(
    embeddings: Tensor,
    labels: Tensor,
    keep: float = 0.9,
    *,
    tau: float | None = None,
    unary: Unary = "ratio",
    neighbours: int | None = 10,
    pairwise: float = 0.1,
    normalise: bool = True,
    sigma: float | None = None,
) -> GraphCut:
    """Drops the items that are badly embedded, close classmates together.

    E(a) = sum_i [a_i U1_i + (1 - a_i) tau] + lambda sum_(i, j) w_ij [a_i != a_j], a_i = 1 for kept,
    is minimised exactly, in whole multiples of 1e-6. U1 is the distance to the own class centre
    over that to the nearest other one; edges join near classmates with
    w_ij = exp(-|e_i - e_j|^2 / (2 sigma^2)). Of equally good choices the largest is taken.
    Afterwards each class gets back its items of lowest U1 until half of it, and two, are kept.

    Args:
        embeddings: e, (N, D).
        labels: (N,) class of each, at least two classes.
        keep: share to keep, in (0, 1]: tau is the smallest at which as many are kept. More are
            where classmates come and go together.
        tau: fixed cost of dropping; then `keep` is not used.
        unary: "ratio", or "inter" for exp(-distance to the nearest other centre / its mean).
        neighbours: an edge for each of this many nearest classmates; None for all of them.
        pairwise: lambda.
        normalise: scales every embedding to length 1 first.
        sigma: width of the edges' weight; None for the root mean squared edge.

    Returns:
        The selection and its evidence.

    Raises:
        ValueError: shapes, values that are not finite, a single class, a number out of range, or
            a class too large for 32-bit flows.

    Source:
        See `SOURCE`.

    Example:
        >>> points = torch.tensor([[0.0], [0.2], [1.1], [2.0], [2.2]])
        >>> found = select_by_graph_cut(points, torch.tensor([0, 0, 0, 1, 1]), tau=0.5,
        ...                             neighbours=None, normalise=False, sigma=0.5)
        >>> found.indices, round(found.energy, 5)
        ([0, 1, 3, 4], 0.97827)
    """
    between("select_by_graph_cut", 0, 1 + 1e-9, keep=keep)
    points, names, classes = _prepared(embeddings, labels, normalise)
    costs, edges = _costs_and_edges(points, classes, unary, neighbours, pairwise, sigma)
    groups = split_by_class(in_units(costs), classes, edges, pairwise)
    units, cut = _cut(groups, keep, tau)
    kept = with_floor(cut, groups)
    per_class = {
        int(name): (int(kept[group.members].sum()), len(group.members))
        for name, group in zip(names, groups, strict=True)
    }
    threshold = units / UNITS if tau is None else tau
    return GraphCut(
        kept=torch.from_numpy(kept),
        tau=threshold,
        keep_cost=torch.from_numpy(costs),
        energy=energy(cut, costs, threshold, edges, pairwise),
        added_back=tuple(np.flatnonzero(kept & ~cut).tolist()),
        kept_per_class=per_class,
        points=torch.from_numpy(points),
        labels=labels.cpu(),
        edges=edges,
        pairwise=pairwise,
    )


def _prepared(
    embeddings: Tensor, labels: Tensor, normalise: bool
) -> tuple[Floats, Integers, Integers]:
    """Embeddings in float64, the labels' distinct values, and each item's place among those."""
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"selective: embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "wanted (N, D) and (N,)"
        )
    if not embeddings.isfinite().all():
        raise ValueError("selective: an embedding is not finite; look at the teacher's weights")
    names, classes = np.unique(labels.cpu().numpy(), return_inverse=True)
    if len(names) < 2:
        raise ValueError("selective: all items are of one class; there is nothing to confuse")
    points = embeddings.detach().cpu().double()
    if normalise:
        points = nn.functional.normalize(points, dim=1)
    return points.numpy(), names, classes.astype(np.int64)


def _costs_and_edges(
    points: Floats,
    classes: Integers,
    unary: Unary,
    neighbours: int | None,
    pairwise: float,
    sigma: float | None,
) -> tuple[Floats, Edges]:
    one_of("selective", "unary", unary, get_args(Unary))
    if pairwise < 0 or (neighbours is not None and neighbours < 0):
        raise ValueError(
            f"selective: pairwise {pairwise} and neighbours {neighbours} must be at least 0"
        )
    if sigma is not None:
        above_zero("selective", sigma=sigma)
    edges = neighbour_edges(points, classes, neighbours, sigma)
    return keep_costs(points, classes, unary), edges


def _cut(groups: list[Group], keep: float, tau: float | None) -> tuple[int, Bools]:
    """Cost of dropping in whole units, and what the cut at it keeps."""
    size = sum(len(group.members) for group in groups)
    if tau is None:
        # Less a hair, so that 0.9 of 10 asks for 9 and not, by rounding, for 10.
        return smallest_threshold(groups, max(1, int(np.ceil(keep * size - 1e-6))))
    above_zero("selective", tau=tau)
    units = int(in_units(tau))
    return units, keep_set(groups, units, np.ones(size, np.bool_))


def select_at_random(like: GraphCut, labels: Tensor, seed: int = 0) -> Tensor:
    """As many items of each class as `like` keeps, drawn at random: its control.

    What remains between the two is which images were dropped, neither how many nor of which class.

    Args:
        like: a selection by graph cut.
        labels: (N,), those that it was made with.
        seed: of the draw.

    Returns:
        (N,) bool, kept.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(labels), generator=generator)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label, (count, _) in like.kept_per_class.items():
        members = (labels.cpu() == label).nonzero().flatten()
        kept[members[order[members].argsort()[:count]]] = True
    return kept


def selection_graph(
    embeddings: Tensor,
    labels: Tensor,
    tau: float,
    *,
    unary: Unary = "ratio",
    neighbours: int | None = 10,
    pairwise: float = 0.1,
    normalise: bool = True,
    sigma: float | None = None,
) -> nx.Graph:
    """The graph that `select_by_graph_cut` cuts, to look at or to export.

    Args:
        embeddings: (N, D).
        labels: (N,) class of each.
        tau: cost of dropping an item.
        unary: see `select_by_graph_cut`, as all that follows.
        neighbours: nearest classmates that have an edge.
        pairwise: lambda.
        normalise: scales every embedding to length 1 first.
        sigma: width of the edges' weight.

    Returns:
        Undirected: nodes 0..N-1 with "label", "keep_cost" and "drop_cost", edges with "weight"
        w_ij and "cost" lambda w_ij.

    Raises:
        ValueError: as `select_by_graph_cut`.

    Example:
        >>> points = torch.tensor([[0.0], [0.2], [1.1], [2.0], [2.2]])
        >>> graph = selection_graph(points, torch.tensor([0, 0, 0, 1, 1]), 0.5,
        ...                         neighbours=None, normalise=False, sigma=0.5)
        >>> graph.number_of_edges(), sorted(minimum_cut_by_networkx(graph))
        (4, [0, 1, 3, 4])
    """
    import networkx as nx

    points, names, classes = _prepared(embeddings, labels, normalise)
    costs, edges = _costs_and_edges(points, classes, unary, neighbours, pairwise, sigma)
    graph = nx.Graph()
    for item, cost in enumerate(costs.tolist()):
        label = int(names[classes[item]])
        graph.add_node(item, label=label, keep_cost=cost, drop_cost=float(tau))
    for first, second, weight in zip(*(x.tolist() for x in edges), strict=True):
        graph.add_edge(first, second, weight=weight, cost=pairwise * weight)
    return graph


def minimum_cut_by_networkx(graph: nx.Graph) -> set[int]:
    """The items that the minimum cut keeps: a second way to `select_by_graph_cut`, and slow.

    Args:
        graph: from `selection_graph`; its costs are rounded to 1e-6.

    Returns:
        The kept nodes; of equally good choices the largest. No class has a floor.
    """
    import networkx as nx

    network = nx.DiGraph()
    network.add_nodes_from(["source", "sink"])
    for item, costs in graph.nodes.items():
        network.add_edge("source", item, capacity=int(in_units(costs["drop_cost"])))
        network.add_edge(item, "sink", capacity=int(in_units(costs["keep_cost"])))
    for first, second, cost in graph.edges.data("cost"):
        network.add_edge(first, second, capacity=int(in_units(cost)))
        network.add_edge(second, first, capacity=int(in_units(cost)))
    _, (kept, _) = nx.minimum_cut(network, "source", "sink")
    return kept - {"source"}


class EmbeddingRegressor(nn.Module):
    """Maps the student's embedding to the teacher's, standardised per dimension.

    The teacher's mean and deviation over the training set are buffers, filled by `fit`.

    Args:
        student_width: D of the student.
        teacher_width: D of the teacher.
        normalise: scales the teacher's embeddings to length 1 first.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, student_width: int, teacher_width: int, *, normalise: bool = True) -> None:
        """Statistics start as those of standardised embeddings."""
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width)
        self.normalise = normalise
        self.register_buffer("mean", torch.zeros(teacher_width))
        self.register_buffer("scale", torch.ones(teacher_width))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Takes mean and 1 / deviation from all of the teacher's embeddings, (N, D).

        A dimension that does not vary gets the scale 0: its target is 0 everywhere.
        """
        points = self._scaled(embeddings.double())
        deviation, mean = torch.std_mean(points, dim=0, correction=0)
        varies = deviation > 1e-6 * points.square().mean(0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(varies, 1 / deviation, 0.0))

    def _scaled(self, embeddings: Tensor) -> Tensor:
        return nn.functional.normalize(embeddings, dim=1) if self.normalise else embeddings

    def forward(self, student: Tensor) -> Tensor:
        """(B, D of the student) -> (B, D of the teacher)."""
        return self.linear(student)

    def target(self, teacher: Tensor) -> Tensor:
        """The teacher's embeddings standardised, (B, D)."""
        return (self._scaled(teacher) - self.mean) * self.scale


def regression_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over dimensions of (predicted - target)^2.

    Args:
        predicted: (B, D), the student's embedding through its regressor.
        target: (B, D), the teacher's, standardised.

    Returns:
        (B,), without unit.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> regression_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([5.])
    """
    same_shape("regression_loss", predicted, target)
    return (predicted - target).square().mean(1)


SEARCH = {"lam_r": [0.01, 0.1, 1.0], "train_share": [0.3, 0.6], "finetune_lr_factor": [0.1, 0.5]}
"""What tuning tries."""


def method(
    *,
    keep: float = 0.9,
    tau: float | None = None,
    unary: Unary = "ratio",
    neighbours: int = 10,
    pairwise: float = 0.1,
    normalise: bool = True,
    selection: Choice = "graph_cut",
    selection_seed: int = 0,
    ce_on_all: bool = False,
    lam_r: float = 1.0,
    train_share: float = 0.6,
    finetune_lr_factor: float = 0.1,
) -> Method:
    """Stage "train": cross-entropy on all images; then stage "finetune" on the selected ones.

    L = CE(z_s, y) + lam_r mean over (n, d) of (r(f_s) - e)^2, with e the teacher's embedding of
    the clean image, standardised per dimension over the training set, and r a linear layer beside
    the student. Between the stages the teacher sees every training image once, and
    `select_by_graph_cut` picks those of the second stage.

    Args:
        keep: share of the images to keep, reached by the cost of dropping one.
        tau: fixed cost of dropping; then `keep` is not used.
        unary: see `select_by_graph_cut`.
        neighbours: see there.
        pairwise: lambda, see there.
        normalise: scales the teacher's embeddings to length 1, for the selection and the target.
        selection: "graph_cut", or "random": the control, which drops as many images of each class
            as the cut does, but any.
        selection_seed: of the random selection; the same for all seeds of a grid's cells.
        ce_on_all: images not selected keep their classification loss in the second stage.
        lam_r: weight on the regression.
        train_share: part of the epochs for the first stage, in (0, 1).
        finetune_lr_factor: the second stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

    Source:
        See `SOURCE`.

    Example:
        >>> [(stage.name, stage.share, stage.clean) for stage in method().plan]
        [('train', 0.6, False), ('finetune', 0.4, True)]
    """
    one_of("selective", "unary", unary, get_args(Unary))
    one_of("selective", "selection", selection, get_args(Choice))
    between("selective", 0, 1, train_share=train_share)
    between("selective", 0, 1 + 1e-9, keep=keep)
    above_zero("selective", lam_r=lam_r, **({} if tau is None else {"tau": tau}))

    def select(view: View, labels: Tensor) -> Selection:
        found = select_by_graph_cut(
            view["embedding"],
            labels,
            keep,
            tau=tau,
            unary=unary,
            neighbours=neighbours,
            pairwise=pairwise,
            normalise=normalise,
        )
        if selection == "graph_cut":
            return Selection(found.kept, {"selection": selection, **found.evidence()})
        kept = select_at_random(found, labels, selection_seed)
        return Selection(kept, {"selection": selection, **found.evidence(kept)})

    def connect(student: Shapes, teacher: Shapes) -> EmbeddingRegressor:
        return EmbeddingRegressor(*student["embedding"], *teacher["embedding"], normalise=normalise)

    def prepare(connector: nn.Module, view: View) -> None:
        _regressor(connector).fit(view["embedding"])

    def transfer(pair: Pair, connector: nn.Module) -> Tensor:
        regressor = _regressor(connector)
        return regression_loss(
            regressor(pair.student["embedding"]), regressor.target(pair.teacher["embedding"])
        )

    finetune = Stage(
        name="finetune",
        share=1 - train_share,
        transfer=transfer,
        taps=("embedding",),
        transfer_weight=lam_r,
        lr_factor=finetune_lr_factor,
        clean=True,
        keep=select,
        prepare=prepare,
        task_on_all=ce_on_all,
    )
    return Method(
        category="response",
        source=SOURCE,
        plan=(Stage(name="train", share=train_share), finetune),
        connect=connect,
    )


def _regressor(connector: nn.Module) -> EmbeddingRegressor:
    if not isinstance(connector, EmbeddingRegressor):
        raise TypeError(
            f"selective: its connector is an EmbeddingRegressor, not {type(connector).__name__}"
        )
    return connector
