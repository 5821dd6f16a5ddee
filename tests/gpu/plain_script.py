"""One stage of one method as a plain PyTorch script trains it, on random images.

Eager, channels first, with a teacher of its own in every script, its BatchNorms as trained. The
networks, the losses and the numbers of the plan are the harness's; the loop is not.
"""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

from bench.cost.steps import Workload
from bench.method import MaskedLoss, Merged, Method, Pair, Stage, View, in_float32
from bench.models.network import Network, tap_shapes
from bench.train.engine import freeze, parts_of
from bench.train.objective import weigh
from bench.train.teacher import Teacher

RATE = 1e-12  # leaves the weights in place, so that each step is the same work


def plain_numerics(precision: str) -> None:
    """What a script sets for speed; TF32 as the harness has it, for convolutions alone."""
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False


class PlainTeacher:
    """A random teacher and a batch of random images with labels."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.workload = workload
        self.all_images = workload.draw().images.contiguous()
        size = workload.recipe.batch_size
        self.images, self.labels = self.all_images[:size], workload.draw().labels[:size]
        self.network = workload.build(name).to(workload.device)
        update_bn([self.images], self.network.train())
        self.network.eval().requires_grad_(False)
        self.shapes = tap_shapes(self.network, workload.image_shape)
        twin = Teacher(self.network, workload.cell(name), workload.device, workload.image_shape)
        self.facts = twin.facts(workload.draw().labels)


class PlainScript:
    """`step` runs the body of the loop once."""

    def __init__(self, teacher: PlainTeacher, student: str, method: Method, stage: Stage) -> None:
        workload = teacher.workload
        self.teacher, self.stage, self.workload = teacher, stage, workload
        self.index = torch.arange(len(teacher.labels), device=workload.device)
        self.network = workload.build(student).to(workload.device)
        shapes = tap_shapes(self.network, workload.image_shape)
        self.connector = method.connector(shapes, teacher.shapes, teacher.facts).to(workload.device)
        optional = (t for t in stage.optional_taps if t in shapes and t in teacher.shapes)
        self.taps = (*stage.all_taps, *optional)
        self.reads = tuple({*self.taps, *(("logits",) if stage.task_weight else ())})
        if stage.prepare is not None:
            stage.prepare(self.connector, self.teach(teacher.all_images))
        freeze(stage, self.network, self.connector)
        parts = parts_of(self.network, self.connector).values()
        self.trained = [p for part in parts for p in part if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.trained, RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.drops_faulty = False  # gradients that are not finite, which a textbook form may have

    def show(self, network: Network, images: Tensor, taps: tuple[str, ...]) -> View:
        """The taps of a network in the precision asked for."""
        bf16 = self.workload.precision == "bf16"
        kind = self.workload.device.type
        with torch.autocast(kind, torch.bfloat16) if bf16 else contextlib.nullcontext():
            return in_float32(network.view(images, taps))

    @torch.no_grad()
    def teach(self, images: Tensor) -> View:
        """What the teacher shows."""
        return self.show(self.teacher.network, images, self.taps)

    def step(self) -> None:
        """Both networks, the losses, the gradients, the update."""
        stage, teacher = self.stage, self.teacher
        view = self.teach(teacher.images) if stage.needs_teacher else View({})
        student = self.show(self.network, teacher.images, self.reads)
        pair = Pair(student, view, teacher.labels, self.index)
        self.optimiser.zero_grad()
        self.backward(self.losses(pair))
        if self.drops_faulty:
            for gradient in (p.grad for p in self.trained if p.grad is not None):
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        if stage.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, stage.clip_norm)
        self.optimiser.step()

    def losses(self, pair: Pair) -> list[Tensor]:
        """One or two weighted terms: from labels, from the teacher."""
        stage, task, joint, transfer = self.stage, None, None, None
        if stage.task_weight:
            task = cross_entropy(pair.student.logits, pair.labels)
        if stage.joint is not None:
            joint = MaskedLoss.of(stage.joint(pair, self.connector)).loss.mean()
        if stage.transfer is not None:
            loss = MaskedLoss.of(stage.transfer(pair, self.connector)).loss
            transfer = loss.sum() if stage.reduction == "sum" else loss.mean()
        return weigh(stage, 0.0, task, joint, transfer)

    def backward(self, terms: list[Tensor]) -> None:
        """Gradients of the sum, or of both terms where the method merges them."""
        if self.stage.merge is None:
            torch.stack(terms).sum().backward()
            return
        both = [
            torch.autograd.grad(loss, self.trained, retain_graph=True, allow_unused=True)
            for loss in terms
        ]
        merged = self.stage.merge(*both, 0)
        gradients = merged.gradients if isinstance(merged, Merged) else merged
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
