"""Screen, then confirm: the seeds of each phase, the teachers, the images, and the one choice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from summary_grid import cost

from bench.cell import Cell
from bench.cost.costs import Costs
from bench.design import (
    CONFIRMATION,
    EXTENSION,
    SCREENING,
    Choice,
    read_choices,
    write_choices_once,
)
from bench.expansion import Expansion, expand
from bench.faults import UserError
from bench.grid import Grid
from bench.launch.screening import check_costs, choose, expand_chosen
from bench.launch.tune import collect, promising, trials_of, tuning_grid
from bench.record import FAILED, FINISHED, NOT_APPLICABLE, Record, WorkDir
from bench.train.stream import training_positions

RECIPE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1}
LONGER = [{"student": {"epochs_factor": factor}} for factor in (1.5, 2.0)]
ROWS = ["soft_logits", "fsp", "rkd", {"kd_svd": {"finalist": False}}, *LONGER]
DESIGN = {"screen": 2, "finalists": 3, "confirm": 4}
NO_COSTS = Costs()


def grid(**changes: object) -> Grid:
    values = {
        "name": "mine", "description": "screened", "data": {"source": "digits", "fraction": 0.2},
        "pairs": ["cnn8:cnn4"], "methods": ROWS, "seeds": DESIGN, "recipe": RECIPE,
    }  # fmt: skip
    return Grid(**{**values, **changes})


def named(data: object) -> str:
    return "d"


def finish(expansion: Expansion, work: WorkDir, accuracies: dict[str, float]) -> None:
    """A record for every cell; rows without an accuracy have 0.5."""
    for row in expansion.plan.rows:
        final = {
            "last_accuracy": accuracies.get(row.label, 0.5),
            "epochs": expansion.cells[row.cell_id].recipe.epochs,
        }
        cell = expansion.cells[row.cell_id].resolved()
        record = Record(cell_id=row.cell_id, cell=cell, category="response", source="",
                        status=FINISHED, final=final)  # fmt: skip
        work.store.write(record)


def seeds_of(expansion: Expansion, label: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in expansion.plan.rows:
        if row.label == label:
            found.setdefault(row.phase, []).append(row.seed)
    return found


def screen(mine: Grid, work: WorkDir, costs: Costs = NO_COSTS) -> Expansion:
    """Trains all rows to `MEANS`, and chooses."""
    screened = expand_chosen(mine, named, work, extend=False)
    finish(screened, work, MEANS)
    choose(mine, screened, work, costs)
    return screened


MEANS = {"fsp": 0.8, "rkd": 0.7, "soft_logits": 0.6, "kd_svd": 0.9,
         "student (epochs_factor=1.5)": 0.55, "student (epochs_factor=2)": 0.52}  # fmt: skip


def test_all_rows_are_screened_and_finalists_and_student_share_fresh_seeds(tmp_path):
    work, mine = WorkDir(tmp_path), grid()
    assert seeds_of(screen(mine, work), "fsp") == {SCREENING: [0, 1]}
    whole = expand_chosen(mine, named, work, extend=False)
    # The best longer-trained student always, the control never, however high its mean.
    (choice,) = whole.plan.choices
    assert set(choice["finalists"]) == {"fsp", "rkd", "student (epochs_factor=1.5)"}
    assert choice["screened"]["fsp"] == {"accuracy": 0.8, "n": 2, "cost": None}
    for label in ("student", *choice["finalists"]):
        assert seeds_of(whole, label) == {SCREENING: [0, 1], CONFIRMATION: [2, 3, 4, 5]}
    for label in ("soft_logits", "kd_svd"):
        assert seeds_of(whole, label) == {SCREENING: [0, 1]}
    trained = {row.cell_id for row in whole.plan.rows if row.role != "teacher"}
    assert len(trained) == 7 * 2 + 4 * 4


def test_the_choice_is_made_once_whoever_comes_later(tmp_path):
    work, mine = WorkDir(tmp_path), grid()
    screened = expand_chosen(mine, named, work, extend=False)
    finish(screened, work, MEANS)
    for row in [row for row in screened.plan.rows if row.role == "student"]:
        killed = replace(work.store.load(row.cell_id), status=FAILED, error="KilledError: killed")
        work.store.write(killed)
    assert not choose(mine, screened, work, Costs())  # the next command trains them again
    assert expand_chosen(mine, named, work, extend=False).plan.choices == []
    screen(mine, work)
    first = expand_chosen(mine, named, work, extend=False).plan.choices
    assert len(first) == 1
    finish(screened, work, {"soft_logits": 0.9})  # another launcher retried what had failed
    choose(mine, screened, work, Costs())
    assert expand_chosen(mine, named, work, extend=False).plan.choices == first
    # Another rule is another choice: nothing is chosen by it yet.
    stricter = grid(seeds={**DESIGN, "finalists": 2})
    assert expand_chosen(stricter, named, work, extend=False).plan.choices == []


def test_of_many_commands_at_once_one_writes_the_choice(tmp_path):
    axes, path = {"fraction": 1.0}, tmp_path / "mine" / "finalists-0.json"
    place = {"data": "d", "axes": axes, "teacher": "t", "student": "s"}
    mine = [Choice(finalists=(str(n),), **place) for n in range(8)]
    start = threading.Barrier(len(mine))

    def write(choice: Choice) -> tuple[Choice, ...] | None:
        start.wait()
        write_choices_once(path, [choice])
        return read_choices(path)

    with ThreadPoolExecutor(len(mine)) as pool:
        read = list(pool.map(write, mine))
    assert read == len(mine) * [read_choices(path)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_choice_is_named(tmp_path):
    path = tmp_path / "finalists-0.json"
    path.write_text('[{"data": "d"}]')
    with pytest.raises(UserError, match=r"damaged: .*finalists-0\.json"):
        read_choices(path)


def test_a_second_look_is_planned_beforehand_and_remains(tmp_path):
    work, mine = WorkDir(tmp_path), grid(seeds={**DESIGN, "extend": 3})
    with pytest.raises(UserError, match="plans no second look"):
        expand_chosen(grid(), named, work, extend=True)
    with pytest.raises(UserError, match="no finalists are chosen"):
        expand_chosen(mine, named, work, extend=True)
    screen(mine, work)
    assert EXTENSION not in seeds_of(expand_chosen(mine, named, work, extend=False), "fsp")
    longer = expand_chosen(mine, named, work, extend=True)
    assert seeds_of(longer, "fsp")[EXTENSION] == [6, 7, 8]
    work.grid("mine").mkdir(exist_ok=True)
    work.plan("mine").write_text(longer.plan.to_json())
    assert expand_chosen(mine, named, work, extend=False).plan == longer.plan


def test_nothing_is_screened_where_all_rows_can_be_finalists():
    few = grid(methods=["soft_logits", LONGER[0]])
    assert not few.screens
    assert seeds_of(expand(few, named), "soft_logits") == {CONFIRMATION: [2, 3, 4, 5]}


def test_a_limit_on_costs_needs_costs_and_rules_rows_out(tmp_path):
    work, mine = WorkDir(tmp_path), grid(max_cost=1.6)
    with pytest.raises(UserError, match=r"run_all\.py profile --grid mine"):
        check_costs(mine, expand(mine, named), Costs(), "run_all.py profile --grid mine")
    ratios = {"soft_logits": 1.2, "fsp": 3.0, "rkd": 1.5}
    pair = {"teacher": "cnn8", "student": "cnn4", "epochs": 3, "conditions": {"batch": 16}}
    costs = Costs([cost(label, ratio, spread=0, **pair) for label, ratio in ratios.items()])
    screened = screen(mine, work, costs)
    check_costs(mine, screened, costs, "")
    others = (  # measured under settings that the grid had before, and of another pair
        {"epochs": 4}, {"conditions": {"batch": 32}}, {"hyperparameters": {"rho": 0.1}},
        {"conditions": {"batch": 16, "precision": "bf16"}}, {"teacher": "cnn16"},
    )  # fmt: skip
    for changes in others:
        stale = Costs([replace(costs.records[0], **changes), *costs.records[1:]])
        with pytest.raises(UserError, match=r"soft_logits costs .* run first: profile it"):
            check_costs(mine, screened, stale, "profile it")
    (choice,) = expand_chosen(mine, named, work, extend=False).plan.choices
    assert set(choice["finalists"]) == {"soft_logits", "rkd", "student (epochs_factor=1.5)"}
    assert choice["screened"]["fsp"]["cost"] == 3.0


# --- images and teachers ------------------------------------------------------------------------


def cells_of(mine: Grid) -> list[Cell]:
    return list(expand(mine, named).cells.values())


def test_a_fresh_subset_for_every_seed_shared_by_its_rows():
    cells = [cell for cell in cells_of(grid(seeds=3)) if cell.data.fraction < 1]
    assert {(cell.seed, cell.data.split_seed) for cell in cells} == {(0, 0), (1, 1), (2, 2)}
    once = cells_of(grid(seeds=3, data={"source": "digits", "fraction": 0.2, "split_seed": 7}))
    assert {cell.data.split_seed for cell in once} == {7}


def test_where_nothing_is_drawn_no_seed_draws_it():
    whole = {"source": "digits"}
    fixed = {**whole, "split_seed": 0}
    ids = [{c.id for c in cells_of(grid(seeds=2, data=data))} for data in (whole, fixed)]
    assert ids[0] == ids[1]


def test_no_teacher_saw_a_held_out_image():
    mine = grid(teacher={"fraction": 0.5, "seeds": {"screen": 1, "confirm": 3}}, tuned={})
    held_grid = tuning_grid(mine, trials_of(mine, 2), seeds=3, validation=0.2)
    cells = cells_of(held_grid)
    labels = torch.arange(300) % 10
    parts = {cell.id: training_positions(cell.data, labels) for cell in cells}
    held = {tuple(h.tolist()) for _, h in parts.values() if h is not None}
    assert len(held) == 1  # one hold-out for the whole run
    (images,) = held
    for cell in cells:
        assert cell.data.validation == 0.2
        assert not set(images) & set(parts[cell.id][0].tolist())
    drawn = {tuple(parts[c.id][0].tolist()) for c in cells if c.teacher is not None}
    assert len(drawn) == 3  # while every seed draws its own subset of the rest


def test_pools_of_teachers_are_disjoint_and_their_subset_follows_them():
    pools = {"fraction": 0.5, "seeds": {"screen": 1, "confirm": 3}}
    choice = Choice(
        data="digits", axes={"fraction": 0.2, "labels": 1.0, "resolution": 1},
        teacher="cnn8", student="cnn4", finalists=("fsp",),
    )  # fmt: skip
    expansion = expand(grid(teacher=pools), named, [choice])
    taught = {
        (row.phase, row.seed): expansion.cells[row.cell_id]
        for row in expansion.plan.rows
        if row.role == "teacher"
    }
    screening = {cell.seed for (phase, _), cell in taught.items() if phase == SCREENING}
    confirming = {cell.seed for (phase, _), cell in taught.items() if phase == CONFIRMATION}
    assert (len(screening), len(confirming)) == (1, 3)
    assert not screening & confirming
    assert all(cell.data.split_seed == cell.seed for cell in taught.values())
    with pytest.raises(ValueError, match="either seed or seeds"):
        grid(teacher={**pools, "seed": 3})


# --- a row's own recipe -------------------------------------------------------------------------


def test_a_row_has_its_own_learning_rate_and_smoothing_and_keeps_its_label():
    tuned = {
        "student": {"learning_rate": 0.2},
        "fsp": {"learning_rate": 0.05, "label_smoothing": 0.1, "scale": "mean"},
    }
    mine = grid(seeds=1, tuned=tuned)
    rows = {row.label: row for row in expand(mine, named).plan.rows}
    cells = expand(mine, named).cells
    recipe = {label: cells[row.cell_id].recipe for label, row in rows.items()}
    assert (recipe["student"].learning_rate, recipe["student"].label_smoothing) == (0.2, 0.0)
    assert (recipe["fsp"].learning_rate, recipe["fsp"].label_smoothing) == (0.05, 0.1)
    assert recipe["rkd"].learning_rate == recipe["teacher"].learning_rate == 0.1
    assert cells[rows["fsp"].cell_id].hyperparameters["scale"] == "mean"


def test_every_row_is_tuned_by_as_many_trials_and_the_student_too():
    trials = trials_of(grid(), 6)
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.row] = counts.get(trial.row, 0) + 1
    assert set(counts) == {"student", *(row.label for row in grid().rows)}
    assert set(counts.values()) == {6}
    assert len({trial.spec.label for trial in trials}) == len(trials)
    assert any("learning_rate" in trial.chosen for trial in trials if trial.row == "student")


def test_the_best_third_of_a_rows_trials_goes_on():
    trials = trials_of(grid(methods=["rkd"], seeds=1), 6)
    results = [replace(trial, accuracy=n / 10, n=1) for n, trial in enumerate(trials)]
    kept = promising(results)
    assert [results.index(trial) for trial in kept] == [5, 4, 11, 10]


def test_a_trial_counts_on_the_pairs_that_its_row_can_serve(tmp_path):
    work, mine = WorkDir(tmp_path), grid(pairs=["cnn8:cnn4", "cnn8:cnn3"], methods=["fsp"], seeds=1)
    trials = trials_of(mine, 1)
    expansion = expand(tuning_grid(mine, trials, 1, 0.2), named)
    finish(expansion, work, MEANS)
    (first, *_) = [row.cell_id for row in expansion.plan.rows if row.label == "fsp"]
    records = work.store.read_all(expansion.cells)
    for status, mean in ((NOT_APPLICABLE, 0.8), (FAILED, None)):
        one = {first: replace(records[first], status=status, error="too narrow")}
        (found,) = [t for t in collect(trials, expansion.plan, records | one) if t.row == "fsp"]
        assert (found.accuracy, found.n, found.error) == (mean, 1, "too narrow")
