"""Every tensor of a step is on the device, checked without one: torch's fake tensors.

A fake tensor has a device and a shape but no values. An operation on tensors of different devices
raises as it would on a GPU, and names both. A backward pass needs a real device: here it gives
zeros. What Python asks of a value is answered with 1, and `nonzero` finds everything.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench.cost.steps import StudentStage, TeacherBatch, Workload
from bench.data.augment import Augment
from bench.data.batches import Batch, Batches
from bench.hyperparameters import METHODS, build_method
from bench.method import Method, Pair, Selection, Stage, View
from tests.lessons import method_of, recipe

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
OTHER_FORMS = [
    ("fitnet", {"stage2": "ce"}), ("attention_transfer", {"mode": "joint", "kind": "sumsq"}),
    ("activation_boundary", {"stage2": "ce"}), ("rkd", {"normalise": True}),
    ("selective", {"ce_on_all": True}), ("soft_logits", {"momentum_split": 0.075}),
    ("dkd", {"standardise": True}), ("cc", {"form": "pairs"}), ("ofd", {"margin": "data"}),
]  # fmt: skip


class Answers(TorchDispatchMode):
    """Answers what only values could answer."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        if func is aten.nonzero.default:
            return args[0].new_zeros(args[0].numel(), args[0].dim(), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


def move(module: nn.Module, *where: object, **layout: object) -> nn.Module:
    """`nn.Module.to`, which cannot move fake tensors twice; the layout is for maps alone."""
    for part in module.modules():
        named = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, old in named:
            new = old.detach().to(*where, **(layout if old.dim() == 4 else {}))
            as_before = isinstance(old, nn.Parameter)
            setattr(part, name, nn.Parameter(new, old.requires_grad) if as_before else new)
    return module


@pytest.fixture
def lesson(monkeypatch) -> Iterator[TeacherBatch]:
    """A teacher and a batch on a GPU without values, on which all gradients are zeros."""

    def grad(loss: Tensor, parameters: list[Tensor], **options: object) -> list[Tensor]:
        assert loss.device == CUDA
        return [torch.zeros_like(parameter) for parameter in parameters]

    monkeypatch.setattr(nn.Module, "to", move)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: grad(loss, []))
    workload = Workload(
        classes=5, image_shape=(3, 8, 8), device=torch.device("cpu"), recipe=recipe(batch_size=16)
    )
    lesson = TeacherBatch("cnn3", workload)  # its copies of networks need values
    with FakeTensorMode(allow_non_fake_inputs=True):
        lesson.workload = replace(workload, device=CUDA)
        lesson.train, lesson.batch = (
            Batch(*(x.to(CUDA) for x in images)) for images in (lesson.train, lesson.batch)
        )
        lesson.teacher.device = CUDA
        lesson.teacher.network.to(CUDA)
        yield lesson


def keep_all(view: View, labels: Tensor) -> Selection:
    """Where the real choice leaves its result: on the CPU."""
    return Selection(torch.ones(len(labels), dtype=torch.bool), {})


def step(lesson: TeacherBatch, name: str, method: Method, labelled: bool = False) -> None:
    """One step of every stage."""
    mask = torch.ones(len(lesson.train.labels), dtype=torch.bool, device=CUDA)
    for stage in method.plan:
        real = stage if stage.keep is None else replace(stage, keep=keep_all)
        hidden = mask if labelled and stage.keep is None else None
        with Answers():
            one = StudentStage(lesson, "cnn2", name, method, real, hidden)
            for parameter in one.student.network.parameters():
                assert parameter.device == CUDA
                parameter.grad = torch.zeros_like(parameter)
            one.step()


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in METHODS.names()), *OTHER_FORMS]
)
def test_every_step_stays_on_the_device(name, changes, lesson):
    step(lesson, name, build_method(name, **changes))


@pytest.mark.parametrize("name", ["student", "soft_logits", "transfer", "dkd", "nkd", "crd"])
def test_a_step_with_hidden_labels_stays_on_the_device(name, lesson):
    step(lesson, name, build_method(name), labelled=True)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_batches_are_made_on_the_device(padding, lesson, monkeypatch):
    monkeypatch.setattr("bench.data.batches.resident_bytes", lambda size, device: size)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    batches = Batches(
        images, torch.zeros(20, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3,
        augment=Augment(pad=2, padding=padding), batch_size=8, drop_last=True, seed=0, device=CUDA,
    )  # fmt: skip
    subset = torch.arange(10, device=CUDA)
    for found in (batches.epoch(0), batches.epoch(0, subset), batches.clean(5)):
        assert {x.device for batch in found for x in batch} == {CUDA}


@pytest.mark.parametrize("tensor", ["of a loss", "of a connector"])
def test_a_tensor_that_stays_behind_is_named(tensor, lesson):
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = [torch.ones(5)]  # no buffer: `to` does not move it

    def loss(pair: Pair, connector: nn.Module) -> Tensor:
        own = torch.ones(5) if tensor == "of a loss" else connector.weights[0]
        return (pair.student.logits * own).sum(1)

    stage = Stage(name="only", share=1.0, transfer=loss, taps=("logits",))
    broken = method_of(stage, connect=lambda *shapes: Behind())
    with pytest.raises(RuntimeError, match=r"two.* devices,? cuda:0(,| and) cpu"):
        step(lesson, "broken", broken)
