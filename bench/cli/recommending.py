"""The command `recommend`: of a grid that was trained here, or of a CSV file from anywhere."""

import argparse
from collections.abc import Sequence

from bench.cli.recorded import fetch_costs, fetch_results, results_name, words_of
from bench.cli.terminal import say
from bench.decide.csv_file import read_csv
from bench.decide.decision import Decision, Question, decide
from bench.decide.evidence import Pair
from bench.decide.records import decide_plan
from bench.faults import UserError
from bench.report.answers import Asked, answer_lines, asked_of, overall_lines
from bench.workdir import WorkDir


def recommend(options: argparse.Namespace) -> int:
    """Says for each pair what is proven and what is the best bet."""
    limits = {"against": options.against, "max_cost": options.max_cost}
    if options.csv is not None:
        pairs = read_csv(options.csv, options.baseline)
        equal = not any(row.screening for pair in pairs for row in pair.rows)
        found = decide(pairs, Question(equal_seeds=equal, **limits))
        say(_lines(options, pairs, [pair.name for pair in pairs], found, Asked()))
        return 0
    work, name = WorkDir(options.work_dir), results_name(options)
    plan, records = fetch_results(work, name, options.origin, words_of(options))
    costs = fetch_costs(work, name, options.origin)
    pairs, found = decide_plan(plan, records, costs, **limits)
    if not pairs:
        raise UserError(f"grid {name}: no plain student has finished, and gains are over it")
    names = [f"{pair.teacher}:{pair.student}" for pair in pairs]
    say(_lines(options, list(pairs.values()), names, found, asked_of(plan)))
    return 0


def _lines(
    options: argparse.Namespace,
    pairs: Sequence[Pair],
    names: Sequence[str],
    found: Decision,
    asked: Asked,
) -> list[str]:
    only = options.pair
    if only is not None and only not in names:
        known = ", ".join(dict.fromkeys(names))
        raise UserError(f"--pair: no pair {only!r}; it has: {known}")
    shown = [
        (pair, answer)
        for pair, name, answer in zip(pairs, names, found.answers, strict=True)
        if only in (None, name)
    ]
    if not any(answer.named for _, answer in shown):
        problems = dict.fromkeys(f"{pair.name}: {answer.problem}" for pair, answer in shown)
        raise UserError(f"no answer: {'; '.join(problems)}")
    lines = [] if only else overall_lines(found.overall)
    return [*lines, *(line for p, a in shown for line in answer_lines(a, p, asked))]
