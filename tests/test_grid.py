"""Grid files: what is accepted, what is refused and how, and what they expand to."""

from pathlib import Path

import pytest
import yaml

from bench.expansion import expand
from bench.grid import (
    Grid,
    GridError,
    MethodSpec,
    find_grid,
    grid_names,
    load_grid,
    name_part,
    narrow,
)
from bench.launch.tune import Trial, best, to_csv, to_yaml, trials_of, tuning_grid

SMALL = {
    "description": "two nets, two seeds",
    "data": {"source": "digits", "fraction": 0.2},
    "pairs": ["cnn8:cnn4"],
    "methods": ["soft_logits"],
    "seeds": 2,
    "recipe": {"epochs": 3, "batch_size": 16, "learning_rate": 0.1},
}
DESIGN = {"screen": 2, "finalists": 3, "confirm": 4}


def write(folder: Path, **changes: object) -> str:
    values = {k: v for k, v in {**SMALL, **changes}.items() if v is not None}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def named(fingerprint: str):
    """A library in which every data set has this fingerprint."""
    return lambda data: fingerprint


def load(folder: Path, **changes: object) -> Grid:
    return load_grid(write(folder, **changes))


def method_ids(grid: Grid) -> set[str]:
    return {row.cell_id for row in expand(grid, named("d")).plan.rows if row.role == "method"}


@pytest.mark.parametrize("name", grid_names())
def test_every_shipped_grid_loads_and_expands(name):
    grid = load_grid(name)
    expansion = expand(grid, named("data"))
    assert expansion.plan.name == name
    assert {row.cell_id for row in expansion.plan.rows} == set(expansion.cells)


def test_a_grid_expands_to_teachers_students_and_methods(tmp_path):
    grid = load(tmp_path, teachers=["cnn8", "cnn6"], students=["cnn4"], pairs=None)
    expansion = expand(grid, named("d"))
    rows = expansion.plan.rows
    # 2 pairs x 2 seeds x (teacher, student, soft_logits)
    assert [r.role for r in rows].count("method") == 4
    assert len(rows) == 12
    # The plain student is the same cell for both teachers: 4 + 2 + 4 cells.
    assert len(expansion.cells) == 10
    assert len({r.cell_id for r in rows if r.role == "student"}) == 2


def test_teachers_come_before_those_they_teach(tmp_path):
    cells = list(expand(load(tmp_path), named("d")).cells.values())
    for position, cell in enumerate(cells):
        if cell.teacher is not None:
            assert cell.teacher.id in {c.id for c in cells[:position]}


def test_teachers_see_their_own_share_of_the_data_at_full_resolution(tmp_path):
    grid = load(tmp_path, axes={"resolution": [1, 2]}, teacher={"fraction": 1.0})
    teachers = {c.id: c for c in expand(grid, named("d")).cells.values() if c.model == "cnn8"}
    assert len(teachers) == 2  # one a seed, whatever the student's resolution
    assert all(c.data.fraction == 1.0 and c.data.resolution == 1 for c in teachers.values())
    # And one for all seeds where the grid says so.
    cells = expand(load(tmp_path, teacher={"seed": 0}), named("d")).cells.values()
    assert [c.seed for c in cells if c.model == "cnn8"] == [0]


def test_recipe_for_a_model_and_for_teachers(tmp_path):
    grid = load(tmp_path, recipe_for={"cnn4": {"learning_rate": 0.01}},
                teacher={"recipe": {"epochs": 7}})  # fmt: skip
    for cell in expand(grid, named("d")).cells.values():
        wanted = (0.01, 3) if cell.model == "cnn4" else (0.1, 7)
        assert (cell.recipe.learning_rate, cell.recipe.epochs) == wanted


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({"recipe": {**SMALL["recipe"], "epochs": 4}}, False),
        ({"data": {"source": "digits", "fraction": 0.3}}, False),
        ({"methods": [{"soft_logits": {"temperature": 5}}]}, False),
        ({"precision": "bf16"}, False),
        ({"tuned": {"soft_logits": {"temperature": 2}}}, False),
        ({"tuned": {"soft_logits": {"temperature": 4}}}, True),  # the default, written as an int
        ({"methods": [{"soft_logits": {"temperature": 4}}]}, True),
        ({"description": "other words"}, True),
    ],
)
def test_only_what_changes_the_numbers_changes_the_cell(tmp_path, changes, equal):
    before, after = method_ids(load(tmp_path)), method_ids(load(tmp_path, **changes))
    assert (before == after) if equal else not before & after


def test_other_data_under_the_same_name_is_another_cell(tmp_path):
    grid = load(tmp_path)
    assert not set(expand(grid, named("one")).cells) & set(expand(grid, named("two")).cells)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {"epochs": 3, "batch_size": 16}}, ["recipe.learning_rate", "missing"]),
        ({"recipe": {"epoch": 3}}, ["recipe.epoch: unknown", "did you mean epochs? (and 3 more)"]),
        ({"metods": ["fitnet"]}, ["metods", "did you mean methods"]),
        ({"data": {"source": "digits", "crop": {}}}, ["data", "pad 4", "pad: 0"]),
        ({"data": {"source": "digits", "crop": {"scal": 1}}}, ["data.crop.scal", "scale"]),
        ({"methods": ["fitnett"]}, ["methods.0", "fitnet"]),
        ({"methods": []}, ["methods"]),
        ({"methods": [{"student": {"epochs_factor": 0.5}}]}, ["methods.0", "0.5", "at least 1"]),
        ({"methods": [{"student": {"epochs_factor": True}}]}, ["methods.0", "True", "a number"]),
        ({"methods": [{"student": {"epoch_factor": 2}}]}, ["methods.0", "epoch_factor"]),
        ({"methods": [{"fitnet": {"epochs_factor": 2}}]}, ["methods.0", "student alone"]),
        ({"methods": ["fitnet", "fitnet"]}, ["fitnet", "twice"]),
        ({"pairs": ["cnn8"]}, ["pairs", "teacher:student"]),
        ({"pairs": None, "teachers": ["cnn8"]}, ["teachers", "students"]),
        ({"seeds": 0}, ["seeds", "at least 1"]),
        ({"seeds": 10_001}, ["seeds", "at most 10000"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"seeds": []}, ["seeds is empty"]),
        ({"seeds": {"screen": 2, "finalists": 4}}, ["seeds.confirm: missing"]),
        ({"seeds": {**DESIGN, "confirm": 1}}, ["seeds.confirm: got 1"]),
        ({"seeds": {**DESIGN, "finalists": 1}}, ["seeds.finalists: got 1"]),
        ({"seeds": {**DESIGN, "scren": 2}}, ["unknown field 'scren'"]),
        ({"data": {"source": "digits", "fraction": 1.5}}, ["data.fraction", "1.5"]),
        ({"data": {"source": "digits", "size": 1025}}, ["data.size", "1024", "1025"]),
        ({"data": {"source": "digits", "fractoin": 0.5}}, ["data.fractoin", "fraction"]),
        ({"source": {"data": {}, "modle": "cnn4"}}, ["source.modle", "data, recipe"]),
        ({"recipe_for": {"cnn5": {}}}, ["recipe_for", "cnn4"]),
        ({"recipe_for": {"cnn4": {"epochs": -1}}}, ["recipe_for.cnn4", "epochs"]),
        ({"teacher": {"recipe": {"lr": 1}}}, ["teacher.recipe", "lr"]),
        ({"tuned": {"soft_logit": {}}}, ["tuned", "soft_logits"]),
        ({"seeds": [-1]}, ["seeds.0: got -1"]),
        ({"seeds": {"screen": 1, "confirm": 2}}, ["seeds.finalists: missing"]),
        ({"seeds": {**DESIGN, "first": 2**31 - 1}}, ["seeds.first", "less than"]),
        ({"data": {"source": "digits", "classes": "a"}}, ["valid integer or a valid list"]),
        ({"tuned": {"soft_logits": {"learning_rate": -3}}}, ["tuned.soft_logits.learning_rate"]),
        (
            {"teacher": {"seeds": {"foo": 1, "screen": 1, "confirm": 1}}},
            ["teacher.seeds.foo", "confirm"],
        ),
        ({"source": {"data": {"pad": 0, "crop": {"scal": 1}}}}, ["source.data.crop.scal", "scale"]),
        ({"tuned": {"soft_logits": {"t": 1}}}, ["tuned.soft_logits", "'t'", "learning_rate"]),
        ({"tuned": {"soft_logits": {"temperature": "a"}}}, ["tuned.soft_logits", "'a'"]),
    ],
)
def test_a_wrong_grid_gives_one_line_that_names_the_field(tmp_path, changes, words):
    with pytest.raises(GridError) as caught:
        load(tmp_path, **changes)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("mine.yaml: ")
    for word in words:
        assert word in text


def test_an_unknown_grid_lists_near_names():
    with pytest.raises(GridError, match="cifar100"):
        find_grid("cifar10")
    with pytest.raises(GridError, match="no file"):
        find_grid("nowhere/mine.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "not YAML"), ("just words", "wanted a mapping"), ("1: 2", "field 1")],
)
def test_text_that_is_no_mapping_of_fields(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(GridError, match=said):
        load_grid(str(tmp_path / "mine.yaml"))


def test_overrides_replace_fields(tmp_path):
    grid = load_grid(write(tmp_path), ["recipe.epochs=9", "data.fraction=0.5", "recipe.decay=1e-3"])
    assert (grid.recipe.epochs, grid.data.fraction, grid.recipe.decay) == (9, 0.5, 1e-3)
    with pytest.raises(GridError, match="wanted field=value"):
        load_grid(write(tmp_path), ["recipe.epochs"])


def test_narrowing_to_some_pairs_leaves_the_recipes_of_other_models_behind():
    whole = load_grid("cifar100")
    assert set(whole.recipe_for) == {"MobileNetV2", "ShuffleV1", "ShuffleV2"}
    assert narrow(whole, pairs=["resnet32x4:resnet8x4"]).recipe_for == {}
    part = narrow(whole, pairs=["vgg13:MobileNetV2"])
    assert part.recipe_of("MobileNetV2").learning_rate == 0.01


def test_narrowing_keeps_the_rows_of_the_grid(tmp_path):
    grid = load(tmp_path, methods=["soft_logits", {"soft_logits": {"temperature": 2}}, "fitnet"])
    assert [m.label for m in narrow(grid, ["soft_logits"]).methods] == [
        "soft_logits", "soft_logits (temperature=2)"]  # fmt: skip
    assert narrow(grid, ["attention_transfer"]).methods[0].hyperparameters == {}
    assert narrow(grid, pairs=["cnn6:cnn4"]).all_pairs[0].teacher == "cnn6"
    assert narrow(grid, seeds=[3, 3]).seeds == (3,)
    tuned = {label: {} for label in ("student", "soft_logits", "fitnet")}
    tuned = load(tmp_path, methods=["soft_logits", "fitnet"], tuned=tuned)
    assert set(narrow(tuned, ["fitnet"]).tuned) == {"student", "fitnet"}
    with pytest.raises(GridError, match="fitnet"):
        narrow(grid, ["fitnets"])
    with pytest.raises(GridError, match="teacher:student"):
        narrow(grid, pairs=["cnn6"])


SOURCE = {"data": {"source": "digits", "classes": 5},
          "source": {"data": {"classes": [5, 6, 7, 8, 9]}, "recipe": {"epochs": 9}},
          "methods": ["transfer", "soft_logits"]}  # fmt: skip


def test_a_source_is_trained_by_the_students_own_architecture(tmp_path):
    cells = expand(load(tmp_path, **SOURCE), lambda data: str(data.classes)).cells.values()
    transfer = [c for c in cells if c.method == "transfer"]
    assert len(transfer) == 2
    for cell in transfer:
        assert cell.teacher is None
        assert cell.source.model == cell.model == "cnn4"
        assert cell.source.data.classes == (5, 6, 7, 8, 9)
        assert cell.source.recipe.epochs == 9
        assert cell.source.id in {c.id for c in cells}
    assert all(c.source is None for c in cells if c.method != "transfer")


def test_any_feature_method_can_be_trained_with_soft_logits(tmp_path):
    joint = {"fitnet": {"with_soft_logits": True, "stage2": "ce"}}
    grid = load(tmp_path, methods=[joint, {"fitnet": {"stage2": "ce"}}])
    labels = [m.label for m in grid.methods]
    assert labels == ["fitnet + soft_logits (stage2=ce)", "fitnet (stage2=ce)"]
    assert len(method_ids(grid)) == 4
    without = "with_soft_logits: wanted a stage with labels that reads more than logits"
    baseline = "with_soft_logits: a baseline has no transfer loss"
    reasons = {"soft_logits": without, "dist": without, "simkd": without, "student": baseline}
    for refused, why in reasons.items():
        with pytest.raises(GridError, match=why):
            load(tmp_path, methods=[{refused: {"with_soft_logits": True}}])


def test_a_part_of_a_grid_has_a_name_and_so_tables_of_its_own(tmp_path):
    whole = load(tmp_path)
    assert name_part(whole, whole).name == "mine"
    part = name_part(narrow(whole, seeds=[0]), whole)
    assert part.name.startswith("mine-")
    assert name_part(narrow(whole, seeds=[1]), whole).name != part.name
    kept = set(expand(part, named("d")).cells)
    assert kept < set(expand(whole, named("d")).cells)


def test_tuning_holds_out_images_and_keeps_the_number_of_a_students(tmp_path):
    grid = load(tmp_path, axes={"fraction": [0.2, 0.4]})
    trials = trials_of(grid, 3)
    tuned = load(tmp_path, tuned={"soft_logits": {"temperature": 2}})
    assert [m.label for m in tuned.methods] == ["soft_logits"]  # values leave the label alone
    assert [trial.row for trial in trials] == ["student"] * 3 + ["soft_logits"] * 3
    assert [trial.chosen == {} for trial in trials] == [True, False, False] * 2
    held = tuning_grid(grid, trials, seeds=1, validation=0.2)
    assert held.data.validation == 0.2
    assert held.axes.fraction == pytest.approx((0.25, 0.5))
    assert min(held.seeds) >= 1000
    # Teachers do not see the held-out images either.
    assert all(c.data.validation == 0.2 for c in expand(held, named("d")).cells.values())


def test_the_best_trial_is_chosen_per_row_and_the_defaults_win_a_tie():
    def result(row, chosen, accuracy):
        return Trial(row, chosen, MethodSpec(name="rkd"), accuracy, 1)

    results = [result("a", {}, 0.5), result("a", {"k": 1}, 0.5), result("b", {}, None),
               result("b", {"k": 2}, 0.4)]  # fmt: skip
    chosen = best(results)
    assert (chosen["a"].chosen, chosen["b"].chosen) == ({}, {"k": 2})
    assert yaml.safe_load(to_yaml(chosen)) == {"tuned": {"b": {"k": 2}}}
    assert to_csv(results).splitlines()[1] == "a,defaults,0.5,1"


def test_a_longer_trained_student_is_a_row_and_not_the_baseline(tmp_path):
    longer = {"student": {"epochs_factor": 1.5}}
    grid = load(tmp_path, methods=["soft_logits", longer])
    with_it, without = expand(grid, named("d")), expand(load(tmp_path), named("d"))
    rows = [r for r in with_it.plan.rows if r.label == "student (epochs_factor=1.5)"]
    assert [(r.role, r.method, r.category) for r in rows] == [("method", "student", "baseline")] * 2
    for row in rows:
        cell = with_it.cells[row.cell_id]
        assert cell.recipe.epochs == 4  # round(1.5 * 3), and half to even
        assert cell.teacher is None
        baseline = next(r for r in with_it.plan.rows if r.role == "student" and r.seed == row.seed)
        assert cell.stream == with_it.cells[baseline.cell_id].stream
        assert cell.id != baseline.cell_id
    # Nothing else changes, and it is the cell of a recipe with four epochs.
    assert set(without.cells) == set(with_it.cells) - {row.cell_id for row in rows}
    four = load(tmp_path, recipe={**SMALL["recipe"], "epochs": 4})
    assert {row.cell_id for row in rows} < set(expand(four, named("d")).cells)


def test_each_factor_is_a_row_of_its_own_and_of_the_students_own_epochs(tmp_path):
    factors = [{"student": {"epochs_factor": factor}} for factor in (1.25, 2)]
    found = expand(load(tmp_path, methods=factors, recipe_for={"cnn4": {"epochs": 8}}), named("d"))
    rows = [r for r in found.plan.rows if r.role == "method" and r.seed == 0]
    epochs = {row.label: found.cells[row.cell_id].recipe.epochs for row in rows}
    assert epochs == {"student (epochs_factor=1.25)": 10, "student (epochs_factor=2)": 16}
    with pytest.raises(GridError, match="twice"):
        load(tmp_path, methods=[factors[1], {"student": {"epochs_factor": 2.0}}])
