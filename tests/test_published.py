"""Published numbers stand beside ours only where every field of the setting is the same."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from bench.cell import Recipe
from bench.expansion import expand
from bench.grid import load_grid
from bench.record import FINISHED, Plan, Record
from bench.report.published import load_published, published_tables
from bench.report.tables import Table


def settled(name: str, *overrides: str) -> tuple[Plan, dict[str, Record]]:
    """A grid that comes with the harness, as if every cell had finished at 70 % plus its seed."""
    expansion = expand(load_grid(name, overrides), lambda _: "fingerprint")
    records = {
        cell.id: Record(
            cell_id=cell.id, cell=cell.resolved(), category="", source="", status=FINISHED,
            final={"last_accuracy": 0.70 + cell.seed / 100, "best_accuracy": 0.75},
        )
        for cell in expansion.cells.values()
    }  # fmt: skip
    return expansion.plan, records


DECK, CIFAR100 = settled("deck", "seeds=3"), settled("cifar100", "seeds=1")


def lines(tables: Iterable[Table]) -> dict[tuple[str, str], list[str]]:
    """(published as, measured at) -> the rest as shown."""
    found = {}
    for table in tables:
        for name, label, measure, *rest in table.shown():
            found[name, measure] = [label, *rest]
    return found


def test_the_deck_stands_beside_what_its_author_published():
    (table,) = published_tables(*DECK)
    found = lines((table,))
    # 70, 71, 72 %: mean 71, half-width t(2) / sqrt(3) = 4.302653 / 1.732051 = 2.484.
    assert found["Student", "last epoch"] == [
        "no teacher", "71.8", "71.0 ± 2.5", "3", "-0.8 ± 2.5"
    ]  # fmt: skip
    assert found["Soft-logits", "last epoch"][:2] == [
        "soft_logits (rho=0.3, scale_by_temperature_squared=False)", "71.8"
    ]  # fmt: skip
    assert found["RKD", "last epoch"][:2] == ["rkd (normalise=True)", "73.4"]
    assert found["Teacher", "best epoch, test-selected"][1:3] == ["79.1", "75.0 (n=3)"]
    assert {name for name, _ in found} == {"Teacher", "Student", "Soft-logits", "RKD"}


def test_the_field_s_recipe_has_all_its_pairs():
    tables = published_tables(*CIFAR100)
    repdistiller = [t for t in tables if "RepDistiller" in t.notes[0]]
    assert len(repdistiller) == 13
    found = lines(repdistiller[-1:])  # wrn_40_2 -> ShuffleV1, the student's learning rate is 0.01
    assert found["KD", "last epoch"][1:] == ["74.8", "70.0 (n=1)", "1", "-4.8 (n=1)"]
    assert found["CC", "last epoch"][:2] == ["cc (form=neighbours)", "71.4"]
    assert {name for name, _ in found} == {
        "Teacher", "Student", "KD", "AT", "RKD", "SP", "CC", "VID", "PKT", "NST", "CRD"
    }  # fmt: skip


def test_later_methods_stand_beside_what_their_authors_published():
    tables = published_tables(*CIFAR100)
    found = lines(t for t in tables if "resnet32x4 → resnet8x4" in t.title)
    assert {name: shown[1] for (name, _), shown in found.items() if name not in ("SP", "CC")} == {
        "Teacher": "79.4", "Student": "72.5", "KD": "73.3", "AT": "73.4", "RKD": "71.9",
        "VID": "73.1", "PKT": "73.6", "NST": "73.3", "CRD": "75.5", "DKD (beta 8)": "76.3",
        "ReviewKD": "75.6", "ReviewKD (weight 5)": "75.6", "KD+DOT": "75.1", "DIST": "76.3",
        "KD+LS": "76.6", "DKD+LS": "77.0", "SimKD (factor 2)": "78.1",
    }  # fmt: skip
    assert found["KD+LS", "best epoch, test-selected"][0] == (
        "soft_logits (standardise=True, temperature=2, weight=9)"
    )


@pytest.mark.parametrize("name", ["digits", "smoke", "cifar100-mini"])
def test_other_data_has_none(name):
    assert published_tables(*settled(name, "seeds=1")) == []


CHANGES: dict[str, tuple[list[str], Any]] = {
    "epochs": (["recipe", "epochs"], 99),
    "nesterov": (["recipe", "nesterov"], False),
    "padding": (["data", "padding"], "zeros"),
    "fraction": (["data", "fraction"], 0.5),
    "held-out images": (["data", "validation"], 0.1),
    "precision": (["precision"], "bf16"),
    "an unknown field": (["recipe", "warm_up"], 5),
    "a source": (["source"], {"cell_id": "x", "model": "y"}),
    "a model of its own": (["model"], {"name": "resnet8x4"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_field_that_differs_is_enough_to_show_nothing(change):
    plan, records = DECK
    path, value = CHANGES[change]
    other = {}
    for cell_id, record in records.items():
        cell = copy.deepcopy(record.cell)
        inner = cell
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        other[cell_id] = replace(record, cell=cell)
    assert published_tables(plan, other) == []


def test_a_field_that_came_later_is_at_its_default_on_both_sides(monkeypatch):
    added = FieldInfo(annotation=float, default=0.0)
    monkeypatch.setitem(Recipe.model_fields, "label_smoothing", added)
    plan, records = DECK

    def smoothed(value: float) -> dict[str, Record]:
        later = {"label_smoothing": value, "betas": [0.9, 0.999]}
        return {
            i: replace(r, cell={**r.cell, "recipe": {**r.cell["recipe"], **later}})
            for i, r in records.items()
        }

    assert published_tables(plan, records) == published_tables(plan, smoothed(0.0)) != []
    assert published_tables(plan, smoothed(0.1)) == []


def test_another_hyperparameter_or_another_teacher_hides_the_method_alone():
    plan, records = DECK
    row = next(row for row in plan.rows if row.label == "rkd (normalise=True)")
    joint = {**records[row.cell_id].cell["hyperparameters"], "with_soft_logits": True}
    for cell_id, key, value in (
        (row.cell_id, "hyperparameters", joint),
        (row.teacher_id, "recipe", {**records[row.teacher_id].cell["recipe"], "epochs": 240}),
    ):
        changed = replace(records[cell_id], cell={**records[cell_id].cell, key: value})
        found = lines(published_tables(plan, {**records, cell_id: changed}))
        assert found["RKD", "last epoch"][3] == "2"  # one of three seeds is no longer the same
        assert found["Student", "last epoch"][3] == "3"


def test_every_published_number_is_a_percentage_of_a_method_that_is_explained():
    for source in load_published():
        pairs = [pair for pairs in source["accuracy"].values() for pair in pairs.values()]
        assert pairs
        assert all(set(pair) <= set(source["methods"]) for pair in pairs)
        assert all(50 < percent < 100 for pair in pairs for percent in pair.values())
        for method in source["methods"].values():
            assert len({"role", "method", "differs"} & set(method)) == 1
