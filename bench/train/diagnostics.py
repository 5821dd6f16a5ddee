"""Optional measurements: how large, smooth and constraining a method's knowledge is.

Weights, BatchNorm statistics and random streams are the same with and without them.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from bench.method import (
    Facts,
    MaskedLoss,
    Method,
    NotApplicable,
    Pair,
    Shapes,
    Stage,
    Transfer,
    View,
)

EXAMINED = 256  # test images, the first ones, on which a teacher's tensors are examined
DRAWS = 8  # random directions along which the curvature of a transfer loss is probed
STEP = 1e-3  # length of such a probe, in root mean squares of a sample's tensor
LEAST_SIDE = 4  # pixels; a smaller map is not examined for smoothness


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Restores the modules' buffers, such as BatchNorm's statistics, at the end."""
    buffers = list(chain.from_iterable(module.buffers() for module in modules))
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def gradient_cosine(task: Tensor, transfer: Tensor, parameters: Sequence[Tensor]) -> float | None:
    """Cosine of the angle between two losses' gradients, over the parameters that both reach.

    cos = <g_task, g_transfer> / (|g_task| |g_transfer|). Below 0 the losses conflict: a small step
    that lowers one raises the other. Both losses, () each, are of one forward pass.

    Returns:
        In [-1, 1]; None if a gradient is zero or not finite, or no parameter is left.

    Source:
        Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning,
        NeurIPS 2020, definition 1.

    Example:
        >>> x = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> gradient_cosine((x * torch.tensor([1.0, 0.0])).sum(), -x.sum(), [x])
        -0.7071067811865475
    """
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    if not (moving and task.requires_grad and transfer.requires_grad):
        return None
    ours, theirs = (
        torch.autograd.grad(loss, moving, retain_graph=True, materialize_grads=True)
        for loss in (task, transfer)
    )
    # A parameter that only one of the losses reaches is left out.
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.any() and b.any()]
    if not both:
        return None
    ours, theirs = (
        torch.cat([x.double().flatten() for x in part]) for part in zip(*both, strict=True)
    )
    cosine = (ours @ theirs / (ours.norm() * theirs.norm())).item()
    return min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else None


def constrained_directions(transfer: Transfer, pair: Pair, connector: nn.Module) -> float | None:
    """Number of directions of a sample's student tensors in which a transfer loss is curved.

    The participation ratio of the squared eigenvalues of the loss's Hessian H in the student's
    taps, divided by the batch size: (tr H^2)^2 / tr H^4 / B. Each sample's tensor is measured in
    units of its root mean square. If a loss constrains n directions of a sample equally and leaves
    the others free, the result is n: C H W for a hint at a map, at most H W for an attention map,
    fewer for a relation between samples. With equal teacher and student tensors the loss is at its
    minimum, and its curvature is what the knowledge constrains.

    The traces are means of |H v|^2 and |H H v|^2 over `DRAWS` random sign vectors v, where H v is a
    central difference of the gradient in float64, which is exact for a quadratic loss.

    Returns:
        Directions per sample; None if the loss has no curvature, is not finite or does not reach
        the student.

    Source:
        Stochastic traces: Hutchinson, Commun. Stat. Simul. Comput. 18, 1989. Participation ratio:
        Bell, Dean: Atomic vibrations in vitreous silica, Discuss. Faraday Soc. 50, 1970.
    """
    connector = copy.deepcopy(connector).double().requires_grad_(False)
    student = {tap: x.detach().double() for tap, x in pair.student.taps.items()}
    scales = {tap: _size(x) for tap, x in student.items()}
    pair = pair._replace(teacher=View({tap: x.double() for tap, x in pair.teacher.taps.items()}))

    def gradient(move: Mapping[str, Tensor], length: float) -> dict[str, Tensor]:
        taps = {
            tap: (x + length * scales[tap] * move[tap]).requires_grad_()
            for tap, x in student.items()
        }
        # Every call draws the same numbers and sees the same state, so that it is one function.
        torch.manual_seed(0)
        with unchanged(connector):
            loss = MaskedLoss.of(transfer(pair._replace(student=View(taps)), connector)).loss.mean()
            # A loss of the teacher alone, which sets a connector up, is not of the student's graph.
            if not loss.requires_grad:
                return {tap: torch.zeros_like(x) for tap, x in student.items()}
            # Restoring the statistics of BatchNorm would spoil a graph that is still needed.
            found = torch.autograd.grad(loss, list(taps.values()), materialize_grads=True)
        return {tap: g * scales[tap] for tap, g in zip(taps, found, strict=True)}

    def curve(move: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ahead, behind = gradient(move, STEP), gradient(move, -STEP)
        return {tap: (ahead[tap] - behind[tap]) / (2 * STEP) for tap in move}

    generator = torch.Generator().manual_seed(0)
    once, twice = 0.0, 0.0
    for _ in range(DRAWS):
        # Drawn on the CPU, so that the directions are the same on every device.
        drawn = {t: torch.randint(0, 2, x.shape, generator=generator) for t, x in student.items()}
        signs = {tap: (2 * x - 1).to(student[tap]) for tap, x in drawn.items()}
        bent = curve(signs)
        energy = _energy(bent)
        if not (energy > 0 and energy < float("inf")):
            return None
        # H is linear, so the second product may be taken at the length of the signs.
        shrink = (_energy(signs) / energy) ** 0.5
        again = curve({tap: shrink * x for tap, x in bent.items()})
        once += energy
        twice += _energy(again) / shrink**2
    directions = once**2 / (DRAWS * twice) / len(pair.labels) if twice > 0 else float("nan")
    return directions if 0 < directions < float("inf") else None


def _size(x: Tensor) -> Tensor:
    size = x.square().mean(dim=tuple(range(1, x.dim())), keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _energy(parts: Mapping[str, Tensor]) -> float:
    return sum(part.square().sum().item() for part in parts.values())


def own_stage(method: Method) -> Stage | None:
    """The method's first stage with a transfer loss that trains more than a connector."""
    teaching = (stage for stage in method.plan if stage.transfer is not None)
    return next((stage for stage in teaching if stage.trains != {"connector"}), None)


def knowledge_facts(
    view: Callable[[Sequence[str]], View],
    facts: Facts,
    method: Method,
    optional: Sequence[str],
    shapes: Shapes,
    batch: int,
) -> dict[str, float]:
    """Numbers for a record's `final` about the method's own knowledge; see `own_stage`.

    "knowledge_scalars": elements of the teacher's tensors that its stage reads, per sample.
    "knowledge_directions": `constrained_directions` of its transfer loss on the first images, with
    the teacher's tensors in the student's place, so that the loss is at its minimum.
    "attention_variation_<tap>": `attention_variation` of the output of every stage with maps of at
    least `LEAST_SIDE`.

    `view` maps taps to the teacher's view of fixed images, which `facts` are about, `optional` are
    the stage's optional taps that both networks have, `shapes` those of the teacher's taps, and
    `batch` is the number of images for the directions.
    """
    found = {
        f"attention_variation_{tap}": attention_variation(view((tap,))[tap])
        for tap, shape in shapes.items()
        if re.fullmatch(r"stage\d+", tap) and len(shape) == 3 and min(shape[1:]) >= LEAST_SIDE
    }
    if (stage := own_stage(method)) is not None and stage.transfer is not None:
        taps = (*stage.taps, *optional)
        found["knowledge_scalars"] = sum(math.prod(shapes[tap]) for tap in taps)
        # Taps that the student lacks are hidden from the connector too, as in training.
        hidden = {*stage.optional_taps} - {*optional}
        shapes = {tap: shape for tap, shape in shapes.items() if tap not in hidden}
        found["knowledge_directions"] = _directions(view(taps), facts, method, stage, shapes, batch)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _directions(
    shown: View, facts: Facts, method: Method, stage: Stage, shapes: Shapes, batch: int
) -> float:
    """The directions of `knowledge_facts`; NaN if unknown, or no method for these images."""
    assert stage.transfer is not None
    torch.manual_seed(0)
    labels = facts.labels
    try:
        connector = method.connector(shapes, shapes, facts).to(labels.device)
    except NotApplicable:  # images of one class alone, say
        return math.nan
    if stage.prepare is not None:
        stage.prepare(connector, shown)
    first = View({tap: x[:batch] for tap, x in shown.taps.items()})
    index = torch.arange(min(batch, len(labels)), device=labels.device)
    pair = Pair(first, first, labels[index], index)
    directions = constrained_directions(stage.transfer, pair, connector)
    return math.nan if directions is None else directions


def attention_variation(feature: Tensor) -> float:
    """Total variation of attention maps, divided by that of the channels A_c of (B, C, H, W).

    The mean over images of the variation of the map sqrt(sum_c A_c^2), over the mean over images
    and nonzero channels of that of A_c. Below 1, attention maps are the smoother ones; NaN if all
    channels are zero.
    """
    attention = torch.linalg.vector_norm(feature, dim=1)
    return (_mean_variation(attention) / _mean_variation(feature.flatten(0, 1))).item()


def _mean_variation(maps: Tensor) -> Tensor:
    values = total_variation(maps)
    return values[~values.isnan()].double().mean()


def total_variation(maps: Tensor) -> Tensor:
    """Total variation of maps (B, H, W) scaled to length 1: sum of |differences| of neighbours.

    (B,), without unit; NaN for a map that is zero.

    Source:
        Rudin, Osher, Fatemi: Nonlinear total variation based noise removal algorithms, Physica D
        60, 1992; the anisotropic form, which sums both axes.
    """
    # NaN and not 0, because a dead channel is not a smooth one.
    maps = maps / torch.linalg.vector_norm(maps, dim=(1, 2), keepdim=True)
    return maps.diff(dim=1).abs().sum((1, 2)) + maps.diff(dim=2).abs().sum((1, 2))
