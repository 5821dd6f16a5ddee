"""methods/README.md: its table lists every method, and its example is a method."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from lessons import Lesson, cell

from bench.hyperparameters import METHODS, build_method, resolve_hyperparameters, search_space
from bench.plugin import Plugin, plugged

README = (Path(__file__).resolve().parents[1] / "methods/README.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_table_names_every_method_with_its_category_and_stages():
    rows = re.findall(r"^\| `(\w+)` \| ([\w-]+) \| ([\w, ]+) \|", README, flags=re.MULTILINE)
    methods = {name: build_method(name) for name in METHODS.names()}
    assert {name: (category, stages) for name, category, stages in rows} == {
        name: (method.category, ", ".join(stage.name for stage in method.plan))
        for name, method in methods.items()
    }


def test_the_example_has_the_loss_that_it_states_and_trains():
    namespace: dict[str, object] = {}
    exec(compile(EXAMPLE, "logit_matching.py", "exec"), namespace)
    loss = namespace["logit_matching_loss"]
    found = loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.tolist() == [2.5]  # (1 + 4) / 2
    lesson = Lesson(cell("soft_logits"), method=namespace["method"](weight=0.5))
    for _ in range(4):
        lesson.epoch()
    losses = lesson.student.curves["transfer_loss"]
    assert losses[-1] < losses[0]


def test_the_example_is_a_plugin():
    with plugged([Plugin("/anywhere/logit_matching.py", EXAMPLE)]):
        assert resolve_hyperparameters("logit_matching", {}) == {"weight": 1.0}
        assert search_space("logit_matching") == {"weight": [0.1, 1.0, 10.0]}
        assert build_method("logit_matching").needs_teacher
