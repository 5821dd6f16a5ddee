"""Selective KD: distil the teacher's embedding of the images that it embeds well.

A low-resolution student first learns alone. A graph cut then drops the images that the teacher
embeds badly, and the student is fine-tuned on the rest: it classifies them and regresses the
teacher's embedding of the clean high-resolution image.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from bench.method import Method, Pair, Selection, Shapes, Stage, View
from methods._checks import above_zero, between, one_of, same_shape
from methods._minimum_cut import (
    UNITS,
    Bools,
    cut_problems,
    in_units,
    keep_set,
    smallest_threshold,
    with_least_kept,
)
from methods._selection_graph import Floats, Unary, drawing_of, selection_graph

Choice = Literal["graph_cut", "random"]

SOURCE = """\
S. Ge, S. Zhao, C. Li, J. Li: Low-resolution Face Recognition in the Wild via Selective Knowledge \
Distillation, IEEE Transactions on Image Processing 2019.
A reconstruction: the paper's energy was not available. The selection minimises a cost per kept \
image (distance to the own class centre over that to the nearest other), a constant cost per \
dropped image, and the weight of edges between near classmates that it separates, in units of \
how costs differ within a class. The student \
first learns from all labels; it sees only kept images while it regresses the standardised \
embedding. The regression is a side branch; the paper's layers inside the student, which would \
change its size, are left out. Resolution is an axis of the grid, not of the method."""


@dataclass(frozen=True, kw_only=True)
class GraphCut:
    """What a selection kept, and why.

    Attributes:
        kept: (N,) bool.
        tau: cost of dropping an image.
        keep_cost: (N,) float64, U1: 0 for a perfectly embedded image, 1 on the border to the
            nearest wrong class ("ratio").
        wanted: how many images `keep` asked for; None for a fixed tau.
        energy: E of what the cut kept, the lowest there is.
        added_back: indices that the cut dropped and that returned so that half of a class stays.
        points: (N, D) float64, the embeddings as they were compared.
        graph: what was cut, see `selection_graph`.
    """

    kept: Tensor
    tau: float
    keep_cost: Tensor
    wanted: int | None
    energy: float
    added_back: tuple[int, ...]
    points: Tensor = field(repr=False)
    graph: nx.Graph = field(repr=False)

    @property
    def indices(self) -> list[int]:
        """The kept images, ascending."""
        return self.kept.nonzero().flatten().tolist()

    @property
    def kept_per_class(self) -> dict[int, tuple[int, int]]:
        """Label -> (kept, all)."""
        labels = np.array([label for _, label in self.graph.nodes.data("label")])
        members = {label: labels == label for label in np.unique(labels).tolist()}
        return {k: (int(self.kept[of].sum()), int(of.sum())) for k, of in members.items()}

    @property
    def note(self) -> str:
        """What decided other than the cost of dropping; empty where that alone did."""
        kept, parts = int(self.kept.sum()), []
        if self.added_back:
            parts.append(f"the floor of half a class brought {len(self.added_back)} images back")
        if self.wanted is not None and kept > self.wanted:
            parts.append(f"{kept} images are kept where {self.wanted} were asked for")
            if not self.added_back:
                parts.append("equal costs or edges keep some together")
        return "; ".join(parts)

    def details(self) -> dict[str, object]:
        """JSON-able: thresholds, energies, counts, the kept images, and what a figure draws."""
        kept, costs = self.kept.numpy(), self.keep_cost.numpy()
        return {
            "tau": self.tau,
            "lambda": self.graph.graph["lambda"],
            "energy": self.energy,
            "energy_of_kept": _energy(self.graph, kept, costs, self.tau),
            "added_back": list(self.added_back),
            "images": len(kept),
            "kept": int(kept.sum()),
            "kept_per_class": {str(k): list(counts) for k, counts in self.kept_per_class.items()},
            "indices": self.indices,
            "keep_costs": [float(f"{cost:.4g}") for cost in costs],
            "drawing": drawing_of(self.graph, kept, self.points.numpy()),
        }


def select_by_graph_cut(
    embeddings: Tensor,
    labels: Tensor,
    keep: float = 0.9,
    *,
    tau: float | None = None,
    unary: Unary = "ratio",
    neighbours: int | None = 10,
    pairwise: float = 1.0,
    lam: float | None = None,
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
        keep: least share to keep, in (0, 1]; tau is the smallest cost that reaches it. More are
            kept where edges keep or drop classmates together.
        tau: fixed cost of dropping; then `keep` is not used.
        unary: "ratio", or "inter" for exp(-distance to the nearest other centre / its mean).
        neighbours: an edge for each of this many nearest classmates; None for all of them.
        pairwise: lambda, in units in which the edges of a typical item weigh as much as U1 differs
            within a class, see `lambda_unit`. Far above 1, classes are kept or dropped as one.
        lam: lambda itself; then `pairwise` is not used.
        normalise: scales every embedding to length 1 first.
        sigma: width of the edges' weight; None for the root mean squared edge.

    Raises:
        ValueError: shapes, values that are not finite, a single class, a number out of range, or
            a connected component too large for 32-bit flows.

    Example:
        >>> points = torch.tensor([[0.0], [0.2], [1.1], [2.0], [2.2]])
        >>> found = select_by_graph_cut(points, torch.tensor([0, 0, 0, 1, 1]), tau=0.5, lam=0.1,
        ...                             neighbours=None, normalise=False, sigma=0.5)
        >>> found.indices, round(found.energy, 5)
        ([0, 1, 3, 4], 0.97827)
    """
    between("select_by_graph_cut", 0, 1 + 1e-9, keep=keep)
    one_of("selective", "unary", unary, get_args(Unary))
    if min(pairwise, lam or 0, neighbours or 0) < 0:
        raise ValueError(
            f"selective: pairwise {pairwise}, lam {lam} and neighbours {neighbours} must be at "
            "least 0"
        )
    widths = {"tau": tau, "sigma": sigma}
    above_zero("selective", **{name: x for name, x in widths.items() if x is not None})
    points = _points(embeddings, labels, normalise)
    names, classes = np.unique(labels.cpu().numpy(), return_inverse=True)
    if len(names) < 2:
        raise ValueError("selective: all items are of one class; there is nothing to confuse")
    strength = {"pairwise": pairwise, "lam": lam, "sigma": sigma}
    graph = selection_graph(points, names[classes], unary=unary, neighbours=neighbours, **strength)
    costs = np.array([cost for _, cost in graph.nodes.data("keep_cost")])
    problems, wanted = cut_problems(graph), None
    if tau is None:
        # The margin keeps rounding from asking for 10 of 10 at keep = 0.9.
        wanted = max(1, math.ceil(keep * len(labels) - 1e-6))
        tau = smallest_threshold(problems, classes, wanted) / UNITS
    cut = keep_set(problems, int(in_units(tau)))
    kept = with_least_kept(cut, in_units(costs), classes)
    return GraphCut(
        kept=torch.from_numpy(kept),
        tau=tau,
        keep_cost=torch.from_numpy(costs),
        wanted=wanted,
        energy=_energy(graph, cut, costs, tau),
        added_back=tuple(np.flatnonzero(kept & ~cut).tolist()),
        points=torch.from_numpy(points),
        graph=graph,
    )


def _points(embeddings: Tensor, labels: Tensor, normalise: bool) -> Floats:
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"selective: embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
            "wanted (N, D) and (N,)"
        )
    if not embeddings.isfinite().all():
        raise ValueError("selective: an embedding is not finite; look at the teacher's weights")
    points = embeddings.detach().cpu().double()
    return (nn.functional.normalize(points, dim=1) if normalise else points).numpy()


def _energy(graph: nx.Graph, kept: Bools, keep_cost: Floats, tau: float) -> float:
    severed = nx.cut_size(graph, np.flatnonzero(kept).tolist(), weight="cost")
    return float(np.where(kept, keep_cost, tau).sum() + severed)


def select_at_random(count: int, labels: Tensor, seed: int = 0) -> Tensor:
    """As many items as a selection keeps, drawn at random: its control.

    Every class keeps the same share of its items, up to a whole item. So the control differs from
    a selection in which items it drops, and not in how many. Returns (N,) bool, kept.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = labels.cpu()[order]
    # Each class spread evenly over (0, 1): a cut anywhere takes the same share of all.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in drawn.unique():
        members = (drawn == label).nonzero().flatten()
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    kept = torch.zeros(len(labels), dtype=torch.bool)
    kept[order[place.argsort(stable=True)[:count]]] = True
    return kept


class EmbeddingRegressor(nn.Module):
    """Maps the student's embedding to the teacher's, standardised per dimension.

    The mean and deviation of the teacher's embeddings over the training set are buffers, set by
    `fit`. `normalise` scales the embeddings to length 1 first.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, student_width: int, teacher_width: int, *, normalise: bool = True) -> None:
        """Starts with mean 0 and scale 1."""
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width)
        self.normalise = normalise
        self.register_buffer("mean", torch.zeros(teacher_width))
        self.register_buffer("scale", torch.ones(teacher_width))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Sets mean and 1 / deviation from all of the teacher's embeddings, (N, D).

        A dimension that does not vary gets scale 0: its target is 0 everywhere.
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


SEARCH = {
    "pairwise": [0.0, 1.0, 3.0],
    "lam_r": [0.01, 0.1, 1.0],
    "train_share": [0.3, 0.6],
    "finetune_lr_factor": [0.1, 0.5],
}
"""What tuning tries."""


def method(
    *,
    keep: float = 0.9,
    tau: float | None = None,
    unary: Unary = "ratio",
    neighbours: int = 10,
    pairwise: float = 1.0,
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
    the clean image, standardised per dimension over the training set, and r a linear layer that
    is not part of the student. Between the stages the teacher sees every training image once, and
    `select_by_graph_cut` chooses those of the second stage.

    Args:
        keep: least share of the images to keep; sets the cost of dropping one. At least half of
            each class stays, and the record's note says where that decided.
        tau: fixed cost of dropping; then `keep` is not used.
        unary: cost of keeping, see `select_by_graph_cut`.
        neighbours: edges per image, see `select_by_graph_cut`.
        pairwise: weight on edges that the selection separates, in units of `lambda_unit`: at 1 the
            edges of a typical image weigh as much as its classmates' costs differ.
        normalise: scales the teacher's embeddings to length 1, for the selection and the target.
        selection: "graph_cut", or "random", the control, which drops as many images as the cut,
            drawn at random and in proportion from all classes.
        selection_seed: seed of the random selection, the same in all cells of a grid.
        ce_on_all: keeps the classification loss of images not selected in the second stage.
        lam_r: weight on the regression.
        train_share: part of the epochs for the first stage, in (0, 1).
        finetune_lr_factor: the second stage's learning rate as a factor of the recipe's.

    Raises:
        ValueError: a value out of range.

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
        if selection == "random":
            control = select_at_random(int(found.kept.sum()), labels, selection_seed)
            found = replace(found, kept=control, added_back=(), wanted=None)
        return Selection(found.kept, {"selection": selection, **found.details()}, found.note)

    def connect(student: Shapes, teacher: Shapes) -> EmbeddingRegressor:
        return EmbeddingRegressor(*student["embedding"], *teacher["embedding"], normalise=normalise)

    finetune = Stage(
        name="finetune",
        share=1 - train_share,
        transfer=_transfer,
        taps=("embedding",),
        transfer_weight=lam_r,
        lr_factor=finetune_lr_factor,
        clean=True,
        keep=select,
        prepare=_standardise,
        task_on_all=ce_on_all,
    )
    return Method(
        category="response",
        source=SOURCE,
        plan=(Stage(name="train", share=train_share), finetune),
        connect=connect,
    )


def _standardise(connector: nn.Module, view: View) -> None:
    cast(EmbeddingRegressor, connector).fit(view["embedding"])


def _transfer(pair: Pair, connector: nn.Module) -> Tensor:
    regressor = cast(EmbeddingRegressor, connector)
    return regression_loss(
        regressor(pair.student["embedding"]), regressor.target(pair.teacher["embedding"])
    )
