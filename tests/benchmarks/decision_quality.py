"""How often the decision is right: grids are drawn from real trainings and decided.

    python -m tests.benchmarks.decision_quality --grids 10000 --json FILE

Two pairs a grid. What is drawn follows the accuracies in decision/: true accuracies are the rows'
means there, and deviations have their covariances over seeds, unequal variances included. They
are fixtures: records made later do not replace them. Where no row is better, every row has the
plain student's mean and keeps its deviations.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import special, stats

from bench.cost.costs import Costs
from bench.decide.decision import Answer, decide
from bench.decide.evidence import ABLATION, LONGER, METHOD, REFERENCE, Pair
from bench.decide.finalists import choose_finalists
from bench.decide.records import pairs_of, question_of
from bench.design import CONFIRMATION, EXTENSION, SCREENING, Design
from bench.record import FINISHED, Plan, Record
from bench.record import Row as PlanRow
from bench.statistics import holm

FOLDER = Path(__file__).parent / "decision"
IMAGES = 500
DESIGN, EQUAL = Design(screen=2, finalists=4, confirm=10, extend=10), 5
DRAWS = 200  # behind P(best), which names no row

# Whole training over the student's, profiled with the first build (cnn16 to cnn4, one CPU thread).
COSTS = {
    "student": 1.0, "soft_logits": 1.47, "selective": 1.04, "selective (selection=random)": 1.05,
    "fitnet": 1.59, "fitnet (stage2=ce)": 1.11, "attention_transfer": 1.63,
    "attention_transfer (stage2=ce)": 1.08, "attention_transfer (mode=joint)": 2.07,
    "activation_boundary": 1.62, "activation_boundary (stage2=ce)": 1.16, "fsp": 1.15,
    "kd_svd": 6.43, "rkd": 2.24, "student (epochs_factor=1.5)": 1.5,
    "student (epochs_factor=2)": 2.0, "student (epochs_factor=4)": 4.0,
}  # fmt: skip

# What must hold, within two Monte-Carlo standard errors: fit -> pair -> (best, regret in points).
TARGETS = {
    "first build": {"cnn8": (0.90, 0.1), "cnn4": (0.70, 0.5)},
    "fresh subsets": {"cnn8": (0.88, 0.1), "cnn4": (0.88, 0.1)},
}
FALSE_CLAIMS, COVERAGE, TRAININGS = 0.05, 0.95, 85


@dataclass(frozen=True)
class Fit:
    """One pair that accuracies are drawn from."""

    names: tuple[str, ...]  # of the rows, the student's first
    means: np.ndarray  # true accuracy of each row, (R,)
    root: np.ndarray  # deviations over n seeds / sqrt(n - 1), (R, n): root root' is the covariance

    @property
    def candidates(self) -> np.ndarray:
        """Places of the rows that an answer may name."""
        return np.flatnonzero([kind(name) in (LONGER, METHOD) for name in self.names])

    def gains(self, null: bool) -> np.ndarray:
        """True gains over the student, (R,)."""
        return np.zeros(len(self.means)) if null else self.means - self.means[0]

    def draw(self, seeds: int, random: np.random.Generator, null: bool) -> np.ndarray:
        """Accuracies (R, seeds): counts of test images over their number."""
        means = self.means[0] + self.gains(null)
        drawn = means[:, None] + self.root @ random.standard_normal((self.root.shape[1], seeds))
        return np.clip(np.round(drawn * IMAGES) / IMAGES, 0, 1)


def kind(name: str) -> str:
    if "stage2=" in name or "selection=" in name:
        return ABLATION
    return REFERENCE if name == "student" else LONGER if name.startswith("student") else METHOD


def fitted(file: str, pair: str | None = None) -> Fit:
    with (FOLDER / file).open(encoding="utf-8") as lines:
        read = [line for line in csv.DictReader(lines) if pair in (None, line.get("pair"))]
    names = sorted({line["row"] for line in read}, key=lambda name: (name != "student", name))
    values = [[float(line["accuracy"]) for line in read if line["row"] == n] for n in names]
    table = np.array(values)  # every row lists its seeds in the same order
    means = table.mean(axis=1)
    return Fit(tuple(names), means, (table - means[:, None]) / math.sqrt(table.shape[1] - 1))


@cache
def fits() -> dict[str, dict[str, Fit]]:
    """Fit -> pair -> what is drawn from."""
    fresh = "fresh-subsets-digits.csv"
    return {
        "first build": {n: fitted(f"first-build-cnn32-{n}.csv") for n in ("cnn8", "cnn4")},
        "fresh subsets": {n: fitted(fresh, f"cnn32:{n}") for n in ("cnn8", "cnn4")},
    }


# --- the rules -------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a rule says of one pair; None for what it does not say."""

    named: int  # place of the row, 0 for the plain student
    claimed: bool | None  # whether any row is claimed to be better than the student
    gains: np.ndarray  # estimate for each candidate
    covered: bool | None = None  # whether all printed intervals hold the true gains
    race: set[int] | None = None  # places of the rows still in the race


RULES = ("first build's", "highest mean", "shipped", "followed")
Grid = Mapping[str, Fit]
Outcomes = dict[str, dict[str, Outcome]]
"""Rule -> pair -> what it says."""


class Drawn:
    """The plan and the records of a grid, as a run of the shipped design leaves them."""

    def __init__(self, grid: Grid, random: np.random.Generator, null: bool) -> None:
        self.grid, self.random, self.null = grid, random, null
        self.rows: list[PlanRow] = []
        self.records: dict[str, Record] = {}

    def train(self, name: str, phase: str, labels: Collection[str]) -> None:
        """Draws the seeds of a phase, for some rows of a pair."""
        fit, seeds = self.grid[name], DESIGN.seeds(phase)
        accuracies = fit.draw(len(seeds), self.random, self.null)
        for label in filter(labels.__contains__, fit.names):
            plain = kind(label) in (REFERENCE, LONGER)
            for seed, accuracy in zip(seeds, accuracies[fit.names.index(label)], strict=True):
                cell_id = str(len(self.rows))
                row = PlanRow(
                    role="student" if label == "student" else "method", data="digits", axes={},
                    teacher="cnn32", student=name, label=label, category="", seed=seed,
                    method="student" if plain else label, cell_id=cell_id, phase=phase,
                    finalist=kind(label) != ABLATION,
                )  # fmt: skip
                final = {"last_accuracy": float(accuracy), "test_images": IMAGES, "epochs": 30.0}
                final["epochs"] *= COSTS[label] if plain else 1.0
                self.rows.append(row)
                self.records[cell_id] = Record(
                    cell_id=cell_id, cell={}, category="", source="", status=FINISHED, final=final
                )

    def plan(self) -> Plan:
        config = {"seeds": DESIGN.model_dump()}
        return Plan(name="drawn", description="", config=config, rows=self.rows)

    def pairs(self) -> dict[str, Pair]:
        """What `recommend` reads from the records: student -> pair."""
        found = pairs_of(self.plan(), self.records, Costs())
        return {pair.student: evidence for pair, evidence in found.items()}

    def decide(self) -> dict[str, Answer]:
        pairs = self.pairs()
        answers = decide(list(pairs.values()), question_of(self.plan(), draws=DRAWS)).answers
        return dict(zip(pairs, answers, strict=True))


def screen_and_confirm(
    grid: Grid,
    random: np.random.Generator,
    null: bool,
    choose: Callable[[Pair, int], Sequence[str]] = choose_finalists,
    follow: bool = True,
) -> Outcomes:
    """The shipped rule; then for a user who extends the pairs without a proof, as is printed."""
    drawn = Drawn(grid, random, null)
    chosen = {}
    for name, fit in grid.items():
        drawn.train(name, SCREENING, fit.names)
        chosen[name] = ["student", *choose(drawn.pairs()[name], DESIGN.finalists)]
        drawn.train(name, CONFIRMATION, chosen[name])
    answers = drawn.decide()
    found = {"shipped": {n: outcome(a, grid[n], null) for n, a in answers.items()}}
    if follow:
        extended = [name for name, answer in answers.items() if answer.settle is not None]
        for name in extended:
            drawn.train(name, EXTENSION, chosen[name])
        answers = drawn.decide() if extended else answers
        found["followed"] = {n: outcome(a, grid[n], null) for n, a in answers.items()}
    return found


def outcome(answer: Answer, fit: Fit, null: bool) -> Outcome:
    gains = dict(zip(fit.names, fit.gains(null), strict=True))
    believed = {chance.row: chance.gain for chance in answer.chances}
    return Outcome(
        named=fit.names.index(answer.named or "student"),
        claimed=any(claim.proven for claim in answer.claims),
        gains=np.array([believed[fit.names[i]] for i in fit.candidates]),
        covered=all(
            claim.gain is not None and claim.gain[1] <= gains[claim.row] <= claim.gain[2]
            for claim in answer.claims
        ),
        race={fit.names.index(name) for name in answer.in_the_race},
    )


def equal_seeds(grid: Grid, random: np.random.Generator, null: bool) -> Outcomes:
    """Every row on 5 seeds: the highest mean, and the first build's rule."""
    found: Outcomes = {"highest mean": {}, "first build's": {}}
    for name, fit in grid.items():
        table = fit.draw(EQUAL, random, null)
        gains = (table.mean(axis=1) - table[0].mean())[fit.candidates]
        found["highest mean"][name] = Outcome(int(fit.candidates[gains.argmax()]), None, gains)
        found["first build's"][name] = first_build(fit, table, null)
    return found


def first_build(fit: Fit, table: np.ndarray, null: bool) -> Outcome:
    """The cheapest of the rows that equal the best of those better than the student.

    Better: paired t with Holm over all rows. Equal: the interval of the difference from the best,
    Bonferroni over the rows, does not lie above 0. If no row is better, the student.
    """
    gains, errors = paired(table, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(EQUAL - 1, -abs(gains / errors))
    adjusted = [1.0, *holm(np.where(errors > 0, p, 1.0)[1:].tolist())]
    better = [i for i, a in enumerate(adjusted) if a <= 0.05 and gains[i] > 0]
    named = 0
    if better:
        ahead, error = paired(table, max(better, key=lambda i: gains[i]))
        critical = special.stdtrit(EQUAL - 1, 1 - 0.025 / (len(table) - 1))
        equal = [i for i in better if not -ahead[i] > critical * error[i] > 0]
        named = min(equal, key=lambda i: COSTS[fit.names[i]])
    within = abs(gains - fit.gains(null)) <= special.stdtrit(EQUAL - 1, 0.975) * errors
    return Outcome(named, bool(better), gains[fit.candidates], bool(within[1:].all()))


def paired(table: np.ndarray, reference: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean difference from a row, and its standard error."""
    d = np.round(table - table[reference], 12)
    return d.mean(axis=1), d.std(axis=1, ddof=1) / math.sqrt(table.shape[1])


# --- what is counted -------------------------------------------------------------------------

Counts = dict[tuple[str, str, str], list[float]]
"""(rule, pair or "grid", quantity) -> one value a grid, or a pair of grids."""


def quantities(fit: Fit, said: Outcome, half: Outcome | None) -> dict[str, float | None]:
    """What one pair of one grid shows; `half` is another grid of the same truth."""
    best = max(fit.candidates, key=lambda i: fit.means[i])
    rank = None if half is None else stats.spearmanr(said.gains, half.gains).statistic
    return {
        "best": said.named == best,
        "regret": 100 * (fit.means[best] - fit.means[said.named]),
        "proven": said.claimed,
        "covered": said.covered,
        "best in race": None if said.race is None else best in said.race,
        "race": None if said.race is None else len(said.race),
        "same name": None if half is None else said.named == half.named,
        "spearman": rank,
    }


def measure(grid: Grid, grids: int, **options) -> Counts:
    """Draws grids with the fitted effects, and as many without any."""
    counts: Counts = {}
    before: Outcomes = {}
    for number in range(grids):
        now, null = (
            screen_and_confirm(grid, np.random.default_rng([i, number]), i == 2, **options)
            | equal_seeds(grid, np.random.default_rng([i, number, 5]), i == 2)
            for i in (1, 2)
        )
        for rule, pairs in now.items():
            for name, said in pairs.items():
                half = before[rule][name] if number % 2 else None
                for quantity, value in quantities(grid[name], said, half).items():
                    if value is not None:
                        counts.setdefault((rule, name, quantity), []).append(float(value))
            claimed = [said.claimed for said in null[rule].values()]
            if None not in claimed:
                counts.setdefault((rule, "grid", "false claims"), []).append(float(any(claimed)))
        before = now
    return counts


def missed(fit: str, counts: Counts) -> list[str]:
    """Which targets do not hold within two standard errors, one line each."""
    lines = []
    for rule in ("shipped", "followed"):
        checks = [("grid", "false claims", FALSE_CLAIMS, 1)]
        for pair, (best, regret) in TARGETS[fit].items():
            checks += [(pair, "covered", COVERAGE, -1), (pair, "best", best, -1)]
            checks += [(pair, "regret", regret, 1)]
        for pair, quantity, limit, sign in checks:
            mean, error = summary(counts[rule, pair, quantity])
            if sign * (mean - limit) > error:
                lines.append(f"{fit}, {rule}, {pair}: {quantity} {mean:.4f}, wanted {limit}")
    return lines


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and two Monte-Carlo standard errors."""
    return float(np.mean(values)), 2 * float(np.std(values)) / math.sqrt(len(values))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="how often the decision is right")
    parser.add_argument("--grids", type=int, default=1000, help="how many are drawn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    options = parser.parse_args(arguments)
    lines, found = [], []
    print(f"{'':33}" + "".join(f"{rule:>19}" for rule in RULES))
    for fit, grid in fits().items():
        counts = measure(grid, options.grids)
        lines += missed(fit, counts)
        for pair, quantity in dict.fromkeys((pair, what) for _, pair, what in counts):
            line = f"{fit:14} {pair:5} {quantity:12}"
            for rule in RULES:
                values = counts.get((rule, pair, quantity))
                line += "{:9.4f} +- {:.4f}".format(*summary(values)) if values else f"{'-':>19}"
                if values:
                    found.append([fit, rule, pair, quantity, *summary(values), len(values)])
            print(line, flush=True)
    trained = len(COSTS) * DESIGN.screen + (DESIGN.finalists + 1) * DESIGN.confirm
    lines += [f"{trained} trainings a pair, wanted {TRAININGS}"] if trained > TRAININGS else []
    print(f"trainings a pair: {trained}; with every row alike: {len(COSTS) * EQUAL}")
    print("\n".join(lines) or "all targets hold within two Monte-Carlo standard errors")
    if options.json:
        keys = ("fit", "rule", "pair", "quantity", "mean", "two_standard_errors", "n")
        numbers = [dict(zip(keys, values, strict=True)) for values in found]
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
